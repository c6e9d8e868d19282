// A layer: one state of a disk for which the log holds blocks that have not been destaged, over what
// it starts from, which is either its own map or another layer.
//
//     disk ─▶ open layer ─base─▶ frozen layer ─base─▶ frozen layer ─▶ map
//                 │                   │                    │
//              log index           log index           log index          (each under its own slot)
//
// A snapshot mark freezes a disk's layer, which becomes the snapshot's, and gives the disk an empty one
// over it: nothing is copied. A cycle destages frozen layers in the order of their marks; then a layer
// is final, and whatever is over it takes its map from the snapshot's root.
//
// Invariants
//  1. A layer has a map, or a base, or is not loaded; never both.
//  2. Nothing enters a frozen layer. A frozen layer's bases were frozen before it.
//  3. What a layer's map owns alone was born after its tree's branch instant.
//  4. An open layer that inherits its map keeps what it changes in a delta (Space/DiskMap.swift); a final
//     one has none.

package final class Layer {
  package enum State: Sendable {
    /// A disk's; writes go into it.
    case open
    /// A snapshot's, and not all destaged.
    case frozen
    /// A snapshot's, and its root is in the catalog.
    case final
    /// What a disk was before a rollback; the log holds nothing for it.
    case abandoned
  }

  /// Its part of the log index.
  package let slot: UInt32
  /// Whose record its map is kept in, as of what the trees have: a mark makes a disk's layer the
  /// snapshot's when the cycle applies it.
  package var object: ObjectID
  package var state = State.open
  /// The snapshot that it starts from and the frame that made it start there; nil where its
  /// object's record, or its base, says it.
  package var branch: (snapshot: ObjectID, sequence: FrameSequence)?

  package var base: Layer?
  /// As of what has been destaged.
  package var map: DiskMap?
  /// The map is the parent snapshot's, but for what a delta has.
  package var inheritsMap = false
  /// The delta is on its way into a map of the layer's own.
  package var fold: Fold?
  /// The delta is to be folded whatever its size.
  package var mustFold = false
  /// The cycle has changed its map and not yet written it out.
  package var hasChangedMap = false

  // What the object's record counts, kept here while the layer is loaded; in blocks.
  package var usedBlocks: UInt64 = 0
  package var exclusiveBlocks: UInt64 = 0
  /// Of the whole map, also while it is the parent's.
  package var metadataBlocks: UInt64 = 0
  /// Of the delta.
  package var deltaMetadata: UInt64 = 0
  package var parentBranchInstant: Instant = 0
  package var deadOfParentOnly: UInt64 = 0
  /// What its parent snapshot refers to and it no more.
  package var dead: DeadList?

  /// Blocks with an entry in the log index that refers to data.
  package var loggedBlocks = 0
  /// What is left of the run that new homes come from.
  package var run: BlockRun?
  package var lastHome: BlockAddress?
  /// Length of the next run in blocks; grows while the disk keeps writing.
  package var runLength = 16
  /// Places between homes that were left free for blocks of this layer; some may be lost to others.
  package var placesLeft = 0

  init(slot: UInt32, object: ObjectID) {
    self.slot = slot
    self.object = object
  }

  package var firstKey: IndexKey { IndexKey(slot: slot, block: BlockIndex(0)) }
}

/// The layers in memory by slot. A slot is part of the log index's keys, so a layer keeps it while
/// anything is logged under it.
package struct LayerTable {
  private var slots: [Layer?] = []
  private var free: [UInt32] = []

  package init() {}

  @inline(__always)
  package subscript(slot: UInt32) -> Layer? {
    Int(slot) < slots.count ? slots[Int(slot)] : nil
  }

  package mutating func add(_ object: ObjectID) -> Layer {
    let slot = free.popLast() ?? UInt32(slots.count)
    invariant(slot < IndexKey.maximumSlots, "more layers in memory than slots")
    let layer = Layer(slot: slot, object: object)
    if Int(slot) == slots.count { slots.append(layer) } else { slots[Int(slot)] = layer }
    return layer
  }

  /// Blocks that have no home yet, as there are more of their layer in the log than at home; at least.
  package var blocksWithoutHome: UInt64 {
    slots.reduce(0) { sum, layer in
      guard let layer else { return sum }
      let logged = UInt64(layer.loggedBlocks)
      return sum + (logged > layer.usedBlocks ? logged - layer.usedBlocks : 0)
    }
  }

  package mutating func remove(_ layer: Layer) {
    invariant(self[layer.slot] === layer, "a layer is removed twice")
    slots[Int(layer.slot)] = nil
    free.append(layer.slot)
  }
}
