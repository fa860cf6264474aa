"""From training to a message, and from there into a fold, in one process."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from aggregator.fold import Fold, origin_state
from aggregator.state import Answer
from edge_agent.compressor import restored
from edge_agent.rounds import Adopted, Round, Rounds, entropy_of
from edge_agent.spool import Spool
from edge_agent.trainer import Stopped, TrainResult
from schemas.codecs import CODECS, Ask, codec_by_name
from schemas.delta import to_dense
from schemas.evaluation import Evaluation
from schemas.log import Arrived, Entry, EntryId, SpecSet
from schemas.messages import ModelUpdate
from schemas.names import Boot, DeviceId, Epoch, shard_of
from schemas.outcomes import FOLDED, Reason
from schemas.params import Params, ParamSpec, TensorSpec
from schemas.seal import sealed
from schemas.short import carried, over_the_air
from schemas.strategy import StrategyOptions
from schemas.task import (
    CodecOptions,
    EvaluateOptions,
    TaskSpec,
    checked_spec,
    device_spec_from_json,
    spec_to_json,
)
from schemas.wire import decode_update, encode_update

SIZE = 9610
DEVICE = DeviceId("pump-7")
BUDGETED = [codec for codec in CODECS.values() if codec.least_bytes(SIZE) <= 103 - 28]

EXACT = {"eden", "dropout"}
"""These fill any budget to the byte; the others may leave one or two."""


@dataclass
class Walker:
    """A trainer that goes another way each time."""

    metrics: dict[str, float] = field(default_factory=dict)
    deltas: list[Params] = field(default_factory=list)

    def train(
        self, tensors: Mapping[str, Any], _options: object, rng: np.random.Generator
    ) -> TrainResult:
        step = rng.standard_normal(SIZE).astype(np.float32)
        self.deltas.append(step)
        return TrainResult({"w": tensors["w"] + step}, num_examples=320, metrics=self.metrics)


def task(codec: str, uplink: str, **options: Any) -> TaskSpec:
    return checked_spec(
        TaskSpec(
            ParamSpec((TensorSpec("w", (SIZE,)),)),
            strategy=StrategyOptions(buffer_size=1, flush_after_s=0.0),
            codec=CodecOptions(codec, **options),
            uplink=uplink,
        )
    )


class Pair:
    """One device and the fold that takes what it makes."""

    def __init__(self, path: Path, spec: TaskSpec, trainer: Walker | None = None) -> None:
        self.trainer = trainer or Walker()
        self.spool = Spool(path / "spool.sqlite", new_boot=lambda: Boot(77))
        self.messages: list[bytes] = []
        self.rounds = Rounds(
            self.trainer,
            self.spool,
            entropy=entropy_of(1),
            watts=0.0,
            on_created=lambda _boot, _seq, _replaced, message: self.messages.append(message),
        )
        self.fold = Fold(origin_state(Epoch(1), np.zeros(SIZE, np.float32)))
        self.now_ms = 1_750_000_000_000
        self.follow(spec)

    def append(self, body: Arrived | SpecSet) -> None:
        self.now_ms += 1
        self.fold.apply(Entry(EntryId(self.now_ms, 0), body))
        changes = self.fold.changes
        if changes.publications:
            newest = changes.publications[-1]
            params = np.frombuffer(newest.blob, dtype="<f4")
            self.model = Adopted(newest.manifest, params)
        if changes.spec is not None:
            self.spec = device_spec_from_json(changes.spec)

    def follow(self, spec: TaskSpec) -> None:
        self.append(SpecSet(spec_to_json(spec)))
        self.fold.take_changes()

    def train(self, state: Round | None = None) -> ModelUpdate:
        self.state = self.rounds.one(self.model, self.spec, state or Round(self.model.params))
        return decode_update(self.messages[-1])

    def send(self, message: bytes) -> Answer:
        self.append(Arrived(DEVICE, shard_of(DEVICE), message, len(message)))
        return self.fold.take_changes().answers[DEVICE]

    def settle(self, answer: Answer) -> None:
        update = decode_update(self.messages[-1])
        self.spool.mark_sent(update.boot, update.seq)
        refused = None if answer.outcome == FOLDED else answer.seq
        self.spool.settle(update.boot, lambda seq: seq == answer.seq, refused=refused)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[list[Pair]]:
    pairs: list[Pair] = []
    yield pairs
    for pair in pairs:
        pair.spool.close()


# -- budgets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", BUDGETED, ids=lambda codec: codec.name)
def test_a_budget_gives_messages_that_are_never_longer_and_that_the_fold_folds(
    codec, tmp_path, made
) -> None:
    made.append(pair := Pair(tmp_path, task(codec.name, "103 B")))
    before = pair.fold.state.model.version
    for _ in range(4):
        update = pair.train()
        message = pair.messages[-1]
        assert 85 < len(message) <= 103
        assert len(message) == 103 or codec.name not in EXACT
        assert (update.spec_digest, update.metrics) == (None, {})
        answer = pair.send(message)
        assert answer.outcome == FOLDED
        pair.settle(answer)
    assert pair.fold.state.model.version == before + 4
    assert pair.fold.state.tally.rejected == {}


def test_a_message_is_full_where_its_number_takes_another_byte(tmp_path, made) -> None:
    made.append(pair := Pair(tmp_path, task("eden", "103 B")))
    pair.spool._seq = 125
    payloads = []
    for number in (126, 127, 128, 129):
        update = pair.train()
        assert (update.seq, len(pair.messages[-1])) == (number, 103)
        payloads.append(len(update.payload))
    assert payloads == [88, 88, 87, 87]


def test_a_sealed_message_is_no_longer_than_the_budget(tmp_path, made) -> None:
    made.append(pair := Pair(tmp_path, task("eden", "103 B", checksum=True)))
    pair.train()
    message = sealed(pair.messages[-1], DEVICE)
    assert len(message) == 103
    assert pair.send(message).outcome == FOLDED


def test_another_budget_holds_from_the_next_update_on(tmp_path, made) -> None:
    made.append(pair := Pair(tmp_path, task("eden", "")))
    assert pair.train().spec_digest == pair.spec.params.short_digest
    free = len(decode_update(pair.messages[-1]).payload)
    for uplink, length in [("103 B", 103), ("lora-dr4", 222), ("51 B", 51)]:
        pair.follow(task("eden", uplink))
        pair.train()
        assert len(pair.messages[-1]) == length
        assert pair.send(pair.messages[-1]).outcome == FOLDED
    pair.follow(task("eden", "20 kB/day"))
    update = pair.train()
    assert (len(update.payload), update.spec_digest) == (free, None), "as long as the codec's own"


def test_metrics_go_up_while_they_are_no_burden(tmp_path, made) -> None:
    made.append(pair := Pair(tmp_path, task("eden", "222 B"), Walker(metrics={"loss": 0.5})))
    assert pair.train().metrics == {"loss": 0.5}
    assert len(pair.messages[-1]) == 222
    assert pair.send(pair.messages[-1]).outcome == FOLDED
    pair.follow(task("eden", "103 B"))
    assert pair.train().metrics == {}
    assert len(pair.messages[-1]) == 103


def test_the_encoder_is_told_the_servers_gain(tmp_path, made, monkeypatch) -> None:
    asked: list[Ask] = []
    sq = codec_by_name("sq")

    def encode(vector: Params, ask: Ask, rng: np.random.Generator) -> bytes:
        asked.append(ask)
        return sq.encode(vector, ask, rng)

    monkeypatch.setattr("edge_agent.rounds.codec_by_name", lambda _: replace(sq, encode=encode))
    made.append(pair := Pair(tmp_path, task("sq", "103 B")))
    pair.train()
    assert (asked[0].gain, asked[0].budget) == (1.0, 88)


def test_a_frame_of_what_a_device_made_is_folded_like_it(tmp_path, made) -> None:
    """What LoRaWAN's adapter does; the base's version and epoch come in a few bits."""
    made.append(pair := Pair(tmp_path, task("sq", "51 B")))
    for number in range(1, 4):
        frame = over_the_air(pair.train())
        message = carried(Boot(5), number, frame)
        answer = pair.send(message)
        assert (answer.boot, answer.seq, answer.outcome) == (5, number, FOLDED)
        assert pair.send(message) == answer, "a duplicate is answered with its first outcome"
    assert pair.fold.state.tally.duplicates == 3


# -- error feedback ----------------------------------------------------------------------------


def stale(pair: Pair) -> bytes:
    """The newest message, as if from a base that nobody has published."""
    update = decode_update(pair.messages[-1])
    wrong = (update.base_digest or 0) ^ 1
    return encode_update(replace(update, base_digest=wrong))


@pytest.mark.parametrize("name", ["topk_int8", "stc"])
def test_after_a_refusal_the_next_update_is_as_if_the_refused_one_had_never_been(
    name, tmp_path, made
) -> None:
    made.append(pair := Pair(tmp_path, task(name, "103 B")))
    pair.train()
    pair.settle(pair.send(pair.messages[-1]))
    before = pair.spool.load("residual")
    pair.train()
    assert pair.spool.load("residual") != before
    answer = pair.send(stale(pair))
    assert answer.outcome == Reason.WRONG_BASE
    pair.settle(answer)
    assert pair.spool.load("residual") == before
    update = pair.train()
    left = pair.spool.load("residual")
    assert before is not None
    assert left is not None
    sent = to_dense(codec_by_name(name).decode(memoryview(update.payload), SIZE), SIZE)
    there_was = pair.trainer.deltas[-1] + np.frombuffer(before, "<f4")
    np.testing.assert_allclose(sent + np.frombuffer(left, "<f4"), there_was, atol=1e-5)


def test_a_receipt_that_comes_while_the_next_round_is_encoded_is_not_forgotten(
    tmp_path, made, monkeypatch
) -> None:
    made.append(pair := Pair(tmp_path, task("topk_int8", "103 B")))
    pair.train()
    codec, encoded = codec_by_name("topk_int8"), 0

    def encode(vector: Params, ask: Ask, rng: np.random.Generator) -> bytes:
        nonlocal encoded
        encoded += 1
        if encoded == 1:
            pair.spool.mark_sent(Boot(77), 1)
            pair.spool.settle(Boot(77), lambda seq: seq == 1, refused=1)
        return codec.encode(vector, ask, rng)

    monkeypatch.setattr("edge_agent.rounds.codec_by_name", lambda _: replace(codec, encode=encode))
    update = pair.train()
    assert (encoded, update.seq) == (2, 2)
    left = pair.spool.load("residual")
    back = restored(encode_update(update), left, SIZE)
    assert back is not None
    np.testing.assert_allclose(np.frombuffer(back, "<f4"), pair.trainer.deltas[-1], atol=1e-5)


# -- metrics -----------------------------------------------------------------------------------


class Judging(Walker):
    """A trainer that measures the global model, too."""

    figures: Mapping[str, float] = {}

    def evaluate(self, _tensors: Mapping[str, Any]) -> Evaluation:
        return Evaluation(8, self.figures)


BEYOND: dict[str, Any] = {
    "nan": float("nan"),
    "inf": float("-inf"),
    "large": 1e39,
    "huge": 10**400,
}


def test_what_float32_cannot_hold_is_left_out_and_the_update_is_folded(
    tmp_path, made, caplog
) -> None:
    trainer = Judging(metrics={"loss": 0.5, "edge": 3.4e38} | BEYOND)
    spec = msgspec.structs.replace(task("eden", ""), evaluate=EvaluateOptions(devices=True))
    trainer.figures = {"accuracy": 0.25, "far": float("inf")}
    made.append(pair := Pair(tmp_path, spec, trainer))
    metrics = dict(pair.train().metrics)
    assert metrics == pytest.approx({"loss": 0.5, "edge": 3.4e38, "@": 8, "@accuracy": 0.25})
    assert pair.send(pair.messages[-1]).outcome == FOLDED
    trainer.figures = {"accuracy": float("nan")}
    assert set(pair.train().metrics) == {"loss", "edge"}
    assert pair.send(pair.messages[-1]).outcome == FOLDED
    told = [line for line in caplog.messages if "metrics_left_out" in line]
    assert len(told) == 3, "of every name once"
    assert all(name in told[1] for name in BEYOND)
    assert "far=inf" in told[0]


def test_numpys_numbers_and_large_integers_are_metrics_like_others(tmp_path, made) -> None:
    trainer = Walker(metrics={"loss": np.float32(0.5), "bytes": 10**30})
    made.append(pair := Pair(tmp_path, task("eden", ""), trainer))
    assert pair.train().metrics == pytest.approx({"loss": 0.5, "bytes": 1e30})
    assert pair.send(pair.messages[-1]).outcome == FOLDED


# -- the end -----------------------------------------------------------------------------------


def test_a_round_that_is_told_to_stop_while_the_model_is_measured_does_not_train(
    tmp_path, made
) -> None:
    class Slow(Judging):
        def evaluate(self, tensors: Mapping[str, Any]) -> Evaluation:
            if not self.deltas:
                pair.rounds.stop()
            return super().evaluate(tensors)

    trainer = Slow()
    spec = msgspec.structs.replace(task("eden", ""), evaluate=EvaluateOptions(devices=True))
    made.append(pair := Pair(tmp_path, spec, trainer))
    with pytest.raises(Stopped):
        pair.train()
    assert trainer.deltas == []
    trainer.deltas.append(np.zeros(1, np.float32))
    assert pair.train(), "another round is not meant"
