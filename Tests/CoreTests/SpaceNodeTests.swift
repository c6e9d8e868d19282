import Core
import Testing

private func hex(_ bytes: some Sequence<UInt8>) -> String {
  bytes.map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined()
}

@Suite struct SpaceNodeFormatTests {
  @Test func aLeafHasTheBytesOfTheFormat() {
    let space = ToySpace(seed: 1)
    let tree = Tree(store: space.store, kind: .names, owner: ObjectID(3), birth: 9)
    space.run { () throws(SpaceWait) in
      try tree.insertOrReplace(TreeKey(hi: 2, lo: 1), [0xAA, 0xBB, 0xCC])
      try tree.insertOrReplace(TreeKey(hi: 1, lo: 0x0102_0304_0506_0708), [0xDD])
      try tree.insertOrReplace(TreeKey(hi: 7), [1, 2, 3, 4, 5])
      try tree.remove(TreeKey(hi: 7))
    }
    space.commit([tree])
    let block = space.device[tree.root.first]!
    let expected =
      "534c4e4f" + "01" + "02" + "00" + "00" + "c844ebe2" + "0200" + "fc0f"
      + "0002000000000000" + "0002000000000100" + "0300000000000000" + "0900000000000000"
      + "0100000000000000" + "0000000000000000"
      + "0100000000000000" + "0807060504030201" + "fc0f" + "0100"
      + "0200000000000000" + "0100000000000000" + "fd0f" + "0300"
    #expect(hex(block.prefix(104)) == expected)
    #expect(block[104..<4092].allSatisfy { $0 == 0 })
    #expect(hex(block.suffix(4)) == "ddaabbcc")
    #expect(tree.root.checksum == 0xE2EB_44C8)
  }

  @Test func anInteriorNodeHasTheBytesOfTheFormat() {
    let (space, tree) = plantedTree(120)
    #expect(tree.height == 2)
    let block = space.device[tree.root.first]!
    let children = space.live([tree]).filter { $0.level == 0 }
    #expect(children.count == 2)
    #expect(hex(block[..<16]).hasPrefix("534c4e4f01010100"))
    #expect(hex(block[12..<16]) == "02000010")
    block.withUnsafeBytes {
      let p = $0.baseAddress!
      #expect(p.u64(64) == 0 && p.u64(72) == 0)
      let pointers = [NodePointer(decoding: p + 80), NodePointer(decoding: p + 128)]
      #expect(Set(pointers) == Set(children))
      let right = space.device[pointers[1].first]!
      #expect(hex(block[112..<128]) == hex(right[64..<80]))
    }
    #expect(block[160...].allSatisfy { $0 == 0 })
  }

  @Test func theSameEntriesMakeTheSameBytesWhateverTheOrder() {
    func build(_ order: [UInt64]) -> [UInt8] {
      let space = ToySpace(seed: 1)
      let tree = Tree(store: space.store, kind: .objects, owner: ObjectID(7))
      space.run { () throws(SpaceWait) in
        for i in order {
          try tree.insertOrReplace(TreeKey(hi: i), toyValue(i, 50))
          try tree.insertOrReplace(TreeKey(hi: i), toyValue(i, 20))
        }
        try tree.remove(TreeKey(hi: 100))
      }
      space.commit([tree])
      return space.device[tree.root.first]!
    }
    #expect(build([1, 2, 3, 100, 4]) == build([100, 4, 1, 3, 2]))
  }

  @Test func everyFlippedBitOfANodeIsFound() {
    for tall in [false, true] {
      let (space, tree) = plantedTree(tall ? 500 : 30)
      let root = tree.root
      var block = space.device[root.first]!
      for bit in 0..<blockSize * 8 {
        block[bit / 8] ^= 1 << (bit % 8)
        let fault = block.withUnsafeBytes { NodeFormat.fault(in: $0.baseAddress!, of: root) }
        #expect(fault != nil, "bit \(bit)")
        block[bit / 8] ^= 1 << (bit % 8)
      }
      #expect(block.withUnsafeBytes { NodeFormat.fault(in: $0.baseAddress!, of: root) } == nil)
    }
  }

  @Test func aNodeIsRefusedUnderAnyOtherPointer() {
    let (space, tree) = plantedTree(30)
    let block = space.device[tree.root.first]!
    func fault(_ change: (inout NodePointer) -> Void) -> NodeFault? {
      var pointer = tree.root
      change(&pointer)
      return block.withUnsafeBytes { NodeFormat.fault(in: $0.baseAddress!, of: pointer) }
    }
    #expect(fault { _ in } == nil)
    #expect(fault { $0.first = $0.first + 1 } == .address)
    #expect(fault { $0.second = $0.second + 1 } == .address)
    #expect(fault { $0.birth += 1 } == .birth)
    #expect(fault { $0.level += 1 } == .level)
    #expect(fault { $0.checksum ^= 1 } == .checksum)
    #expect(fault { $0.second = $0.first } == .pointer)
    #expect(fault { $0 = .none } == .pointer)
  }

