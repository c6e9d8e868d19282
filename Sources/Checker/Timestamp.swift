/// RFC 3339 UTC of nanoseconds since 1970, to the second. Civil-from-days after H. Hinnant,
/// "chrono-compatible low-level date algorithms".
func timestamp(_ nanoseconds: UInt64) -> String {
  let seconds = nanoseconds / 1_000_000_000
  let days = Int(seconds / 86400) + 719_468
  let era = days / 146_097
  let dayOfEra = days % 146_097
  let yearOfEra = (dayOfEra - dayOfEra / 1460 + dayOfEra / 36524 - dayOfEra / 146_096) / 365
  let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
  let m = (5 * dayOfYear + 2) / 153
  let month = m < 10 ? m + 3 : m - 9
  let year = yearOfEra + era * 400 + (month <= 2 ? 1 : 0)
  let day = dayOfYear - (153 * m + 2) / 5 + 1
  func two(_ v: Int) -> String { v < 10 ? "0\(v)" : "\(v)" }
  let time = Int(seconds % 86400)
  return "\(year)-\(two(month))-\(two(day))T\(two(time / 3600)):\(two(time / 60 % 60))"
    + ":\(two(time % 60))Z"
}
