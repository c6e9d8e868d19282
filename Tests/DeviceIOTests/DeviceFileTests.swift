import Core
import DeviceIO
import Glibc
import Testing

@Suite struct DeviceFileTests {
  @Test func `a sparse file takes no space and is told as sparse`() throws {
    let scratch = try Scratch()
    try DeviceFile.create(path: scratch.file("v"), size: 1 << 40, writtenInFull: false)
    let file = try DeviceFile(path: scratch.file("v"))
    #expect(file.description.size == 1 << 40)
    #expect(file.description.isSparseFile)
    #expect(file.description.canDiscard)
    #expect(scratch.allocated("v") < 1 << 20)
    #expect(try #require(file.fileSystemFree) > 0)
  }

  @Test func `a file written in full is not sparse and reads as zeros`() throws {
    let scratch = try Scratch()
    try DeviceFile.create(path: scratch.file("l"), size: 3 << 20 | 5, writtenInFull: true)
    let file = try DeviceFile(path: scratch.file("l"))
    #expect(file.description.size == 3 << 20 + 4096)
    #expect(!file.description.isSparseFile)
    #expect(!file.description.canDiscard)
    let content = try file.read(offset: 3 << 20, length: 4096)
    #expect(isZeroBlock(content.base))
  }

  @Test func `an existing file is never created over`() throws {
    let scratch = try Scratch()
    try DeviceFile.create(path: scratch.file("a"), size: 4096, writtenInFull: false)
    #expect(throws: DeviceError.alreadyExists(path: scratch.file("a"))) {
      try DeviceFile.create(path: scratch.file("a"), size: 4096, writtenInFull: true)
    }
  }

  @Test func `a file larger than the file system's room is refused and leaves nothing`() throws {
    let scratch = try Scratch()
    do throws(DeviceError) {
      try DeviceFile.create(path: scratch.file("a"), size: 1 << 50, writtenInFull: true)
      Issue.record("a file of 1 PiB was created")
    } catch {
      guard case .noRoom = error else {
        Issue.record("unexpected: \(error)")
        return
      }
    }
    #expect(access(scratch.file("a"), F_OK) != 0)
  }

  @Test func `a device that is open can't be opened again, by any of its names`() throws {
    let scratch = try Scratch()
    try DeviceFile.create(path: scratch.file("a"), size: 1 << 20, writtenInFull: false)
    #expect(link(scratch.file("a"), scratch.file("b")) == 0)
    #expect(symlink(scratch.file("a"), scratch.file("c")) == 0)
    var first: DeviceFile? = try DeviceFile(path: scratch.file("a"))
    #expect(first != nil)
    for name in ["a", "b", "c"] {
      #expect(throws: DeviceError.inUse(path: scratch.file(name), seconds: 0)) {
        try DeviceFile(path: scratch.file(name), access: .readOnly, lockSeconds: 0)
      }
    }
    first = nil
    _ = try DeviceFile(path: scratch.file("b"), lockSeconds: 0)
  }

  @Test func `an open waits for a lock that is about to go`() throws {
    let scratch = try Scratch()
    let path = scratch.file("a")
    try DeviceFile.create(path: path, size: 1 << 20, writtenInFull: false)
    let holder = lockHolder(path, milliseconds: 400)
    defer { waitpid(holder, nil, 0) }
    #expect(holder > 0)
    let start = monotonicNanoseconds()
    _ = try DeviceFile(path: path, lockSeconds: 10)
    #expect(monotonicNanoseconds() - start > 100_000_000)
  }

  @Test func `what is no device is refused with its name`() throws {
    let scratch = try Scratch()
    #expect(throws: DeviceError.notADevice(path: scratch.path)) {
      try DeviceFile(path: scratch.path)
    }
    #expect(throws: DeviceError.notADevice(path: "/dev/null")) {
      try DeviceFile(path: "/dev/null")
    }
    #expect(throws: DeviceError.cannotOpen(path: scratch.file("no"), errno: ENOENT)) {
      try DeviceFile(path: scratch.file("no"))
    }
    #expect(mkfifo(scratch.file("fifo"), 0o600) == 0)
    #expect(throws: DeviceError.notADevice(path: scratch.file("fifo"))) {
      try DeviceFile(path: scratch.file("fifo"))
    }
  }

  @Test(arguments: [true, false])
  func `what was written is read back, with and without direct I/O`(direct: Bool) throws {
    let scratch = try Scratch()
    try DeviceFile.create(path: scratch.file("a"), size: 1 << 20, writtenInFull: false)
    let file = try DeviceFile(path: scratch.file("a"), direct: direct)
    if !direct { #expect(!file.directIO) }
    let data = patternMemory(blocks: 5, seed: 3)
    try file.write(offset: 8192, from: data.base, length: data.count, durable: true)
    try file.write(offset: 65536, from: data.base, length: data.count)
    try file.flush()
    #expect(sameBytes(try file.read(offset: 8192, length: data.count), data))
    #expect(sameBytes(try file.read(offset: 65536, length: data.count), data))
  }

  @Test func `reading past the end is an error, never zeros`() throws {
    let scratch = try Scratch()
    try DeviceFile.create(path: scratch.file("a"), size: 8192, writtenInFull: false)
    let file = try DeviceFile(path: scratch.file("a"))
    #expect(throws: DeviceError.self) { try file.read(offset: 4096, length: 8192) }
  }
}

/// A child process that holds the lock on `path` for a while, started by the shell's flock(1).
private func lockHolder(_ path: String, milliseconds: Int) -> pid_t {
  let ready = path + ".ready"
  let script = "exec 9<'\(path)'; flock 9; : >'\(ready)'; sleep \(Double(milliseconds) / 1000)"
  var child = pid_t()
  let arguments = ["/bin/sh", "-c", script].map { $0.withCString { strdup($0) } } + [nil]
  defer { for a in arguments { free(a) } }
  guard posix_spawn(&child, "/bin/sh", nil, nil, arguments, environ) == 0 else { return -1 }
  while access(ready, F_OK) != 0 { usleep(1000) }
  return child
}
