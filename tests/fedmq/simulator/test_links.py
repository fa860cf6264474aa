import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.simulator.links import Delivery, Direction, Link, LinkModel, Loss, Sleep
from fedmq.simulator.outages import Outages
from schemas.errors import ConfigError, InvariantError

FRAMES = 40_000

shares = st.floats(0.0, 1.0)
models = st.builds(
    LinkModel,
    rate_up=st.floats(50.0, 1e6),
    rate_down=st.floats(50.0, 1e6),
    delay_s=st.floats(0.0, 3.0),
    jitter_s=st.floats(0.0, 3.0),
    loss=st.none() | st.builds(Loss, shares, st.floats(0.1, 1.0), st.floats(0.0, 0.3), shares),
    outages=st.none() | st.builds(Outages, st.floats(5.0, 1e4), st.floats(0.0, 600.0)),
    duty=st.floats(0.01, 1.0),
    sleep=st.none() | st.builds(Sleep, st.floats(20.0, 3600.0), st.floats(0.5, 20.0)),
    frame_bytes=st.integers(100, 1500),
    reorder=shares,
    reorder_s=st.floats(0.0, 3.0),
    duplicate=shares,
)
offers = st.lists(
    st.tuples(st.floats(0.0, 30.0), st.integers(0, 100), st.sampled_from(["up", "down"])),
    max_size=60,
)
Offer = tuple[float, int, Direction]


def clocked(steps: list[Offer]) -> list[Offer]:
    """Turn pauses into moments."""
    now, out = 0.0, []
    for pause, size, direction in steps:
        now += pause
        out.append((now, size, direction))
    return out


def played(model: LinkModel, seed: int, steps: list[Offer]) -> list[tuple[Delivery, ...]]:
    link = Link(model, random.Random(seed))
    return [link.transmit(*offer) for offer in clocked(steps)]


@given(models, st.integers(), offers)
def test_the_same_seed_is_the_same_deliveries(
    model: LinkModel, seed: int, steps: list[Offer]
) -> None:
    assert played(model, seed, steps) == played(model, seed, steps)


@given(models, st.integers(), offers)
def test_nothing_arrives_before_it_has_crossed_the_link(
    model: LinkModel, seed: int, steps: list[Offer]
) -> None:
    for (now, size, direction), got in zip(clocked(steps), played(model, seed, steps), strict=True):
        least = now + model.air_s(size, direction) + model.delay_s
        assert len(got) <= 2
        assert all(delivery.at_s >= least - 1e-9 for delivery in got)


@given(models, st.integers(), offers)
def test_no_more_bytes_arrive_than_the_rate_allows(
    model: LinkModel, seed: int, steps: list[Offer]
) -> None:
    plain = replace(model, duplicate=0.0)
    carried = {"up": 0, "down": 0}
    for (_, size, direction), got in zip(clocked(steps), played(plain, seed, steps), strict=True):
        carried[direction] += size
        rate = plain.rate_up if direction == "up" else plain.rate_down
        for delivery in got:
            assert carried[direction] <= rate * delivery.at_s * (1 + 1e-9)


@given(st.integers(), st.floats(0.005, 0.5), st.lists(st.floats(0.0, 30.0), max_size=60))
def test_a_sender_is_never_on_the_air_for_more_than_its_duty_cycle(
    seed: int, duty: float, pauses: list[float]
) -> None:
    model = LinkModel(lora_sf=10, frame_bytes=51, duty=duty)
    air = model.air_s(51, "up")
    link = Link(model, random.Random(seed))
    now, ends = 0.0, []
    for pause in pauses:
        now += pause
        ends += [delivery.at_s for delivery in link.transmit(now, 51, "up")]
    assert len(ends) == len(pauses)
    for first in range(len(ends)):
        for last in range(first + 1, len(ends)):
            span = ends[last] - ends[first]  # from one end to another lie last - first frames
            assert (last - first) * air <= duty * span * (1 + 1e-9)


