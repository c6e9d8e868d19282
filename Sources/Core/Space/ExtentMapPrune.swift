extension ExtentMap {
  /// Frees up to `maxLeaves` leaves of the map of a deleted disk, telling what they mapped to
  /// `released`; true when nothing is left. What was done before a throw stays done. What damaged
  /// nodes pointed to stays in use until a check with repair.
  package func pruneSome(
    maxLeaves: Int, released: (BlockAddress, Int, Instant) -> Void
  ) throws(SpaceWait) -> Bool {
    try tree.pruneSome(maxNodes: maxLeaves, abandonDamaged: true) { entry in
      let extent = Extent(entry)
      if !extent.isHole { released(extent.address, Int(extent.length), extent.birth) }
    }
  }
}
