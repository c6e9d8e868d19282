/// The space tree as the place where the space map keeps its bitmaps.
package final class SpaceTreeStore: ChunkStore {
  private let tree: Tree
  package init(_ tree: Tree) { self.tree = tree }

  package func value(_ key: SpaceKey) throws(SpaceWait) -> UnsafeRawBufferPointer? {
    try tree.lookup(TreeKey(hi: key.hi, lo: key.lo))?.bytes
  }

  package func entry(from key: SpaceKey) throws(SpaceWait) -> (
    key: SpaceKey, value: UnsafeRawBufferPointer
  )? {
    guard let entry = try tree.ceiling(TreeKey(hi: key.hi, lo: key.lo)) else { return nil }
    return (SpaceKey(hi: entry.key.hi, lo: entry.key.lo), entry.value.bytes)
  }

  package func put(_ key: SpaceKey, _ value: UnsafeRawBufferPointer) throws(SpaceWait) {
    _ = try tree.insertOrReplace(TreeKey(hi: key.hi, lo: key.lo), value)
  }
}
