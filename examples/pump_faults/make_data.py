"""Draws the three CSVs beside this file: `python -m examples.pump_faults.make_data`.

Synthetic. Each pump has habits of its own and has met one kind of fault only: a worn bearing
(vibration), a blocked filter (pressure) or a hot winding (temperature). Only the fleet knows all.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SEED = 7
HEADER = "vibration_mm_s,pressure_bar,temperature_c,fault"
HABITS = {"pump-1": (2.0, 4.0, 55.0), "pump-2": (2.6, 6.0, 61.0), "pump-3": (1.7, 5.0, 68.0)}
SPREAD = np.array([0.3, 0.2, 2.0])
FAULTS = {"pump-1": (5.0, 0.0, 0.0), "pump-2": (0.0, 5.0, 0.0), "pump-3": (0.0, 0.0, 5.0)}
FAULT_SHARE = 0.3


def readings(pump: str, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw rows of three sensors and the label: float64, shape (count, 4)."""
    fault = rng.random(count) < FAULT_SHARE
    noise = rng.standard_normal((count, 3)) + np.outer(fault, FAULTS[pump])
    return np.column_stack([np.array(HABITS[pump]) + SPREAD * noise, fault])


def csv_of(table: NDArray[np.float64]) -> str:
    """Write the rows as people write them: two decimals, and a 0 or 1."""
    lines = (f"{v:.2f},{p:.2f},{t:.1f},{fault:.0f}" for v, p, t, fault in table)
    return "\n".join([HEADER, *lines, ""])


def csvs(count: int = 240) -> dict[str, str]:
    """Every pump's CSV, by its name; the same at every call."""
    rng = np.random.default_rng(SEED)  # noqa: TID251 - a script is a shell: it makes its generator
    return {pump: csv_of(readings(pump, count, rng)) for pump in HABITS}


def main() -> None:
    """Write the files."""
    for pump, text in csvs().items():
        file = Path(__file__).with_name(f"{pump}.csv")
        file.write_text(text)
        print(f"{file}: {len(text)} bytes")


if __name__ == "__main__":
    main()