@given(models, st.integers(), offers)
def test_without_reordering_nothing_is_overtaken(
    model: LinkModel, seed: int, steps: list[Offer]
) -> None:
    plain = replace(model, reorder=0.0, duplicate=0.0)
    arrived: dict[Direction, list[float]] = {"up": [], "down": []}
    for (_, _, direction), got in zip(clocked(steps), played(plain, seed, steps), strict=True):
        arrived[direction] += [delivery.at_s for delivery in got]
    assert all(times == sorted(times) for times in arrived.values())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "loss",
    [
        Loss(loss_good=0.1, loss_bad=0.1),
        Loss(p_good_to_bad=0.02, p_bad_to_good=0.2, loss_good=0.01, loss_bad=0.6),
        Loss(p_good_to_bad=0.3, p_bad_to_good=0.1, loss_good=0.0, loss_bad=1.0),
    ],
)
def test_the_share_of_lost_frames_is_gilbert_and_elliotts(loss: Loss, seed: int) -> None:
    link = Link(LinkModel(loss=loss), random.Random(seed))
    lost = sum(not link.transmit(0.0, 100, "up") for _ in range(FRAMES))
    assert lost / FRAMES == pytest.approx(loss.mean, abs=0.015)


def test_losses_come_in_bursts_as_long_as_the_bad_state_lasts() -> None:
    loss = Loss(p_good_to_bad=0.01, p_bad_to_good=0.25, loss_bad=1.0)
    link = Link(LinkModel(loss=loss), random.Random(0))
    lost = "".join("-" if link.transmit(0.0, 9, "up") else "x" for _ in range(FRAMES))
    bursts = [burst for burst in lost.split("-") if burst]
    assert sum(map(len, bursts)) / len(bursts) == pytest.approx(4.0, rel=0.15)


def test_a_fresh_link_may_be_in_its_bad_state() -> None:
    loss = Loss(p_good_to_bad=0.001, p_bad_to_good=0.001, loss_bad=1.0)
    first = [Link(LinkModel(loss=loss), random.Random(n)).transmit(0, 9, "up") for n in range(2000)]
    assert sum(not got for got in first) / 2000 == pytest.approx(0.5, abs=0.05)


def test_reordered_datagrams_are_overtaken_and_doubled_ones_come_twice() -> None:
    model = LinkModel(reorder=0.1, reorder_s=1.0, duplicate=0.05, jitter_s=0.01)
    link = Link(model, random.Random(0))
    got = [link.transmit(0.01 * n, 100, "down") for n in range(10_000)]
    firsts = [each[0].at_s for each in got]
    overtaken = sum(at > min(firsts[n + 1 : n + 9]) for n, at in enumerate(firsts[:-9]))
    assert overtaken / 10_000 == pytest.approx(0.1, abs=0.02)
    assert sum(len(each) == 2 for each in got) / 10_000 == pytest.approx(0.05, abs=0.01)


def test_a_datagram_sent_in_an_outage_is_lost_and_a_stream_waits_it_out() -> None:
    model = LinkModel(rate_up=1000.0, outages=Outages(scheduled=((10.0, 20.0),)))
    link = Link(model, random.Random(0))
    assert link.online_at(9.0)
    assert link.transmit(9.0, 100, "up")
    assert not link.online_at(15.0)
    assert link.transmit(15.0, 100, "up") == ()
    assert 5.0 <= link.stream_delay(15.0, 100, "up") < 15.0
    assert link.transmit(40.0, 100, "up")


def test_the_share_of_time_online_is_the_same_for_who_asks_often_and_seldom() -> None:
    model = LinkModel(outages=Outages(online_s=30.0, offline_s=10.0))
    for pause in (1.0, 5000.0):
        link = Link(model, random.Random(0))
        online = sum(link.online_at(pause * n) for n in range(20_000))
        assert online / 20_000 == pytest.approx(0.75, abs=0.03)


def test_a_full_queue_drops_its_tail() -> None:
    link = Link(LinkModel(rate_up=100.0, queue_s=5.0), random.Random(0))
    got = [link.transmit(0.0, 100, "up") for _ in range(20)]
    assert sum(map(len, got)) == 6
    assert link.transmit(6.0, 100, "up")


def test_a_sleeping_device_hears_only_when_it_wakes_but_may_speak_at_any_time() -> None:
    link = Link(LinkModel(sleep=Sleep(period_s=100.0, awake_s=10.0)), random.Random(3))
    asleep = link.hears_at(0.0) + 15.0
    wakes = link.hears_at(asleep)
    assert wakes == pytest.approx(asleep + 85.0)
    assert link.transmit(asleep, 9, "up") == (Delivery(asleep),)
    assert link.transmit(asleep + 5.0, 9, "down") == (Delivery(asleep + 5.0),)
    assert link.transmit(asleep + 11.0, 9, "down")[0].at_s == pytest.approx(wakes)


