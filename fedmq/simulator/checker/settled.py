"""Which numbers of which boots are settled: a plain dict, and the rule of 64.

what is known of (device, boot): its newest 64 numbers, each with what became of it
what lies 64 or more below the highest: settled, whatever it was
what is known of a device: its newest 64 boots
"""

from typing import Final, TypeAlias

Sender: TypeAlias = tuple[str, int]
SPAN: Final = 64
BOOTS: Final = 64


class Settled:
    """What the server must remember to take nothing twice."""

    def __init__(self) -> None:
        self._numbers: dict[Sender, dict[int, str]] = {}

    def knows(self, device: str, boot: int) -> bool:
        """Whether this boot is one of those that are remembered."""
        return (device, boot) in self._numbers

    def outcome(self, device: str, boot: int, seq: int) -> str | None:
        """What became of a number; None when it has not come yet, as far as is remembered."""
        numbers = self._numbers.get((device, boot))
        if numbers is None:
            return None
        if seq <= max(numbers) - SPAN:
            return "folded"
        return numbers.get(seq)

    def settle(self, device: str, boot: int, seq: int, outcome: str) -> None:
        """Note what became of a number that has not come before."""
        sender = (device, boot)
        if sender not in self._numbers:
            mine = [known for known in self._numbers if known[0] == device]
            for oldest in mine[: max(0, len(mine) + 1 - BOOTS)]:  # a dict keeps the order
                del self._numbers[oldest]
        numbers = {**self._numbers.get(sender, {}), seq: outcome}
        top = max(numbers)
        self._numbers[sender] = {s: o for s, o in numbers.items() if s > top - SPAN}
