// Standard output and standard error.

import Glibc

/// Nobody reads standard output any more.
struct OutputClosed: Error {}

enum Output {
  /// Writes a text and, if it has none at its end, a line break to standard output.
  static func print(_ text: String) throws {
    try write(Array(text.utf8))
    if !text.hasSuffix("\n") { try write([UInt8(ascii: "\n")]) }
  }

  /// Writes bytes to standard output.
  static func write(_ bytes: [UInt8]) throws {
    var rest = bytes[...]
    while !rest.isEmpty {
      let count = rest.withUnsafeBytes { Glibc.write(STDOUT_FILENO, $0.baseAddress!, $0.count) }
      if count < 0 {
        if errno == EINTR { continue }
        if errno == EPIPE { throw OutputClosed() }
        let reason = String(cString: strerror(errno))
        throw CommandError("can't write to standard output: \(reason); check where it goes")
      }
      rest = rest.dropFirst(count)
    }
  }

  /// Writes one sentence to standard error, behind the program's name.
  static func report(_ sentence: String) { writeError("sluice: \(sentence)\n") }

  /// Writes to standard error; there is nowhere to complain when that fails.
  static func writeError(_ text: String) {
    let bytes = Array(text.utf8)
    _ = bytes.withUnsafeBytes { Glibc.write(STDERR_FILENO, $0.baseAddress!, $0.count) }
  }
}

/// Columns under titles, two spaces apart.
struct Table {
  struct Column {
    var title: String
    /// Numbers stand right-aligned.
    var isNumber = false
  }

  var columns: [Column]
  var rows: [[String]] = []

  var text: String {
    var widths = columns.map(\.title.utf8.count)
    for row in rows {
      for (i, cell) in row.enumerated() { widths[i] = max(widths[i], cell.utf8.count) }
    }
    var text = ""
    for row in [columns.map(\.title)] + rows {
      var line = ""
      for (i, cell) in row.enumerated() {
        let space = String(repeating: " ", count: widths[i] - cell.utf8.count)
        if i > 0 { line += "  " }
        line += columns[i].isNumber ? space + cell : cell + space
      }
      while line.last == " " { line.removeLast() }
      text += line + "\n"
    }
    return text
  }
}

/// `label  value` lines, the values under each other.
func labelled(_ lines: [(String, String)]) -> String {
  let width = lines.map(\.0.utf8.count).max() ?? 0
  return lines.map { label, value in
    label + String(repeating: " ", count: width + 2 - label.utf8.count) + value + "\n"
  }.joined()
}
