/// What the end of one operation means for the work that it is part of.
enum WorkOutcome {
  /// Other parts of it are on their way.
  case underWay
  case done
  /// A device refuses some of it.
  case refused
}

/// How a part of a cycle has gone on.
enum StepOutcome {
  /// It can go on at once.
  case goesOn
  /// A device has to be waited for, or there is nothing to do.
  case waits
  case done
}
