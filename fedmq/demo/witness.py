"""A ledger beside a device: what was created, written by nobody of the product's own."""

import json
from pathlib import Path
from zlib import crc32

from schemas.names import Boot, Seq


class Witness:
    """One line for every update that a device says it has created."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self.created = 0

    def __call__(self, boot: Boot, seq: Seq, replaced: Seq | None, message: bytes) -> None:
        """Write one update down: who it is, in whose place it stands, and what it says."""
        self.created += 1
        said = {"boot": boot, "seq": seq, "replaced": replaced, "crc32": crc32(message)}
        self._file.write(json.dumps(said) + "\n")

    def close(self) -> None:
        """Close the ledger."""
        self._file.close()