  /// Changes that keep the checksum right must be found by the other checks.
  @Test func aSealedNodeWithBadContentIsRefused() {
    func fault(tall: Bool, _ change: (UnsafeMutableRawPointer) -> Void) -> NodeFault? {
      let (space, tree) = plantedTree(tall ? 500 : 30)
      var block = space.device[tree.root.first]!
      var pointer = tree.root
      return block.withUnsafeMutableBytes {
        let p = $0.baseAddress!
        change(p)
        sealBlock(p, checksumAt: 8)
        pointer.checksum = p.reading.u32(8)
        return NodeFormat.fault(in: p, of: pointer)
      }
    }
    #expect(fault(tall: false) { _ in } == nil)
    #expect(fault(tall: true) { _ in } == nil)
    #expect(fault(tall: false) { $0.put(UInt32(1), at: 0) } == .magic)
    #expect(fault(tall: false) { $0.put(UInt8(2), at: 4) } == .version)
    #expect(fault(tall: false) { $0.put(UInt8(9), at: 5) } == .kind)
    #expect(fault(tall: false) { $0.put(UInt8(1), at: 7) } == .reserved)
    #expect(fault(tall: false) { $0.put(UInt8(1), at: 60) } == .reserved)
    #expect(fault(tall: false) { $0.put(UInt16(0), at: 12) } == .bounds)
    #expect(fault(tall: false) { $0.put(UInt16(31), at: 12) } != nil)
    #expect(fault(tall: false) { $0.put(UInt16(65535), at: 12) } == .bounds)
    #expect(fault(tall: false) { $0.put(UInt16(65535), at: 14) } == .bounds)
    #expect(fault(tall: false) { $0.put(UInt64(9999), at: 64) } == .order)
    #expect(fault(tall: false) { $0.put(UInt64(0), at: 104) } == .order)
    #expect(fault(tall: false) { $0.put(UInt16(4090), at: 80) } == .bounds)
    #expect(fault(tall: false) { $0.put(UInt16(41), at: 82) } == .bounds)
    #expect(fault(tall: true) { $0.put(UInt16(85), at: 12) } == .bounds)
    #expect(fault(tall: true) { $0.put(UInt64(9999), at: 64) } == .order)
    #expect(fault(tall: true) { $0.put(UInt64(0), at: 80) } == .child)
    #expect(fault(tall: true) { $0.put(UInt8(1), at: 80 + 28) } == .child)
    #expect(fault(tall: true) { $0.put(UInt8(1), at: 80 + 29) } == .child)
    #expect(fault(tall: true) { $0.put(UInt8(1), at: 80 + 31) } == .child)
  }

  @Test func extentsThatMakeNoSenseAreRefused() {
    func fault(_ change: (UnsafeMutableRawPointer) -> Void) -> NodeFault? {
      let space = ToySpace(seed: 1)
      let tree = Tree(store: space.store, kind: .extents, owner: ObjectID(7))
      for i in 0..<3 as Range<UInt64> {
        var value = [UInt8](repeating: 9, count: ExtentFormat.size(4))
        value.withUnsafeMutableBytes {
          ExtentFormat.encode(
            to: $0.baseAddress!, address: BlockAddress(volume: 1, block: 900), birth: 1, length: 4)
        }
        space.run { () throws(SpaceWait) in
          try tree.insertOrReplace(TreeKey(hi: i * 4), value)
        }
      }
      space.commit([tree])
      var block = space.device[tree.root.first]!
      var pointer = tree.root
      return block.withUnsafeMutableBytes {
        let p = $0.baseAddress!
        change(p)
        sealBlock(p, checksumAt: 8)
        pointer.checksum = p.reading.u32(8)
        return NodeFormat.fault(in: p, of: pointer)
      }
    }
    let last = blockSize - 40
    #expect(fault { _ in } == nil)
    #expect(fault { $0.put(UInt64(3), at: 84) } == .value)  // overlaps the one before
    #expect(fault { $0.put(UInt64(1), at: 64 + 40 + 8) } == .value)  // lo
    #expect(fault { $0.put(BlockIndex.limit - 3, at: 104) } == .value)
    #expect(fault { $0.put(UInt64(0), at: last) } == .value)
    #expect(fault { $0.put((1 as UInt64) << 48 - 3, at: last) } == .value)
    #expect(fault { $0.put(UInt16(3), at: last + 16) } == .value)
    #expect(fault { $0.put(UInt16(0), at: last + 16) } == .value)
    #expect(fault { $0.put(UInt8(1), at: last + 18) } == .value)
    #expect(fault { $0.put(UInt8(1), at: last + 19) } == .value)
    #expect(fault { $0.put(UInt32(4096), at: last + 20) } == .value)
  }

