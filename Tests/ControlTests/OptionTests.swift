import ArgumentParser
import Commands
import ControlAPI
import Testing

@Suite("Options of serve, pool and check")
struct OptionTests {
  private func serve(_ arguments: String...) throws -> ServeOptions {
    try ServeCommand.parse(arguments).options()
  }

  @Test("Serve listens on the pool's own sockets unless it is told otherwise")
  func serveDefaults() throws {
    let options = try serve("--pool", "var/pool")
    #expect(options.nbd == [.unix(path: "var/pool/nbd.sock")])
    #expect(options.api == [.unix(path: "var/pool/api.sock")])
    #expect(options.cache.bytes == 100 << 20 && options.durability == .always)
    #expect(try serve("--pool", "p/").nbd == [.unix(path: "p/nbd.sock")])
  }

  @Test("Given addresses replace the default of their kind only")
  func serveAddresses() throws {
    let options = try serve(
      "--pool", "p", "--nbd", "127.0.0.1:10809", "--nbd", "unix:/n", "--cache", "16M",
      "--durability", "flush")
    #expect(options.nbd == [.tcp(host: "127.0.0.1", port: 10809), .unix(path: "/n")])
    #expect(options.api == [.unix(path: "p/api.sock")])
    #expect(options.cache.bytes == 16 << 20 && options.durability == .flush)
  }

  @Test("An address beyond loopback needs --insecure")
  func serveInsecure() throws {
    for kind in ["--nbd", "--api"] {
      let error = #expect(throws: (any Error).self) { try serve("--pool", "p", kind, "0.0.0.0:1") }
      #expect(ServeCommand.message(for: try #require(error)).contains("--insecure"))
      #expect(throws: Never.self) { try serve("--pool", "p", kind, "0.0.0.0:1", "--insecure") }
    }
  }

  @Test(
    "Serve refuses wrong values as wrong usage",
    arguments: [
      [], ["--pool", ""], ["--pool", "p", "--nbd", "x"], ["--pool", "p", "--cache", "1"],
      ["--pool", "p", "--cache", "1G"], ["--pool", "p", "--cache", "lots"],
      ["--pool", "p", "--durability", "never"], ["--pool", "p", "--api", "unix:"],
      ["--pool", "p", "--nbd", "unix:/x", "--api", "unix:/x"],
      ["--pool", String(repeating: "x", count: 120)],
    ])
  func serveRefusals(arguments: [String]) throws {
    let error = #expect(throws: (any Error).self) { try ServeCommand.parse(arguments) }
    #expect(ServeCommand.exitCode(for: try #require(error)) == .validationFailure)
  }

  @Test("A member is a path, with a size when that is not part of an existing path")
  func members() throws {
    let none: (String) -> Bool = { _ in false }
    #expect(try MemberPath("/d/x:1T", exists: none) == .init(path: "/d/x", size: .init("1T")))
    #expect(try MemberPath("/dev/sdb", exists: none) == .init(path: "/dev/sdb"))
    #expect(try MemberPath("/d/a:b", exists: none) == .init(path: "/d/a:b"))
    let device = "/dev/disk/by-path/pci-0:1:0:0"
    #expect(try MemberPath(device, exists: { $0 == device }) == .init(path: device))
    for text in ["", ":1T", "/x:1K"] {
      #expect(throws: ValidationError.self) { try MemberPath(text, exists: none) }
    }
  }

  @Test("A pool is named after its directory, or as told")
  func poolNames() throws {
    func name(_ arguments: String...) throws -> String {
      try PoolCreate.parse(arguments).options().name
    }
    #expect(try name("/srv/tank/") == "tank")
    #expect(try name("my pool", "--name", "tank") == "tank")
    for arguments in [["my pool"], ["/"], [".."], ["p", "--name", "a/b"], ["p", "--name", ""]] {
      #expect(throws: (any Error).self) { try PoolCreate.parse(arguments) }
    }
  }

  @Test("A pool takes one log and any number of volumes, each once")
  func poolMembers() throws {
    let options = try PoolCreate.parse([
      "p", "--log", "/absent/l:1G", "--space", "/absent/a:1T", "--space", "/absent/b",
    ]).options()
    #expect(options.log == MemberPath(path: "/absent/l", size: ByteSize("1G")))
    #expect(options.space.map(\.path) == ["/absent/a", "/absent/b"] && !options.force)
    #expect(throws: (any Error).self) {
      try PoolCreate.parse(["p", "--log", "/absent/l", "--space", "/absent/l:1G"])
    }
  }

  @Test("Check writes only with --repair")
  func check() throws {
    #expect(try !CheckCommand.parse(["--pool", "p"]).options().repair)
    #expect(try CheckCommand.parse(["--pool", "p", "--repair", "--json"]).options().repair)
    #expect(throws: (any Error).self) { try CheckCommand.parse(["--pool", ""]) }
  }
}
