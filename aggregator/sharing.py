"""Which of several aggregators should hold a task. Pure.

Rendezvous hashing (Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", 1998,
section 3): the one whose hash with the task's name is highest. Everybody who knows the same peers
finds the same answer, and when one comes or goes only its own share moves.
"""

from collections.abc import Iterable
from hashlib import sha256

from schemas.names import TaskName


def preferred(task: TaskName, tokens: Iterable[str]) -> str | None:
    """The token of the aggregator that should hold the task; None of none."""
    return max(tokens, key=lambda token: (_score(task, token), token), default=None)


def _score(task: TaskName, token: str) -> bytes:
    return sha256(f"{token}\0{task}".encode()).digest()
