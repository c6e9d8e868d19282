import ArgumentParser
import Core
import Simulation

struct PlantedCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "planted",
    abstract: "Proves that the simulator catches mistakes: builds each one in and runs seeds.",
    discussion: "Mistakes: " + PlantedFault.allCases.map(\.rawValue).joined(separator: ", "))

  @Argument(help: "Mistakes to build in; all when none is named.")
  var faults: [String] = []

  @Option(help: "Seeds within which each mistake has to be caught.")
  var seeds = SeedRange(1...400)

  @Option(help: "Child processes at a time.")
  var jobs = onlineProcessors

  @Option(help: "Seconds that one seed may take.")
  var timeout: Int = 300

  @OptionGroup var options: RunOptions

  func validate() throws {
    for name in faults where PlantedFault(rawValue: name) == nil {
      throw ValidationError("There is no planted fault “\(name)”.")
    }
    if options.planted != nil { throw ValidationError("Name the fault without --planted.") }
  }

  func run() throws {
    let named = faults.compactMap(PlantedFault.init(rawValue:))
    let chosen = named.isEmpty ? options.engine.system.plantable : named
    var missed: [PlantedFault] = []
    for fault in chosen where !isCaught(fault) { missed.append(fault) }
    guard missed.isEmpty else {
      print("NOT CAUGHT: " + missed.map(\.rawValue).joined(separator: ", "))
      throw ExitCode.failure
    }
    print("all \(chosen.count) planted faults were caught")
  }

  /// The kind of run that meets a mistake soonest, where most never would.
  private static let profiles: [PlantedFault: String] = [
    .inPlaceBeforeLogDurable: "lazy-log",
    .noFlushInRecovery: "lazy-kill",
    .tailNotRewritten: "failing-log",
    .lockNotAwaited: "killed",
    .checkpointNotExactPrefix: "lazy-log",
  ]

  private func isCaught(_ fault: PlantedFault) -> Bool {
    var options = options
    options.planted = fault.rawValue
    if options.profile == nil && options.engine.onlyProfile == nil {
      options.profile = Self.profiles[fault]
    }
    print("\(fault.rawValue):")
    let report = Fleet(
      seeds: seeds.seeds, options: options, jobs: jobs, timeout: timeout, maxFailures: 1
    ).run()
    print(
      report.failures.isEmpty
        ? "  not caught by \(report.seeds) seeds" : "  caught after \(report.seeds) seeds")
    return !report.failures.isEmpty
  }
}
