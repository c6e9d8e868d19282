// One volume as the allocator sees it: eight bytes for each allocation group that was ever used,
// in pages of 128 groups that come into being at first use.

/// What is in memory of an allocation group, packed into 64 bits:
///
///     0-18   free: blocks that are not used, as the space tree's group word says
///     19-37  available: blocks that can be handed out at once (free, not reserved, not held, backed)
///     38-51  bound: no run of available blocks is longer
///     52-59  owner: the unit that the group is granted to plus one; 0: never used
///     60     backing settled: the search for blocks to back has been through the group
struct GroupState {
  private var raw: UInt64

  init(free: Int, available: Int, owner: UInt8) {
    raw = 0
    self.free = free
    self.available = available
    self.owner = owner
    bound = SpaceFormat.chunkBlocks
  }

  @inline(__always) private func field(_ shift: UInt64, _ bits: UInt64) -> Int {
    Int(raw >> shift & ((1 << bits) - 1))
  }
  @inline(__always) private mutating func set(_ shift: UInt64, _ bits: UInt64, _ value: Int) {
    let mask: UInt64 = (1 << bits) - 1
    invariant(value >= 0 && UInt64(value) <= mask, "a count of a group leaves its range: \(value)")
    raw = raw & ~(mask << shift) | UInt64(value) << shift
  }

  var free: Int {
    get { field(0, 19) }
    set { set(0, 19, newValue) }
  }
  var available: Int {
    get { field(19, 19) }
    set { set(19, 19, newValue) }
  }
  var bound: Int {
    get { field(38, 14) }
    set { set(38, 14, newValue) }
  }
  var owner: UInt8 {
    get { UInt8(field(52, 8)) }
    set { set(52, 8, Int(newValue)) }
  }
  var isBackingSettled: Bool {
    get { field(60, 1) != 0 }
    set { set(60, 1, newValue ? 1 : 0) }
  }
  /// What the space tree stores for the group.
  var word: GroupWord { owner == 0 ? .unused : GroupWord(free: free, owner: owner) }
}

/// The groups page * 128 ..< page * 128 + 128 of a volume.
final class GroupPage {
  let groups: UnsafeMutablePointer<GroupState>
  /// Sum over the groups.
  var available = 0
  /// Differs from what the space tree holds.
  var isDirty = false

  init() {
    groups = .allocate(capacity: SpaceFormat.groupsPerPage)
    groups.initialize(
      repeating: GroupState(free: 0, available: 0, owner: 0), count: SpaceFormat.groupsPerPage)
  }
  deinit { groups.deallocate() }
}

final class VolumeSpace {
  let index: Int
  /// Blocks of the volume, label included.
  let blocks: UInt64
  let isSparse: Bool
  /// Freed units go back to the device or file system.
  var punches: Bool
  let groupCount: Int
  /// Pages up to the last one that was ever needed; nil: all its groups never used.
  private(set) var pages: [GroupPage?] = []

  // Counters in blocks; free blocks are what is left of the capacity.
  var used = 0
  var reserved = 0
  var held = 0
  var available: Int
  /// Free blocks of groups that are granted to other units.
  var foreign = 0

  /// Where new runs without a neighbour come from now.
  var currentGroup = 0
  /// Spreads them over the group's chunks.
  var rotor = 0
  var backing = BackingState()

  init(index: Int, _ description: DeviceDescription) {
    self.index = index
    blocks = min(description.size / UInt64(blockSize), 1 << 48)
    isSparse = description.isSparseFile
    punches = description.canDiscard
    groupCount =
      Int(roundUp(blocks, to: UInt64(SpaceFormat.groupBlocks)))
      / SpaceFormat.groupBlocks
    available = 0
    if !isSparse { available = capacity }
  }

  /// Blocks without the label.
  var capacity: Int { max(0, Int(blocks) - SpaceFormat.labelBlocks) }
  var free: Int { capacity - used - reserved - held }
  /// Free blocks that the file system may not have yet.
  var unbacked: Int { free - foreign - available }
  var chunkCount: Int {
    (Int(blocks) + SpaceFormat.chunkBlocks - 1) / SpaceFormat.chunkBlocks
  }

