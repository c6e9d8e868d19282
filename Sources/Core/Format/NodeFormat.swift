/// What a tree holds; in the header of every node.
package enum NodeKind: UInt8, Sendable {
  /// Object records, see CatalogFormat.
  case objects = 1
  /// Directory entries, see CatalogFormat.
  case names = 2
  /// Allocation bitmaps and group summaries.
  case space = 3
  /// The extent map of one disk.
  case extents = 4
  /// The dead list of one edge of the snapshot tree.
  case deadList = 5
}
