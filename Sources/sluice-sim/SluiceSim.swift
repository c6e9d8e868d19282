import ArgumentParser
import Core
import Simulation

/// The simulator's command line.
@main
struct SluiceSim: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "sluice-sim",
    abstract: "Runs the engine over simulated devices, crashes and faults that follow from a seed.",
    subcommands: [RunCommand.self, PlantedCommand.self, ProfilesCommand.self, WorkCommand.self])
}

/// What all ways of running seeds have in common.
struct RunOptions: ParsableArguments {
  @Option(help: "Operations of the clients in each run.")
  var steps: UInt64 = 2000

  @Option(help: "Use this profile for every seed instead of drawing one.")
  var profile: String?

  @Option(help: "Build this mistake into the engine (see `sluice-sim planted --help`).")
  var planted: String?

  @Flag(inversion: .prefixedNo, help: "Check pools offline after each crash.")
  var check = true

  @Option(help: "The engine under test: `sluice`, or the simulator's own `toy`.")
  var engine: EngineChoice = .standard

  func validate() throws {
    if let profile, Profile.named(profile) == nil {
      throw ValidationError("There is no profile “\(profile)”; `sluice-sim profiles` lists them.")
    }
    if let planted, PlantedFault(rawValue: planted) == nil {
      throw ValidationError(
        "There is no planted fault “\(planted)”; choose one of "
          + PlantedFault.allCases.map(\.rawValue).joined(separator: ", ") + ".")
    }
  }

  /// The options again, as a child process or a replay takes them.
  var arguments: [String] {
    var list = ["--steps", "\(steps)"]
    if let profile { list += ["--profile", profile] }
    if let planted { list += ["--planted", planted] }
    if !check { list += ["--no-check"] }
    if engine != .standard { list += ["--engine", engine.rawValue] }
    return list
  }

  func simulation(seed: UInt64, verbose: Bool) -> Simulation {
    Simulation(
      system: engine.system, seed: seed, steps: steps,
      profile: profile.flatMap(Profile.named) ?? engine.onlyProfile,
      planted: planted.flatMap(PlantedFault.init(rawValue:)), checks: check, verbose: verbose)
  }
}

enum EngineChoice: String, ExpressibleByArgument, CaseIterable {
  case sluice, toy

  static let standard = EngineChoice.sluice

  var system: SimulatedSystem {
    switch self {
    case .sluice: .sluice
    case .toy: .toy
    }
  }

  /// The one kind of run that the engine can serve, if it can't serve all.
  var onlyProfile: Profile? {
    switch self {
    case .sluice: nil
    case .toy: .forToy()
    }
  }
}

/// `A..B`, or `N` for 1..N.
struct SeedRange: ExpressibleByArgument {
  var seeds: ClosedRange<UInt64>

  init(_ seeds: ClosedRange<UInt64>) { self.seeds = seeds }

  init?(argument: String) {
    let parts = argument.split(separator: ".", omittingEmptySubsequences: true)
    let numbers = parts.compactMap { UInt64($0) }
    guard numbers.count == parts.count, let last = numbers.last, numbers.count <= 2 else {
      return nil
    }
    let first = numbers.count == 1 ? 1 : numbers[0]
    guard first <= last else { return nil }
    seeds = first...last
  }
}

struct ProfilesCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "profiles", abstract: "Lists the kinds of runs that seeds draw from.")

  func run() {
    for profile in Profile.all { print(profile.name) }
  }
}
