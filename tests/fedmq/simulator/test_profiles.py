import random

import pytest

from fedmq.simulator.links import Link
from fedmq.simulator.profiles import PROFILES, profile
from schemas.errors import ConfigError
from schemas.uplink import LINKS

DAY_S = 86_400.0


def test_every_profile_that_was_promised_is_there() -> None:
    lora = {f"lora-dr{rate}" for rate in range(6)}
    assert set(PROFILES) == lora | {"perfect", "nb-iot", "nb-iot-deep", "lte-m", "wifi-bad"}


def test_an_unknown_profile_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError) as refused:
        profile("5g")
    assert refused.value.field == "profile"
    assert all(name in refused.value.remedy for name in PROFILES)


def test_a_perfect_link_delivers_everything_at_once() -> None:
    link = Link(profile("perfect"), random.Random(0))
    assert [d.at_s for d in link.transmit(3.0, 1500, "up")] == [3.0]
    assert link.stream_delay(3.0, 10**9, "down") == 0.0


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("lora-dr0", 309),
        ("lora-dr1", 553),
        ("lora-dr2", 1237),
        ("lora-dr3", 1276),
        ("lora-dr4", 1317),
        ("lora-dr5", 2341),
    ],
)
def test_a_lora_device_sends_in_a_day_what_its_duty_cycle_allows(name: str, frames: int) -> None:
    model = profile(name)
    air = model.air_s(model.frame_bytes, "up")
    assert int(DAY_S * model.duty / air) == pytest.approx(frames, abs=2)
    link = Link(model, random.Random(0))
    sent = [link.transmit(0.0, model.frame_bytes, "up") for _ in range(frames + 300)]
    last = max(frame[0].at_s for frame in sent[: frames - 2] if frame)
    assert last < DAY_S
    assert all(frame[0].at_s > DAY_S for frame in sent[frames + 3 :] if frame)
    budget = LINKS[name]  # what a task may ask of that link by its name
    assert budget.message_bytes == model.frame_bytes
    assert budget.day_bytes == pytest.approx(frames * model.frame_bytes, rel=0.01)


def test_a_lora_device_hears_only_after_it_has_spoken() -> None:
    link = Link(profile("lora-dr5"), random.Random(1))
    assert all(link.transmit(second, 10, "down") == () for second in range(100))
    heard = 0
    for hour in range(1, 200):
        link.transmit(3600.0 * hour, 20, "up")
        heard += len(link.transmit(3600.0 * hour + 1.5, 10, "down"))
    assert heard > 150


def test_deep_nb_iot_loses_the_tenth_that_its_source_measured() -> None:
    loss = profile("nb-iot-deep").loss
    assert loss is not None
    assert loss.mean == pytest.approx(0.1, abs=0.005)


def test_sixty_kilobytes_take_half_a_minute_to_an_awake_nb_iot_device() -> None:
    model = profile("nb-iot")
    times = []
    for seed in range(50):
        link = Link(model, random.Random(seed))
        link.stream_delay(0.0, 100, "up")
        times.append(link.stream_delay(0.5, 60_000, "down"))
    assert 18.0 < sorted(times)[len(times) // 2] < 35.0
