extension ExtentMap {
  /// Frees up to `maxLeaves` leaves of the map of a deleted disk, telling what they mapped to
  /// `released`; true when nothing is left. What was done before a throw stays done. What damaged
  /// nodes pointed to stays in use until a check with repair.
  package func pruneSome(
    maxLeaves: Int, released: (BlockAddress, Int, Instant) -> Void
  ) throws(SpaceWait) -> Bool {
    try tree.pruneSome(maxNodes: maxLeaves, abandonDamaged: true) { entry in
      let p = entry.value.base
      released(BlockAddress(raw: p.u64(0)), Int(p.u16(16)), p.u64(8))
    }
  }
}
