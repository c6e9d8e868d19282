// What an operation costs the engine: its own work, without devices, sockets and system calls.
//
//   sluice-cost NAME OPERATIONS       prepares a disk, then does that many 4 KiB operations on it
//   sluice-cost list                  the names
//
// The counts are a profiler's: run it under one that counts inside `measuredLoad`.

import Core
@preconcurrency import Glibc

let words = CommandLine.arguments.dropFirst()
if Array(words) == ["list"] {
  for known in Case.all { print(known.name) }
  exit(0)
}
guard words.count == 2, let count = Int(words.last!), count > 0,
  let chosen = Case.all.first(where: { $0.name == words.first! })
else {
  fputs("usage: sluice-cost NAME OPERATIONS, or sluice-cost list\n", stderr)
  exit(64)
}
let workload = Workload(isCached: chosen.isCached)
let name = chosen.prepare(workload)
let disk = workload.pool.open(name)
// What only a first time costs is over before it counts.
workload.load(chosen.kind, disk, count: min(count, 1024))
measuredLoad(workload, chosen.kind, disk, count: count)
print("\(chosen.name): \(count) operations")
