"""The cheapest way to the offered model: it exists, and what is cheaper is never passed over."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN

from edge_agent.catch_up import (
    ASK_SHARE,
    Packets,
    Start,
    cheapest,
    leads_on,
    merged_bytes,
    packets,
    rung_bytes,
    useful,
)
from edge_agent.download import Here, fits_parcel, joined, next_pieces
from schemas.codecs import varint
from schemas.ladder import blob_name, path
from schemas.lattice import KEYFRAME, LEVELS, SPAN
from schemas.messages import Manifest
from schemas.names import DeviceId, Epoch, ModelVersion, TaskName
from schemas.topics import TaskTopics

COSTS = Packets(chunk=110, ask=185)
SIZES = (141, 286, 430, 600, 760, 1100, 1700)


def manifest(
    serial: int, oldest: int = 0, ladder: tuple[int, ...] = SIZES, *, keyframe: int = 5600
) -> Manifest:
    return Manifest(
        epoch=Epoch(2),
        version=ModelVersion(3 * serial),
        model_digest=bytes(8),
        spec_digest=bytes(2),
        codec=KEYFRAME,
        blob=f"k2-{3 * serial}",
        blob_digest=b"",
        blob_bytes=keyframe,
        chunk_bytes=4096,
        serial=serial,
        oldest=oldest,
        origin="",
        ladder=ladder,
    )


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    serial = draw(st.integers(0, 300))
    oldest = draw(st.integers(max(0, serial - SPAN), serial))
    sizes = st.lists(st.integers(0, 9000), max_size=LEVELS).map(tuple)
    return manifest(serial, oldest, draw(sizes), keyframe=draw(st.integers(1, 9000)))


STARTS = st.one_of(st.none(), st.builds(Start, st.integers(1, 3).map(Epoch), st.integers(0, 400)))


def diff(size: int) -> bytes:
    """So many bytes after their own number, as a diff is told."""
    return varint.write(size) + bytes(size)


# -- what exists -------------------------------------------------------------------------------


@LEAN
@given(start=STARTS, offered=manifests(), may_ask=st.booleans())
def test_no_way_is_taken_that_does_not_exist(start, offered, may_ask):
    plan = cheapest(start, offered, {}, COSTS, may_ask=may_ask)
    if plan.way == "keyframe":
        assert [each.blob for each in plan.parcels] == [offered.blob]
        return
    assert start is not None
    assert start.epoch == offered.epoch
    assert offered.oldest <= start.serial <= offered.serial
    steps = path(start.serial, offered.serial)
    if plan.way == "ask":
        assert may_ask
        assert len(steps) > 1
        assert plan.parcels == ()
    else:
        assert [each.blob for each in plan.parcels] == [blob_name(Epoch(2), *s) for s in steps]


@pytest.mark.parametrize(
    "start",
    [
        None,
        Start(Epoch(2), 39),
        Start(Epoch(2), 101),
        Start(Epoch(1), 100),
        Start(Epoch(3), 50),
    ],
    ids=["nothing", "too old", "newer", "an older epoch", "a newer epoch"],
)
def test_from_nowhere_on_the_ladder_only_the_keyframe_leads_there(start):
    assert cheapest(start, manifest(100, 40, (1,) * LEVELS), {}, COSTS).way == "keyframe"


def test_who_is_there_fetches_nothing():
    plan = cheapest(Start(Epoch(2), 100), manifest(100, 100), {}, COSTS)
    assert (plan.way, plan.parcels, plan.cost) == ("ladder", (), 0)


# -- what is cheapest --------------------------------------------------------------------------


def test_a_manifest_that_claims_diffs_over_more_than_the_ladder_names_no_way():
    far = replace(manifest(100, 0), serial=(1 << 32) - 1, oldest=0)
    assert cheapest(Start(Epoch(2), 1), far, {}, COSTS).way == "keyframe"
    assert useful(Start(Epoch(2), 1), far) == {far.blob}


def test_diffs_that_say_they_are_endless_are_not_fetched_even_where_the_keyframe_is_silent():
    start, offered = Start(Epoch(2), 99), manifest(100, 37)
    here: Here = {"d2-99-0": {0: diff(10_000)[:4096]}}
    assert cheapest(start, offered, here, COSTS, silent=[offered.blob]).way == "ladder"
    here = {"d2-99-0": {0: varint.write(1 << 34) + bytes(4091)}}
    assert cheapest(start, offered, here, COSTS, silent=[offered.blob]).way == "keyframe"


def test_a_plan_is_brought_to_its_end_where_it_is_on_the_way():
    old, new = manifest(98, 37), manifest(100, 37)
    there, at_once = Start(Epoch(2), 98), cheapest(None, new, {}, COSTS)
    half: Here = {old.blob: {0: bytes(4096)}}
    plan = cheapest(None, old, half, COSTS)
    assert leads_on(plan, there, new, at_once, COSTS)
    assert not leads_on(cheapest(None, old, {}, COSTS), there, new, at_once, COSTS), "dearer"
    assert not leads_on(plan, there, manifest(97, 37), at_once, COSTS), "that is behind it"
    assert not leads_on(plan, there, manifest(100, 99), at_once, COSTS), "no diffs lead on"
    assert not leads_on(plan, there, replace(new, codec=0), at_once, COSTS)


def test_the_figures_of_the_study():
    """Steps of 0.04: one rung for who is awake, one merged diff for who slept."""
    ways = {
        gap: cheapest(Start(Epoch(2), 101 - gap), manifest(101, 37), {}, COSTS).way
        for gap in (1, 2, 16, 64)
    }
    assert ways == {1: "ladder", 2: "ladder", 16: "ask", 64: "ask"}
    tiny = manifest(101, 37, keyframe=700)
    assert cheapest(Start(Epoch(2), 37), tiny, {}, COSTS).way == "keyframe"


@LEAN
@given(gap=st.integers(1, SPAN), level=st.integers(0, 6), offered=manifests())
def test_a_longer_gap_never_looks_shorter(gap, level, offered):
    assert merged_bytes(offered, gap, level) <= merged_bytes(offered, gap + 1, level)
    assert merged_bytes(offered, 1 << level, level) == rung_bytes(offered, level)


def test_a_model_that_went_further_once_makes_no_merged_diff_look_long():
    early = manifest(27, 0, (100, 110, 130, 160, 2500, 0, 0))
    assert merged_bytes(early, 21, 3) == round(160 * (21 / 8) ** 0.6)
    assert cheapest(Start(Epoch(2), 6), early, {}, COSTS).way == "ask"


@LEAN
@given(start=STARTS, offered=manifests(), grown=st.integers(0, LEVELS), by=st.integers(0, 2000))
def test_larger_diffs_and_keyframes_never_make_a_way_cheaper(start, offered, grown, by):
    cost = cheapest(start, offered, {}, COSTS, may_ask=False).cost
    larger = replace(
        offered,
        blob_bytes=offered.blob_bytes + by,
        ladder=tuple(
            size + by if level >= grown and size else size
            for level, size in enumerate(offered.ladder)
        ),
    )
    assert cheapest(start, larger, {}, COSTS, may_ask=False).cost >= cost


@LEAN
@given(start=STARTS, offered=manifests())
def test_no_other_way_is_cheaper_and_asking_must_save_much(start, offered):
    chosen = cheapest(start, offered, {}, COSTS)
    by_ladder = cheapest(start, offered, {}, COSTS, may_ask=False)
    assert chosen.cost <= by_ladder.cost
    if chosen.way == "ask" and by_ladder.way == "ladder":
        assert chosen.cost <= ASK_SHARE * by_ladder.cost
    assert by_ladder.cost <= cheapest(None, offered, {}, COSTS).cost


def test_a_diff_that_is_too_long_for_one_message_is_not_asked_for():
    long = manifest(101, 37, tuple(20 * size for size in SIZES), keyframe=500_000)
    start = Start(Epoch(2), 37)
    assert cheapest(start, long, {}, COSTS).way == "ladder"
    assert cheapest(start, replace(long, ladder=SIZES), {}, COSTS).way == "ask"


def test_what_was_silent_is_not_asked_for_again_unless_nothing_else_is_left():
    start, offered = Start(Epoch(2), 96), manifest(100, 37)

    def way(*silent: str) -> str:
        return cheapest(start, offered, {}, COSTS, silent=silent, may_ask=False).way

    assert way() == "ladder"
    assert way("d2-96-2") == "keyframe"
    assert way("k2-300") == "ladder"
    assert way("d2-96-2", "k2-300") == "keyframe"
    assert way("d2-96-1", "k2-297") == "ladder", "those are of other ways"


# -- going on ----------------------------------------------------------------------------------


def test_the_rest_of_a_keyframe_is_weighed_and_not_the_whole():
    start, offered = Start(Epoch(2), 37), manifest(101, 37, keyframe=8192)
    assert cheapest(start, offered, {}, COSTS).way == "ask"
    begun: Here = {offered.blob: {0: bytes(4096), 1: bytes(4095)}}
    assert cheapest(start, offered, begun, COSTS).way == "keyframe"


@LEAN
@given(sizes=st.lists(st.integers(0, 9000), min_size=2, max_size=2))
def test_a_plan_is_carried_out_in_windows_and_every_chunk_is_asked_for_once(sizes):
    """Sizes are told by first chunks alone; whatever was begun on a plan never makes it dearer."""
    chunk_bytes, start = 500, Start(Epoch(2), 97)
    offered = replace(manifest(100, 37, keyframe=10**6), chunk_bytes=chunk_bytes)
    blobs = dict(zip(("d2-97-0", "d2-98-1"), map(diff, sizes), strict=True))
    here: Here = {}
    asked: list[tuple[str, int]] = []
    before = None
    while True:
        plan = cheapest(start, offered, here, COSTS, may_ask=False)
        assert plan.way == "ladder"
        assert {parcel.blob for parcel in plan.parcels} <= useful(start, offered)
        if before is not None and asked[2:]:
            assert plan.cost < before
        before = plan.cost
        pieces = next_pieces(plan.parcels, here)
        if not pieces:
            break
        assert len(pieces) <= 8
        assert asked or pieces == [("d2-97-0", 0), ("d2-98-1", 0)]
        asked += pieces
        for blob, index in pieces:
            parcel = next(parcel for parcel in plan.parcels if parcel.blob == blob)
            chunk = blobs[blob][index * chunk_bytes : (index + 1) * chunk_bytes]
            have = here.setdefault(blob, {})
            assert fits_parcel(parcel, have, index, chunk)
            assert not fits_parcel(parcel, have, index, chunk + b"\0")
            have[index] = chunk
    assert plan.cost == 0
    assert len(set(asked)) == len(asked)
    assert [joined(parcel, here[parcel.blob]) for parcel in plan.parcels] == list(blobs.values())


def test_a_diff_that_is_longer_than_it_was_told_makes_the_keyframe_the_way():
    start, offered = Start(Epoch(2), 99), manifest(100, 37)
    here: Here = {"d2-99-0": {0: diff(90_000)[:4096]}}
    plan = cheapest(start, offered, here, COSTS)
    assert plan.way == "keyframe"


def test_packets_are_counted_as_mqtt_has_them():
    topics = TaskTopics("fedmq/v1", TaskName("digits"))
    costs = packets(topics, DeviceId("pump-7"))
    chunk, ask, reply = topics.chunk("d1-1000-3", 0), "fedmq/v1/digits/ask/pump-7", 28
    subscribe, publish = 2 + len(chunk) + 1, 2 + 2 + len(chunk) + 2
    unsubscribe, acks = 2 + len(chunk), 1 + 4
    assert 0 <= costs.chunk - (subscribe + publish + unsubscribe + acks) <= 8
    asking = 2 + 2 + len(ask) + 2 + 10 + 4
    told = (7 + reply) + 5 + (6 + reply + 10) + 4 + (6 + reply) + 4
    assert 0 <= costs.ask - (asking + told) <= 12
