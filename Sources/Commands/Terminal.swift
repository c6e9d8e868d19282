// A terminal as a live view uses it: a screen of its own, keys one by one, everything as before at
// the end.

import Glibc

/// The terminal's screen while it lives. Standard output is a terminal; whether standard input is
/// one as well decides whether keys are seen.
struct LiveScreen: ~Copyable {
  private let hasKeys: Bool
  private var former = termios()

  init() throws {
    hasKeys = isatty(STDIN_FILENO) == 1 && tcgetattr(STDIN_FILENO, &former) == 0
    if hasKeys {
      var raw = former
      raw.c_lflag &= ~tcflag_t(ICANON | ECHO)
      tcsetattr(STDIN_FILENO, TCSANOW, &raw)
    }
    // Another screen, without a cursor.
    try Output.write(Array("\u{1B}[?1049h\u{1B}[?25l".utf8))
  }

  deinit {
    try? Output.write(Array("\u{1B}[?25h\u{1B}[?1049l".utf8))
    if hasKeys {
      var former = former
      tcsetattr(STDIN_FILENO, TCSANOW, &former)
    }
  }

  /// Shows lines from the top, in the place of those before.
  func show(_ lines: [String]) throws {
    let text = lines.joined(separator: "\u{1B}[K\n")
    try Output.write(Array("\u{1B}[H\(text)\u{1B}[K\u{1B}[J".utf8))
  }

  /// Waits for a key or a signal until the time comes. True when the view is to end: `q`, or a
  /// signal.
  func isEnded(by interrupt: Interrupt, until deadline: Double) -> Bool {
    while !interrupt.isReceived {
      let left = deadline - monotonicSeconds()
      if left <= 0 { return false }
      var polled = [pollfd(fd: interrupt.descriptor, events: Int16(POLLIN), revents: 0)]
      if hasKeys { polled.append(pollfd(fd: STDIN_FILENO, events: Int16(POLLIN), revents: 0)) }
      _ = poll(&polled, nfds_t(polled.count), Int32(left * 1000) + 1)
      interrupt.forgetWakes()
      guard hasKeys, polled[1].revents != 0 else { continue }
      var key: UInt8 = 0
      // The end of the input is a terminal that is gone.
      guard read(STDIN_FILENO, &key, 1) == 1 else { return true }
      if key == UInt8(ascii: "q") || key == UInt8(ascii: "Q") { return true }
    }
    return true
  }
}

/// The size of the terminal on standard output in characters; nil when there is none.
func terminalSize() -> (columns: Int, rows: Int)? {
  var size = winsize()
  guard isatty(STDOUT_FILENO) == 1, ioctl(STDOUT_FILENO, UInt(TIOCGWINSZ), &size) == 0,
    size.ws_col > 0, size.ws_row > 0
  else { return nil }
  return (Int(size.ws_col), Int(size.ws_row))
}
