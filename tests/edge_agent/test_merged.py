"""What a regional server has merged: it says of how many devices it is, under any uplink."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_agent.rounds import Adopted, Round, Rounds, entropy_of
from edge_agent.spool import Spool
from edge_agent.trainer import TrainResult
from schemas.codecs import CodecOptions
from schemas.messages import Manifest, ModelUpdate
from schemas.names import Boot, Epoch, ModelVersion, Seq
from schemas.params import ParamSpec, TensorSpec
from schemas.task import TaskSpec, TrainOptions, checked_spec
from schemas.uplink import read_uplink
from schemas.wire import decode_update
from tests.laws import LEAN

SIZE = 400
SPEC = ParamSpec((TensorSpec("w", (SIZE,)),))
ORIGIN = np.zeros(SIZE, np.float32)
MANIFEST = Manifest(
    epoch=Epoch(1),
    version=ModelVersion(3),
    model_digest=bytes(32),
    spec_digest=SPEC.digest,
    codec=0,
    blob="b",
    blob_digest=bytes(32),
    blob_bytes=4 * SIZE,
    chunk_bytes=4096,
)


@dataclass
class Site:
    contributions: int
    weight: float

    def train(
        self,
        tensors: Mapping[str, NDArray[np.float32]],
        _options: TrainOptions,
        rng: np.random.Generator,
    ) -> TrainResult:
        moved = tensors["w"] + rng.standard_normal(SIZE).astype(np.float32)
        return TrainResult({"w": moved}, 50, {"loss": 0.5}, self.contributions, self.weight)


def sent(folder: str, site: Site, uplink: str) -> tuple[ModelUpdate, int]:
    """The update that comes of one round, and the bytes of its message."""
    messages: list[bytes] = []

    def created(_boot: Boot, _seq: Seq, _replaced: Seq | None, message: bytes) -> None:
        messages.append(message)

    spool = Spool(Path(folder) / "spool", new_boot=lambda: Boot(7))
    rounds = Rounds(site, spool, entropy=entropy_of(3), watts=0.0, on_created=created)
    spec = checked_spec(TaskSpec(SPEC, codec=CodecOptions("sq"), uplink=uplink))
    rounds.one(Adopted(MANIFEST, ORIGIN), spec, Round(ORIGIN))
    spool.close()
    return decode_update(messages[0]), len(messages[0])


@settings(LEAN, max_examples=25)
@given(
    contributions=st.integers(1, 0xFFFF_FFFF),
    weight=st.floats(2.0**-20, 1, width=32),
    uplink=st.sampled_from(["", "103 B", "222 B", "20 kB/day", "lora-dr3"]),
)
def test_contributions_and_weight_travel_and_the_budget_is_kept(
    contributions: int, weight: float, uplink: str
) -> None:
    with TemporaryDirectory() as folder:
        update, size = sent(folder, Site(contributions, weight), uplink)
    assert (update.contributions, update.weight) == (contributions, weight)
    assert update.num_examples == 50
    assert size <= (read_uplink(uplink).message_bytes or size)
    merged = (contributions, weight) != (1, 1.0)
    tight = uplink in {"103 B", "lora-dr3"}
    assert (update.spec_digest is None) == (tight and not merged)
    assert bool(update.metrics) == (not tight)


@pytest.mark.parametrize(("contributions", "weight"), [(0, 1.0), (-1, 1.0), (1 << 32, 1.0)])
def test_a_result_of_nobody_is_refused(contributions: int, weight: float) -> None:
    with pytest.raises(ValueError, match="contributions are"):
        TrainResult({}, 1, {}, contributions, weight)


@pytest.mark.parametrize("weight", [0.0, -1.0, 1.5, float("nan"), float("inf")])
def test_a_weight_that_no_mean_of_weights_can_be_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="weight is"):
        TrainResult({}, 1, {}, 2, weight)
