import Core

// The tree of snapshots as the walks of maps need it: one record at a time, looked up in the trees.

/// What of an object's record its children need to know.
struct Link {
  var id: UInt64
  var record: ObjectRecord
  /// On the list of those being freed.
  var isDeleted: Bool

  /// A deleted snapshot with one child: its map may be a remainder, its dead list may have moved.
  /// Holds only where that child does not inherit from it.
  var mayBeMerging: Bool { isDeleted && record.kind == .snapshot && record.children == 1 }
}

/// What an object branches from, with the merges under way taken as done.
struct Branch {
  /// The snapshot whose map the object shares; nil for none.
  var parent: Link?
  /// The record names a parent snapshot that can't be found.
  var isBroken = false
  /// What the object owns alone was born after it.
  var instant: Instant
  /// Snapshots that are being merged into the object, the nearest one first.
  var merging: [Link] = []
}

/// Looks objects up; keeps some, as thousands of clones ask for the same one.
final class Lineage {
  private static let kept = 1024
  private let reader: NodeReader
  private let root: RootRecord
  private var links: [UInt64: Link] = [:]

  init(reader: NodeReader, root: RootRecord) {
    self.reader = reader
    self.root = root
  }

  func link(_ id: UInt64) throws(CheckFailure) -> Link? {
    if let known = links[id] { return known }
    let key = NodeKey(hi: id, lo: 0)
    let walk = try TreeWalk(
      again: reader, root: root.objects, kind: .objects, owner: TreeOwner.objects, from: key)
    guard let entry = try walk.next(), entry.key == key,
      let record = ObjectRecord(decoding: entry.value)
    else { return nil }
    let onList = NodeKey(hi: 0, lo: id)
    let link = Link(id: id, record: record, isDeleted: try firstName(from: onList) == onList)
    if links.count == Self.kept { links.removeAll(keepingCapacity: true) }
    links[id] = link
    return link
  }

  private func firstName(from key: NodeKey) throws(CheckFailure) -> NodeKey? {
    let walk = try TreeWalk(
      again: reader, root: root.names, kind: .names, owner: TreeOwner.names, from: key)
    return try walk.next()?.key
  }

  /// Some child of a snapshot in the tree of snapshots: the only one, where there is one.
  func child(of snapshot: UInt64) throws(CheckFailure) -> Link? {
    guard let key = try firstName(from: NodeKey(hi: snapshot, lo: 0)), key.hi == snapshot else {
      return nil
    }
    return try link(key.lo)
  }

  /// Whether a snapshot is being merged into its child: the child's walk tells what it has left.
  func isMerging(_ link: Link) throws(CheckFailure) -> Bool {
    guard link.mayBeMerging else { return false }
    return try child(of: link.id)?.record.inheritsMap != true
  }

  /// What an object with a map of its own branches from.
  func branch(of record: ObjectRecord) throws(CheckFailure) -> Branch {
    var branch = Branch(parent: nil, instant: record.branchInstant)
    var next = record.parentSnapshot.raw
    var later = Instant.max
    while next != 0 {
      // Instants descend on the way up, which also ends the way when the tree is none.
      guard let link = try self.link(next), link.record.kind == .snapshot,
        link.record.instant < later, !link.record.inheritsMap
      else {
        branch.isBroken = true
        return branch
      }
      guard link.mayBeMerging else {
        branch.parent = link
        return branch
      }
      branch.merging.append(link)
      branch.instant = link.record.branchInstant
      later = link.record.instant
      next = link.record.parentSnapshot.raw
    }
    return branch
  }
}
