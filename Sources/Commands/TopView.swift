// The text of `sluice top`.

import ControlAPI

package enum TopView {
  /// How many of the slowest operations are shown.
  static let slowLimit = 5

  /// The lines for a screen of that size; all disks, as wide as they are, where there is none.
  package static func lines(
    _ rates: PoolRates, screen: (columns: Int, rows: Int)?
  ) -> [String] {
    var lines = header(rates)
    let slowest = slowest(rates.slowest)
    var disks = rates.disks
    if let rows = screen?.rows {
      let room = max(1, rows - lines.count - 3 - (slowest.isEmpty ? 0 : slowest.count + 1))
      disks = Array(disks.prefix(room))
    }
    lines.append("")
    lines += disks.isEmpty ? ["no disk had an operation"] : table(disks, columns: screen?.columns)
    if disks.count < rates.disks.count {
      lines.append("and \(rates.disks.count - disks.count) less busy disks")
    }
    if !slowest.isEmpty { lines += [""] + slowest }
    guard let screen else { return lines }
    return lines.prefix(screen.rows).map { String($0.prefix(screen.columns)) }
  }

  private static func header(_ r: PoolRates) -> [String] {
    let size = { (bytes: UInt64) in ByteSize(bytes: bytes).description }
    let rate = { (bytes: Double) in size(UInt64(bytes)) + "/s" }
    let state = r.state == .readOnly ? "read-only" : r.state.rawValue
    return [
      "pool \(r.pool), \(state), \(r.at), latencies in ms",
      "log \(percent(r.logFill)) full (\(size(r.log.used)) of \(size(r.log.size))), destaging "
        + "\(rate(r.destageBytesPerSecond)), \(size(r.destage.backlogBytes)) to go",
      "read \(whole(r.readsPerSecond))/s, \(rate(r.readBytesPerSecond)); write "
        + "\(whole(r.writesPerSecond))/s, \(rate(r.writeBytesPerSecond)); flush "
        + "\(whole(r.flushesPerSecond))/s",
    ]
  }

  /// A column of the table; those with the highest rank go first where there is no room.
  private struct Column: Sendable {
    var title: String
    var rank: Int
    var cell: @Sendable (DiskRates) -> String
  }

  private static let columns: [Column] = [
    Column(title: "READ/S", rank: 0) { whole($0.read.perSecond) },
    Column(title: "MIB/S", rank: 1) { mebibytes($0.read.bytesPerSecond) },
    Column(title: "P50", rank: 3) { latency($0.read.p50, of: $0.read) },
    Column(title: "P99", rank: 2) { latency($0.read.p99, of: $0.read) },
    Column(title: "WRITE/S", rank: 0) { whole($0.write.perSecond) },
    Column(title: "MIB/S", rank: 1) { mebibytes($0.write.bytesPerSecond) },
    Column(title: "P50", rank: 3) { latency($0.write.p50, of: $0.write) },
    Column(title: "P99", rank: 2) { latency($0.write.p99, of: $0.write) },
    Column(title: "FLUSH/S", rank: 4) { whole($0.flush.perSecond) },
    Column(title: "P99", rank: 5) { latency($0.flush.p99, of: $0.flush) },
    Column(title: "QUEUE", rank: 1) { percent($0.queueShare) },
  ]

  /// The least that is left of a name before columns go.
  private static let shortestName = 16

  private static func table(_ disks: [DiskRates], columns limit: Int?) -> [String] {
    for rank in (0...5).reversed() {
      let shown = columns.filter { $0.rank <= rank }
      let names = disks.map(\.name)
      let cells = disks.map { disk in shown.map { $0.cell(disk) } }
      let longest = names.map(\.utf8.count).max() ?? 0
      let plain = text(names, shown, cells)
      guard let limit else { return plain }
      let width = plain.map(\.utf8.count).max() ?? 0
      if width <= limit { return plain }
      let room = max(longest, 4) - (width - limit)
      if room >= min(shortestName, longest) || rank == 0 {
        return text(names.map { shortened($0, to: max(4, room)) }, shown, cells)
      }
    }
    return []
  }

  private static func text(
    _ names: [String], _ columns: [Column], _ cells: [[String]]
  ) -> [String] {
    var table = Table(
      columns: [.init(title: "DISK")] + columns.map { .init(title: $0.title, isNumber: true) })
    table.rows = zip(names, cells).map { [$0] + $1 }
    return table.text.split(separator: "\n").map(String.init)
  }

  /// The end of a name tells more than its start.
  private static func shortened(_ name: String, to length: Int) -> String {
    name.utf8.count <= length ? name : "~" + name.suffix(length - 1)
  }

  // MARK: The slowest

  private static func slowest(_ operations: [SlowRequest]) -> [String] {
    guard !operations.isEmpty else { return [] }
    var table = Table(columns: [
      .init(title: "SLOWEST", isNumber: true), .init(title: "ENDED"), .init(title: "OPERATION"),
      .init(title: "DISK"), .init(title: "STAGES"),
    ])
    table.rows = operations.prefix(slowLimit).map { slow in
      let stages = slow.stages.sorted { ($1.value, $0.key) < ($0.value, $1.key) }
        .filter { $0.value * 100 >= slow.total }
        .map { "\($0.key) \(milliseconds($0.value))" }
      let place =
        slow.operation == "flush"
        ? "" : " \(ByteSize(bytes: slow.length)) at \(ByteSize(bytes: slow.offset))"
      let failure = slow.status == "ok" ? "" : " (\(slow.status))"
      return [
        milliseconds(slow.total), String(slow.at.dropFirst(11).prefix(8)),
        slow.operation + place + failure, slow.disk, stages.joined(separator: ", "),
      ]
    }
    return table.text.split(separator: "\n").map(String.init)
  }

  // MARK: Numbers

  private static func whole(_ value: Double) -> String { "\(UInt64(value.rounded()))" }

  private static func percent(_ part: Double) -> String { "\(Int((part * 100).rounded()))%" }

  private static func mebibytes(_ bytes: Double) -> String {
    let tenths = UInt64((bytes / 1_048_576 * 10).rounded())
    return tenths >= 1000 ? "\((tenths + 5) / 10)" : "\(tenths / 10).\(tenths % 10)"
  }

  private static func latency(_ value: Double, of rates: OperationRates) -> String {
    rates.perSecond > 0 ? milliseconds(value) : "-"
  }
}

/// Microseconds as milliseconds with about three digits.
package func milliseconds(_ microseconds: Double) -> String {
  let micro = UInt64(max(0, min(microseconds, 1e15)).rounded())
  func padded(_ number: UInt64, _ digits: Int) -> String {
    let text = "\(number)"
    return String(repeating: "0", count: max(0, digits - text.utf8.count)) + text
  }
  switch micro {
  case 0..<10_000: return "\(micro / 1000).\(padded(micro % 1000, 3))"
  case 10_000..<100_000: return "\(micro / 1000).\(padded(micro % 1000 / 10, 2))"
  case 100_000..<1_000_000: return "\(micro / 1000).\(micro % 1000 / 100)"
  default: return "\(micro / 1000)"
  }
}
