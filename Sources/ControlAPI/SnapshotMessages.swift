// Snapshots, clones and differences as the API shows and changes them.

/// A snapshot: an entry of `GET /v1/snapshots`.
package struct Snapshot: Codable, Equatable, Sendable {
  /// The disk's name in the spelling of `DiskName`.
  package var disk: String
  /// What stands behind the "@".
  package var name: String
  /// The object id as 16 hexadecimal digits.
  package var id: String
  /// In bytes: of the disk then.
  package var size: UInt64
  /// RFC 3339, UTC.
  package var created: String
  /// Bytes of space and log that the snapshot refers to.
  package var used: UInt64
  /// Bytes that deleting it would free.
  package var exclusive: UInt64
  package var clones: Int
  /// The id of the first snapshot that was made in the same call.
  package var group: String
  /// Whether it can't be deleted.
  package var held: Bool

  package init(
    disk: String, name: String, id: String, size: UInt64, created: String, used: UInt64,
    exclusive: UInt64, clones: Int, group: String, held: Bool
  ) {
    self.disk = disk
    self.name = name
    self.id = id
    self.size = size
    self.created = created
    self.used = used
    self.exclusive = exclusive
    self.clones = clones
    self.group = group
    self.held = held
  }

  /// Appends the same JSON as `JSONEncoder` would write, many times faster; see `Disk.appendJSON`.
  package func appendJSON(to bytes: inout [UInt8]) {
    bytes += #"{"clones":\#(clones),"created":"#.utf8
    JSONText.append(string: created, to: &bytes)
    bytes += #","disk":"#.utf8
    JSONText.append(string: disk, to: &bytes)
    bytes += #","exclusive":\#(exclusive),"group":"#.utf8
    JSONText.append(string: group, to: &bytes)
    bytes += #","held":\#(held),"id":"#.utf8
    JSONText.append(string: id, to: &bytes)
    bytes += #","name":"#.utf8
    JSONText.append(string: name, to: &bytes)
    bytes += #","size":\#(size),"used":\#(used)}"#.utf8
  }
}

/// A range that differs between two states of a disk: an entry of `GET /v1/diff`. Both in bytes.
package struct Change: Codable, Equatable, Sendable {
  /// What the later state has there.
  package enum Kind: String, Codable, Sendable { case data, zero }

  package var offset: UInt64
  package var length: UInt64
  package var type: Kind

  package init(offset: UInt64, length: UInt64, type: Kind) {
    self.offset = offset
    self.length = length
    self.type = type
  }

  /// Appends the same JSON as `JSONEncoder` would write; see `Disk.appendJSON`.
  package func appendJSON(to bytes: inout [UInt8]) {
    bytes += #"{"length":\#(length),"offset":\#(offset),"type":"\#(type.rawValue)"}"#.utf8
  }
}

/// The body of `POST /v1/snapshots`, and its reply: one instant for all that are named.
package struct CreateSnapshots: Codable, Equatable, Sendable {
  /// DISK@SNAP each.
  package var snapshots: [String]

  enum CodingKeys: String, CodingKey, CaseIterable { case snapshots }

  package init(snapshots: [String]) { self.snapshots = snapshots }

  package init(from decoder: any Decoder) throws {
    try decoder.refuseUnknownKeys(CodingKeys.self)
    let keyed = try decoder.container(keyedBy: CodingKeys.self)
    snapshots = try keyed.decode([String].self, forKey: .snapshots)
  }
}

/// The body of `PATCH /v1/snapshots/DISK@SNAP`: a new name, or whether it is held.
package struct ChangeSnapshot: Codable, Equatable, Sendable {
  /// What stands behind the "@".
  package var name: String?
  package var held: Bool?

  enum CodingKeys: String, CodingKey, CaseIterable { case name, held }

  package init(name: String? = nil, held: Bool? = nil) {
    self.name = name
    self.held = held
  }

  package init(from decoder: any Decoder) throws {
    try decoder.refuseUnknownKeys(CodingKeys.self)
    let keyed = try decoder.container(keyedBy: CodingKeys.self)
    name = try keyed.decodeIfPresent(String.self, forKey: .name)
    held = try keyed.decodeIfPresent(Bool.self, forKey: .held)
  }
}

/// The body of `POST /v1/snapshots/DISK@SNAP/rollback`.
package struct Rollback: Codable, Equatable, Sendable {
  /// Although clients are connected.
  package var force: Bool?

  enum CodingKeys: String, CodingKey, CaseIterable { case force }

  package init(force: Bool? = nil) { self.force = force }

  package init(from decoder: any Decoder) throws {
    try decoder.refuseUnknownKeys(CodingKeys.self)
    let keyed = try decoder.container(keyedBy: CodingKeys.self)
    force = try keyed.decodeIfPresent(Bool.self, forKey: .force)
  }
}

/// The body of `POST /v1/clones`.
package struct CreateClones: Codable, Equatable, Sendable {
  /// How many clones one request may make.
  package static let counts = 1...100_000

  /// DISK@SNAP.
  package var snapshot: String
  package var name: String
  /// With it the clones are NAME-1 to NAME-count, all or none; without it there is one, NAME.
  package var count: Int?

  enum CodingKeys: String, CodingKey, CaseIterable { case snapshot, name, count }

  package init(snapshot: String, name: String, count: Int? = nil) {
    self.snapshot = snapshot
    self.name = name
    self.count = count
  }

  package init(from decoder: any Decoder) throws {
    try decoder.refuseUnknownKeys(CodingKeys.self)
    let keyed = try decoder.container(keyedBy: CodingKeys.self)
    snapshot = try keyed.decode(String.self, forKey: .snapshot)
    name = try keyed.decode(String.self, forKey: .name)
    count = try keyed.decodeIfPresent(Int.self, forKey: .count)
  }
}

/// The reply to `POST /v1/clones`.
package struct Clones: Codable, Equatable, Sendable {
  package var count: Int
  /// The names of the first and the last one, the same for one clone.
  package var first: String
  package var last: String

  package init(count: Int, first: String, last: String) {
    self.count = count
    self.first = first
    self.last = last
  }
}

/// The names of the clones that a request asks for: the first and the last.
///
/// Throws when a name is none, or with its number gets too long.
package func cloneNames(
  _ name: DiskName, count: Int?
) throws(DiskNameError) -> (first: DiskName, last: DiskName) {
  guard let count else { return (name, name) }
  return (try DiskName(creating: "\(name)-1"), try DiskName(creating: "\(name)-\(count)"))
}
