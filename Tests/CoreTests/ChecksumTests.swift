import Core
import Testing

@Test func crc32cMatchesTheCheckValueOfTheCatalogue() {
  let digits = Array("123456789".utf8)
  #expect(digits.withUnsafeBytes { crc32c($0) } == 0xE306_9283)
}

@Test func crc32cGoesOnFromASeed() {
  let digits = Array("123456789".utf8)
  let whole = digits.withUnsafeBytes { crc32c($0) }
  let parts = digits.withUnsafeBytes {
    crc32c(.init(rebasing: $0[4...]), seed: crc32c(.init(rebasing: $0[..<4])))
  }
  #expect(parts == whole)
}
