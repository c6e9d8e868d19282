/// How virtual positions of the log map to its device. Positions are in bytes and only grow; the
/// device holds a window of `segments` segments of them.
package struct LogGeometry: Sendable, Equatable {
  package let tag: UInt64
  package let segmentShift: UInt64
  /// Number of segments on the device.
  package let segments: UInt64

  /// From the log's label. Nil when the device is too small for a log.
  package init?(label: DeviceLabel) {
    tag = label.member.low
    segmentShift = UInt64(label.segmentShift)
    let bytes = label.sizeInBlocks << blockShift
    let start = LogLayout.data << blockShift
    guard bytes > start, LogLayout.segmentShifts ~= label.segmentShift else { return nil }
    segments = (bytes - start) >> segmentShift
    guard segments >= LogLayout.minimumSegments else { return nil }
  }

  @inline(__always) package var segmentSize: UInt64 { 1 << segmentShift }
  package var segmentBlocks: UInt64 { segmentSize >> blockShift }
  package var capacity: UInt64 { segments << segmentShift }

  @inline(__always) package func segment(of position: UInt64) -> UInt64 {
    position >> segmentShift
  }
  @inline(__always) package func start(ofSegment segment: UInt64) -> UInt64 {
    segment << segmentShift
  }
  /// Byte offset on the device.
  @inline(__always) package func deviceOffset(_ position: UInt64) -> UInt64 {
    (LogLayout.data << blockShift) + ((position >> segmentShift) % segments) << segmentShift
      + (position & (segmentSize - 1))
  }

  /// The largest payload of a frame in bytes: a quarter of a segment, at most 1 MiB.
  package var maximumPayload: Int { min(1 << 20, Int(segmentSize / 2)) }
}
