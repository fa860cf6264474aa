from dataclasses import replace

import pytest

from broker.lorawan.regions import REGIONS, network, region
from fedmq.simulator.lora_plan import Question, impulses, plan, without_dwell
from schemas.errors import ConfigError


def asked(sf: int, where: str = "eu868", whose: str = "private", params: int = 9610) -> Question:
    return Question(region(where), network(whose), sf, params)


@pytest.mark.parametrize(
    ("sf", "whose", "frames", "bytes_day"),
    [
        (12, "private", 309, 15_759),
        (10, "private", 1_237, 63_087),
        (9, "private", 1_276, 146_740),
        (7, "private", 2_342, 519_924),
        (10, "ttn", 42, 2_142),
        (9, "ttn", 44, 5_060),
        (8, "ttn", 45, 9_990),
        (7, "ttn", 81, 17_982),
    ],
)
def test_a_day_has_the_frames_of_the_reference(sf, whose, frames, bytes_day):
    found = plan(asked(sf, whose=whose))
    assert (found.frames_day, found.bytes_day) == (frames, bytes_day)


def test_fair_use_and_duty_cycle_hold_together():
    found = plan(asked(7, whose="ttn"))
    assert found.air_day_s <= 30.0
    assert found.downs_day == 10
    assert found.bound == "fair use 30 s a day"
    assert plan(asked(7)).bound == "duty cycle 1%"


@pytest.mark.parametrize(
    ("sf", "where", "whose", "words"),
    [
        (12, "us915", "private", ("us915", "400 ms", "SF12", "7, 8, 9")),
        (10, "us915", "private", ("11 bytes", "ADR")),
        (12, "as923", "private", ("400 ms", "SF12")),
        (10, "au915", "private", ("11 bytes",)),
        (12, "eu868", "ttn", ("ttn", "SF10")),
        (11, "in865", "ttn", ("ttn", "SF10")),
        (6, "eu868", "private", ("no SF6",)),
    ],
)
def test_what_is_forbidden_is_refused_with_a_remedy(sf, where, whose, words):
    with pytest.raises(ConfigError) as refused:
        plan(asked(sf, where, whose))
    assert refused.value.field == "sf"
    assert all(word in str(refused.value) for word in words), str(refused.value)


def test_every_data_rate_is_planned_or_refused():
    for where in REGIONS.values():
        for rate in where.up:
            question = replace(asked(rate.sf, where.name), bandwidth_hz=rate.bandwidth_hz)
            if rate.frame_bytes < 12:
                with pytest.raises(ConfigError):
                    plan(question)
            else:
                assert plan(question).frame_bytes == rate.frame_bytes


def test_a_network_server_may_clear_the_dwell_time_bits_but_no_law():
    question = replace(asked(12, "as923"), region=without_dwell(region("as923")))
    assert plan(question).frame_bytes == 51
    assert without_dwell(region("au915")).rate(12).frame_bytes == 51
    for where, word in (("us915", "law"), ("eu868", "no dwell time bit")):
        with pytest.raises(ConfigError, match=word):
            without_dwell(region(where))


def test_more_devices_share_a_gateway():
    few, many = (replace(asked(12), devices=devices) for devices in (1, 100))
    assert plan(few).down_bound == "its windows"
    assert "shared by 100" in plan(many).down_bound
    assert plan(many).downs_day < plan(few).downs_day / 5


def test_a_pause_of_ones_own_never_beats_the_law():
    often, seldom = (plan(replace(asked(12), every_s=s)) for s in (1.0, 3600.0))
    assert (often.bound, often.frames_day) == ("duty cycle 1%", 309)
    assert (seldom.bound, seldom.frames_day) == ("--every", 24)
    assert plan(replace(asked(8, "us915"), every_s=10.0)).frames_day == 8640


def test_as_many_impulses_as_the_study_has_measured():
    assert impulses(103, 9610) == pytest.approx(88, abs=4)
    assert impulses(39, 9610) == pytest.approx(28, abs=4)


def test_a_model_that_comes_down_no_radio_is_refused():
    plan(asked(7, params=364_000))
    with pytest.raises(ConfigError, match="gateway") as refused:
        plan(asked(7, params=365_000))
    assert refused.value.field == "params"
