import ArgumentParser
import Core
@preconcurrency import Glibc
import Simulation

struct RunCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "run", abstract: "Runs seeds and reports those that fail.",
    discussion: """
      With --seed, one run in this process. With --seeds, runs in child processes, so that a run \
      that stops the process is a failing seed like any other.
      """)

  @Option(help: "One seed.")
  var seed: UInt64?

  @Option(help: "Seeds, as A..B, or N for 1..N.")
  var seeds: SeedRange?

  @Flag(help: "Tell everything that happens (with --seed).")
  var verbose = false

  @Option(help: "Child processes at a time.")
  var jobs = onlineProcessors

  @Option(help: "Seconds that one seed may take.")
  var timeout: Int = 300

  @Option(help: "Stop after so many failing seeds.")
  var maxFailures = 5

  @Flag(
    inversion: .prefixedNo,
    help: "Fail when a rare path was never taken (default: from 200 seeds on).")
  var requirePaths: Bool?

  @OptionGroup var options: RunOptions

  func validate() throws {
    if (seed == nil) == (seeds == nil) {
      throw ValidationError("Give either --seed N or --seeds A..B.")
    }
    if verbose && seed == nil { throw ValidationError("--verbose needs --seed.") }
    if jobs < 1 { throw ValidationError("--jobs must be at least 1.") }
  }

  func run() throws {
    if let seed { return try runOne(seed) }
    let range = seeds!.seeds
    let fleet = Fleet(
      seeds: range, options: options, jobs: jobs, timeout: timeout, maxFailures: maxFailures)
    let report = fleet.run()
    report.print(options: options)
    let needsPaths = requirePaths ?? (range.count >= 200 && options.planted == nil)
    let missing = needsPaths ? report.missingPaths(options.engine.system) : []
    if !missing.isEmpty {
      print("never taken: \(missing.joined(separator: ", "))")
    }
    if !report.failures.isEmpty || !missing.isEmpty { throw ExitCode.failure }
  }

  private func runOne(_ seed: UInt64) throws {
    setlinebuf(stdout)
    let result = options.simulation(seed: seed, verbose: verbose).run()
    print(
      "seed \(seed): profile \(result.profile), \(result.operations) operations, "
        + "\(result.crashes) crashes, hash \(String(result.hash, radix: 16))")
    if let violation = result.violation {
      print("FAILED: \(violation)")
      throw ExitCode.failure
    }
  }
}

/// Runs seeds in this process and tells its parent of each, line by line.
struct WorkCommand: ParsableCommand {
  static let configuration = CommandConfiguration(commandName: "work", shouldDisplay: false)

  @Option var seeds: SeedRange
  @OptionGroup var options: RunOptions

  func run() {
    setlinebuf(stdout)
    limitMemory()
    for seed in seeds.seeds {
      print("begin \(seed)")
      let result = options.simulation(seed: seed, verbose: false).run()
      if let violation = result.violation {
        let line = violation.split(whereSeparator: \.isNewline).joined(separator: " ")
        print("fail \(seed) \(line)")
      }
      let rare = RarePath.allCases.map { "\(result.rarePaths[$0])" }.joined(separator: ",")
      let harness = HarnessPath.allCases.map { "\(result.harness[$0])" }.joined(separator: ",")
      print("end \(seed) \(result.operations) \(result.crashes) \(rare) \(harness)")
    }
  }
}

/// A run that grows without bound fails its seed, not the machine.
private func limitMemory() {
  var limit = rlimit(rlim_cur: 4 << 30, rlim_max: 4 << 30)
  setrlimit(__rlimit_resource_t(RLIMIT_AS.rawValue), &limit)
}

let onlineProcessors = max(1, sysconf(Int32(_SC_NPROCESSORS_ONLN)))
