"""How long encoding, decoding and folding take, one thread."""

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Final

import numpy as np

from benchmarks.fold import SIZE, STALE, Bench, plain
from benchmarks.learning.fleet import Way
from benchmarks.report import Report, progress
from schemas.codecs import Ask, CodecOptions, codec_by_name
from schemas.params import Params

SIZES: Final = (9_610, 99_530, 1_000_000)
BUDGETS: Final = {9_610: 103, 99_530: 210, 1_000_000: 1_050}
"""What a filling codec is asked for at each size."""


def delta_of(size: int, rng: np.random.Generator) -> Params:
    """Something like a delta: products of normals, (sum |u|)^2 / sum u^2 = 0.4 of its size."""
    product = rng.standard_normal(size, dtype=np.float32)
    product *= rng.standard_normal(size, dtype=np.float32)
    product *= np.float32(0.01)
    return product


def times(way: Way, size: int, rng: np.random.Generator, repeats: int) -> tuple[float, float, int]:
    """Medians of encoding and decoding, in ms, and the bytes."""
    codec = codec_by_name(way.codec)
    ask = Ask(CodecOptions(way.codec, way.density), way.budget, 0.2)
    delta = delta_of(size, rng)
    payload = codec.encode(delta, ask, rng)
    encoding = _median_ms(lambda: codec.encode(delta, ask, rng), repeats)
    decoding = _median_ms(lambda: codec.decode(memoryview(payload), size), repeats)
    return encoding, decoding, len(payload)


def fold_ratio(rounds: int, seed: int) -> float:
    """Wire bytes of `sq` to FedBuff, with admission, over the plain dense numpy fold, at 1M."""
    count = 20
    dense = plain(Bench("float32", count, seed).decoded(), 3**-0.5)
    sparse = Bench("sq", count, seed).admitted(STALE)
    ratios = []
    for number in range(rounds + 1):
        mine, theirs = _seconds(sparse), _seconds(dense)
        if number:
            ratios.append(mine / theirs)
    return median(ratios)


def timed(report: Report, ways: tuple[Way, ...], seed: int, *, quick: bool) -> None:
    """Fill the report with the times of all ways at all sizes."""
    rng = np.random.Generator(np.random.PCG64([seed, 7]))
    for size in SIZES[: 2 if quick else 3]:
        progress(f"encoding and decoding {size:,} parameters")
        for way in ways:
            asked = Way(way.codec, BUDGETS[size] if way.budget else 0, way.density)
            encoding, decoding, length = times(asked, size, rng, 5 if quick else 21)
            name = f"{size:,}: {asked}"
            report.figures[f"{name}: bytes"] = length
            report.figures[f"{name}: encode ms"] = encoding
            report.figures[f"{name}: decode ms"] = decoding
    progress(f"folding updates of {SIZE:,} parameters")
    report.figures["1,000,000: sq fold over dense numpy fold"] = fold_ratio(
        5 if quick else 21, seed
    )


def _median_ms(what: Callable[[], object], repeats: int) -> float:
    what()
    return 1e3 * median(_seconds(what) for _ in range(repeats))


def _seconds(what: Callable[[], object]) -> float:
    began = perf_counter()
    what()
    return perf_counter() - began