  @Test(arguments: [NodeKind.objects, .extents], [false, true])
  func nodesOfRandomBytesWithARightChecksumNeverStopTheProcess(kind: NodeKind, tall: Bool) {
    var random = SeededRandom(seed: 77)
    var (accepted, walks) = (0, 0)
    let count: UInt64 = tall ? 200 : 30
    let (space, tree) = kind == .extents ? plantedMap(count) : plantedTree(count)
    for _ in 0..<1500 {
      var block = space.device[tree.root.first]!
      for _ in 0...random.below(3) {
        let reach: UInt64 = random.oneIn(2) ? 64 : random.oneIn(2) ? 400 : 4096
        block[Int(random.below(reach))] = UInt8(truncatingIfNeeded: random.next())
      }
      // The pointer agrees with whatever the block says of itself.
      var pointer = tree.root
      let fault = block.withUnsafeMutableBytes {
        let p = $0.baseAddress!
        sealBlock(p, checksumAt: 8)
        pointer.checksum = p.reading.u32(8)
        pointer.level = p.reading.u8(6)
        pointer.birth = p.reading.u64(40)
        return NodeFormat.fault(in: p, of: pointer)
      }
      guard fault == nil, pointer.birth < 1 << 60 else { continue }
      accepted += 1
      let other = ToySpace(seed: 3)
      other.allocator.isLax = true
      other.device = space.device
      other.device[pointer.first] = block
      other.device[pointer.second] = block
      let damaged = Tree(
        store: other.store, kind: kind, owner: ObjectID(7), root: pointer, birth: 1 << 60)
      walks += walk(other, damaged, &random)
      while other.spill(limit: 100) {}
    }
    #expect(accepted > 50 && walks > 500)
  }
}

/// Random operations as far as damage lets them go; returns how many came to their end.
private func walk(_ space: ToySpace, _ tree: Tree, _ random: inout SeededRandom) -> Int {
  var done = 0
  for _ in 0..<10 {
    let key = TreeKey(hi: random.below(450), lo: tree.kind == .extents ? 0 : random.below(220))
    let kind = random.below(7)
    for _ in 0..<20 {
      do throws(SpaceWait) {
        if tree.kind == .extents {
          try changeMap(ExtentMap(tree: tree), BlockIndex(key.hi), kind)
        } else {
          switch kind {
          case 0: _ = try tree.lookup(key)
          case 1: _ = try tree.floor(key)
          case 2: _ = try tree.ceiling(key)
          case 3: try tree.remove(key)
          case 4: _ = try tree.pruneSome(maxNodes: 1) { _ in }
          default: try tree.insertOrReplace(key, toyValue(key.hi, 30))
          }
        }
        done += 1
        break
      } catch {
        guard case .node(let pointer) = error else { break }
        space.loadOrDamage(pointer)
      }
    }
  }
  return done
}

private func changeMap(_ map: ExtentMap, _ block: BlockIndex, _ kind: UInt64) throws(SpaceWait) {
  switch kind {
  case 0, 1: _ = try map.lookup(block, limit: 50)
  case 2: _ = try map.removeSome(block, count: 60, maxLeaves: 3) { _, _, _ in }
  default:
    let checksums = [UInt32](repeating: 5, count: 20)
    try checksums.span.withUnsafeBufferPointer { c throws(SpaceWait) in
      try map.assign(block, to: BlockAddress(raw: 7000 + block.raw), checksums: c, birth: 2) {
        _, _, _ in
      }
    }
  }
}

/// A committed extent map of extents of four blocks with gaps between.
private func plantedMap(_ extents: UInt64) -> (ToySpace, Tree) {
  let space = ToySpace(seed: 1)
  let tree = Tree(store: space.store, kind: .extents, owner: ObjectID(7), birth: 5)
  for i in 0..<extents {
    space.run { () throws(SpaceWait) in
      try changeMap(ExtentMap(tree: tree), BlockIndex(i * 25), 9)
    }
  }
  space.commit([tree])
  return (space, tree)
}