@given(models, st.integers(), offers)
@settings(max_examples=60)
def test_a_stream_loses_nothing_and_keeps_its_order(
    model: LinkModel, seed: int, steps: list[Offer]
) -> None:
    outages = Outages(online_s=900.0, offline_s=300.0)
    gentle = replace(model, loss=Loss(0.1, 0.5, 0.05, 0.3), outages=outages)
    link = Link(gentle, random.Random(seed))
    arrived: dict[Direction, list[float]] = {"up": [], "down": []}
    carried: dict[Direction, int] = {"up": 0, "down": 0}
    for now, size, direction in clocked(steps):
        at = now + link.stream_delay(now, size * 50, direction)
        carried[direction] += size * 50
        rate = gentle.rate_up if direction == "up" else gentle.rate_down
        assert carried[direction] <= rate * at * (1 + 1e-9)
        assert math.isfinite(at)
        arrived[direction].append(at)
    for times in arrived.values():
        assert all(first <= then + 1e-6 for first, then in pairwise(times))


def test_a_lossless_stream_takes_its_bytes_and_headers_at_the_rate() -> None:
    link = Link(LinkModel(rate_up=1000.0, delay_s=0.5, frame_bytes=1040), random.Random(0))
    assert link.stream_delay(0.0, 2500, "up") == pytest.approx((2500 + 3 * 40) / 1000 + 0.5)


def test_with_and_without_loss_a_stream_that_loses_nothing_takes_the_same_time() -> None:
    for duty in (1.0, 0.1):
        plain = LinkModel(rate_up=1000.0, delay_s=0.5, frame_bytes=500, duty=duty)
        lucky = replace(plain, loss=Loss())
        one, two = Link(plain, random.Random(0)), Link(lucky, random.Random(0))
        for now in (0.0, 1.0, 90.0):
            taken = one.stream_delay(now, 2500, "up"), two.stream_delay(now, 2500, "up")
            assert taken[0] == pytest.approx(taken[1])


def test_every_lost_segment_costs_a_stream_a_timeout_that_doubles() -> None:
    lossy = LinkModel(rate_up=1e6, loss=Loss(loss_good=0.4, loss_bad=0.4), frame_bytes=1040)
    link = Link(lossy, random.Random(0))
    seconds = link.stream_delay(0.0, 5_000_000, "up")
    mean_s = sum(0.4**n * min(2 ** (n - 1), 60) for n in range(1, 16))
    assert seconds == pytest.approx(5000 * mean_s, rel=0.1)


def test_a_stream_over_a_link_that_loses_everything_is_given_up_and_harms_no_later_one() -> None:
    link = Link(LinkModel(loss=Loss(loss_good=1.0, loss_bad=1.0)), random.Random(0))
    assert link.stream_delay(0.0, 100, "up") == math.inf
    link.model = LinkModel()
    assert link.stream_delay(1.0, 100, "up") == 0.0


def test_a_frame_that_is_too_large_is_our_fault() -> None:
    with pytest.raises(InvariantError):
        Link(LinkModel(frame_bytes=100), random.Random(0)).transmit(0.0, 101, "up")


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("rate_up", {"rate_up": 0.0}),
        ("delay_s", {"delay_s": -1.0}),
        ("jitter_s", {"jitter_s": math.nan}),
        ("duty", {"duty": 1.5}),
        ("duplicate", {"duplicate": 2.0}),
        ("frame_bytes", {"frame_bytes": 40}),
        ("sf", {"lora_sf": 5}),
        ("payload_bytes", {"lora_sf": 7}),
    ],
)
def test_a_model_that_cannot_be_is_refused_by_name(field: str, wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError) as refused:
        LinkModel(**wrong)  # type: ignore[arg-type]
    assert refused.value.field == field


def test_a_loss_or_a_sleep_that_cannot_be_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"loss\.loss_bad"):
        Loss(loss_bad=1.1)
    with pytest.raises(ConfigError, match=r"sleep\.awake_s"):
        Sleep(period_s=1.0, awake_s=2.0)