  /// Blocks of a group that can be used at all.
  func capacity(ofGroup g: Int) -> Int {
    let start = g * SpaceFormat.groupBlocks
    let end = min(Int(blocks), start + SpaceFormat.groupBlocks)
    return max(0, end - max(start, SpaceFormat.labelBlocks))
  }

  /// The usable blocks of a chunk, relative to its start.
  func bounds(ofChunk c: Int) -> (first: Int, end: Int) {
    let start = c * SpaceFormat.chunkBlocks
    let end = max(0, min(Int(blocks) - start, SpaceFormat.chunkBlocks))
    let first = max(0, min(SpaceFormat.labelBlocks - start, end))
    return (first, end)
  }

  /// A group's state without bringing its page into being.
  func group(_ g: Int) -> GroupState {
    let p = g / SpaceFormat.groupsPerPage
    if p < pages.count, let page = pages[p] { return page.groups[g % SpaceFormat.groupsPerPage] }
    let c = capacity(ofGroup: g)
    return GroupState(free: c, available: isSparse ? 0 : c, owner: 0)
  }

  /// The page of a group, brought into being.
  func page(ofGroup g: Int) -> GroupPage {
    let p = g / SpaceFormat.groupsPerPage
    while pages.count <= p { pages.append(nil) }
    if let page = pages[p] { return page }
    let page = GroupPage()
    let first = p * SpaceFormat.groupsPerPage
    for i in 0..<min(SpaceFormat.groupsPerPage, groupCount - first) {
      let c = capacity(ofGroup: first + i)
      page.groups[i] = GroupState(free: c, available: isSparse ? 0 : c, owner: 0)
      page.available += page.groups[i].available
    }
    pages[p] = page
    return page
  }

  /// Changes a group's state in place.
  @inline(__always)
  func updateGroup(_ g: Int, _ body: (inout GroupState) -> Void) {
    body(&page(ofGroup: g).groups[g % SpaceFormat.groupsPerPage])
  }

  /// Moves the count of available blocks of a group, its page and the volume.
  func addAvailable(_ n: Int, group g: Int) {
    guard n != 0 else { return }
    let page = page(ofGroup: g)
    page.groups[g % SpaceFormat.groupsPerPage].available += n
    if n > 0 { page.groups[g % SpaceFormat.groupsPerPage].bound = SpaceFormat.chunkBlocks }
    page.available += n
    available += n
    invariant(page.available >= 0 && available >= 0, "volume \(index) has handed out too much")
  }

  /// The lowest page and group that were never used, or nil.
  func lowestUnused(where accept: (GroupState) -> Bool) -> Int? {
    for p in 0..<pages.count {
      guard let page = pages[p] else { return p * SpaceFormat.groupsPerPage }
      let first = p * SpaceFormat.groupsPerPage
      for i in 0..<min(SpaceFormat.groupsPerPage, groupCount - first)
      where page.groups[i].owner == 0 && accept(page.groups[i]) {
        return first + i
      }
    }
    let next = pages.count * SpaceFormat.groupsPerPage
    return next < groupCount ? next : nil
  }

  /// The next run without a neighbour comes from another group.
  func moveToNextGroup() { currentGroup = (currentGroup + 1) % groupCount }

  /// The group for a run of at least `target` blocks without a neighbour: the current one as long
  /// as it serves; then one that is in use already and at least half free; then the lowest that
  /// was never used; then the one with most.
  func pickGroup(target: Int) -> Int? {
    func serves(_ s: GroupState) -> Bool { s.available >= target && s.bound >= target }
    if currentGroup < groupCount, serves(group(currentGroup)) { return currentGroup }
    let perPage = SpaceFormat.groupsPerPage
    var most: (group: Int, available: Int) = (-1, 0)
    let startPage = currentGroup / perPage
    for step in 0..<pages.count {
      let p = (startPage + step) % pages.count
      guard let page = pages[p], page.available >= target, page.available > most.available
      else { continue }
      for i in 0..<perPage where serves(page.groups[i]) {
        let s = page.groups[i]
        if s.owner != 0 && s.available >= SpaceFormat.groupBlocks / 2 { return p * perPage + i }
        if s.available > most.available && (s.owner != 0 || isSparse) {
          most = (p * perPage + i, s.available)
        }
      }
    }
    if !isSparse, let unused = lowestUnused(where: serves), serves(group(unused)) { return unused }
    return most.group >= 0 ? most.group : nil
  }
}
