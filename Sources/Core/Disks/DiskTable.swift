/// The disks and snapshots that are in memory, by place and by object. A place is what clients'
/// handles name.
package final class DiskTable {
  private var places: [VirtualDisk?] = []
  private var generations: [UInt32] = []
  private var freePlaces: [UInt32] = []
  private var byObject: [ObjectID: VirtualDisk] = [:]

  /// Disks that have figures, and how many may.
  private var measured = 0
  private let measuredLimit: Int
  /// Where the search for figures to give up goes on.
  private var measuredHand = 0

  /// - Parameter measuredLimit: of disks with figures, which take some 8 KiB each.
  package init(measuredLimit: Int = 1024) { self.measuredLimit = measuredLimit }

  package var count: Int { byObject.count }
  /// Places run from 0 to below this number.
  package var placeCount: Int { places.count }
  package func at(place: Int) -> VirtualDisk? { places[place] }

  /// Those of a disk's snapshots that are in memory.
  func snapshots(of disk: ObjectID) -> [VirtualDisk] {
    places.compactMap { $0 }.filter { $0.isSnapshot && $0.record?.parent == disk }
  }

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

  /// The disk's figures, begun now if it has none. Nil when too many others have some and are in
  /// use: then it is not measured, for now.
  package func measure(_ disk: VirtualDisk) -> UnsafeMutablePointer<DiskFigures>? {
    if let figures = disk.figures { return figures }
    guard measured < measuredLimit || giveUpFigures() else { return nil }
    let figures = UnsafeMutablePointer<DiskFigures>.allocate(capacity: 1)
    figures.initialize(to: DiskFigures())
    disk.figures = figures
    measured += 1
    return figures
  }

  /// Takes the figures from a disk without clients. Looks at some of the disks only, others each
  /// time.
  private func giveUpFigures() -> Bool {
    for _ in 0..<min(64, places.count) {
      measuredHand = (measuredHand + 1) % places.count
      guard let disk = places[measuredHand], disk.connections == 0, disk.figures != nil else {
        continue
      }
      dropFigures(disk)
      return true
    }
    return false
  }

  private func dropFigures(_ disk: VirtualDisk) {
    guard let figures = disk.figures else { return }
    figures.deallocate()
    disk.figures = nil
    measured -= 1
  }

  /// Forgets a disk that nothing refers to any more.
  package func remove(_ disk: VirtualDisk) {
    invariant(holder(of: disk.handle) === disk, "a disk is removed twice")
    dropFigures(disk)
    places[Int(disk.place)] = nil
    generations[Int(disk.place)] = max(generations[Int(disk.place)], disk.handleGeneration)
    byObject[disk.object] = nil
    freePlaces.append(disk.place)
  }
}
