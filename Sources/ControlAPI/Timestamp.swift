/// RFC 3339 in UTC with whole seconds, such as `2026-03-01T12:00:00Z`. Fractions are cut off,
/// because common tools (`jq`'s `fromdate`) refuse them.
///
/// The date comes from the days since 1970 by Howard Hinnant's `civil_from_days`: eras of 400
/// years (146,097 days) that begin on 1 March.
package func rfc3339(nanosecondsSince1970 nanoseconds: UInt64) -> String {
  let seconds = nanoseconds / 1_000_000_000
  let shifted = Int(seconds / 86400) + 719_468
  let dayOfEra = shifted % 146_097
  let yearOfEra = (dayOfEra - dayOfEra / 1460 + dayOfEra / 36524 - dayOfEra / 146_096) / 365
  let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
  let monthFromMarch = (5 * dayOfYear + 2) / 153
  let day = dayOfYear - (153 * monthFromMarch + 2) / 5 + 1
  let month = monthFromMarch < 10 ? monthFromMarch + 3 : monthFromMarch - 9
  let year = yearOfEra + shifted / 146_097 * 400 + (month <= 2 ? 1 : 0)
  let time = Int(seconds % 86400)
  func two(_ n: Int) -> String { n < 10 ? "0\(n)" : "\(n)" }
  return "\(year)-\(two(month))-\(two(day))"
    + "T\(two(time / 3600)):\(two(time / 60 % 60)):\(two(time % 60))Z"
}
