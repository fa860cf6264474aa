import asyncio
import logging
import random
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt
import numpy as np
import onnx_bundles
import pytest
import servers

from edge_agent.sources import Fit
from edge_agent.sources.live import LEAST, LiveSamples
from edge_agent.sources.readings import PAYLOAD_MAX, decode_reading
from edge_agent.sources.ring import Ring
from edge_agent.sources.topic import checked_topic
from mqtt_session.settings import MqttSettings
from schemas.errors import ConfigError
from schemas.inputs import InputOptions

TOPIC = "plant/pump-7/sensors"


# -- readings ------------------------------------------------------------------------------------


def test_a_reading_is_an_object_of_numbers_or_a_bare_one() -> None:
    told = decode_reading(b'{"temp": 1.5, "on": true, "at": "12:00", "more": {"a": 1}, "n": null}')
    assert told == {"temp": 1.5, "on": 1.0}
    assert decode_reading(b" 7 ") == {"value": 7.0}


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\xfe",
        b"warm",
        b"NaN",
        b'"1"',
        b"[1, 2]",
        b"{}",
        b'{"temp": "1"}',
        b"1e999",
        b"1" * 400,
        b"[" * 10_000,
        b" " * (PAYLOAD_MAX + 1),
        b"{" + b",".join(b'"%d":1' % n for n in range(5000)) + b"}",
    ],
    ids=lambda p: repr(p[:20]),
)
def test_garbage_is_told_as_garbage(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        decode_reading(payload)


@pytest.mark.parametrize("topic", ["", "plant/+/temp", "plant/#", "a\0b", "a" * 70_000])
def test_one_topic_is_listened_to_and_no_more(topic: str) -> None:
    with pytest.raises(ConfigError, match="data"):
        checked_topic("data", topic)


# -- the ring ------------------------------------------------------------------------------------


def ring(path: Path, form: str = "f", most: int = 5) -> Ring:
    return Ring(path, form, (2, 1), most)


def sample(number: float) -> np.ndarray:
    return np.full((2, 1), number, np.float32)


def test_the_newest_samples_survive_a_restart_with_their_numbers(tmp_path: Path) -> None:
    first = ring(tmp_path / "r")
    first.note_fields(("temp",))
    for number in range(8):
        first.add(sample(number), -number)
    first.close()
    again = ring(tmp_path / "r")
    x, y, number = again.all()
    assert (x[:, 0, 0].tolist(), y.tolist()) == ([3, 4, 5, 6, 7], [-3, -4, -5, -6, -7])
    assert (number, again.count, again.fields) == (3, 8, ("temp",))
    again.close()


def test_the_file_does_not_grow_beyond_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "r"
    kept = ring(path)
    for number in range(2000):
        kept.add(sample(number), 0)
        kept.write()
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT COUNT(*), MIN(number) FROM samples").fetchone() == (5, 1995)
    db.close()
    kept.close()
    assert path.stat().st_size < 100_000


def test_what_was_kept_of_another_form_is_thrown_away(tmp_path: Path) -> None:
    first = ring(tmp_path / "r")
    first.add(sample(1), 1)
    first.close()
    other = ring(tmp_path / "r", "another")
    assert (len(other), other.count, other.fields) == (0, 0, ())
    other.close()


def test_a_power_cut_costs_what_was_not_written_and_nothing_else(tmp_path: Path) -> None:
    kept = ring(tmp_path / "r")
    kept.add(sample(1), 1)
    kept.write()
    kept.add(sample(2), 2)
    again = ring(tmp_path / "r")  # as after SIGKILL: the first was never closed
    assert again.all()[1].tolist() == [1]
    again.close()
    kept.close()


def test_a_file_that_is_none_of_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "r").write_bytes(b"garbage" * 1000)
    with pytest.raises(ConfigError, match=r"state_dir: .*move it away"):
        ring(tmp_path / "r")


# -- a real broker -------------------------------------------------------------------------------


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[servers.Server]:
    with servers.mosquitto(tmp_path) as server:
        yield server


def source(broker: servers.Server, where: Path, most: int = 100) -> LiveSamples:
    settings = MqttSettings(mqtt_port=broker.port, mqtt_connect_timeout_s=5)
    state = where / "pumps.pump-7"
    rng = random.Random(1)
    return LiveSamples(settings, "pump-7", TOPIC, state=state, most=most, rng=rng, longest_s=0.2)


@asynccontextmanager
async def listening(live: LiveSamples) -> AsyncIterator[None]:
    running = asyncio.create_task(live.run())
    try:
        async with asyncio.timeout(30):
            yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not holds():
            await asyncio.sleep(0.01)


async def send(broker: servers.Server, payloads: list[bytes], **how: Any) -> None:
    async with aiomqtt.Client(servers.HOST, broker.port) as client:
        for payload in payloads:
            await client.publish(TOPIC, payload, qos=1, **how)


def readings(first: int, last: int) -> list[bytes]:
    return [b'{"temp": %d, "flow": 0.5, "fault": %d}' % (n, n % 3) for n in range(first, last)]


