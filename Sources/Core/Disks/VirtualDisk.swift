/// A disk in memory: one that is connected, or has something in the log. The catalog has it in
/// full; this is the part that requests need.
package final class VirtualDisk {
  /// Its part of the log index.
  package let slot: UInt32
  /// Its number in handles.
  package let place: UInt32
  package let object: ObjectID
  /// Raised when the place's handles must no longer work (delete, forced shrink, another disk).
  package var handleGeneration: UInt32
  /// The live state, structural changes included that no checkpoint has yet. Nil until loaded.
  package var record: ObjectRecord?
  /// The extent map as of what has been destaged; nil until loaded.
  package var map: ExtentMap?
  package var name = ""
  package var connections = 0
  package var isDeleted = false
  /// Its removal is logged but does not count yet.
  package var isBeingDeleted = false

  /// Blocks with an entry in the log index that refers to data.
  package var loggedBlocks = 0
  /// Requests under way, which keep the slot.
  package var requests = 0
  /// Of these, zero and trim requests: they make a reservation necessary where space is scarce.
  package var zeroing = 0
  /// What is left of the run that new homes come from.
  package var run: BlockRun?
  package var lastHome: BlockAddress?
  /// Length of the next run in blocks; grows while the disk keeps writing.
  package var runLength = 16

  /// Where sequential readers go on, for read-ahead; and the one that is given up next but for one.
  package var streams = [ReadStream](repeating: ReadStream(), count: 4)
  package var oldestStream = 0

  package init(slot: UInt32, place: UInt32, object: ObjectID, handleGeneration: UInt32) {
    self.slot = slot
    self.place = place
    self.object = object
    self.handleGeneration = handleGeneration
  }

  package var isLoaded: Bool { record != nil && map != nil }
  package var handle: DiskHandle { DiskHandle(place: place, generation: handleGeneration) }
  package var sizeInBlocks: UInt64 { roundUp(record?.size ?? 0, to: 4096) >> blockShift }
  package var ownershipGeneration: UInt32 {
    UInt32(truncatingIfNeeded: record?.generation ?? 1)
  }
}
