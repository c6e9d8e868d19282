// The engine's figures of latency as those of the API.

import ControlAPI
import Core

extension Durations {
  init(_ s: LatencySummary) {
    self.init(
      sum: microseconds(nanoseconds: s.sum), mean: microseconds(nanoseconds: s.mean),
      p50: microseconds(nanoseconds: s.p50), p99: microseconds(nanoseconds: s.p99),
      p999: microseconds(nanoseconds: s.p999), max: microseconds(nanoseconds: s.max))
  }
}

extension OperationTimes {
  /// Zeros where there are no figures.
  init(_ latency: OperationLatency?) {
    let latency = latency ?? OperationLatency(OperationFigures())
    self.init(
      count: latency.total.count, total: Durations(latency.total),
      queue: Durations(latency.queue), service: Durations(latency.service))
  }
}

extension PoolTimes {
  /// - Parameter latency: by `OperationKind`.
  init(_ latency: [OperationLatency]) {
    func times(_ kind: OperationKind) -> OperationTimes {
      OperationTimes(latency.indices.contains(kind.rawValue) ? latency[kind.rawValue] : nil)
    }
    self.init(read: times(.read), write: times(.write), flush: times(.flush))
  }
}

extension SlowRequest {
  init(_ slow: SlowOperation) {
    var stages: [String: Double] = [:]
    for stage in RequestStage.allCases where slow.stages[stage.rawValue] > 0 {
      stages["\(stage)"] = microseconds(nanoseconds: slow.stages[stage.rawValue])
    }
    self.init(
      disk: slow.name, id: hexadecimal(slow.disk), operation: "\(slow.operation)",
      offset: slow.offset, length: slow.length, status: slow.status.word,
      at: rfc3339(nanosecondsSince1970: slow.ended), total: microseconds(nanoseconds: slow.total),
      queue: microseconds(nanoseconds: slow.queue),
      service: microseconds(nanoseconds: slow.total - slow.queue), stages: stages)
  }
}

extension BlockStatus {
  fileprivate var word: String {
    switch self {
    case .ok: "ok"
    case .ioError: "io_error"
    case .noSpace: "no_space"
    case .readOnly: "read_only"
    case .invalid: "invalid"
    case .stopping: "stopping"
    }
  }
}

extension DiskOperations {
  package init(_ figures: OperationFigures) {
    self.init(
      count: figures.total.count, bytes: figures.bytes,
      total: Durations(LatencySummary(figures.total)),
      queue: Durations(LatencySummary(figures.queue)),
      service: Durations(LatencySummary(figures.service)),
      buckets: figures.total.buckets.map { [$0.from, UInt64($0.count)] })
  }
}

extension DiskTimes {
  package init(_ disk: DiskLatency) {
    self.init(
      name: disk.name, id: hexadecimal(disk.id), connections: disk.connections,
      uptimeMicroseconds: disk.uptimeNanoseconds / 1000, read: DiskOperations(disk.figures.read),
      write: DiskOperations(disk.figures.write), flush: DiskOperations(disk.figures.flush))
  }
}
