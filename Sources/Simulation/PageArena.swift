import Core

/// Memory for the content of simulated devices: 4 KiB pages by number, reused through a free list.
/// One arena serves all devices of a pool; it never gives memory back before it dies.
package final class PageArena {
  /// A page's number; never negative.
  typealias Page = Int32

  private static let pagesAChunk = 256
  private var chunks: [UnsafeMutableRawPointer] = []
  private var free: [Page] = []

  package init() {}

  deinit {
    for chunk in chunks { chunk.deallocate() }
  }

  /// Pages in use.
  var used: Int { chunks.count * Self.pagesAChunk - free.count }

  @inline(__always)
  func memory(_ page: Page) -> UnsafeMutableRawPointer {
    let i = Int(page)
    return chunks[i / Self.pagesAChunk] + (i % Self.pagesAChunk) * blockSize
  }

  /// A page of undefined content.
  func take() -> Page {
    if free.isEmpty { grow() }
    return free.removeLast()
  }

  func give(_ page: Page) {
    invariant(page >= 0, "a page that does not exist was given back")
    free.append(page)
  }

  private func grow() {
    let first = chunks.count * Self.pagesAChunk
    chunks.append(
      .allocate(byteCount: Self.pagesAChunk * blockSize, alignment: blockSize))
    free.reserveCapacity(free.count + Self.pagesAChunk)
    for i in stride(from: Self.pagesAChunk - 1, through: 0, by: -1) {
      free.append(Page(first + i))
    }
  }
}
