/// The disks that are in memory, by slot, by place and by object. A slot's number is part of the log
/// index's keys, so whoever has it keeps it while anything is logged under it. A place is what
/// clients' handles name; it belongs to the disk whatever becomes of its slot.
package final class DiskTable {
  private var slots: [VirtualDisk?] = []
  private var free: [UInt32] = []
  private var places: [VirtualDisk?] = []
  private var generations: [UInt32] = []
  private var freePlaces: [UInt32] = []
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
    guard let disk = holder(of: handle), disk.handleGeneration == handle.generation else {
      return nil
    }
    return disk
  }

  /// The disk that a handle in use was given for, valid or not.
  @inline(__always)
  package func holder(of handle: DiskHandle) -> VirtualDisk? {
    Int(handle.place) < places.count ? places[Int(handle.place)] : nil
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
    }
    let place = freePlaces.popLast() ?? UInt32(places.count)
    if Int(place) == places.count {
      places.append(nil)
      generations.append(0)
    }
    generations[Int(place)] &+= 1
    let disk = VirtualDisk(
      slot: slot, place: place, object: object, handleGeneration: generations[Int(place)])
    slots[Int(slot)] = disk
    places[Int(place)] = disk
    byObject[object] = slot
    return disk
  }

  /// Forgets a disk that nothing refers to any more.
  package func remove(_ disk: VirtualDisk) {
    invariant(self[disk.slot] === disk, "a disk is removed twice")
    slots[Int(disk.slot)] = nil
    places[Int(disk.place)] = nil
    generations[Int(disk.place)] = max(generations[Int(disk.place)], disk.handleGeneration)
    byObject[disk.object] = nil
    free.append(disk.slot)
    freePlaces.append(disk.place)
  }

  /// The object has a new identity in memory: what was deleted keeps its slot until it is empty.
  package func detach(_ disk: VirtualDisk) {
    if byObject[disk.object] == disk.slot { byObject[disk.object] = nil }
  }
}
