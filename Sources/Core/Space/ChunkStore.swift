/// Where the space map keeps its bitmaps: the space tree, or a table in tests.
///
/// All calls throw before they change anything. The bytes that a call returns are valid until the
/// next call on the store or on the space map.
package protocol ChunkStore: AnyObject {
  func value(_ key: SpaceKey) throws(SpaceWait) -> UnsafeRawBufferPointer?
  /// The entry with the smallest key at or behind `key`.
  func entry(from key: SpaceKey) throws(SpaceWait) -> (
    key: SpaceKey, value: UnsafeRawBufferPointer
  )?
  /// Whether what a call threw `.damaged` for is only refused by its device, and not for long yet.
  func isRefused(_ pointer: NodePointer) -> Bool
  /// Inserts or replaces. Calls back into the space map for node addresses.
  func put(_ key: SpaceKey, _ value: UnsafeRawBufferPointer) throws(SpaceWait)
}

/// Contiguous blocks of one volume; never across a chunk of 8,192 blocks.
package struct BlockRun: Hashable, Sendable {
  package var address: BlockAddress
  /// In blocks, 1 ... 8,192.
  package var count: Int
  package init(_ address: BlockAddress, _ count: Int) {
    self.address = address
    self.count = count
  }
  package var end: BlockAddress { address + UInt64(count) }
}

/// A byte range of a device: what `DeviceOpKind.allocate` and `.discard` take.
package struct DeviceRange: Hashable, Sendable {
  package var device: DeviceIndex
  package var offset: UInt64
  package var length: UInt64
  package init(device: DeviceIndex, offset: UInt64, length: UInt64) {
    self.device = device
    self.offset = offset
    self.length = length
  }
}

/// The space tree itself.
extension Tree: ChunkStore {
  package func value(_ key: SpaceKey) throws(SpaceWait) -> UnsafeRawBufferPointer? {
    try lookup(TreeKey(hi: key.hi, lo: key.lo))?.bytes
  }

  package func entry(
    from key: SpaceKey
  ) throws(SpaceWait) -> (key: SpaceKey, value: UnsafeRawBufferPointer)? {
    guard let entry = try ceiling(TreeKey(hi: key.hi, lo: key.lo)) else { return nil }
    return (SpaceKey(hi: entry.key.hi, lo: entry.key.lo), entry.value.bytes)
  }

  package func isRefused(_ pointer: NodePointer) -> Bool { store.isRefused(pointer) }

  package func put(_ key: SpaceKey, _ value: UnsafeRawBufferPointer) throws(SpaceWait) {
    try insertOrReplace(TreeKey(hi: key.hi, lo: key.lo), value)
  }
}

extension SpaceMap: NodeAllocator {}
