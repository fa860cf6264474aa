"""What the checker refuses: a log that is not whole, and a task that it cannot fold."""


class CheckerError(Exception):
    """The checker cannot say anything about this log."""


class NotCovered(CheckerError):  # noqa: N818 - it says what is not covered, not what is wrong
    """The log asks for something that this checker does not know. It never guesses."""


class BadLog(CheckerError):  # noqa: N818 - named for what it is
    """The log or its archive is cut, altered, out of order, or has a gap."""
