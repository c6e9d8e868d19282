/// Where a session gets memory for the payload of its requests.
///
/// Called on the session's thread only, and never from inside another call to the provider. A
/// session asks for whole blocks, at most `maximumPiece + blockSize` bytes at a time.
package protocol BufferProvider: AnyObject {
  /// Memory of at least `bytes` on a 4 KiB boundary, or nil when there is none now: the session
  /// then stalls (`NBDSession.isStalled`) until it is told to `resume()`. The content is undefined.
  func allocate(bytes: Int) -> UnsafeMutableRawPointer?
  /// Takes back memory with the `bytes` that it was asked for.
  func free(_ memory: UnsafeMutableRawPointer, bytes: Int)
}
