"""A rogue's ledger holds what the broker has acknowledged, and nothing else."""

import json
import random
from pathlib import Path
from typing import Self

import aiomqtt
import pytest
import servers

from fedmq.simulator.soak import poison
from fedmq.simulator.soak.evidence import sent_once
from fedmq.simulator.soak.fleet import Fleet
from fedmq.simulator.soak.plan import Plan
from fedmq.simulator.soak.poison import poisoned, send_poison
from schemas.codecs import codec_by_name
from schemas.delta import within
from schemas.errors import WireError
from schemas.messages import ModelUpdate
from schemas.names import Boot, Epoch, ModelVersion, Seq
from schemas.outcomes import Reason

GOOD = ModelUpdate(
    epoch=Epoch(1),
    boot=Boot(7),
    seq=Seq(1),
    base_version=ModelVersion(3),
    base_digest=1,
    spec_digest=2,
    codec=2,
    num_examples=1,
    payload=b"",
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """A fleet of which only a model is known."""

    async def known(_fleet: Fleet, _rng: random.Random) -> ModelUpdate:
        return GOOD

    monkeypatch.setattr(poison, "_good_update", known)
    return Fleet(Plan(seed=1, seconds=1.0), tmp_path)


class Broker:
    """Acknowledges so many messages, and is gone."""

    def __init__(self, patience: int) -> None:
        self.left = patience

    def __call__(self, *_: object, **__: object) -> "Broker":
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def publish(self, *_: object, **__: object) -> None:
        if not self.left:
            raise aiomqtt.MqttError("gone")
        self.left -= 1


def lines(here: Fleet) -> list[dict[str, object]]:
    file = here.folder / "devices" / "rogue" / "ledger.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


async def test_a_broker_that_is_away_has_nothing_and_so_has_the_ledger(here: Fleet) -> None:
    here.broker_port = servers.free_port()
    assert await send_poison(here, random.Random(1)) == "the broker does not answer just now"
    assert lines(here) == []


@pytest.mark.parametrize(("patience", "written"), [(2, 2), (6, 6), (9, 6)])
async def test_each_line_is_written_once_its_message_is_acknowledged(
    here: Fleet, monkeypatch: pytest.MonkeyPatch, patience: int, written: int
) -> None:
    monkeypatch.setattr("fedmq.simulator.soak.poison.aiomqtt.Client", Broker(patience))
    why = await send_poison(here, random.Random(1))
    assert bool(why) == (patience < 9)
    assert [line["seq"] for line in lines(here)] == list(range(1, written + 1))
    assert sent_once(here.folder) == {("rogue", 7, seq + 1) for seq in range(written)}


@pytest.mark.parametrize("codec", ["sq", "stc", "topk_int8"])
def test_poison_is_made_for_the_codec_of_the_task(codec: str) -> None:
    nan, _, _, far, *_ = poisoned(GOOD, codec)
    decode = codec_by_name(codec).decode
    assert not within(decode(memoryview(nan.payload), 400).values, 1e6)
    with pytest.raises(WireError) as refused:
        decode(memoryview(far.payload), 400)
    assert refused.value.reason is Reason.BAD_INDEX
