"""`python -m benchmarks`: one after the other; 1 when any aim is missed.

`bytes` and `lorawan` train fleets for an hour and for 20 minutes: they are run by name.
"""

import sys
from typing import Final

from benchmarks import connections, fold, ingest, install, replay, takeover
from benchmarks.report import run

ALL: Final = {
    "connections": ("A fleet that is connected at once.", connections.measure),
    "fold": ("Fold updates from wire bytes, against plain numpy.", fold.measure),
    "ingest": ("Durable ingest, against a bare subscriber.", ingest.measure),
    "install": ("The size of fedmq[edge] on disk and in memory.", install.measure),
    "replay": ("Replay an archived log, against folding it live.", replay.measure),
    "takeover": ("How long a task stands still when its holder dies.", takeover.measure),
}


def main() -> int:
    """Run all with the same arguments; with --json one object a line."""
    return max([run(name, about, measure) for name, (about, measure) in ALL.items()])


if __name__ == "__main__":
    sys.exit(main())
