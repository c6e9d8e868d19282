import Core

// Labels and roots: who the members are, and which checkpoint counts.

/// The pool's members in their order, with what their labels and roots say.
struct PoolMembers {
  var log: Member
  var logLabel: DeviceLabel
  /// In order of the volume index, without gaps.
  var volumes: [Member]
  var volumeLabels: [DeviceLabel]
  var root: RootRecord
  /// Volumes whose root ring lacks a copy of the newest root.
  var volumesWithoutRoot: [VolumeWithoutRoot]

  /// Whether `count` blocks from `address` are on a volume of the pool, behind its label area.
  func isHome(_ address: BlockAddress, count: UInt64) -> Bool {
    address.volume < volumes.count && address.isHome(count: count)
      && address.block + count <= volumeLabels[address.volume].sizeInBlocks
  }
}

struct VolumeWithoutRoot {
  var index: Int
  /// The newest checkpoint whose root is there, 0 for none; whether it is the pool's newest.
  var newest: UInt64
  var hasOneCopy: Bool
}

/// Reads and checks labels and roots.
struct MemberCheck {
  let options: CheckOptions
  let findings: Findings
  private let block = AlignedMemory(bytes: 2 * blockSize)

  init(options: CheckOptions, findings: Findings) {
    self.options = options
    self.findings = findings
  }

  func run(log: any CheckDevice, volumes: [any CheckDevice]) throws(CheckFailure) -> PoolMembers {
    let logMember = Member(log, name: "the log")
    let logLabel = try label(logMember)
    guard logLabel.role == .log else {
      throw CheckFailure("the log device is labelled as a volume; name the pool's log as the log")
    }
    var placed: [(label: DeviceLabel, device: any CheckDevice)] = []
    for (i, device) in volumes.enumerated() {
      let label = try label(Member(device, name: "volume device \(i)"))
      guard label.role == .volume else {
        throw CheckFailure("volume device \(i) is labelled as a log; name only volumes as volumes")
      }
      guard label.pool == logLabel.pool else {
        throw CheckFailure(
          "volume device \(i) belongs to pool \(label.pool), the log to \(logLabel.pool); name the "
            + "members of one pool")
      }
      placed.append((label, device))
    }
    placed.sort { $0.label.volumeIndex < $1.label.volumeIndex }
    for (i, entry) in placed.enumerated() where Int(entry.label.volumeIndex) != i {
      throw CheckFailure(
        Int(entry.label.volumeIndex) > i
          ? "volume \(i) of the pool is missing; name all of its devices"
          : "two devices are labelled as volume \(entry.label.volumeIndex); name only one of them")
    }
    guard !placed.isEmpty else {
      throw CheckFailure("no volume was named; a pool has at least one")
    }
    let members = placed.enumerated().map { Member($1.device, name: "volume \($0)") }
    checkIdentities([logLabel] + placed.map(\.label))
    let unit = UInt64(logLabel.nodeSlot)
    let (root, lacking) = try newestRoot(of: members, pool: logLabel.pool, unit: unit)
    guard Int(root.volumes) <= members.count else {
      throw CheckFailure(
        "the pool has \(root.volumes) volumes, but \(members.count) were named; name all of them")
    }
    return PoolMembers(
      log: logMember, logLabel: logLabel, volumes: members, volumeLabels: placed.map(\.label),
      root: root, volumesWithoutRoot: lacking)
  }

  /// The label of a member; a damaged copy is a complaint, and healed from the good one.
  private func label(_ member: Member) throws(CheckFailure) -> DeviceLabel {
    let first = decode(member, 0)
    let second = decode(member, 1)
    switch (first, second) {
    case (.success(let a), .success(let b)):
      if a != b {
        findings.complain("\(member.name): the two copies of the label differ")
        heal(member, copy: 1, from: 0)
      }
      return a
    case (.success(let a), .failure(let error)):
      findings.complain("\(member.name): the second copy of the label is \(words(error))")
      heal(member, copy: 1, from: 0)
      return a
    case (.failure(let error), .success(let b)):
      findings.complain("\(member.name): the first copy of the label is \(words(error))")
      heal(member, copy: 0, from: 1)
      return b
    case (.failure(let error), .failure):
      throw CheckFailure("\(member.name) can't be checked: its label is \(words(error))")
    }
  }

  private func decode(_ member: Member, _ copy: Int) -> Result<DeviceLabel, LabelError> {
    let p = block.base + copy * blockSize
    let place = copy == 0 ? VolumeLayout.label : VolumeLayout.labelCopy
    guard member.read(block: place, count: 1, into: p) else { return .failure(.damaged) }
    return Result { () throws(LabelError) in
      try DeviceLabel(decoding: p, actualSizeInBlocks: member.sizeInBlocks)
    }
  }

  private func words(_ error: LabelError) -> String {
    switch error {
    case .notSluice: "missing"
    case .damaged: "damaged or unreadable"
    case .newerFormat(let version): "of format \(version), which a later version of Sluice wrote"
    case .truncated(let labelled, let actual):
      "for a device of \(labelled) blocks, but this one has \(actual)"
    }
  }

