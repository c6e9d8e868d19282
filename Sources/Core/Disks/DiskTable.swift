/// The disks and snapshots that are in memory, by place and by object. A place is what clients'
/// handles name.
package final class DiskTable {
  private var places: [VirtualDisk?] = []
  private var generations: [UInt32] = []
  private var freePlaces: [UInt32] = []
  private var byObject: [ObjectID: VirtualDisk] = [:]

  package init() {}

  package var count: Int { byObject.count }
  /// Places run from 0 to below this number.
  package var placeCount: Int { places.count }
  package func at(place: Int) -> VirtualDisk? { places[place] }

  package func find(_ object: ObjectID) -> VirtualDisk? { byObject[object] }

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

  /// Enters an object that is not in memory.
  package func add(_ object: ObjectID, layer: Layer) -> VirtualDisk {
    let place = freePlaces.popLast() ?? UInt32(places.count)
    if Int(place) == places.count {
      places.append(nil)
      generations.append(0)
    }
    generations[Int(place)] &+= 1
    let disk = VirtualDisk(
      place: place, object: object, handleGeneration: generations[Int(place)], layer: layer)
    places[Int(place)] = disk
    byObject[object] = disk
    return disk
  }

  /// Forgets a disk that nothing refers to any more.
  package func remove(_ disk: VirtualDisk) {
    invariant(holder(of: disk.handle) === disk, "a disk is removed twice")
    places[Int(disk.place)] = nil
    generations[Int(disk.place)] = max(generations[Int(disk.place)], disk.handleGeneration)
    byObject[disk.object] = nil
    freePlaces.append(disk.place)
  }
}
