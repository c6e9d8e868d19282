/// What a new pool's members hold: labels, an empty epoch ring and the first root.
package struct PoolLayout {
  package struct Member: Sendable {
    package var member: UUIDBytes
    package var sizeInBlocks: UInt64
    package init(member: UUIDBytes, sizeInBlocks: UInt64) {
      self.member = member
      self.sizeInBlocks = sizeInBlocks
    }
  }

  /// One write of creation, in order; all must be durable before the pool is opened. The labels
  /// come last, so that an interrupted creation leaves nothing that looks like a pool.
  package struct Write {
    package var device: DeviceIndex
    package var offset: UInt64
    package var memory: AlignedMemory
  }

  package var pool: UUIDBytes
  package var name: String
  package var created: UInt64
  package var log: Member
  package var volumes: [Member]

  package init(pool: UUIDBytes, name: String, created: UInt64, log: Member, volumes: [Member]) {
    self.pool = pool
    self.name = name
    self.created = created
    self.log = log
    self.volumes = volumes
  }

  package var logLabel: DeviceLabel {
    DeviceLabel(
      pool: pool, member: log.member, role: .log,
      segmentShift: LogLayout.segmentShift(forBytes: log.sizeInBlocks << blockShift),
      sizeInBlocks: log.sizeInBlocks, created: created, poolName: name)
  }

  package func volumeLabel(_ v: Int) -> DeviceLabel {
    Self.volumeLabel(pool: pool, name: name, created: created, index: v, member: volumes[v])
  }

  package static func volumeLabel(
    pool: UUIDBytes, name: String, created: UInt64, index: Int, member: Member
  ) -> DeviceLabel {
    DeviceLabel(
      pool: pool, member: member.member, role: .volume, volumeIndex: UInt16(index),
      sizeInBlocks: member.sizeInBlocks, created: created, poolName: name)
  }

  /// The first root: checkpoint 1, nothing in it.
  package var firstRoot: RootRecord {
    var root = RootRecord()
    root.pool = pool
    root.checkpoint = 1
    root.volumes = UInt32(volumes.count)
    root.nextObject = TreeOwner.firstFree
    root.written = created
    return root
  }

  package func writes() -> [Write] {
    var writes: [Write] = []
    func add(
      _ device: DeviceIndex, block: UInt64, count: UInt64 = 1,
      _ fill: (UnsafeMutableRawPointer) -> Void
    ) {
      let memory = AlignedMemory(bytes: Int(count) * blockSize)
      fill(memory.base)
      writes.append(Write(device: device, offset: block << blockShift, memory: memory))
    }
    add(.log, block: LogLayout.epochs, count: LogLayout.epochRing) { _ in }
    // Segment ends and starts of an earlier pool need no wiping: their tag differs.
    for v in volumes.indices {
      add(.volume(v), block: VolumeLayout.roots, count: VolumeLayout.units * VolumeLayout.rootRing)
      {
        let slot = VolumeLayout.root(unit: 0, checkpoint: 1) - VolumeLayout.roots
        for copy in 0..<Int(VolumeLayout.rootCopies) {
          firstRoot.encode(to: $0 + (Int(slot) + copy) * blockSize)
        }
      }
    }
    for v in volumes.indices {
      for block in [VolumeLayout.label, VolumeLayout.labelCopy] {
        add(.volume(v), block: block) { volumeLabel(v).encode(to: $0) }
      }
    }
    for block in [LogLayout.label, LogLayout.labelCopy] {
      add(.log, block: block) { logLabel.encode(to: $0) }
    }
    return writes
  }
}
