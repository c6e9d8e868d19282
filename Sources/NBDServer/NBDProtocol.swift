// The numbers of the NBD protocol that the server uses, and how the engine's outcomes look on the
// wire.
//
// Source: "The NBD protocol", doc/proto.md of github.com/NetworkBlockDevice/nbd. All integers are
// big-endian. Messages of the transmission phase:
//
//     request            magic 4 | flags 2 | command 2 | cookie 8 | offset 8 | length 4 [| payload]
//     simple reply       magic 4 | error 4 | cookie 8 [| payload]
//     structured chunk   magic 4 | flags 2 | type 2 | cookie 8 | length 4 | `length` bytes:
//       offset data        offset 8 | data
//       block status       context 4 | (length 4 | state 4)...
//       error              error 4 | message length 2 [| message]
//
// Messages of the handshake:
//
//     greeting           "NBDMAGIC" | "IHAVEOPT" | handshake flags 2
//     client flags       4
//     option             "IHAVEOPT" | option 4 | length 4 | data
//     option reply       magic 8 | option 4 | reply type 4 | length 4 | data

import Core

package enum NBD {
  package static let greetingMagic: UInt64 = 0x4E42_444D_4147_4943  // "NBDMAGIC"
  package static let optionMagic: UInt64 = 0x4948_4156_454F_5054  // "IHAVEOPT"
  package static let optionReplyMagic: UInt64 = 0x0003_E889_0455_65A9
  package static let requestMagic: UInt32 = 0x2560_9513
  package static let simpleReplyMagic: UInt32 = 0x6744_6698
  package static let chunkMagic: UInt32 = 0x668E_33EF

  package static let optionHeaderBytes = 16
  package static let optionReplyHeaderBytes = 20
  package static let requestBytes = 28
  package static let simpleReplyBytes = 16
  package static let chunkHeaderBytes = 20

  /// The limit that the protocol sets for strings: names, descriptions, queries.
  package static let maximumString = 4096
  /// The size constraints that the server advertises. The first is advice: the engine takes any
  /// offset and length.
  package static let minimumBlock: UInt32 = 512
  package static let preferredBlock: UInt32 = 4096
  package static let maximumPayload: UInt32 = 32 << 20
  /// A write that claims more than this is not skipped: its connection is closed.
  package static let longestSkippedPayload: UInt32 = 64 << 20

  package enum HandshakeFlag {
    package static let fixedNewstyle: UInt16 = 1
    package static let noZeroes: UInt16 = 2
  }

  package enum Option {
    package static let exportName: UInt32 = 1
    package static let abort: UInt32 = 2
    package static let list: UInt32 = 3
    package static let startTLS: UInt32 = 5
    package static let info: UInt32 = 6
    package static let go: UInt32 = 7
    package static let structuredReply: UInt32 = 8
    package static let listMetaContext: UInt32 = 9
    package static let setMetaContext: UInt32 = 10
    package static let extendedHeaders: UInt32 = 11
  }

  package enum Reply {
    package static let ack: UInt32 = 1
    package static let server: UInt32 = 2
    package static let info: UInt32 = 3
    package static let metaContext: UInt32 = 4
    package static let unsupported: UInt32 = 0x8000_0001
    package static let policy: UInt32 = 0x8000_0002
    package static let invalid: UInt32 = 0x8000_0003
    package static let unknown: UInt32 = 0x8000_0006
    package static let shutdown: UInt32 = 0x8000_0007
    package static let tooBig: UInt32 = 0x8000_0009
  }

  package enum Info {
    package static let export: UInt16 = 0
    package static let name: UInt16 = 1
    package static let description: UInt16 = 2
    package static let blockSize: UInt16 = 3
  }

  package enum TransmissionFlag {
    package static let hasFlags: UInt16 = 1 << 0
    package static let readOnly: UInt16 = 1 << 1
    package static let sendFlush: UInt16 = 1 << 2
    package static let sendFUA: UInt16 = 1 << 3
    package static let sendTrim: UInt16 = 1 << 5
    package static let sendWriteZeroes: UInt16 = 1 << 6
    package static let sendDF: UInt16 = 1 << 7
    package static let canMultiConn: UInt16 = 1 << 8
    package static let sendCache: UInt16 = 1 << 10
    package static let sendFastZero: UInt16 = 1 << 11
  }

  package enum Command {
    package static let read: UInt16 = 0
    package static let write: UInt16 = 1
    package static let disconnect: UInt16 = 2
    package static let flush: UInt16 = 3
    package static let trim: UInt16 = 4
    package static let cache: UInt16 = 5
    package static let writeZeroes: UInt16 = 6
    package static let blockStatus: UInt16 = 7
  }

  package enum CommandFlag {
    package static let fua: UInt16 = 1 << 0
    package static let noHole: UInt16 = 1 << 1
    package static let df: UInt16 = 1 << 2
    package static let reqOne: UInt16 = 1 << 3
    package static let fastZero: UInt16 = 1 << 4
  }

  package enum Chunk {
    package static let done: UInt16 = 1
    package static let none: UInt16 = 0
    package static let offsetData: UInt16 = 1
    package static let blockStatus: UInt16 = 5
    package static let error: UInt16 = 0x8001
  }

  package static let stateHoleAndZero: UInt32 = 3
  package static let stateDirty: UInt32 = 1
  package static let allocationContext = "base:allocation"
  /// With a snapshot's name behind it: what changed since, dirty or not.
  package static let changedContext = "sluice:changed:"
  /// The same for programs that know only QEMU's (docs/interop/nbd.txt of QEMU).
  package static let bitmapContext = "qemu:dirty-bitmap:"
  /// Contexts that one client may select.
  package static let maximumContexts = 8

  package enum Error {
    package static let none: UInt32 = 0
    package static let notPermitted: UInt32 = 1
    package static let inputOutput: UInt32 = 5
    package static let invalid: UInt32 = 22
    package static let noSpace: UInt32 = 28
    package static let overflow: UInt32 = 75
    package static let shutdown: UInt32 = 108
  }
}

