"""A ledger beside a device: what was created, written by nobody of the product's own."""

import json
from pathlib import Path

from schemas.names import Boot, Seq


class Witness:
    """One line for every update that a device says it has created."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self.created = 0

    def __call__(self, boot: Boot, seq: Seq) -> None:
        """Write one update down."""
        self.created += 1
        self._file.write(json.dumps({"boot": boot, "seq": seq}) + "\n")

    def close(self) -> None:
        """Close the ledger."""
        self._file.close()
