// What the records of frames that count do to the state in memory: to the log index and the catalog's
// overlay, to disks and their layers. The same live and in recovery.

extension Engine {
  /// Puts the records of one frame into index and catalog; live and in recovery. False when the
  /// table is not well-formed.
  func applyTable(
    _ table: UnsafeRawPointer, length: Int, sequence: FrameSequence, payloadBlock: UInt64
  ) -> Bool {
    applyingSequence = sequence
    var cursor = RecordCursor(table: table, length: length)
    while let record = cursor.next() {
      switch record {
      case .data(let object, _, let block, let count, let payload, let checksums):
        guard let layer = liveLayer(object) else { continue }
        for i in 0..<count {
          pool.insert(
            IndexEntry(
              key: IndexKey(slot: layer.slot, block: block + UInt64(i)),
              location: payloadBlock + UInt64(payload) + UInt64(i), checksum: checksums.u32(4 * i),
              kind: .log, reserves: true, sequence: sequence), layer)
        }
        pool.reservedBlocks += count
      case .zero(let object, _, let block, let count):
        guard let layer = liveLayer(object) else { continue }
        pool.insert(
          IndexEntry(
            key: IndexKey(slot: layer.slot, block: block), location: count, checksum: 0,
            kind: .zero, reserves: false, sequence: sequence), layer)
      case .extent(let object, _, let block, let count, let address, let checksums):
        guard let layer = liveLayer(object) else {
          dropHome(address, count)
          continue
        }
        recovery?.hasHomes = true
        for i in 0..<count {
          pool.insert(
            IndexEntry(
              key: IndexKey(slot: layer.slot, block: block + UInt64(i)),
              location: address.raw + UInt64(i), checksum: checksums.u32(4 * i), kind: .home,
              reserves: false, sequence: sequence), layer)
        }
      default:
        applyStructural(record, sequence: sequence)
      }
    }
    return cursor.isAtEnd
  }

  /// The layer that a record is for; nil when the disk was deleted.
  private func liveLayer(_ object: ObjectID) -> Layer? {
    let disk = pool.disk(object)
    return disk.isDeleted ? nil : disk.layer
  }

  private func dropHome(_ address: BlockAddress, _ count: Int) {
    if recovery == nil { freeHome(BlockRun(address, count)) }
  }

  /// A large write's home that nothing refers to any more, by the frame that is being applied. It
  /// is free once that frame is durable: until then a power cut brings the old record back.
  func freeHome(_ home: BlockRun) {
    if pool.log.durableSequence >= applyingSequence {
      pool.space.cancelReservation(home.address, home.count)
    } else {
      homesToFree.push((applyingSequence, home))
    }
  }

  func freeDurableHomes() {
    while let (sequence, home) = homesToFree.first(),
      sequence <= max(pool.log.durableSequence, pool.root.cutSequence)
    {
      pool.space.cancelReservation(home.address, home.count)
      _ = homesToFree.pop()
    }
  }

  private func applyStructural(_ record: LogRecord, sequence: FrameSequence) {
    pool.catalog.take(record, sequence: sequence)
    if pool.fault == .markOutOfOrder, let late = lateMark {
      lateMark = nil
      freeze(pool.disk(late.disk), as: late.snapshot)
    }
    switch record {
    case .remove(let object, let kind, _, let snapshots, _, _):
      let disk = pool.disk(object)
      disk.close()
      if kind == .disk {
        if snapshots > 0 { pool.disks.snapshots(of: object).forEach { $0.close() } }
        pool.dropLogged(disk.layer)
        disk.layer.state = .abandoned
      }
    case .resize(let object, let size):
      let disk = pool.disk(object)
      disk.record?.size = size
      let end = roundUp(size, to: 4096) >> blockShift
      if end < BlockIndex.limit {
        pool.insert(
          IndexEntry(
            key: IndexKey(slot: disk.layer.slot, block: BlockIndex(end)),
            location: BlockIndex.limit - end, checksum: 0, kind: .zero, reserves: false,
            sequence: sequence), disk.layer)
      }
    case .change(let object, let change):
      if let disk = pool.disks.find(object), disk.record != nil {
        Catalog.apply(change, to: &disk.record!)
      }
    case .rename(let object, _, _, _, let parent, let name):
      if let disk = pool.disks.find(object) {
        disk.record?.parent = parent
        disk.record?.name = name
      }
    case .snapshot(let snapshot, let disk, _, _, _, _):
      if pool.fault == .markOutOfOrder {
        lateMark = (snapshot, disk)
      } else {
        freeze(pool.disk(disk), as: snapshot)
      }
    case .rollback(let object, let snapshot, _, let size, _):
      rollBack(pool.disk(object), to: snapshot, size: size, sequence)
    default: break
    }
  }

  /// A mark: the disk's layer is the snapshot's from here on, and the disk has an empty one over it.
  private func freeze(_ disk: VirtualDisk, as snapshot: ObjectID) {
    let frozen = disk.layer
    frozen.state = .frozen
    pool.frozen.append(frozen)
    _ = pool.disks.add(snapshot, layer: frozen)
    let layer = pool.layers.add(disk.object)
    layer.base = frozen
    (layer.lastHome, layer.runLength) = (frozen.lastHome, frozen.runLength)
    disk.layer = layer
  }

  /// The disk starts anew from the snapshot; what the log holds of what it was is void.
  private func rollBack(
    _ disk: VirtualDisk, to snapshot: ObjectID, size: UInt64, _ sequence: FrameSequence
  ) {
    pool.paths.hit(.rolledBack)
    let former = disk.layer
    pool.dropLogged(former)
    former.state = .abandoned
    pool.frozen.append(former)
    disk.layer = pool.layers.add(disk.object)
    disk.layer.branch = (snapshot, sequence)
    disk.record?.size = size
    disk.streams = disk.streams.map { _ in ReadStream() }
    disk.isPaused = false
    loadEnded = true
  }
}
