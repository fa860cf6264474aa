"""Bits of a payload, the highest of each byte first (docs/wire.md, section 4).

A text of zeros and ones, read from left to right: slow, and easy to believe.
"""

from fedmq.simulator.checker.message import Refused


class Bits:
    """What has not been read yet. Whatever is asked for and not there is `truncated`."""

    def __init__(self, data: bytes) -> None:
        self._text = "".join(f"{byte:08b}" for byte in data)
        self._at = 0

    def take(self, count: int) -> str:
        """The next `count` bits."""
        if count > len(self._text) - self._at:
            raise Refused("truncated")
        self._at += count
        return self._text[self._at - count : self._at]

    def number(self, width: int) -> int:
        """A number of fixed width, its highest bit first; of width 0 it is 0."""
        return int("0" + self.take(width), 2)

    def quotients(self, count: int, *, behind: int) -> list[int]:
        """`count` runs of zeros, each with its one; so many bits must follow `behind` them."""
        end = len(self._text) - behind
        if count > end - self._at:
            raise Refused("truncated")
        found = []
        for _ in range(count):
            one = self._text.find("1", self._at, end)
            if one < 0:
                raise Refused("truncated")
            found.append(one - self._at)
            self._at = one + 1
        return found

    def rice(self, count: int, b: int) -> list[int]:
        """`count` numbers in Rice code: all quotients, then all remainders."""
        quotients = self.quotients(count, behind=count * b)
        return [(quotient << b) + self.number(b) for quotient in quotients]

    def end(self) -> None:
        """Nothing may follow but zeros, and fewer than 8."""
        rest = self._text[self._at :]
        if len(rest) >= 8:
            raise Refused("oversized")
        if "1" in rest:
            raise Refused("malformed")
