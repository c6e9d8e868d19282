// The command line's root, and what becomes of errors: exit code 0 for success, 64 for wrong
// usage, else 1, each error one sentence on standard error.

import ArgumentParser
import ControlAPI
import ControlServer

/// The version that `--version` and `status` show.
package let sluiceVersion = "0.1.0"

package struct Sluice: ParsableCommand {
  package static let configuration = CommandConfiguration(
    commandName: "sluice",
    abstract: "Thin disks for virtual machines, on whatever block storage you own.",
    version: sluiceVersion,
    subcommands: [
      PoolCommands.self, ServeCommand.self, DiskCommands.self, SnapshotCommands.self,
      CloneCommand.self, StatusCommand.self, TopCommand.self, FlushCommand.self,
      ScrubCommand.self, CheckCommand.self,
    ])

  package init() {}
}

/// A failure that is not the daemon's; `description` is one sentence with what to do.
package struct CommandError: Error, Equatable, CustomStringConvertible {
  package var description: String
  package init(_ description: String) { self.description = description }

  static let notUnderstood = Self(
    "the daemon's reply was not understood; use a command line of the daemon's version")
}

/// Runs one command.
///
/// - Parameter arguments: without the program's name.
/// - Returns: the exit code.
package func runSluice(_ arguments: [String]) -> Int32 {
  do {
    var command = try Sluice.parseAsRoot(arguments)
    try command.run()
    return ExitCode.success.rawValue
  } catch {
    return report(error)
  }
}

private func report(_ error: any Error) -> Int32 {
  let code = Sluice.exitCode(for: error)
  let text = Sluice.fullMessage(for: error)
  switch code {
  case .success:
    // Help and version come as errors that succeed.
    try? Output.print(text)
  case .validationFailure:
    Output.report(Sluice.message(for: error).oneSentence + helpHint(in: text))
  default:
    // An exit code thrown as such has said what there was to say; a reader that went away
    // (`| head`) does not want to hear more.
    if !(error is ExitCode), !(error is OutputClosed) { Output.report("\(error)".oneSentence) }
  }
  return code.rawValue
}

/// "; see `sluice disk create --help`", taken from the last line of the parser's own message.
private func helpHint(in message: String) -> String {
  guard let line = message.split(separator: "\n").last, let start = line.firstIndex(of: "'"),
    let end = line.lastIndex(of: "'"), start < end, line.contains("--help")
  else { return "; see `sluice --help`" }
  return "; see `\(line[line.index(after: start)..<end])`"
}

extension String {
  /// Without line breaks, capital at its start, and full stop at its end.
  fileprivate var oneSentence: String {
    var text = split(whereSeparator: \.isNewline).joined(separator: " ")
    while text.hasSuffix(".") { text.removeLast() }
    let second = text.dropFirst().first
    guard let first = text.first, second.map({ !$0.isUppercase }) ?? true else { return text }
    return first.lowercased() + text.dropFirst()
  }
}
