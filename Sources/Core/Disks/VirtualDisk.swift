/// A disk or snapshot in memory: one that is connected, or has something in the log. The catalog has
/// it in full; this is the part that requests need.
package final class VirtualDisk {
  /// Its number in handles.
  package let place: UInt32
  package let object: ObjectID
  /// Raised when the place's handles must no longer work (delete, forced shrink, another disk).
  package var handleGeneration: UInt32
  /// What it holds now: a mark gives a disk another layer.
  package var layer: Layer
  /// The live state, structural changes included that no checkpoint has yet; its counters are the
  /// layer's. Nil until loaded.
  package var record: ObjectRecord?
  package var name = ""
  package var connections = 0
  /// The scrub is at it, which keeps it in memory.
  var isScrubbed = false
  package var isDeleted = false
  /// Its removal is logged but does not count yet.
  package var isBeingDeleted = false
  /// New requests wait: it is being rolled back or cut short, and no request may see both states.
  package var isPaused = false

  /// Requests under way, which keep the disk in memory.
  package var requests = 0
  /// Of these, zero and trim requests: they make a reservation necessary where space is scarce.
  package var zeroing = 0

  /// Where sequential readers go on, for read-ahead; and the one that is given up next but for one.
  package var streams = [ReadStream](repeating: ReadStream(), count: 4)
  package var oldestStream = 0

  /// What is counted for it, since its first request; see `DiskTable.measure`.
  package var figures: UnsafeMutablePointer<DiskFigures>?

  package init(place: UInt32, object: ObjectID, handleGeneration: UInt32, layer: Layer) {
    self.place = place
    self.object = object
    self.handleGeneration = handleGeneration
    self.layer = layer
  }

  deinit { figures?.deallocate() }

  /// It is deleted: clients' handles work no more.
  func close() {
    isDeleted = true
    handleGeneration &+= 1
  }

  package var isSnapshot: Bool { record?.kind == .snapshot }
  package var handle: DiskHandle { DiskHandle(place: place, generation: handleGeneration) }
  package var sizeInBlocks: UInt64 { roundUp(record?.size ?? 0, to: 4096) >> blockShift }
  package var ownershipGeneration: UInt32 {
    UInt32(truncatingIfNeeded: record?.generation ?? 1)
  }
}
