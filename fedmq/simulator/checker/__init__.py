"""The auditor: folds a task's log again and says what became of every update.

Shares no code with the product: only the standard library, numpy and msgpack.

    entries     reads the log: a stream, an archive, or both
    fold        folds it from its origin: an Account
    ladder      holds what is retained of a lattice against an Account
    verdict     holds the Account against what devices have created and what the server has said
"""

from fedmq.simulator.checker.errors import BadLog, CheckerError, NotCovered
from fedmq.simulator.checker.fold import Account, fold
from fedmq.simulator.checker.ladder import Retained, look
from fedmq.simulator.checker.verdict import Created, Service, Verdict, judge

__all__ = [
    "Account",
    "BadLog",
    "CheckerError",
    "Created",
    "NotCovered",
    "Retained",
    "Service",
    "Verdict",
    "fold",
    "judge",
    "look",
]