extension BlockStatus {
  /// The engine's outcome as an NBD error value: the one place where they meet.
  @inline(__always) package var wireError: UInt32 {
    switch self {
    case .ok: NBD.Error.none
    case .ioError: NBD.Error.inputOutput
    case .noSpace: NBD.Error.noSpace
    case .readOnly: NBD.Error.notPermitted
    case .invalid: NBD.Error.invalid
    case .stopping: NBD.Error.shutdown
    }
  }
}

extension ControlError {
  /// Why a disk could not be opened, as the type of an option's error reply.
  var optionReply: UInt32 {
    switch self {
    case .noSuchDisk, .noSuchSnapshot, .badName: NBD.Reply.unknown
    case .stopping: NBD.Reply.shutdown
    default: NBD.Reply.policy
    }
  }

  /// Why changes could not be told, as an NBD error value.
  var wireError: UInt32 {
    switch self {
    case .noSuchDisk, .noSuchSnapshot, .notOfOneLine, .badName: NBD.Error.invalid
    case .stopping: NBD.Error.shutdown
    default: NBD.Error.inputOutput
    }
  }
}

extension UnsafeMutableRawPointer {
  /// Stores `value` big-endian; the caller has checked the room.
  @inline(__always) func putBig(_ value: some FixedWidthInteger, at offset: Int) {
    storeBytes(of: value.bigEndian, toByteOffset: offset, as: type(of: value))
  }
}

extension UnsafeRawPointer {
  /// Loads a big-endian number; the caller has checked that it lies within what was received.
  @inline(__always) func big<T: FixedWidthInteger & BitwiseCopyable>(
    _ offset: Int, as type: T.Type
  ) -> T {
    T(bigEndian: loadUnaligned(fromByteOffset: offset, as: type))
  }
}

/// A cursor over the data of an option, bounds-checked: what is not there reads as nil.
struct OptionReader {
  private let bytes: UnsafeRawBufferPointer
  private var position = 0

  init(_ bytes: UnsafeRawBufferPointer) { self.bytes = bytes }

  var remaining: Int { bytes.count - position }

  mutating func number<T: FixedWidthInteger & BitwiseCopyable>(_ type: T.Type) -> T? {
    let width = MemoryLayout<T>.size
    guard remaining >= width else { return nil }
    defer { position += width }
    return T(bigEndian: bytes.loadUnaligned(fromByteOffset: position, as: type))
  }

  /// The next `count` bytes.
  mutating func take(_ count: Int) -> UnsafeRawBufferPointer? {
    guard count >= 0, count <= remaining else { return nil }
    defer { position += count }
    return UnsafeRawBufferPointer(rebasing: bytes[position..<position + count])
  }

  /// A string with its 32-bit length before it, as the protocol allows them.
  mutating func string() -> UnsafeRawBufferPointer? {
    guard let count = number(UInt32.self), count <= NBD.maximumString else { return nil }
    return take(Int(count))
  }
}
