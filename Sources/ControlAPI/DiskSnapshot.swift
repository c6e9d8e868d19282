/// DISK@SNAP: a snapshot's name, checked. SNAP is one plain segment: 1 to 255 letters, digits,
/// ".", "_" and "-", never "." or "..". A disk's name in its spelling has no "@".
package struct DiskSnapshot: Hashable, Sendable, CustomStringConvertible {
  package let disk: DiskName
  package let snapshot: String

  package var description: String { "\(disk)@\(snapshot)" }

  package init(disk: DiskName, snapshot: String) throws(DiskSnapshotError) {
    guard Self.isSnapshot(snapshot) else { throw .badSnapshot(snapshot) }
    self.disk = disk
    self.snapshot = snapshot
  }

  /// Reads DISK@SNAP.
  package init(_ text: String) throws(DiskSnapshotError) {
    guard let at = text.firstIndex(of: "@") else { throw .noSnapshot(text) }
    let disk: DiskName
    do { disk = try DiskName(String(text[..<at])) } catch { throw .badDisk(error) }
    try self.init(disk: disk, snapshot: String(text[text.index(after: at)...]))
  }

  /// Whether a text may be what stands behind the "@".
  package static func isSnapshot(_ text: String) -> Bool {
    (1...DiskName.maximumSegment).contains(text.utf8.count) && text != "." && text != ".."
      && text.utf8.allSatisfy(DiskName.isPlain)
  }
}

/// DISK or DISK@SNAP: a state of a disk that a snapshot can be compared with.
package enum DiskState: Hashable, Sendable, CustomStringConvertible {
  case disk(DiskName)
  case snapshot(DiskSnapshot)

  package init(_ text: String) throws(DiskSnapshotError) {
    if text.contains("@") {
      self = .snapshot(try DiskSnapshot(text))
    } else {
      do { self = .disk(try DiskName(text)) } catch { throw .badDisk(error) }
    }
  }

  package var disk: DiskName {
    switch self {
    case .disk(let name): name
    case .snapshot(let name): name.disk
    }
  }

  package var description: String {
    switch self {
    case .disk(let name): name.description
    case .snapshot(let name): name.description
    }
  }
}

/// Why the name of a snapshot was refused; the description states the rule.
package enum DiskSnapshotError: Error, Equatable, Sendable, CustomStringConvertible {
  case noSnapshot(String)
  case badSnapshot(String)
  case badDisk(DiskNameError)

  package var description: String {
    switch self {
    case .noSnapshot(let text):
      "\(quotedName(text)) names no snapshot: write DISK@SNAP"
    case .badSnapshot(let text):
      "\(quotedName(text)) is not a snapshot's name: use 1 to \(DiskName.maximumSegment) letters, "
        + "digits, “.”, “_” and “-”, and neither “.” nor “..”"
    case .badDisk(let error): error.description
    }
  }
}
