"""An agent that is started again and again, without a broker: it goes on drawing where it was."""

from contextlib import closing
from pathlib import Path

import msgspec
import pytest
import servers

from edge_agent.agent import Agent
from edge_agent.pacing import Waiting, from_disk, to_disk
from edge_agent.settings import AgentSettings
from edge_agent.spool import DiskFull, Spool
from schemas.pace import PaceHint, PaceOptions
from schemas.task import TrainOptions, spec_to_json
from schemas.wire import encode_manifest
from tests.edge_agent.played_server import DEVICE, SPEC, Model, Tiny, eventually

PACED = msgspec.structs.replace(
    SPEC, pace=PaceOptions(concurrency=10, lease_s=1e6), train=TrainOptions(rounds_per_base=1)
)
EIGHT = to_disk(Waiting((1, 1), 0.0, 8, PaceHint(1e-4)))
"""pump-1 has begun eight times, and is drawn for base (1, 1) in attempt 9: at the tenth start."""


def prepared(directory: Path, pace: bytes) -> None:
    """A disk as an earlier life has left it."""
    model = Model(1)
    with closing(Spool(directory / "spool.sqlite")) as spool:
        spool.save(
            spec=spec_to_json(PACED),
            manifest=encode_manifest(model.manifest),
            params=model.params.tobytes(),
            pace=pace,
        )


async def life(
    directory: Path, refuses: pytest.MonkeyPatch | None = None
) -> tuple[str, int, bytes | None]:
    """Start it, and let it be until it rests: why it does, its updates, and its record."""
    settings = AgentSettings(
        mqtt_port=servers.free_port(), device=DEVICE, task="pumps", trainer="not:used"
    )
    with closing(Spool(directory / "spool.sqlite")) as spool:
        agent = Agent(settings, Tiny(), spool)
        if refuses is not None:
            refuses.setattr(spool, "save", _refuse)
        async with agent:
            await eventually(lambda: bool(agent.resting), "it rests")
            return agent.resting, agent.created, spool.load("pace")


def _refuse(**_values: bytes) -> None:
    raise DiskFull("no space")


async def test_a_life_shorter_than_a_lease_counts_and_the_next_one_draws_anew(
    tmp_path: Path,
) -> None:
    prepared(tmp_path, EIGHT)
    resting, created, record = await life(tmp_path)
    assert (resting, created) == ("not drawn for this model", 0)
    kept = from_disk(record)
    assert kept is not None
    assert (kept.base, kept.starts, kept.hint) == ((1, 1), 9, PaceHint(1e-4))
    resting, created, after = await life(tmp_path)
    assert created == 1
    assert "not drawn" not in resting
    assert after == record, "who trains writes nothing of the draw"


async def test_a_disk_that_takes_nothing_is_no_reason_not_to_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(tmp_path, EIGHT)
    assert await life(tmp_path, monkeypatch) == ("not drawn for this model", 0, EIGHT)


@pytest.mark.parametrize("garbage", [b"", b"rubbish", bytes(40)])
async def test_a_record_that_cannot_be_read_is_as_none(tmp_path: Path, garbage: bytes) -> None:
    prepared(tmp_path, garbage)
    _, created, _ = await life(tmp_path)
    assert created == 1, "without a hint every model is trained from"


async def test_it_looks_again_while_it_waits_because_its_timer_may_have_stood_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(tmp_path, EIGHT)
    clock = [1.8e9]
    monkeypatch.setattr("edge_agent.agent.time", lambda: clock[0])
    settings = AgentSettings(
        mqtt_port=servers.free_port(),
        device=DEVICE,
        task="pumps",
        trainer="not:used",
        conditions_every_s=0.02,
    )
    with closing(Spool(tmp_path / "spool.sqlite")) as spool:
        async with Agent(settings, Tiny(), spool) as agent:
            await eventually(lambda: agent.resting.startswith("not drawn"), "it rests")
            assert agent.created == 0
            clock[0] += 9e6  # nine leases of sleep, of which its timer knows nothing
            await eventually(lambda: agent.created == 1, "it draws again")
