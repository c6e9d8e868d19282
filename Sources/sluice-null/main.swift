// The ceiling that benchmarks compare with: the daemon's own front end and event loop over an engine
// that stores nothing.
//
//   sluice-null --socket PATH      prints "ready" once it serves; ends on SIGTERM

import Core
import Daemon
import DeviceIO
@preconcurrency import Glibc

signal(SIGPIPE, SIG_IGN)
let arguments = CommandLine.arguments
guard arguments.count == 3, arguments[1] == "--socket" else {
  fputs("usage: sluice-null --socket PATH\n", stderr)
  exit(64)
}
do {
  let reactor = try Reactor()
  let listeners = try Listener.listen(on: .unix(path: arguments[2]))
  let loop = EventLoop(
    engine: NullEngine(), reactor: reactor, listeners: listeners,
    onReady: {
      print("ready")
      fflush(nil)
    })
  StopSignals.install(waking: reactor.waker)
  if case .failed(let why) = loop.run() { throw CeilingError(why) }
} catch {
  fputs("sluice-null: \(error)\n", stderr)
  exit(1)
}

struct CeilingError: Error, CustomStringConvertible {
  let description: String
  init(_ description: String) { self.description = description }
}
