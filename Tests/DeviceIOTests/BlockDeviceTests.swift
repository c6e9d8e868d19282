import Core
import DeviceIO
import Glibc
import Testing

/// Standard output of a shell command; nil when it fails.
private func shell(_ command: String) -> String? {
  guard let pipe = popen(command + " 2>/dev/null", "r") else { return nil }
  var bytes = [UInt8](repeating: 0, count: 4096)
  let count = fread(&bytes, 1, bytes.count, pipe)
  guard pclose(pipe) == 0 else { return nil }
  return String(decoding: bytes[..<count].prefix { $0 != 10 }, as: UTF8.self)
}

/// A loop device over a sparse file of `Scratch`; needs root.
private final class LoopDevice {
  let path: String

  init?(over file: String) {
    guard let path = shell("losetup --find --show --direct-io=on '\(file)'") else { return nil }
    self.path = path
  }

  deinit { _ = shell("losetup -d \(path)") }

  static let isPossible: Bool = {
    guard getuid() == 0, let scratch = try? Scratch() else { return false }
    let made: Void? = try? DeviceFile.create(
      path: scratch.file("probe"), size: 1 << 20, writtenInFull: false)
    return made != nil && LoopDevice(over: scratch.file("probe")) != nil
  }()
}

@Suite(.serialized, .enabled(if: LoopDevice.isPossible, "loop devices need root"))
struct BlockDeviceTests {
  private let scratch: Scratch
  private let device: LoopDevice

  init() throws {
    scratch = try Scratch()
    try DeviceFile.create(path: scratch.file("disk"), size: 16 << 20, writtenInFull: false)
    device = try #require(LoopDevice(over: scratch.file("disk")))
  }

  @Test func `a block device has its size, is not sparse, and is written durably`() throws {
    let file = try DeviceFile(path: device.path)
    #expect(file.isBlockDevice)
    #expect(file.description.size == 16 << 20)
    #expect(!file.description.isSparseFile)
    #expect(file.fileSystemFree == nil)
    let reactor = try Reactor()
    reactor.attach(file, as: .volume(0))
    let data = patternMemory(blocks: 70, seed: 8)
    #expect(reactor.run(.writeDurable, offset: 4096, data, device: .volume(0)) == 0)
    #expect(sameBytes(try file.read(offset: 4096, length: data.count), data))
    #expect(reactor.run(.flush, device: .volume(0)) == 0)
    #expect(reactor.run(.allocate, offset: 0, length: 1 << 20, device: .volume(0)) == 0)
  }

  @Test func `discarded ranges of a block device go back to what is behind it`() throws {
    let file = try DeviceFile(path: device.path)
    #expect(file.description.canDiscard)
    let reactor = try Reactor()
    reactor.attach(file, as: .log)
    #expect(reactor.run(.writeDurable, offset: 0, patternMemory(blocks: 2048, seed: 1)) == 0)
    #expect(scratch.allocated("disk") >= 8 << 20)
    let ops = (0..<4).map { i in
      DeviceOp(
        kind: .discard, device: .log, offset: UInt64(i) << 21, length: 2 << 20, memory: nil,
        token: UInt64(i))
    }
    #expect(reactor.run(ops).values.allSatisfy { $0 == 0 })
    #expect(scratch.allocated("disk") < 1 << 20)
    #expect(reactor.underWay == 0)
  }

  @Test func `two nodes of one block device collide, and so does a mount`() throws {
    let other = scratch.file("node")
    var status = stat()
    try #require(stat(device.path, &status) == 0)
    try #require(mknod(other, S_IFBLK | 0o600, status.st_rdev) == 0)
    var first: DeviceFile? = try DeviceFile(path: device.path)
    #expect(first != nil)
    #expect(throws: DeviceError.inUse(path: other, seconds: 0)) {
      try DeviceFile(path: other, lockSeconds: 0)
    }
    first = nil
    // A process that another test has just forked may hold it until it executes its program.
    _ = try DeviceFile(path: other, lockSeconds: 5)
    try #require(shell("mkfs.ext4 -q \(device.path)") != nil)
    try #require(mkdir(scratch.file("mnt"), 0o700) == 0)
    try #require(shell("mount \(device.path) \(scratch.file("mnt"))") != nil)
    defer {
      _ = shell("umount \(scratch.file("mnt"))")
      rmdir(scratch.file("mnt"))
    }
    #expect(throws: DeviceError.inUse(path: device.path, seconds: 0)) {
      try DeviceFile(path: device.path, lockSeconds: 0)
    }
  }

  @Test func `a read that fails on the device is an error and not data`() throws {
    let file = try DeviceFile(path: device.path)
    let reactor = try Reactor()
    reactor.attach(file, as: .log)
    #expect(truncate(scratch.file("disk"), 8 << 20) == 0)
    #expect(reactor.run(.read, offset: 12 << 20, AlignedMemory(bytes: 65536)) == EIO)
    #expect(reactor.run(.read, offset: 0, AlignedMemory(bytes: 65536)) == 0)
  }
}
