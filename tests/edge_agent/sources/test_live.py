import asyncio
import logging
import random
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt
import msgspec
import numpy as np
import onnx_bundles
import pytest
import servers

from edge_agent.sources import Fit
from edge_agent.sources.live import LEAST, LiveSamples
from edge_agent.sources.readings import PAYLOAD_MAX, decode_reading
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


# -- bad readings --------------------------------------------------------------------------------


def unheard(where: Path, wanted: Fit) -> LiveSamples:
    """What is given readings by hand."""
    rng = random.Random(1)
    live = LiveSamples(MqttSettings(), "d", TOPIC, state=where / "p", most=99, rng=rng)
    live.begin(wanted)
    return live


def take(live: LiveSamples, *payloads: bytes) -> None:
    for payload in payloads:
        live.listener._take(payload)


SPOILT = {
    "beyond float32": b'{"temp": 1e39, "flow": 1, "fault": 0}',
    "a class too many": b'{"temp": 1, "flow": 1, "fault": 3}',
    "a class below 0": b'{"temp": 1, "flow": 1, "fault": -1}',
    "half a class": b'{"temp": 1, "flow": 1, "fault": 0.5}',
}


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("spoilt", SPOILT.values(), ids=SPOILT)
def test_one_bad_reading_is_garbage_and_spoils_nothing(
    tmp_path: Path, spoilt: bytes, window: int, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = fit((2 * window,), label="fault", window=window, features=("temp", "flow"))
    live = unheard(tmp_path, wanted)
    take(live, *readings(0, 40), *[spoilt] * 12)
    assert live.garbage == 12
    assert len([line for line in caplog.messages if "garbage topic" in line]) == 2
    assert len(live.samples()) == live.seen() == 41 - window
    live.close()
    again = unheard(tmp_path, wanted)
    assert len(again.samples()) == 41 - window
    again.close()


def test_a_reading_that_the_kept_scale_throws_beyond_float32_is_garbage(tmp_path: Path) -> None:
    wanted = fit((2,), label="fault", normalise="device", features=("flow", "temp"))
    live = unheard(tmp_path, wanted)
    take(live, *[b'{"temp": %d.001, "flow": %d, "fault": 0}' % (0, n) for n in range(40)])
    take(live, *[b'{"temp": 0.002, "flow": 1, "fault": 0}'] * 40)
    far = b'{"temp": 3e38, "flow": 1, "fault": 0}'
    assert live.samples().x.std(axis=0) == pytest.approx([1, 1], rel=1e-3)
    take(live, far)  # the scale is read when samples are asked for again
    assert len(live.samples()) == 80
    take(live, far)
    assert (len(live.samples()), live.garbage) == (80, 1)
    live.close()


def test_samples_that_do_not_fit_are_dropped_when_they_are_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = fit((2,), label="fault", features=("temp", "flow"))
    live = unheard(tmp_path, wanted)
    take(live, *readings(0, 40))
    live.close()
    with sqlite3.connect(tmp_path / "p.samples.sqlite") as db:
        rows = {3: np.float64(7).tobytes() + bytes(8), 5: np.full(2, np.inf).tobytes(), 8: b"short"}
        for number, raw in rows.items():
            db.execute("UPDATE samples SET sample = ? WHERE number = ?", (raw, number))
    db.close()
    again = unheard(tmp_path, wanted)
    assert (len(again.samples()), again.seen()) == (37, 40)
    assert any("samples_dropped" in line and "count=2" in line for line in caplog.messages)
    again.close()


def test_samples_of_a_bundle_with_other_labels_are_not_used(tmp_path: Path) -> None:
    of_three = fit((2,), label="fault", features=("temp", "flow"))
    manifest = of_three.manifest
    output = msgspec.structs.replace(manifest.output, shape=(5,))
    others = [
        msgspec.structs.replace(manifest, output=output),
        msgspec.structs.replace(manifest, loss="nll"),
        msgspec.structs.replace(manifest, x=msgspec.structs.replace(manifest.x, dtype="int64")),
    ]
    for other in others:
        live = unheard(tmp_path, of_three)
        take(live, *readings(0, 3))
        assert live.seen() == 3
        live.close()
        changed = unheard(tmp_path, Fit(other, of_three.given))
        assert changed.seen() == 0
        changed.close()


def test_whole_numbers_of_a_topic_keep_their_digits(tmp_path: Path) -> None:
    wanted = fit((1,), label="fault", features=("temp",))
    port = msgspec.structs.replace(wanted.manifest.x, dtype="int64")
    whole = Fit(msgspec.structs.replace(wanted.manifest, x=port), wanted.given)
    live = unheard(tmp_path, whole)
    take(live, *[b'{"temp": 16777217, "fault": 1}'] * 32, b'{"temp": 0.5, "fault": 1}')
    live.close()
    again = unheard(tmp_path, whole)
    assert again.samples().x.tolist() == [[16777217]] * 32
    again.close()


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
        live.begin(fit((2,), label="fault", normalise="device", features=("flow", "temp")))
        assert live.seen() == begun
        async with listening(live):
            await heard(mosquitto, live)
            await send(mosquitto, readings(begun, begun + 50))
            await eventually(lambda live=live, n=begun: live.seen() == n + 50)
        found = live.samples()
        assert len(found) == begun + 50
    # the scale is that of the first fifty
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
        assert live._making is not None
        x, _, _ = live._making.ring.all()
    assert x.tolist() == [[[0], [1]], [[10], [11]]]


async def test_several_fields_without_names_are_garbage_that_says_what_to_do(
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
    assert any("name them in the task's [input] features" in line for line in caplog.messages)


WRONG: dict[str, tuple[tuple[int, ...], dict[str, Any], type[Exception], str]] = {
    "no label": ((2,), {}, ConfigError, "label: name the field"),
    "a window that does not divide": ((5,), {"window": 2, "label": "a"}, ValueError, "window 2"),
    "a square window": (
        (2, 2),
        {"window": 2, "features": ("a", "b"), "label": "c"},
        ValueError,
        r"say \[input\] layout",
    ),
    "too few features": ((2,), {"features": ("a",), "label": "b"}, ValueError, "1 features"),
}


@pytest.mark.parametrize(("shape", "given", "kind", "told"), WRONG.values(), ids=WRONG)
def test_what_can_never_fit_is_told_at_once(
    tmp_path: Path, shape: tuple[int, ...], given: dict[str, Any], kind: type[Exception], told: str
) -> None:
    settings = MqttSettings()
    live = LiveSamples(settings, "d", TOPIC, state=tmp_path / "s", most=9, rng=random.Random(1))
    with pytest.raises(kind, match=told):
        live.begin(fit(shape, **given))
