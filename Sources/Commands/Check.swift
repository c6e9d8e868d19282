// The offline verification: the checker over locked member devices.

import ArgumentParser
import Checker
import ControlAPI
import Core
import Daemon
import DeviceIO

/// A locked member device as the checker wants it.
private final class CheckedDevice: CheckDevice {
  private let file: DeviceFile
  let sizeInBytes: UInt64

  init(_ file: DeviceFile) {
    self.file = file
    sizeInBytes = file.description.size
  }

  func read(offset: UInt64, into memory: UnsafeMutableRawBufferPointer) throws(CheckReadError) {
    do throws(DeviceError) {
      try file.read(offset: offset, into: memory.baseAddress!, length: memory.count)
    } catch { throw CheckReadError(errno: 5) }
  }

  func write(offset: UInt64, from memory: UnsafeRawBufferPointer) throws(CheckReadError) {
    do throws(DeviceError) {
      try file.write(
        offset: offset, from: memory.baseAddress!, length: memory.count, durable: true)
    } catch { throw CheckReadError(errno: 5) }
  }

  func flush() throws(CheckReadError) {
    do throws(DeviceError) { try file.flush() } catch { throw CheckReadError(errno: 5) }
  }
}

private struct CheckResult: Codable {
  var clean: Bool
  var complaints: [String]
  var notes: [String]
  var repaired: [String]
  var damagedBlocks: UInt64
}

func runCheck(_ options: CheckOptions) throws {
  let members = try PoolMembers(
    directory: options.pool, access: options.repair ? .readWrite : .readOnly)
  var settings = Checker.Options()
  settings.repair = options.repair
  settings.acceptLogLoss = options.repair
  let report = Checker(
    log: CheckedDevice(members.log), volumes: members.volumes.map { CheckedDevice($0) },
    options: settings
  ).run()
  if let failure = report.failure { throw CommandError(failure) }
  let clean = report.outcome == .clean
  if options.json {
    try Output.write(
      JSONText.encode(
        CheckResult(
          clean: clean, complaints: report.complaints, notes: report.notes,
          repaired: report.repaired, damagedBlocks: report.damagedBlockCount)))
  } else {
    for line in report.repaired + report.notes + report.complaints { try Output.print(line) }
    let counters = report.counters
    try Output.print(
      clean
        ? "clean: \(counters.verifiedBlocks) data blocks, \(counters.metadataNodes) metadata blocks, "
          + "\(counters.frames) frames of the log"
        : "\(report.complaintCount) complaints, \(report.damagedBlockCount) damaged blocks")
  }
  if !clean { throw ExitCode(2) }
}
