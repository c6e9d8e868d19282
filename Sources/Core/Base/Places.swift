extension Array {
  /// Puts a value into the first empty place, or behind the last one; returns which.
  mutating func place<Value>(_ value: Value) -> Int where Element == Value? {
    if let free = firstIndex(where: { $0 == nil }) {
      self[free] = value
      return free
    }
    append(value)
    return count - 1
  }
}
