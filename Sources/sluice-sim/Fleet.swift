import Core
@preconcurrency import Glibc
import Simulation

/// Child processes that work through seeds. A child that dies or hangs fails the seed that it had
/// begun; the seeds behind it go to another child.
struct Fleet {
  struct Failure {
    var seed: UInt64
    var reason: String
  }

  struct Report {
    var seeds = 0
    var operations: UInt64 = 0
    var crashes: UInt64 = 0
    var failures: [Failure] = []
    var rarePaths = RarePathCounters()
    var harness = HarnessCounters()
  }

  private struct Child {
    var pid: pid_t
    var pipe: Int32
    var seeds: ClosedRange<UInt64>
    var running: UInt64?
    var input: [UInt8] = []
    var heardAt: Int
  }

  var seeds: ClosedRange<UInt64>
  var options: RunOptions
  var jobs: Int
  /// Seconds that one seed may take.
  var timeout: Int
  var maxFailures: Int
  private static let batch: UInt64 = 16

  /// This program's own file, however it was called.
  private static let program: String = {
    var path = [UInt8](repeating: 0, count: Int(PATH_MAX))
    let count = path.withUnsafeMutableBytes {
      readlink("/proc/self/exe", $0.baseAddress!.assumingMemoryBound(to: CChar.self), $0.count)
    }
    return count > 0 ? String(decoding: path[..<count], as: UTF8.self) : "/proc/self/exe"
  }()

  func run() -> Report {
    var report = Report()
    var waiting: [ClosedRange<UInt64>] = []
    var next: UInt64? = seeds.lowerBound
    var children: [Child] = []
    func nextBatch() -> ClosedRange<UInt64>? {
      if let again = waiting.popLast() { return again }
      guard let first = next else { return nil }
      let last = min(first + Self.batch - 1, seeds.upperBound)
      next = last == seeds.upperBound ? nil : last + 1
      return first...last
    }
    while true {
      while children.count < jobs, report.failures.count < maxFailures, let batch = nextBatch() {
        children.append(spawn(batch))
      }
      if children.isEmpty { return report }
      wait(for: children)
      for i in children.indices.reversed() where !listen(&children[i], &report) {
        let child = children.remove(at: i)
        if let rest = bury(child, &report) { waiting.append(rest) }
      }
      if report.failures.count >= maxFailures {
        for child in children { end(child) }
        return report
      }
    }
  }

  // MARK: Children

