import ControlAPI
import ControlServer
import Core
import Testing

@Suite("JSON of the API")
struct MessageTests {
  private func disk(comment: String, origin: String?, readOnly: Bool) -> Disk {
    Disk(
      name: "a/b%20c", id: "0100000000000010", size: 1 << 50, used: .max, exclusive: 0,
      origin: origin, created: "2026-03-01T12:00:00Z", snapshots: 3, connections: 2,
      generation: 7, readOnly: readOnly, durability: .flush, comment: comment)
  }

  @Test(
    "A disk written by hand is the disk that the encoder writes",
    arguments: [
      "", "plain", "\"\\/\u{8}\u{c}\n\r\t\u{0}\u{1f}\u{7f}", "é 漢 🦆 \u{2028}",
      String(repeating: "x", count: 512),
    ])
  func appendedDisk(comment: String) throws {
    for (origin, readOnly) in [(nil, true), ("gold@1", false)] {
      let disk = disk(comment: comment, origin: origin, readOnly: readOnly)
      var bytes: [UInt8] = []
      disk.appendJSON(to: &bytes)
      #expect(try JSONText.decode(Disk.self, from: bytes) == disk)
      if !comment.contains("\"") {
        #expect(try JSONText.encode(disk) == bytes)
      }
    }
  }

  @Test("A list is read back as it was written, and as any other JSON that says the same")
  func lists() throws {
    let disks = [
      disk(comment: "\"\\\n\u{1}é", origin: nil, readOnly: true),
      disk(comment: "", origin: "gold@1", readOnly: false),
    ]
    for count in 0...2 {
      var bytes = Array("[".utf8)
      for (i, disk) in disks.prefix(count).enumerated() {
        bytes += Array((i == 0 ? "\n" : ",\n").utf8)
        disk.appendJSON(to: &bytes)
      }
      bytes += Array((count == 0 ? "]\n" : "\n]\n").utf8)
      #expect(try Disk.list(decoding: bytes) == Array(disks.prefix(count)))
      #expect(
        try Disk.list(decoding: JSONText.encode(Array(disks.prefix(count)), pretty: true))
          == Array(disks.prefix(count)))
      for end in 0..<(bytes.count - 1) {
        #expect(throws: (any Error).self) { try Disk.list(decoding: Array(bytes[..<end])) }
      }
    }
  }

  @Test("A disk has the promised keys, and a null for no origin")
  func diskKeys() throws {
    let bytes = try JSONText.encode(disk(comment: "", origin: nil, readOnly: false))
    let text = String(decoding: bytes, as: UTF8.self)
    for key in [
      "name", "id", "size", "used", "exclusive", "created", "snapshots", "connections",
      "generation", "read_only", "durability",
    ] { #expect(text.contains("\"\(key)\":")) }
    #expect(text.contains("\"origin\":null"))
  }

  @Test("A snapshot and a change written by hand are what the encoder writes")
  func appendedSnapshots() throws {
    let snapshot = Snapshot(
      disk: "a/b%20c", name: "s.1", id: "0100000000000010", size: 1 << 50,
      created: "2026-03-01T12:00:00Z", used: .max, exclusive: 0, clones: 3,
      group: "0100000000000009", held: true)
    var bytes: [UInt8] = []
    snapshot.appendJSON(to: &bytes)
    #expect(try JSONText.encode(snapshot) == bytes)
    for change in [
      Change(offset: 0, length: .max, type: .zero), Change(offset: 4096, length: 512, type: .data),
    ] {
      bytes = []
      change.appendJSON(to: &bytes)
      #expect(try JSONText.encode(change) == bytes)
    }
  }

  @Test(
    "A body with an unknown, missing, null or mistyped field is refused by its name",
    arguments: [
      (#"{"name":"a","size":512,"sise":1}"#, "“sise”"), (#"{"name":"a"}"#, "“size”"),
      (#"{"name":"a","size":"64G"}"#, "“size”"), (#"{"name":"a","size":-1}"#, ""),
      (#"{"name":null,"size":1}"#, "“name”"), (#"[]"#, "top level"),
      (#"{"name":"a","size":1.5}"#, ""),
      (#"{"#, "not valid JSON"), ("", "not valid JSON"), ("\u{0}", "not valid JSON"),
    ])
  func refusedBodies(text: String, named: String) throws {
    let error = #expect(throws: (any Error).self) {
      try JSONText.decode(CreateDisk.self, from: Array(text.utf8))
    }
    let reason = JSONText.reason(try #require(error))
    #expect(named.isEmpty || reason.contains(named), "\(reason)")
  }

  @Test("Deeply nested JSON is an error, not a crash")
  func nestedBodies() {
    let text = String(repeating: "[", count: 500_000)
    #expect(throws: (any Error).self) {
      try JSONText.decode(CreateDisk.self, from: Array(text.utf8))
    }
  }

  @Test("A problem keeps its kind through JSON, and no two kinds share a type")
  func problems() throws {
    var types: Set<String> = []
    for kind in Problem.Kind.allCases {
      let problem = Problem(kind, "a sentence")
      #expect(types.insert(problem.type).inserted)
      let back = try JSONText.decode(Problem.self, from: try JSONText.encode(problem))
      #expect(back == problem)
      #expect(back.kind == kind)
    }
  }

  @Test(
    "Every error of the engine is a problem with its own sentence and a status of the right class",
    arguments: [
      (.noSuchDisk("a"), 404), (.alreadyExists("a"), 409), (.inUse("a", connections: 1), 409),
      (.hasSnapshots("a", count: 2), 409), (.wouldShrink("a"), 409), (.badName("n"), 400),
      (.badSize("s"), 400), (.noSpace, 507), (.suspended, 503), (.stopping, 503),
      (.ioError("x"), 500), (.noSuchSnapshot(.init(disk: "a", snapshot: "s")), 404),
      (.snapshotExists(.init(disk: "a", snapshot: "s")), 409),
      (.isHeld(.init(disk: "a", snapshot: "s")), 409), (.notOfOneLine("a@s", "b"), 409),
    ] as [(ControlError, Int)])
  func engineErrors(error: ControlError, status: Int) {
    let problem = Problem(error)
    #expect(problem.status == status)
    #expect(problem.detail == error.description)
  }
}
