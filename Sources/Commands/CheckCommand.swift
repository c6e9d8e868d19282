// sluice check: the options of the offline verification.

import ArgumentParser

/// What `check` was asked to do.
package struct CheckOptions: Equatable, Sendable {
  /// The pool's directory as it was given.
  package var pool: String
  /// Whether to write: heal what has a good copy, accept the loss of what has none.
  package var repair: Bool
  package var json: Bool
}

package struct CheckCommand: ParsableCommand {
  package static let configuration = CommandConfiguration(
    commandName: "check", abstract: "Verify a pool that is not served: structures and checksums.",
    discussion: """
      An unreplayed log is verified too. Nothing is written without --repair.
      Exits with 0 when all is well, 2 when damage was found, 1 when it could not run.
      """)

  @Option(help: .init("The pool's directory.", valueName: "dir"))
  var pool: String

  @Flag(help: "Heal what has a good copy, and accept the loss of what has none.")
  var repair = false

  @Flag(help: "Print the result as JSON.")
  var json = false

  package init() {}

  package func validate() throws {
    if pool.isEmpty { throw ValidationError("--pool needs a directory") }
  }

  package func run() throws { try runCheck(options()) }

  package func options() -> CheckOptions { CheckOptions(pool: pool, repair: repair, json: json) }
}
