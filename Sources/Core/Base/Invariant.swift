/// Checks a condition that the design guarantees, in release builds as well.
///
/// A broken invariant stops the process with a message: the log makes a stop safe, going on with
/// wrong state does not. Never use it on anything that a client, a device or a user can cause.
@inlinable @inline(__always)
package func invariant(
  _ condition: @autoclosure () -> Bool, _ message: @autoclosure () -> String,
  file: StaticString = #fileID, line: UInt = #line
) {
  if !condition() { invariantBroken(message(), file: file, line: line) }
}

/// Stops the process: the state that was reached must not exist.
@usableFromInline @inline(never)
package func invariantBroken(
  _ message: String, file: StaticString = #fileID, line: UInt = #line
) -> Never {
  fatalError("invariant broken: \(message)", file: file, line: line)
}
