/// Why a request was refused: problem details of RFC 9457. `detail` is one plain sentence with
/// what to do; the command line prints it as it is.
package struct Problem: Codable, Error, Equatable, Sendable, CustomStringConvertible {
  package static let contentType = "application/problem+json"

  /// What is wrong, for programs; a problem's `type` is this behind `urn:sluice:problem:`.
  package enum Kind: String, CaseIterable, Sendable {
    case noSuchDisk = "no-such-disk"
    case noSuchSnapshot = "no-such-snapshot"
    case alreadyExists = "already-exists"
    case inUse = "in-use"
    case hasSnapshots = "has-snapshots"
    case isHeld = "is-held"
    case notOfOneLine = "not-of-one-line"
    case wouldShrink = "would-shrink"
    case badName = "bad-name"
    case badSize = "bad-size"
    case noSpace = "no-space"
    case suspended
    case stopping
    case ioError = "io-error"
    case badRequest = "bad-request"
    case foreignOrigin = "foreign-origin"
    case noSuchResource = "no-such-resource"
    case tooLarge = "too-large"
    case notJSON = "not-json"
    case refused
    case unexpected

    /// The HTTP status that goes with it.
    package var status: Int {
      switch self {
      case .badName, .badSize, .badRequest: 400
      case .foreignOrigin: 403
      case .noSuchDisk, .noSuchSnapshot, .noSuchResource: 404
      case .alreadyExists, .inUse, .hasSnapshots, .wouldShrink: 409
      case .isHeld, .notOfOneLine, .refused: 409
      case .tooLarge: 413
      case .notJSON: 415
      case .ioError, .unexpected: 500
      case .suspended, .stopping: 503
      case .noSpace: 507
      }
    }

    package var title: String {
      switch self {
      case .noSuchDisk: "No such disk"
      case .noSuchSnapshot: "No such snapshot"
      case .alreadyExists: "Name in use"
      case .inUse: "Disk in use"
      case .hasSnapshots: "Disk has snapshots"
      case .isHeld: "Snapshot held"
      case .notOfOneLine: "Not an earlier state"
      case .wouldShrink: "Disk would shrink"
      case .badName: "Invalid name"
      case .badSize: "Invalid size"
      case .noSpace: "Pool full"
      case .suspended: "Pool suspended"
      case .stopping: "Pool stopping"
      case .ioError: "Input/output error"
      case .badRequest: "Invalid request"
      case .foreignOrigin: "Foreign host or origin"
      case .noSuchResource: "No such resource"
      case .tooLarge: "Body too large"
      case .notJSON: "Body is not JSON"
      case .refused: "Refused"
      case .unexpected: "Internal error"
      }
    }
  }

  package var type: String
  package var title: String
  package var status: Int
  package var detail: String

  package init(_ kind: Kind, _ detail: String) {
    type = Self.prefix + kind.rawValue
    title = kind.title
    status = kind.status
    self.detail = detail
  }

  /// Nil for a kind that this version does not know.
  package var kind: Kind? {
    type.hasPrefix(Self.prefix) ? Kind(rawValue: String(type.dropFirst(Self.prefix.count))) : nil
  }

  package var description: String { detail }

  private static let prefix = "urn:sluice:problem:"
}
