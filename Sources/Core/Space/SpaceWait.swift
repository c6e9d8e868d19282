/// Why a synchronous walk of metadata can't go on now. Tree and allocator code throws it before
/// it has changed anything; the caller parks the request, has the wait met, and tries anew.
package enum SpaceWait: Error, Equatable, Sendable {
  /// A metadata block is not in memory: load it.
  case node(NodePointer)
  /// Both copies of a metadata block are damaged or unreadable.
  case damaged(NodePointer)
  /// Every slot of the cache is pinned, dirty or being loaded, or a node that is to be changed is
  /// being written: write dirty nodes back (`NodeStore.writeback`), let loads and writes end, then
  /// try again.
  case memory
  /// Free space exists but is not backed yet by the file system: allocate this range first.
  case backing(device: DeviceIndex, offset: UInt64, length: UInt64)
  /// There is no free space for this.
  case noSpace
}