  private func spawn(_ batch: ClosedRange<UInt64>) -> Child {
    var ends: [Int32] = [0, 0]
    invariant(pipe(&ends) == 0, "no pipe for a child process")
    for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1)
    let words =
      ["sluice-sim", "work", "--seeds", "\(batch.lowerBound)..\(batch.upperBound)"]
      + options.arguments
    var arguments = words.map { strdup($0) }
    arguments.append(nil)
    var pid: pid_t = 0
    let error = posix_spawn(&pid, Self.program, &actions, nil, arguments, environ)
    invariant(error == 0, "a child process can't be started: errno \(error)")
    for argument in arguments { free(argument) }
    posix_spawn_file_actions_destroy(&actions)
    close(ends[1])
    return Child(pid: pid, pipe: ends[0], seeds: batch, heardAt: time(nil))
  }

  private func wait(for children: [Child]) {
    var list = children.map { pollfd(fd: $0.pipe, events: Int16(POLLIN), revents: 0) }
    _ = poll(&list, nfds_t(list.count), 1000)
  }

  /// Takes in what a child has to say; false when it is through, dead, or has to be ended.
  private func listen(_ child: inout Child, _ report: inout Report) -> Bool {
    var ready = pollfd(fd: child.pipe, events: Int16(POLLIN), revents: 0)
    guard poll(&ready, 1, 0) > 0 else { return time(nil) - child.heardAt <= timeout }
    var buffer = [UInt8](repeating: 0, count: 65_536)
    let count = read(child.pipe, &buffer, buffer.count)
    guard count > 0 else { return false }
    child.heardAt = time(nil)
    child.input += buffer[..<count]
    while let end = child.input.firstIndex(of: UInt8(ascii: "\n")) {
      take(String(decoding: child.input[..<end], as: UTF8.self), &child, &report)
      child.input.removeFirst(end + 1)
    }
    return true
  }

  private func take(_ line: String, _ child: inout Child, _ report: inout Report) {
    let words = line.split(separator: " ", maxSplits: 2)
    guard words.count >= 2, let seed = UInt64(words[1]) else { return }
    switch words[0] {
    case "begin": child.running = seed
    case "fail":
      report.failures.append(Failure(seed: seed, reason: String(words.last!)))
      announce(report.failures.last!)
    case "end":
      child.running = nil
      child.seeds = min(seed, child.seeds.upperBound)...child.seeds.upperBound
      report.add(line)
    default: break
    }
  }

  /// A child has ended: the seed it was at has failed, unless it was through.
  /// - Returns: the seeds that it did not get to.
  private func bury(_ child: Child, _ report: inout Report) -> ClosedRange<UInt64>? {
    let hangs = time(nil) - child.heardAt > timeout
    if hangs { kill(child.pid, SIGKILL) }
    close(child.pipe)
    var status: Int32 = 0
    waitpid(child.pid, &status, 0)
    guard let seed = child.running else { return nil }
    let reason =
      hangs
      ? "did not end within \(timeout) s"
      : "the process ended with signal \(status & 0x7F); its last words are above"
    report.seeds += 1
    report.failures.append(Failure(seed: seed, reason: reason))
    announce(report.failures.last!)
    return seed < child.seeds.upperBound ? (seed + 1)...child.seeds.upperBound : nil
  }

  private func end(_ child: Child) {
    kill(child.pid, SIGKILL)
    close(child.pipe)
    var status: Int32 = 0
    waitpid(child.pid, &status, 0)
  }

  private func announce(_ failure: Failure) {
    let replay = (["run", "--seed", "\(failure.seed)"] + options.arguments).joined(separator: " ")
    print("seed \(failure.seed) FAILED: \(failure.reason)")
    print("  replay with: \(CommandLine.arguments[0]) \(replay) --verbose")
    fflush(stdout)
  }
}

extension Fleet.Report {
  mutating func add(_ line: String) {
    let words = line.split(separator: " ")
    guard words.count == 6 else { return }
    seeds += 1
    operations += UInt64(words[2]) ?? 0
    crashes += UInt64(words[3]) ?? 0
    for (path, count) in zip(RarePath.allCases, words[4].split(separator: ",")) {
      rarePaths[path] += UInt64(count) ?? 0
    }
    for (path, count) in zip(HarnessPath.allCases, words[5].split(separator: ",")) {
      harness[path] += UInt64(count) ?? 0
    }
  }

  func print(options: RunOptions) {
    Swift.print("\(seeds) seeds, \(operations) operations, \(crashes) crashes")
    Swift.print("the simulator:")
    for path in HarnessPath.allCases { row("\(path)", harness[path]) }
    Swift.print("rare paths of the engine:")
    for path in RarePath.allCases { row("\(path)", rarePaths[path]) }
    if failures.isEmpty {
      Swift.print("no seed failed")
    } else {
      Swift.print("failed: " + failures.map { "\($0.seed)" }.joined(separator: ", "))
    }
  }

  private func row(_ name: String, _ count: UInt64) {
    Swift.print("  " + name + String(repeating: " ", count: max(1, 28 - name.count)) + "\(count)")
  }

  /// What a run of many seeds has to have met, and did not.
  func missingPaths(_ system: SimulatedSystem) -> [String] {
    system.requiredPaths.filter { rarePaths[$0] == 0 }.map { "\($0)" }
      + system.requiredHarnessPaths.filter { harness[$0] == 0 }.map { "\($0)" }
  }
}
