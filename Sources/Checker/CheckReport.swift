import Core

/// A run of damaged blocks: where it is, and what of which disk it holds.
package struct DamagedBlock: Equatable, Sendable {
  /// "the log" or "volume 3".
  package var device: String
  /// In bytes from the start of the device.
  package var offset: UInt64
  /// In bytes.
  package var length: UInt64
  /// The disk whose data it is; nil for metadata.
  package var disk: String?
  /// Bytes from the start of the disk.
  package var diskOffset: UInt64?
}

/// What a run counted; sizes in blocks of 4 KiB.
package struct CheckCounters: Equatable, Sendable {
  package var volumes = 0
  package var checkpoint: UInt64 = 0
  package var frames: UInt64 = 0
  package var summaries: UInt64 = 0
  package var loggedBlocks: UInt64 = 0
  /// The last frame that recovery will find, and the highest that is known to be durable.
  package var lastSequence: FrameSequence = 0
  package var durableSequence: FrameSequence = 0
  package var objects: UInt64 = 0
  package var names: UInt64 = 0
  package var metadataNodes: UInt64 = 0
  package var dataBlocks: UInt64 = 0
  package var verifiedBlocks: UInt64 = 0
  /// Blocks whose home may be torn because the log holds them still.
  package var coveredByLog: UInt64 = 0
  /// Bytes that sorts had to put into files.
  package var spilledBytes: UInt64 = 0
}

package enum CheckOutcome: Equatable, Sendable {
  case clean
  case damageFound
  case couldNotRun
}

/// What `sluice check` found.
package struct CheckReport: Equatable, Sendable {
  /// Sentences, in the order in which they were found; damaged blocks among them.
  package var complaints: [String] = []
  /// All of them, those without a sentence as well.
  package var complaintCount = 0
  /// What is worth knowing and no damage.
  package var notes: [String] = []
  package var damagedBlocks: [DamagedBlock] = []
  /// All of them, in blocks of 4 KiB.
  package var damagedBlockCount: UInt64 = 0
  package var counters = CheckCounters()
  /// What was repaired, as sentences. What is here was a complaint as well.
  package var repaired: [String] = []
  /// Why the run did not come to its end.
  package var failure: String?

  package init() {}

  package var outcome: CheckOutcome {
    if failure != nil { return .couldNotRun }
    return complaintCount == 0 ? .clean : .damageFound
  }
}

/// Gathers findings while the checker runs. Disk names are put into the sentences at the end: the
/// catalog that holds them is itself being checked.
final class Findings {
  private enum Item {
    case sentence(String)
    case damage(Damage)
  }

  struct Damage {
    var device: String
    var offset: UInt64
    var blocks: UInt64
    var object: ObjectID
    var block: UInt64
    var what: String
  }

  private let limit: Int
  private var items: [Item] = []
  private(set) var count = 0
  private(set) var damagedBlocks: UInt64 = 0
  var notes: [String] = []
  var repaired: [String] = []
  var counters = CheckCounters()

  init(limit: Int) { self.limit = limit }

  func complain(_ sentence: @autoclosure () -> String) {
    count += 1
    if items.count < limit { items.append(.sentence(sentence())) }
  }

  func note(_ sentence: String) {
    if notes.count < limit { notes.append(sentence) }
  }

  func repaired(_ sentence: String) {
    if repaired.count < limit { repaired.append(sentence) }
  }

  /// One damaged block of a disk. Neighbours found one after the other become one finding.
  func damage(
    device: String, offset: UInt64, object: ObjectID, block: UInt64, what: String
  ) {
    damagedBlocks += 1
    if case .damage(var last)? = items.last, last.device == device, last.object == object,
      last.what == what, last.offset + last.blocks << blockShift == offset,
      last.block + last.blocks == block
    {
      last.blocks += 1
      items[items.count - 1] = .damage(last)
      return
    }
    count += 1
    guard items.count < limit else { return }
    items.append(
      .damage(
        Damage(
          device: device, offset: offset, blocks: 1, object: object, block: block, what: what)))
  }

  /// The report; `name` gives the name of a disk.
  func report(name: (ObjectID) -> String) -> CheckReport {
    var report = CheckReport()
    for item in items {
      switch item {
      case .sentence(let sentence):
        report.complaints.append(sentence)
      case .damage(let d):
        let disk = name(d.object)
        report.complaints.append(
          "disk “\(disk)”: \(d.blocks << blockShift) bytes at offset \(d.block << blockShift) are "
            + "damaged (\(d.device), offset \(d.offset): \(d.what)); overwriting them heals the disk"
        )
        report.damagedBlocks.append(
          DamagedBlock(
            device: d.device, offset: d.offset, length: d.blocks << blockShift, disk: disk,
            diskOffset: d.block << blockShift))
      }
    }
    report.complaintCount = count
    report.damagedBlockCount = damagedBlocks
    report.notes = notes
    report.repaired = repaired
    report.counters = counters
    return report
  }
}
