/// xoshiro256** (Blackman and Vigna, 2018), seeded by SplitMix64: our own generator, so that a
/// seed and a commit replay a run exactly on any toolchain.
package struct SeededRandom: RandomNumberGenerator, Sendable {
  private var s: (UInt64, UInt64, UInt64, UInt64)

  package init(seed: UInt64) {
    var x = seed
    func splitMix() -> UInt64 {
      x &+= 0x9E37_79B9_7F4A_7C15
      var z = x
      z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
      z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
      return z ^ (z >> 31)
    }
    s = (splitMix(), splitMix(), splitMix(), splitMix())
  }

  package mutating func next() -> UInt64 {
    func rotate(_ v: UInt64, _ k: UInt64) -> UInt64 { (v << k) | (v >> (64 - k)) }
    let result = rotate(s.1 &* 5, 7) &* 9
    let t = s.1 << 17
    s.2 ^= s.0
    s.3 ^= s.1
    s.1 ^= s.2
    s.0 ^= s.3
    s.2 ^= t
    s.3 = rotate(s.3, 45)
    return result
  }

  /// A number in 0 ..< `bound`, without the toolchain's own algorithm so that runs replay.
  package mutating func below(_ bound: UInt64) -> UInt64 {
    invariant(bound > 0, "random bound is zero")
    return next().multipliedFullWidth(by: bound).high
  }

  /// True once in `n` on average.
  package mutating func oneIn(_ n: UInt64) -> Bool { below(n) == 0 }
}