  private func heal(_ member: Member, copy: Int, from good: Int) {
    guard options.repair else { return }
    let place = copy == 0 ? VolumeLayout.label : VolumeLayout.labelCopy
    if member.write(block: place, from: block.base + good * blockSize), member.flush() {
      findings.repaired("\(member.name): rewrote the damaged copy of the label")
    }
  }

  private func checkIdentities(_ labels: [DeviceLabel]) {
    for (i, label) in labels.enumerated() {
      if labels[..<i].contains(where: { $0.member == label.member }) {
        findings.complain("two members carry the same member UUID \(label.member)")
      }
    }
  }

  /// The newest valid root on any volume, and the volumes that lack it.
  private func newestRoot(
    of volumes: [Member], pool: UUIDBytes, unit: UInt64
  ) throws(CheckFailure) -> (RootRecord, [VolumeWithoutRoot]) {
    guard unit < VolumeLayout.units else {
      throw CheckFailure("the log is labelled for unit \(unit), which no format has")
    }
    var newest: RootRecord?
    var found = [(checkpoint: UInt64, copies: UInt64)](repeating: (0, 0), count: volumes.count)
    for (v, volume) in volumes.enumerated() {
      for slot in 0..<VolumeLayout.rootRing {
        guard let root = root(volume, slot: slot, pool: pool, unit: unit) else { continue }
        if root.checkpoint > found[v].checkpoint { found[v] = (root.checkpoint, 0) }
        if root.checkpoint == found[v].checkpoint { found[v].copies += 1 }
        if let known = newest, known.checkpoint == root.checkpoint, known != root {
          findings.complain(
            "\(volume.name): its root of checkpoint \(root.checkpoint) differs from another "
              + "volume's")
        }
        if root.checkpoint > newest?.checkpoint ?? 0 { newest = root }
      }
    }
    guard let newest else {
      throw CheckFailure("no volume holds a valid root of this pool; it can't be opened or checked")
    }
    findings.counters.checkpoint = newest.checkpoint
    // A volume that was added later gets its first root from the next checkpoint.
    let known = volumes.indices.prefix(Int(newest.volumes))
    let lacking = known.compactMap { v -> VolumeWithoutRoot? in
      let (checkpoint, copies) = found[v]
      let hasOne = checkpoint == newest.checkpoint
      if hasOne, copies == VolumeLayout.rootCopies { return nil }
      return VolumeWithoutRoot(index: v, newest: checkpoint, hasOneCopy: hasOne)
    }
    return (newest, lacking)
  }

  private func root(
    _ volume: Member, slot: UInt64, pool: UUIDBytes, unit: UInt64
  ) -> RootRecord? {
    let place = VolumeLayout.roots + unit * VolumeLayout.rootRing + slot
    guard volume.read(block: place, count: 1, into: block.base),
      let root = RootRecord(decoding: block.base, pool: pool, unit: unit),
      slot / VolumeLayout.rootCopies == root.checkpoint * VolumeLayout.rootCopies
        % VolumeLayout.rootRing / VolumeLayout.rootCopies
    else { return nil }
    return root
  }

  /// After the log was read: is the newest root where it was once known to be (R19)?
  func checkRoots(_ members: PoolMembers, durableCheckpoint: UInt64) {
    let newest = members.root.checkpoint
    if newest < durableCheckpoint {
      findings.complain(
        "the newest root is of checkpoint \(newest), but the log names checkpoint "
          + "\(durableCheckpoint) as durable: newer roots were lost on every volume, and what they "
          + "held can't be read")
    }
    for volume in members.volumesWithoutRoot {
      let name = members.volumes[volume.index].name
      if volume.hasOneCopy, newest <= durableCheckpoint {
        findings.complain("\(name): one copy of the root of checkpoint \(newest) is lost")
        healRoot(members, volume.index)
      } else if newest <= durableCheckpoint || volume.newest > 0 && volume.newest + 1 < newest {
        findings.complain(
          "\(name): the root of checkpoint \(newest) was durable here and is lost, so recovery "
            + "refuses the pool: is this another device, or an older state of it? Repair writes the "
            + "root anew, but nothing else that such a device lacks")
        healRoot(members, volume.index)
      } else {
        findings.note(
          "\(name) does not have the root of checkpoint \(newest) yet: its write was interrupted, "
            + "opening the pool completes it")
      }
    }
  }

  private func healRoot(_ members: PoolMembers, _ v: Int) {
    guard options.repair else { return }
    members.root.encode(to: block.base)
    let place = VolumeLayout.root(unit: members.root.unit, checkpoint: members.root.checkpoint)
    let isWritten = (0..<VolumeLayout.rootCopies).allSatisfy {
      members.volumes[v].write(block: place + $0, from: block.base)
    }
    if isWritten, members.volumes[v].flush() {
      findings.repaired("\(members.volumes[v].name): rewrote the newest root")
    }
  }
}
