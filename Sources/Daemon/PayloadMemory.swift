import Core
import NBDServer

/// The sessions' way to the one buffer pool, with a queue: while sessions wait for memory, only the
/// one whose turn it is gets any, else large requests would starve behind small ones.
final class PayloadMemory: BufferProvider {
  let pool: BufferPool
  /// While true, memory goes to nobody but the session that is being resumed.
  var isReserved = false
  /// Counts pages given back, so that the queue is tried again only when there is a chance.
  private(set) var freed: UInt64 = 0

  init(pool: BufferPool) { self.pool = pool }

  func allocate(bytes: Int) -> UnsafeMutableRawPointer? {
    isReserved ? nil : pool.allocate(pages: BufferPool.pages(forBytes: bytes))
  }

  func free(_ memory: UnsafeMutableRawPointer, bytes: Int) {
    let pages = BufferPool.pages(forBytes: bytes)
    pool.free(memory, pages: pages)
    freed += UInt64(pages)
  }
}
