import Checker
import Core

// The product under the simulator: pools are made, opened and checked as the command line does it,
// with the same code, only over simulated devices.

/// A simulated device as the offline check sees it.
private final class SimulatedCheckDevice: CheckDevice {
  private let pool: SimulatedPool
  private let device: DeviceIndex

  init(pool: SimulatedPool, device: DeviceIndex) {
    self.pool = pool
    self.device = device
  }

  var sizeInBytes: UInt64 { pool.devices[Int(device.raw)].plan.size }

  func read(
    offset: UInt64, into memory: UnsafeMutableRawBufferPointer
  ) throws(CheckReadError) {
    pool.read(device, offset: offset, into: memory)
  }

  func write(offset: UInt64, from memory: UnsafeRawBufferPointer) throws(CheckReadError) {
    invariantBroken("a check without repair writes")
  }

  func flush() throws(CheckReadError) {}
}

extension PoolPlan {
  /// The pool's labels; every UUID follows from the seed.
  func layout(volumes count: Int) -> PoolLayout {
    var random = SeededRandom(seed: seed ^ 0x6C61_6265_6C73)
    let pool = UUIDBytes(random: &random)
    let log = PoolLayout.Member(
      member: UUIDBytes(random: &random), sizeInBlocks: self.log.size >> blockShift)
    var members: [PoolLayout.Member] = []
    for volume in volumes + spareVolumes {
      members.append(
        PoolLayout.Member(
          member: UUIDBytes(random: &random), sizeInBlocks: volume.size >> blockShift))
    }
    return PoolLayout(
      pool: pool, name: "simulated", created: 1, log: log,
      volumes: Array(members.prefix(count)))
  }
}

extension SimulatedSystem {
  package static let sluice = SimulatedSystem(
    format: { pool in
      for write in pool.plan.layout(volumes: pool.volumeCount).writes() {
        pool.write(
          write.device, offset: write.offset,
          from: UnsafeRawBufferPointer(start: write.memory.base, count: write.memory.count))
      }
    },
    start: { pool, _ in
      let layout = pool.plan.layout(volumes: pool.volumeCount)
      var configuration = PoolConfiguration(
        pool: layout.pool, name: layout.name, log: LogGeometry(label: layout.logLabel)!,
        volumes: layout.volumes.enumerated().map { index, volume in
          VolumeMember(
            member: volume.member, description: pool.devices[1 + index].description)
        })
      configuration.cacheBytes = pool.plan.cacheBytes
      configuration.durability = pool.plan.durability
      configuration.requestSlots = 24
      configuration.fault = pool.plan.planted
      configuration.deltaNodes = pool.plan.deltaNodes
      configuration.logGap = pool.plan.logGap
      configuration.alwaysScans = pool.plan.alwaysScans
      if let limit = pool.plan.chunkLimit { configuration.chunkLimit = limit }
      if pool.plan.dividesLog { configuration.leastCyclePortion = 1 << 20 }
      return Engine(configuration)
    },
    label: { pool, device in
      let layout = pool.plan.layout(volumes: Int(device.raw))
      let ours = layout.writes().filter { $0.device == device }
      for write in ours {
        // A new member has no root until the pool takes it in.
        let isLabel = write.offset < VolumeLayout.roots << blockShift
        let zeros = AlignedMemory(bytes: write.memory.count)
        let memory = isLabel ? write.memory : zeros
        pool.write(
          device, offset: write.offset,
          from: UnsafeRawBufferPointer(start: memory.base, count: memory.count))
      }
      return layout.volumes[Int(device.raw) - 1].member
    },
    check: { pool in
      var options = CheckOptions()
      options.sortMemory = 4 << 20
      options.maximumSentences = 20
      let report = Checker(
        log: SimulatedCheckDevice(pool: pool, device: .log),
        volumes: pool.volumes.map { SimulatedCheckDevice(pool: pool, device: $0.index) },
        options: options
      ).run()
      return (report.failure.map { [$0] } ?? []) + report.complaints
    },
    rarePaths: { ($0 as! Engine).rarePaths },
    requiredPaths: RarePath.allCases,
    requiredHarnessPaths: HarnessPath.allCases,
    plantable: PlantedFault.allCases)
}
