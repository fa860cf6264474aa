"""Versions of a model as rows: all of it for a spreadsheet, less of it for people."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any


def as_table(records: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[object]]]:
    """Lay versions out as a header and rows, a column for every metric that occurs."""
    metrics = sorted({name for record in records for name in record["metrics"]})
    server = sorted({name for record in records for name in record["server"]})
    plain = ["version", "status", "at", "digest", "updates_folded", "devices", "examples"]
    header = [*plain, *metrics, *(f"server:{name}" for name in server), "kept"]
    rows = []
    for record in records:
        at = datetime.fromtimestamp(record["at_ms"] / 1000, UTC)
        row: list[object] = [record["version"], record["status"], f"{at:%FT%TZ}"]
        row += [record[name] for name in ("digest", "updates_folded", "devices", "examples")]
        row += [_figure(record["metrics"].get(name)) for name in metrics]
        row += [_figure(record["server"].get(name)) for name in server]
        rows.append([*row, "yes" if record.get("kept") else "no"])
    return header, rows


def for_people(records: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[object]]]:
    """The same without the digest, short enough for a terminal."""
    header, rows = as_table(records)
    at, digest = header.index("at"), header.index("digest")
    short = {"updates_folded": "updates", "at": "at (UTC)"}
    for row in rows:
        row[at] = str(row[at])[5:-1].replace("T", " ")
        row[:] = [float(f"{cell:.4g}") if isinstance(cell, float) else cell for cell in row]
        del row[digest]
    return [short.get(name, name) for name in header if name != "digest"], rows


def _figure(value: float | None) -> object:
    return "" if value is None else round(value, 6)
