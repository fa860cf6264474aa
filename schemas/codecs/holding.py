"""How far an unbiased update is held down, so that its variance does not make the fold diverge."""

from typing import Final

STABLE: Final = 30.0
"""The server's gain times omega is held at or below it. The bound of a simulation that was not
ours, in which models of 100,000 parameters stood 34 and diverged at 36."""


def held_down(gain: float, omega: float) -> float:
    """The factor, at most 1, that keeps gain * omega at `STABLE`. A gain of 0 is not known: 1.

    Args:
        gain: see `Ask.gain`.
        omega: E|sent - u|^2 / |u|^2 of the codec on this vector.
    """
    return STABLE / max(STABLE, gain * omega)
