import ArgumentParser
import ControlAPI
import ControlServer

struct CloneCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "clone", abstract: "Make disks that start as a snapshot is.",
    discussion: """
      A clone takes space only for what is written to it. With --count N the clones are NAME-1 to
      NAME-N, all or none.
      """)

  @Argument(help: .init("The snapshot.", valueName: "disk@snap"))
  var snapshot: String

  @Argument(help: "The new disk's name.")
  var name: String

  @Option(help: .init("Make so many of them.", valueName: "n"))
  var count: Int?

  @Flag(help: "Print what was made as JSON.")
  var json = false

  @OptionGroup var daemon: DaemonOptions

  func validate() throws {
    _ = try snapshotName(snapshot)
    if let count, !CreateClones.counts.contains(count) {
      throw ValidationError(
        "--count is from \(CreateClones.counts.lowerBound) to \(CreateClones.counts.upperBound), "
          + "not \(count)")
    }
    let name = try diskName(name, creating: true)
    do { _ = try cloneNames(name, count: count) } catch {
      throw ValidationError(error.description)
    }
  }

  func run() throws {
    let body = CreateClones(
      snapshot: try snapshotName(snapshot).description,
      name: try diskName(name, creating: true).spelled, count: count)
    let reply = try daemon.daemon().send(.init("POST", "/v1/clones", body: body))
    if json { try Output.write(reply) }
  }
}