def fit(shape: tuple[int, ...], **given: Any) -> Fit:
    return Fit(onnx_bundles.softmax_bundle(shape).manifest, InputOptions(**given))


async def heard(broker: servers.Server, live: LiveSamples) -> None:
    """Wait until the subscription is there: a message is heard, as garbage."""
    before = live.garbage
    async with asyncio.timeout(15):
        while live.garbage == before:
            await send(broker, [b"hello"])
            await asyncio.sleep(0.05)


async def test_readings_become_samples_and_garbage_is_counted(
    mosquitto: servers.Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    live = source(mosquitto, tmp_path)
    live.begin(fit((4,), label="fault", window=2, stride=2, features=("temp", "flow")))
    async with listening(live):
        await heard(mosquitto, live)
        assert live.lacks() == f"mqtt:{TOPIC} has given 0 of {LEAST} samples"
        with pytest.raises(ValueError, match="0 of 32 samples"):
            live.samples()
        before = live.garbage
        mixed = [b"garbage", b'{"temp": 1}', b"[]", *readings(0, 80)]
        await send(mosquitto, mixed)
        await eventually(lambda: live.seen() == 40)
        assert live.garbage == before + 3
    found = live.samples()
    assert found.x[1].tolist() == [2, 0.5, 3, 0.5]
    assert found.y[:4].tolist() == [1, 0, 2, 1]
    assert live.lacks() == ""
    assert any("garbage topic" in line for line in caplog.messages)


async def test_they_are_there_again_after_a_restart(
    mosquitto: servers.Server, tmp_path: Path
) -> None:
    for begun in (0, 50):
        live = source(mosquitto, tmp_path)
        live.begin(fit((2,), label="fault", normalise="device"))
        assert live.seen() == begun
        async with listening(live):
            await heard(mosquitto, live)
            await send(mosquitto, readings(begun, begun + 50))
            await eventually(lambda live=live, n=begun: live.seen() == n + 50)
        found = live.samples()
        assert len(found) == begun + 50
    # flow, temp by name; the scale is that of the first fifty
    assert found.x[:50, 1].mean() == pytest.approx(0, abs=1e-6)
    assert found.x[:50, 1].std() == pytest.approx(1)
    assert found.x[:, 0].tolist() == [0] * 100


async def test_a_forecast_has_the_label_of_a_later_reading(
    mosquitto: servers.Server, tmp_path: Path
) -> None:
    live = source(mosquitto, tmp_path)
    bundle = onnx_bundles.line_bundle(3)
    given = InputOptions(label="value", window=3, horizon=2)
    live.begin(Fit(bundle.manifest, given))
    async with listening(live):
        await heard(mosquitto, live)
        await send(mosquitto, [b"%d" % n for n in range(40)])
        await eventually(lambda: live.seen() == 36)
    found = live.samples()
    assert found.x[:2].tolist() == [[0, 1, 2], [1, 2, 3]]
    assert found.y[:2].tolist() == [[4], [5]]


async def test_no_window_spans_a_lost_link_and_no_retained_reading_counts(
    mosquitto: servers.Server, tmp_path: Path
) -> None:
    live = source(mosquitto, tmp_path)
    live.begin(fit((2,), label="fault", window=2, features=("temp",)))
    await send(mosquitto, readings(7, 8), retain=True)
    async with listening(live):
        await heard(mosquitto, live)
        await send(mosquitto, readings(0, 2))
        await eventually(lambda: live.seen() == 1)
        mosquitto.kill()
        mosquitto.start()
        await heard(mosquitto, live)
        await send(mosquitto, readings(10, 12))
        await eventually(lambda: live.seen() == 2)
        await heard(mosquitto, live)
        assert live._ring is not None
        x, _, _ = live._ring.all()
    assert x.tolist() == [[[0], [1]], [[10], [11]]]


async def test_a_reading_of_too_many_numbers_is_garbage_that_says_what_to_do(
    mosquitto: servers.Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "fedmq.agent")
    live = source(mosquitto, tmp_path)
    live.begin(fit((1,), label="fault"))
    async with listening(live):
        async with asyncio.timeout(15):
            while not live.garbage:
                await send(mosquitto, readings(0, 1))
                await asyncio.sleep(0.05)
    assert any("name them in [input] features" in line for line in caplog.messages)


WRONG: dict[str, tuple[tuple[int, ...], dict[str, Any], type[Exception], str]] = {
    "no label": ((2,), {}, ConfigError, "label: name the field"),
    "a window that does not divide": ((5,), {"window": 2, "label": "a"}, ValueError, "window 2"),
    "too many features": ((2,), {"features": ("a",), "label": "a"}, ValueError, "1 features"),
}


@pytest.mark.parametrize(("shape", "given", "kind", "told"), WRONG.values(), ids=WRONG)
def test_what_can_never_fit_is_told_at_once(
    tmp_path: Path, shape: tuple[int, ...], given: dict[str, Any], kind: type[Exception], told: str
) -> None:
    settings = MqttSettings()
    live = LiveSamples(settings, "d", TOPIC, state=tmp_path / "s", most=9, rng=random.Random(1))
    with pytest.raises(kind, match=told):
        live.begin(fit(shape, **given))
