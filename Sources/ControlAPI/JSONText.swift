// JSON of the API: snake_case keys, and objects that refuse keys which they do not know, so that
// a misspelt option is an error and never silently without effect.

import FoundationEssentials

package enum JSONText {
  /// Encodes with sorted keys, so that the same value is always the same text.
  package static func encode(_ value: some Encodable, pretty: Bool = false) throws -> [UInt8] {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    if pretty { encoder.outputFormatting.insert(.prettyPrinted) }
    return Array(try encoder.encode(value))
  }

  package static func decode<T: Decodable>(_ type: T.Type, from bytes: [UInt8]) throws -> T {
    try JSONDecoder().decode(type, from: Data(bytes))
  }

  /// What is wrong with a text that `decode` refused, as a clause for an error message.
  package static func reason(_ error: any Error) -> String {
    guard let error = error as? DecodingError else { return "the text is not valid JSON" }
    func place(_ path: [any CodingKey]) -> String {
      path.isEmpty ? "the top level" : "“\(path.map(\.stringValue).joined(separator: "."))”"
    }
    switch error {
    case .keyNotFound(let key, _): return "the field “\(key.stringValue)” is missing"
    case .typeMismatch(let type, let context):
      return "\(place(context.codingPath)) does not hold \(kind(of: type))"
    case .valueNotFound(let type, let context):
      return "\(place(context.codingPath)) is null and must hold \(kind(of: type))"
    case .dataCorrupted(let context):
      guard !context.codingPath.isEmpty || context.underlyingError == nil else { break }
      return context.debugDescription
    @unknown default: break
    }
    return "the text is not valid JSON"
  }

  private static func kind(of type: any Any.Type) -> String {
    switch type {
    case is String.Type: "a string"
    case is Bool.Type: "true or false"
    case is any BinaryInteger.Type: "a whole number of 0 or more"
    default: "an object"
    }
  }

  /// Appends `text` as a JSON string (RFC 8259 section 7).
  package static func append(string text: String, to bytes: inout [UInt8]) {
    bytes.append(UInt8(ascii: "\""))
    for byte in text.utf8 {
      switch byte {
      case UInt8(ascii: "\""), UInt8(ascii: "\\"): bytes += [UInt8(ascii: "\\"), byte]
      case 0..<32:
        bytes += Array("\\u00".utf8) + [hexDigit(byte >> 4), hexDigit(byte & 15)]
      default: bytes.append(byte)
      }
    }
    bytes.append(UInt8(ascii: "\""))
  }
}

private struct AnyKey: CodingKey {
  var stringValue: String
  var intValue: Int? { nil }
  init(stringValue: String) { self.stringValue = stringValue }
  init?(intValue: Int) { nil }
}

extension Decoder {
  /// Throws when the object has a key that `Keys` does not list.
  func refuseUnknownKeys<Keys: CodingKey & CaseIterable>(_: Keys.Type) throws {
    let known = Keys.allCases.map(\.stringValue)
    for key in try container(keyedBy: AnyKey.self).allKeys where !known.contains(key.stringValue) {
      let list = known.isEmpty ? "none" : known.joined(separator: ", ")
      throw DecodingError.dataCorrupted(
        .init(
          codingPath: codingPath,
          debugDescription: "the field “\(key.stringValue)” is not known; known are: \(list)"))
    }
  }
}
