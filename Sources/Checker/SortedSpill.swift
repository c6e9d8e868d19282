import Core
import Glibc

/// What is sorted: six words, compared from the first to the last.
struct SpillRecord: Comparable {
  var a: UInt64
  var b: UInt64
  var c: UInt64
  var d: UInt64 = 0
  var e: UInt64 = 0
  var f: UInt64 = 0

  @inline(__always) static func < (l: Self, r: Self) -> Bool {
    if l.a != r.a { return l.a < r.a }
    if l.b != r.b { return l.b < r.b }
    if l.c != r.c { return l.c < r.c }
    if l.d != r.d { return l.d < r.d }
    if l.e != r.e { return l.e < r.e }
    return l.f < r.f
  }
}

/// An external merge sort: what does not fit the memory limit goes to an unlinked file as sorted
/// runs, which are merged when they are read. A pool of any size is checked in the same memory.
final class SortedSpill {
  private let capacity: Int
  private let directory: String
  private var buffer: [SpillRecord] = []
  private var file: Int32 = -1
  /// First record and number of records of each run in the file.
  private var runs: [(start: Int, count: Int)] = []
  private(set) var spilled = 0
  private(set) var count = 0

  init(memory: Int, directory: String) {
    capacity = max(memory / MemoryLayout<SpillRecord>.stride, 16)
    self.directory = directory
  }

  deinit { if file >= 0 { close(file) } }

  func add(_ record: SpillRecord) throws(CheckFailure) {
    if buffer.count == capacity { try writeRun() }
    buffer.append(record)
    count += 1
  }

  /// The records added so far in ascending order. More may be added later and sorted anew; readers
  /// do not see them.
  func sorted() throws(CheckFailure) -> SpillReader {
    buffer.sort()
    if runs.isEmpty { return SpillReader(sorted: buffer) }
    try writeRun()
    buffer = []
    return SpillReader(file: file, runs: runs, memory: capacity)
  }

  private func writeRun() throws(CheckFailure) {
    guard !buffer.isEmpty else { return }
    if file < 0 { try openFile() }
    buffer.sort()
    let stride = MemoryLayout<SpillRecord>.stride
    let ok = buffer.withUnsafeBytes { bytes in
      var done = 0
      while done < bytes.count {
        let n = pwrite(
          file, bytes.baseAddress! + done, bytes.count - done, off_t(spilled * stride + done))
        if n < 0, errno == EINTR { continue }
        guard n > 0 else { return false }
        done += n
      }
      return true
    }
    guard ok else {
      throw CheckFailure(
        "sorting needs room for temporary files in \(directory); free some, or set TMPDIR to a "
          + "directory that has more")
    }
    runs.append((spilled, buffer.count))
    spilled += buffer.count
    buffer.removeAll(keepingCapacity: true)
  }

  private func openFile() throws(CheckFailure) {
    var template = Array("\(directory)/sluice-check-XXXXXX".utf8CString)
    file = template.withUnsafeMutableBufferPointer { mkstemp($0.baseAddress!) }
    guard file >= 0 else {
      throw CheckFailure(
        "no temporary file can be made in \(directory); set TMPDIR to a directory that is writable")
    }
    _ = template.withUnsafeBufferPointer { unlink($0.baseAddress!) }
  }
}

/// Reads sorted records one by one, with the next one visible in `head`.
final class SpillReader {
  private struct Run {
    var next: Int
    var end: Int
    var buffer: [SpillRecord]
    var at: Int
  }

  private var memory: [SpillRecord] = []
  private var at = 0
  private var file: Int32 = -1
  private var runs: [Run] = []
  /// Runs that still have records, the smallest head first (a binary heap).
  private var heap: [Int] = []
  private var chunk = 0
  /// The next record; nil at the end.
  private(set) var head: SpillRecord?

  fileprivate init(sorted: [SpillRecord]) {
    memory = sorted
    head = sorted.first
  }

  fileprivate init(file: Int32, runs: [(start: Int, count: Int)], memory: Int) {
    self.file = dup(file)
    chunk = min(max(memory / runs.count, 64), 4096)
    self.runs = runs.map { Run(next: $0.start, end: $0.start + $0.count, buffer: [], at: 0) }
    for i in self.runs.indices {
      fill(i)
      if failed { return }
      heap.append(i)
      siftUp(heap.count - 1)
    }
    head = heap.first.map { self.runs[$0].buffer[self.runs[$0].at] }
  }

  deinit { if file >= 0 { close(file) } }

  /// Set when a run could not be read back; `head` is nil then.
  private(set) var failed = false

  func advance() {
    if file < 0 {
      at += 1
      head = at < memory.count ? memory[at] : nil
      return
    }
    guard let top = heap.first else {
      head = nil
      return
    }
    runs[top].at += 1
    if runs[top].at == runs[top].buffer.count { fill(top) }
    if runs[top].buffer.isEmpty {
      heap[0] = heap[heap.count - 1]
      heap.removeLast()
    }
    siftDown()
    head = failed ? nil : heap.first.map { runs[$0].buffer[runs[$0].at] }
  }

  /// Throws when records were lost on the way back from the file.
  func finish() throws(CheckFailure) {
    if failed { throw CheckFailure("a temporary file of a sort can't be read back; try again") }
  }

  private func fill(_ i: Int) {
    let n = min(chunk, runs[i].end - runs[i].next)
    runs[i].at = 0
    runs[i].buffer.removeAll(keepingCapacity: true)
    guard n > 0 else { return }
    let stride = MemoryLayout<SpillRecord>.stride
    let offset = runs[i].next * stride
    let fd = file
    let records = [SpillRecord](unsafeUninitializedCapacity: n) { memory, initialized in
      let bytes = UnsafeMutableRawBufferPointer(memory)
      var done = 0
      while done < n * stride {
        let got = pread(fd, bytes.baseAddress! + done, n * stride - done, off_t(offset + done))
        if got < 0, errno == EINTR { continue }
        guard got > 0 else { break }
        done += got
      }
      initialized = done / stride
    }
    if records.count < n { failed = true }
    runs[i].next += n
    runs[i].buffer = records
  }

  private func precedes(_ x: Int, _ y: Int) -> Bool {
    runs[x].buffer[runs[x].at] < runs[y].buffer[runs[y].at]
  }

  private func siftUp(_ start: Int) {
    var i = start
    while i > 0, precedes(heap[i], heap[(i - 1) / 2]) {
      heap.swapAt(i, (i - 1) / 2)
      i = (i - 1) / 2
    }
  }

  private func siftDown() {
    guard !failed else { return }
    var i = 0
    while true {
      var least = i
      for child in [2 * i + 1, 2 * i + 2] where child < heap.count {
        if precedes(heap[child], heap[least]) { least = child }
      }
      if least == i { return }
      heap.swapAt(i, least)
      i = least
    }
  }
}
