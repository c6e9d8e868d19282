import ControlAPI
import Testing

@Suite("Sizes, names, addresses and times as text")
struct TextTests {
  @Test(
    "A size is read with units that are powers of two",
    arguments: [
      ("0", 0), ("512", 512), ("4K", 4096), ("100M", 100 << 20), ("64g", 64 << 30),
      ("1T", 1 << 40), ("1P", 1 << 50), ("2GiB", 2 << 30), ("7E", 7 << 60),
    ] as [(String, UInt64)])
  func readsSizes(text: String, bytes: UInt64) { #expect(ByteSize(text)?.bytes == bytes) }

  @Test(
    "What is not a size, or does not fit 63 bits, is refused",
    arguments: [
      "", "K", "-1", "+1", "1.5G", "4KB", "4X", "4 K", "8E", "9223372036854775808",
      "99999999999999999999", "4Ki", "0x10",
    ])
  func refusesSizes(text: String) { #expect(ByteSize(text) == nil) }

  @Test(
    "A size is printed with one decimal, rounded to the nearest",
    arguments: [
      (0, "0 B"), (512, "512 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"),
      ((1 << 20) - 1, "1 MiB"), (64 << 30, "64 GiB"), ((1 << 40) + (1 << 37), "1.1 TiB"),
      (UInt64.max, "16 EiB"),
    ] as [(UInt64, String)])
  func printsSizes(bytes: UInt64, text: String) {
    #expect(ByteSize(bytes: bytes).description == text)
  }

  @Test("A size is rounded up to whole sectors")
  func roundsUp() {
    #expect(
      [0, 1, 512, 513].map { ByteSize(bytes: $0).roundedUpToSector.bytes } == [0, 512, 512, 1024])
  }

  @Test(
    "A plain name is its own spelling",
    arguments: ["a", "a/b/c", "web-1.img", "_", "...", String(repeating: "x", count: 255)])
  func plainNames(text: String) throws {
    let name = try DiskName(creating: text)
    #expect(name.spelled == text)
  }

  @Test(
    "An encoded name has one spelling",
    arguments: [
      ("a%20b", "a%20b"), ("caf%c3%a9", "caf%C3%A9"), ("%41", "A"), ("a%40s", "a%40s"),
      ("d/%FF", "d/%FF"), ("100%25", "100%25"),
    ])
  func encodedNames(text: String, spelled: String) throws {
    #expect(try DiskName(text).spelled == spelled)
    #expect((try? DiskName(creating: text)) == nil || !spelled.contains("%"))
  }

  @Test(
    "What is not a name is refused with the rule that it breaks",
    arguments: [
      ("", .empty), ("/a", .empty), ("a//b", .empty), ("a/", .empty), (".", .dots), ("a/..", .dots),
      ("%2E", .dots), ("a b", .characters), ("a@b", .characters), ("é", .characters),
      ("a\n", .characters), ("%", .encoding), ("%4", .encoding), ("%zz", .encoding),
      ("a%2Fb", .encoding), ("%00", .encoding), (String(repeating: "x", count: 256), .tooLong),
      (String(repeating: "x/", count: 2048) + "x", .tooLong),
    ] as [(String, DiskNameError.Rule)])
  func refusesNames(text: String, rule: DiskNameError.Rule) {
    #expect(throws: DiskNameError(name: text, broken: rule)) { try DiskName(text) }
  }

  @Test("A segment of 255 encoded bytes is a name")
  func longestEncoded() throws {
    let name = try DiskName(String(repeating: "%ff", count: 255))
    #expect(name.spelled.utf8.count == 765)
  }

  @Test("A name as a path segment comes back by decoding")
  func pathSegments() {
    let text = "a/b%20é~\u{0}"
    let encoded = percentEncodedSegment(text)
    #expect(encoded == "a%2Fb%2520%C3%A9~%00")
    #expect(percentDecoded(encoded.utf8) == Array(text.utf8))
  }

  @Test(
    "An address is a socket path or a host with a port",
    arguments: [
      ("unix:/run/a:b.sock", .unix(path: "/run/a:b.sock")),
      ("127.0.0.1:10809", .tcp(host: "127.0.0.1", port: 10809)),
      ("[::1]:7440", .tcp(host: "::1", port: 7440)), ("h:1", .tcp(host: "h", port: 1)),
    ] as [(String, ListenAddress)])
  func readsAddresses(text: String, address: ListenAddress) throws {
    let read = try ListenAddress(text)
    #expect(read == address)
    #expect(read.description == text)
  }

  @Test(
    "What is not an address is refused with the rule that it breaks",
    arguments: [
      ("", .form), ("host", .form), (":80", .form), ("unix:", .form), ("a b:80", .form),
      ("host:", .port), ("host:0", .port), ("host:65536", .port), ("host:+80", .port),
      ("::1:80", .brackets), ("unix:/" + String(repeating: "x", count: 107), .path),
    ] as [(String, AddressError.Rule)])
  func refusesAddresses(text: String, rule: AddressError.Rule) {
    #expect(throws: AddressError(address: text, broken: rule)) { try ListenAddress(text) }
  }

  @Test("Only UNIX sockets and loopback addresses are local")
  func localAddresses() throws {
    let local = ["unix:/x", "localhost:1", "LocalHost:1", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1"]
    let remote = ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "127.example.org:1", "127.0.0.1.example:1"]
    for text in local { #expect(try ListenAddress(text).isLocal, "\(text)") }
    for text in remote { #expect(try !ListenAddress(text).isLocal, "\(text)") }
  }

  @Test(
    "A time is printed in UTC with whole seconds",
    arguments: [
      (0, "1970-01-01T00:00:00Z"), (951_782_399, "2000-02-28T23:59:59Z"),
      (951_782_400, "2000-02-29T00:00:00Z"), (1_772_366_400, "2026-03-01T12:00:00Z"),
      (4_107_542_400, "2100-03-01T00:00:00Z"), (1_735_689_599, "2024-12-31T23:59:59Z"),
    ] as [(UInt64, String)])
  func printsTimes(seconds: UInt64, text: String) {
    #expect(rfc3339(nanosecondsSince1970: seconds * 1_000_000_000 + 999_999_999) == text)
  }
}
