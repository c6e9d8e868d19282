package final class BlockCache {
  package init(bytes: Int) {}
}
