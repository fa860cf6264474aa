"""What a client library makes of XREAD's answer, as plain pairs. Pure."""

from collections.abc import Mapping
from typing import Any


def stream_pairs(answer: Any) -> list[tuple[bytes, Mapping[bytes, bytes]]]:
    """The (entry id, fields) pairs of one stream's answer.

    redis-py gives `[[key, [pair, ...]]]` under RESP2, `{key: [[pair, ...]]}` under RESP3, and
    something empty when nothing came.
    """
    if not answer:
        return []
    if isinstance(answer, dict):
        return [pair for batches in answer.values() for batch in batches for pair in batch]
    return [pair for _key, batch in answer for pair in batch]
