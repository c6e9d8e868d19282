import Core
import DeviceIO

/// The locked member devices of one pool, with the labels that make them a pool.
package struct PoolMembers {
  package var log: DeviceFile
  package var logLabel: DeviceLabel
  package var volumes: [DeviceFile]
  package var volumeLabels: [DeviceLabel]

  /// Opens and locks all members that the pool's directory names, and checks that they belong
  /// together. Waits up to 10 s for each lock.
  package init(
    directory: String, access: DeviceFile.Access = .readWrite
  ) throws {
    let hint = try PoolDirectory(readingFrom: directory)
    try self.init(
      log: PoolDirectory.resolve(hint.log, in: directory),
      space: hint.space.map { PoolDirectory.resolve($0, in: directory) }, access: access)
    guard logLabel.pool.description == hint.uuid else {
      throw PoolError(
        "the log device “\(log.path)” belongs to pool “\(logLabel.poolName)” (\(logLabel.pool)), not "
          + "to the pool of “\(directory)” (\(hint.uuid)); bring back the right device")
    }
  }

  package init(log: String, space: [String], access: DeviceFile.Access) throws {
    self.log = try DeviceFile(path: log, access: access)
    logLabel = try Self.label(of: self.log)
    guard logLabel.role == .log else {
      throw PoolError("“\(log)” is a volume of pool “\(logLabel.poolName)”, not a log")
    }
    volumes = []
    volumeLabels = []
    for (index, path) in space.enumerated() {
      let file = try DeviceFile(path: path, access: access)
      let label = try Self.label(of: file)
      guard label.pool == logLabel.pool else {
        throw PoolError(
          "“\(path)” belongs to pool “\(label.poolName)” (\(label.pool)), the log to "
            + "“\(logLabel.poolName)” (\(logLabel.pool)); bring back the right device")
      }
      guard label.role == .volume, Int(label.volumeIndex) == index else {
        throw PoolError(
          "“\(path)” is not volume \(index) of the pool; run `sluice pool open` with all its devices"
        )
      }
      volumes.append(file)
      volumeLabels.append(label)
    }
  }

  /// The label of a device, or of its copy; why it is none as a sentence.
  package static func label(of file: DeviceFile) throws -> DeviceLabel {
    let blocks = file.description.size >> blockShift
    guard blocks >= 2 else { throw PoolError("“\(file.path)” is too small to be part of a pool") }
    var reason = LabelError.notSluice
    for block in [LogLayout.label, LogLayout.labelCopy] {
      guard let memory = try? file.read(offset: block << blockShift, length: blockSize) else {
        if reason == .notSluice { reason = .damaged }
        continue
      }
      do throws(LabelError) {
        return try DeviceLabel(decoding: memory.base, actualSizeInBlocks: blocks)
      } catch {
        if reason == .notSluice { reason = error }
      }
    }
    throw PoolError(Self.sentence(reason, file.path))
  }

  static func sentence(_ reason: LabelError, _ path: String) -> String {
    switch reason {
    case .notSluice:
      "“\(path)” carries no label of Sluice; it is another device, or was overwritten"
    case .damaged:
      "the label of “\(path)” is damaged or can't be read, and its copy as well; was it overwritten?"
    case .newerFormat(let version):
      "“\(path)” has format version \(version), newer than this program; use a newer Sluice"
    case .truncated(let labelled, let actual):
      "“\(path)” has \(actual << blockShift) bytes but was labelled with \(labelled << blockShift): "
        + "it was truncated; bring back its full size"
    }
  }

  /// What the engine needs to know.
  package func configuration() throws -> PoolConfiguration {
    guard let geometry = LogGeometry(label: logLabel) else {
      throw PoolError("the log device “\(log.path)” is too small; was it truncated?")
    }
    return PoolConfiguration(
      pool: logLabel.pool, name: logLabel.poolName, log: geometry,
      volumes: zip(volumes, volumeLabels).map { file, label in
        var description = file.description
        description.size = label.sizeInBlocks << blockShift
        return VolumeMember(member: label.member, description: description)
      })
  }
}
