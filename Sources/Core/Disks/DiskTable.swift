/// The disks that are in memory, by slot and by object. A slot's number is part of the log index's
/// keys, so it stays while the disk has anything logged.
package final class DiskTable {
  private var slots: [VirtualDisk?] = []
  private var generations: [UInt32] = []
  private var free: [UInt32] = []
  private var byObject: [ObjectID: UInt32] = [:]

  package init() {}

  package var count: Int { byObject.count }
  package var slotCount: Int { slots.count }

  @inline(__always)
  package subscript(slot: UInt32) -> VirtualDisk? {
    Int(slot) < slots.count ? slots[Int(slot)] : nil
  }

  package func find(_ object: ObjectID) -> VirtualDisk? {
    byObject[object].flatMap { self[$0] }
  }

  /// The disk of a handle, if the handle is still valid.
  @inline(__always)
  package func resolve(_ handle: DiskHandle) -> VirtualDisk? {
    guard Int(handle.slot) < slots.count, let disk = slots[Int(handle.slot)],
      disk.handleGeneration == handle.generation
    else { return nil }
    return disk
  }

  package func findOrAdd(_ object: ObjectID) -> VirtualDisk {
    if let disk = find(object) { return disk }
    let slot: UInt32
    if let reused = free.popLast() {
      slot = reused
    } else {
      slot = UInt32(slots.count)
      invariant(slot < IndexKey.maximumSlots, "more disks in memory than slots")
      slots.append(nil)
      generations.append(0)
    }
    generations[Int(slot)] &+= 1
    let disk = VirtualDisk(slot: slot, object: object, handleGeneration: generations[Int(slot)])
    slots[Int(slot)] = disk
    byObject[object] = slot
    return disk
  }

  /// Forgets a disk that nothing refers to any more.
  package func remove(_ disk: VirtualDisk) {
    invariant(self[disk.slot] === disk, "a disk is removed twice")
    slots[Int(disk.slot)] = nil
    generations[Int(disk.slot)] = max(generations[Int(disk.slot)], disk.handleGeneration)
    byObject[disk.object] = nil
    free.append(disk.slot)
  }

  /// The object has a new identity in memory: what was deleted keeps its slot until it is empty.
  package func detach(_ disk: VirtualDisk) {
    if byObject[disk.object] == disk.slot { byObject[disk.object] = nil }
  }
}
