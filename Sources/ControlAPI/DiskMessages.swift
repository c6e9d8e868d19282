// Disks as the API shows and changes them.

/// When a write to a disk is acknowledged.
package enum DiskDurability: String, Codable, CaseIterable, Sendable {
  /// When it is on stable storage.
  case always
  /// When it is written; a flush of the guest makes it durable.
  case flush
}

/// A disk: the reply to `GET /v1/disks/NAME` and an entry of `GET /v1/disks`.
package struct Disk: Codable, Equatable, Sendable {
  /// In the spelling of `DiskName`.
  package var name: String
  /// The object id as 16 hexadecimal digits: a JSON number can't hold 64 bits everywhere.
  package var id: String
  /// In bytes.
  package var size: UInt64
  /// Bytes of space and log that the disk refers to.
  package var used: UInt64
  /// Bytes that deleting it would free.
  package var exclusive: UInt64
  /// DISK@SNAP that it is a clone of.
  package var origin: String?
  /// RFC 3339, UTC.
  package var created: String
  package var snapshots: Int
  package var connections: Int
  package var generation: UInt64
  package var readOnly: Bool
  package var durability: DiskDurability
  package var comment: String

  enum CodingKeys: String, CodingKey {
    case name, id, size, used, exclusive, origin, created, snapshots, connections, generation
    case readOnly = "read_only"
    case durability, comment
  }

  package init(
    name: String, id: String, size: UInt64, used: UInt64, exclusive: UInt64, origin: String?,
    created: String, snapshots: Int, connections: Int, generation: UInt64, readOnly: Bool,
    durability: DiskDurability, comment: String
  ) {
    self.name = name
    self.id = id
    self.size = size
    self.used = used
    self.exclusive = exclusive
    self.origin = origin
    self.created = created
    self.snapshots = snapshots
    self.connections = connections
    self.generation = generation
    self.readOnly = readOnly
    self.durability = durability
    self.comment = comment
  }

  package func encode(to encoder: any Encoder) throws {
    var keyed = encoder.container(keyedBy: CodingKeys.self)
    try keyed.encode(name, forKey: .name)
    try keyed.encode(id, forKey: .id)
    try keyed.encode(size, forKey: .size)
    try keyed.encode(used, forKey: .used)
    try keyed.encode(exclusive, forKey: .exclusive)
    // The synthesized encoder would leave the key out; scripts may rely on null.
    try keyed.encode(origin, forKey: .origin)
    try keyed.encode(created, forKey: .created)
    try keyed.encode(snapshots, forKey: .snapshots)
    try keyed.encode(connections, forKey: .connections)
    try keyed.encode(generation, forKey: .generation)
    try keyed.encode(readOnly, forKey: .readOnly)
    try keyed.encode(durability, forKey: .durability)
    try keyed.encode(comment, forKey: .comment)
  }

  /// Appends the same JSON as `JSONEncoder` would write, some twenty times faster: the list of
  /// 100,000 disks spends its time here.
  package func appendJSON(to bytes: inout [UInt8]) {
    func key(_ name: StaticString) {
      bytes.append(
        contentsOf: UnsafeBufferPointer(start: name.utf8Start, count: name.utf8CodeUnitCount))
    }
    func number(_ value: some BinaryInteger) { bytes.append(contentsOf: String(value).utf8) }
    key(#"{"comment":"#)
    JSONText.append(string: comment, to: &bytes)
    key(#","connections":"#)
    number(connections)
    key(#","created":"#)
    JSONText.append(string: created, to: &bytes)
    key(#","durability":"#)
    JSONText.append(string: durability.rawValue, to: &bytes)
    key(#","exclusive":"#)
    number(exclusive)
    key(#","generation":"#)
    number(generation)
    key(#","id":"#)
    JSONText.append(string: id, to: &bytes)
    key(#","name":"#)
    JSONText.append(string: name, to: &bytes)
    key(#","origin":"#)
    if let origin { JSONText.append(string: origin, to: &bytes) } else { key("null") }
    key(readOnly ? #","read_only":true,"size":"# : #","read_only":false,"size":"#)
    number(size)
    key(#","snapshots":"#)
    number(snapshots)
    key(#","used":"#)
    number(used)
    key("}")
  }
}

/// The body of `POST /v1/disks`.
package struct CreateDisk: Codable, Equatable, Sendable {
  package var name: String
  /// In bytes, a multiple of 512.
  package var size: UInt64

  enum CodingKeys: String, CodingKey, CaseIterable { case name, size }

  package init(name: String, size: UInt64) {
    self.name = name
    self.size = size
  }

  package init(from decoder: any Decoder) throws {
    try decoder.refuseUnknownKeys(CodingKeys.self)
    let keyed = try decoder.container(keyedBy: CodingKeys.self)
    name = try keyed.decode(String.self, forKey: .name)
    size = try keyed.decode(UInt64.self, forKey: .size)
  }
}

/// The body of `PATCH /v1/disks/NAME`: a new name, or a new size, or new attributes. One request
/// changes one of the three, so that it is done as a whole or not at all.
package struct ChangeDisk: Codable, Equatable, Sendable {
  package var name: String?
  /// In bytes, a multiple of 512.
  package var size: UInt64?
  /// With `size`: it may be smaller than now.
  package var shrink: Bool?
  /// With `size`: shrink although clients are connected.
  package var force: Bool?
  package var durability: DiskDurability?
  package var readOnly: Bool?
  package var comment: String?

  enum CodingKeys: String, CodingKey, CaseIterable {
    case name, size, shrink, force, durability
    case readOnly = "read_only"
    case comment
  }

  package init(
    name: String? = nil, size: UInt64? = nil, shrink: Bool? = nil, force: Bool? = nil,
    durability: DiskDurability? = nil, readOnly: Bool? = nil, comment: String? = nil
  ) {
    self.name = name
    self.size = size
    self.shrink = shrink
    self.force = force
    self.durability = durability
    self.readOnly = readOnly
    self.comment = comment
  }

  package init(from decoder: any Decoder) throws {
    try decoder.refuseUnknownKeys(CodingKeys.self)
    let keyed = try decoder.container(keyedBy: CodingKeys.self)
    name = try keyed.decodeIfPresent(String.self, forKey: .name)
    size = try keyed.decodeIfPresent(UInt64.self, forKey: .size)
    shrink = try keyed.decodeIfPresent(Bool.self, forKey: .shrink)
    force = try keyed.decodeIfPresent(Bool.self, forKey: .force)
    durability = try keyed.decodeIfPresent(DiskDurability.self, forKey: .durability)
    readOnly = try keyed.decodeIfPresent(Bool.self, forKey: .readOnly)
    comment = try keyed.decodeIfPresent(String.self, forKey: .comment)
  }

  /// Whether any attribute, as opposed to name and size, is to change.
  package var changesAttributes: Bool { durability != nil || readOnly != nil || comment != nil }
}

/// The longest comment, in bytes of UTF-8.
package let maximumCommentBytes = 512
