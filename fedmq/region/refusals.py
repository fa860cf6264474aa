"""What the upstream's refusal of a merged update means, beside the line that says it."""

import logging
from typing import Final

from schemas.outcomes import Reason, outcome_name

_REMEDY: Final = (
    " (the upstream may not allow so many contributions: fedmq task update there, with"
    " --set strategy.contributions_max=%d or more)"
)


class Remedy(logging.Filter):
    """Adds the remedy to the agent's line of an update that was refused for a number in it.

    Args:
        contributions: of which an update is made, about.
    """

    def __init__(self, contributions: int) -> None:
        super().__init__()
        self._text = _REMEDY % (4 * contributions)

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every line pass."""
        told = record.args
        if isinstance(told, tuple) and outcome_name(Reason.BAD_NUMBER) in told:
            record.msg = f"{record.msg}{self._text}"
        return True
