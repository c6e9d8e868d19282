/// How much of the log a cycle takes when all that is wanted is room in it.
///
/// Log space comes back at a cycle's end. A cycle of all that the log holds brings it back at once after
/// a long time, and the log's fill, and with it the pace of writers, goes up and down. With a part at
/// a time, the oldest first, both stay nearly as they are; and what is overwritten while it waits for
/// its turn never has to go home. But there are three reasons to take all:
///
/// * First homes are given in the order of a disk's blocks. What the log holds of a disk should get
///   them in one sweep, so that it lies in one piece.
/// * Where the devices' heads must move, the more blocks there are the nearer they lie to each other.
/// * A cycle writes each node of the maps once that it has changed, however many blocks the node is
///   changed for: the less a cycle takes, the more nodes for each block.
struct CyclePortion {
  /// In thousandths of the log.
  static let shares = 100...1000
  /// Blocks for each node written: with fewer than the one a cycle takes more next time; less when
  /// there are more than the other, so that half as many would do.
  private static let blocksPerNode: ClosedRange<UInt64> = 16...32
  /// Cycles of fewer blocks say nothing.
  private static let measured: UInt64 = 1000

  /// When more than one block in so many gets a first home, or got one last time, a cycle takes all.
  private static let blocksPerFirstHome: UInt64 = 16

  /// A cycle of fewer bytes of the log would be mostly its end, which waits for the devices several times.
  let least: UInt64
  private var share = Self.shares.lowerBound
  private var givesFirstHomes = false

  init(least: UInt64) { self.least = least }

  /// How much of the log a cycle takes, when so many of the blocks in it surely have no home yet.
  func bytes(of capacity: UInt64, blocks: Int, withoutHome: UInt64) -> UInt64 {
    givesFirstHomes || withoutHome * Self.blocksPerFirstHome > UInt64(blocks)
      ? capacity : max(capacity / 1000 * UInt64(share), least)
  }

  /// A cycle that was to make room has brought so many blocks home, some of them to first homes, and
  /// written so many nodes.
  mutating func note(blocks: UInt64, firstHomes: UInt64, nodes: UInt64) {
    guard blocks >= Self.measured else { return }
    givesFirstHomes = firstHomes * Self.blocksPerFirstHome > blocks
    if nodes * Self.blocksPerNode.lowerBound > blocks {
      share = min(share * 2, Self.shares.upperBound)
    } else if nodes * Self.blocksPerNode.upperBound < blocks {
      share = max(share / 2, Self.shares.lowerBound)
    }
  }
}
