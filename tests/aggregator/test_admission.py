"""Every reason for which admission refuses, each from real bytes."""

import struct
from dataclasses import replace

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN

from aggregator.admission import Rejected, Standing, admit, codec_id_of, read_header
from aggregator.strategies import Contribution
from schemas.delta import Dense, Sparse
from schemas.log import HEAD_BYTES, Arrived
from schemas.messages import ModelUpdate
from schemas.names import Boot, DeviceId, Epoch, ModelVersion, Seq, shard_of
from schemas.outcomes import Reason
from schemas.seal import sealed
from schemas.short import carried, over_the_air
from schemas.task import LimitOptions
from schemas.wire import encode_update
from tests.aggregator.world import DEVICE, SIZE, TENSORS, World, arrived, encoded, make_spec

LIMIT = 400
BASES = {6: 66, 8: 88, 9: 99}
DELTA = np.arange(1, SIZE + 1, dtype=np.float32)


def standing(codec="float32", **given):
    limits = LimitOptions(max_update_bytes=LIMIT, max_abs=100.0)
    spec = make_spec(codec=codec, limits=limits, max_staleness=4)
    plain = Standing(
        spec=spec,
        codec_ids=frozenset({codec_id_of(spec)}),
        size=SIZE,
        spec_digest=TENSORS.short_digest,
        epoch=3,
        version=10,
        bases=BASES,
    )
    return replace(plain, **given)


def update(kind="float32", delta=DELTA, **given):
    good = ModelUpdate(
        epoch=Epoch(3),
        boot=Boot(7),
        seq=Seq(1),
        base_version=ModelVersion(9),
        base_digest=99,
        spec_digest=TENSORS.short_digest,
        codec={"float32": 0, "topk_int8": 1}[kind],
        num_examples=12,
        payload=encoded(kind, delta),
    )
    return replace(good, **given)


def verdict(came: Arrived, place: Standing):
    header = read_header(came, place)
    return header if isinstance(header, Rejected) else admit(came, header, place)


def judge(data, *, codec="float32", **given):
    return verdict(arrived(data, **given), standing(codec))


def refused(data, reason, **given):
    answer = judge(data, **given)
    assert isinstance(answer, Rejected), answer
    assert answer.reason is reason
    assert answer.detail
    return answer


def test_a_good_dense_update_is_admitted():
    answer = judge(encode_update(update()))
    assert isinstance(answer, Contribution)
    assert (answer.base_version, answer.staleness, answer.num_examples) == (9, 1, 12)
    assert isinstance(answer.delta, Dense)
    assert np.array_equal(answer.delta.values, DELTA)


def test_a_good_sparse_update_is_admitted():
    answer = judge(encode_update(update("topk_int8")), codec="topk_int8")
    assert isinstance(answer, Contribution)
    assert isinstance(answer.delta, Sparse)
    assert answer.delta.indices.tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("data", [b"", b"\xc1", b"hello", b"\x9c\x01\x02", b"\x80", b"\x90"])
def test_broken_messagepack_is_malformed(data):
    refused(data, Reason.MALFORMED)


def test_padding_that_is_not_zero_is_malformed():
    data = encode_update(update(num_examples=300))
    padding = data.index(bytes(2) + DELTA.tobytes())
    assert isinstance(judge(data), Contribution)
    refused(data[:padding] + b"\0\1" + data[padding + 2 :], Reason.MALFORMED)


@pytest.mark.parametrize("wire", [0, 2, 99, -1, "1", None, True])
def test_another_wire_version_is_unknown(wire):
    refused(msgpack.packb([wire, 3, 7, 1]), Reason.UNKNOWN_WIRE)


@pytest.mark.parametrize("field", ["boot", "seq", "num_examples", "contributions"])
def test_a_number_that_must_be_positive_is_not_0(field):
    refused(encode_update(update(**{field: 0})), Reason.BAD_NUMBER)


@pytest.mark.parametrize("codec", [10, 77, 127])
def test_a_codec_that_this_server_does_not_know_is_unknown(codec):
    refused(encode_update(update(codec=codec)), Reason.UNKNOWN_CODEC)


def test_a_known_codec_that_the_task_does_not_ask_for_is_wrong():
    refused(encode_update(update("topk_int8")), Reason.WRONG_CODEC)
    refused(encode_update(update()), Reason.WRONG_CODEC, codec="topk_int8")


def test_other_tensors_are_a_wrong_spec():
    refused(encode_update(update(spec_digest=TENSORS.short_digest ^ 1)), Reason.WRONG_SPEC)


def test_the_digest_of_another_model_is_a_wrong_base():
    refused(encode_update(update(base_digest=88)), Reason.WRONG_BASE)


@pytest.mark.parametrize("epoch", [0, 2, 4])
def test_another_epoch_is_wrong(epoch):
    refused(encode_update(update(epoch=epoch)), Reason.WRONG_EPOCH)


@pytest.mark.parametrize("base", [11, 2**32 - 1])
def test_a_base_that_does_not_exist_yet_lies_in_the_future(base):
    refused(encode_update(update(base_version=base)), Reason.FUTURE_BASE)


@pytest.mark.parametrize("base", [0, 5])
def test_a_base_beyond_max_staleness_is_too_stale(base):
    refused(encode_update(update(base_version=base)), Reason.TOO_STALE)


def test_a_base_at_max_staleness_is_admitted():
    answer = judge(encode_update(update(base_version=6, base_digest=66)))
    assert isinstance(answer, Contribution)
    assert answer.staleness == 4


@pytest.mark.parametrize("base", [7, 10])
def test_a_version_that_was_never_published_is_an_unknown_base(base):
    refused(encode_update(update(base_version=base)), Reason.UNKNOWN_BASE)


def test_a_base_older_than_every_one_kept_is_too_stale_and_not_unknown():
    came = arrived(encode_update(update(base_version=6, base_digest=66)))
    answer = verdict(came, standing(bases={8: 88, 9: 99}))
    assert isinstance(answer, Rejected)
    assert answer.reason is Reason.TOO_STALE


@pytest.mark.parametrize("place", [0, 3, SIZE - 1])
@pytest.mark.parametrize(
    "bits", [0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF800001, 0x7F800000, 0xFF800000]
)
def test_nan_of_any_sign_and_kind_and_infinity_in_a_dense_delta_are_not_finite(place, bits):
    payload = bytearray(DELTA.tobytes())
    struct.pack_into("<I", payload, 4 * place, bits)
    refused(encode_update(update(payload=bytes(payload))), Reason.NOT_FINITE)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_not_finite_is_refused(scale):
    payload = bytearray(encoded("topk_int8", DELTA))
    struct.pack_into("<f", payload, 1, scale)
    bad = encode_update(update("topk_int8", payload=bytes(payload)))
    refused(bad, Reason.NOT_FINITE, codec="topk_int8")


def test_a_scale_that_overflows_is_not_finite():
    payload = bytearray(encoded("topk_int8", DELTA))
    struct.pack_into("<f", payload, 1, 3e38)
    bad = encode_update(update("topk_int8", payload=bytes(payload)))
    refused(bad, Reason.NOT_FINITE, codec="topk_int8")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_is_refused(value):
    refused(encode_update(update(metrics={"loss": 0.5, "acc": value})), Reason.NOT_FINITE)


def test_finite_metrics_are_admitted():
    assert isinstance(judge(encode_update(update(metrics={"loss": 0.5}))), Contribution)


def test_a_message_larger_than_the_task_allows_is_oversized():
    good = encode_update(update())
    refused(good + bytes(LIMIT + 1 - len(good)), Reason.OVERSIZED)


def test_an_oversized_message_of_which_the_head_was_carried_is_oversized():
    data = encode_update(update(payload=bytes(2 * HEAD_BYTES)))
    refused(data[:HEAD_BYTES], Reason.OVERSIZED, size=len(data))


def test_an_oversized_message_that_cannot_be_read_is_oversized_and_not_malformed():
    refused(b"\xc1" * HEAD_BYTES, Reason.OVERSIZED, size=10 * HEAD_BYTES)


def test_a_message_of_exactly_the_limit_is_not_oversized():
    good = encode_update(update())
    limits = LimitOptions(max_update_bytes=len(good))
    spec = make_spec(limits=limits, max_staleness=4)
    assert isinstance(verdict(arrived(good), standing(spec=spec)), Contribution)


def test_a_payload_longer_than_the_model_is_oversized():
    refused(encode_update(update()) + bytes(4), Reason.OVERSIZED)


@pytest.mark.parametrize("codec", ["float32", "topk_int8"])
@pytest.mark.parametrize("cut", [1, 4, 7])
def test_a_payload_that_ends_early_is_truncated(codec, cut):
    refused(encode_update(update(codec))[:-cut], Reason.TRUNCATED, codec=codec)


def sparse_payload(units, count, width=1):
    head = struct.pack("<BfI", width, 1.0, count)
    return head + bytes(units) + b"\1" * count


@pytest.mark.parametrize(
    "payload",
    [
        sparse_payload([SIZE], 1),
        sparse_payload([0, SIZE], 2),
        sparse_payload([255, 0], 1),
        sparse_payload([1] * (SIZE + 1), SIZE + 1),
        sparse_payload([], 0),
    ],
    ids=["first", "last", "escape", "more than the model has", "none"],
)
def test_an_index_out_of_range_is_a_bad_index(payload):
    bad = encode_update(update("topk_int8", payload=payload))
    refused(bad, Reason.BAD_INDEX, codec="topk_int8")


def test_a_repeated_index_is_a_bad_index():
    bad = encode_update(update("topk_int8", payload=sparse_payload([2, 0], 2)))
    refused(bad, Reason.BAD_INDEX, codec="topk_int8")


def test_an_index_of_0_may_come_first():
    good = encode_update(update("topk_int8", payload=sparse_payload([0, 7], 2)))
    answer = judge(good, codec="topk_int8")
    assert isinstance(answer, Contribution)
    assert answer.delta.indices.tolist() == [0, 7]


def test_a_topic_with_another_shard_than_the_devices_is_refused():
    device = DeviceId("d")
    data = encode_update(update())
    other = next(digit for digit in "0123456789abcdef" if digit != shard_of(device))
    answer = verdict(Arrived(device, other, data, len(data)), standing())
    assert isinstance(answer, Rejected)
    assert answer.reason is Reason.WRONG_SHARD


@pytest.mark.parametrize(
    "given",
    [{"contributions": 2}, {"weight": 2.0}, {"weight": 0.0}, {"weight": float("nan")}],
    ids=str,
)
def test_merged_contributions_are_not_folded(given):
    refused(encode_update(update(**given)), Reason.BAD_NUMBER)


@pytest.mark.parametrize("value", [100.00001, -100.00001, 3e38, -3e38])
def test_a_coordinate_beyond_max_abs_is_a_bad_number(value):
    delta = DELTA.copy()
    delta[3] = value
    refused(encode_update(update(delta=delta)), Reason.BAD_NUMBER)


@pytest.mark.parametrize("value", [100.0, -100.0])
def test_a_coordinate_at_max_abs_is_admitted(value):
    delta = DELTA.copy()
    delta[3] = value
    assert isinstance(judge(encode_update(update(delta=delta))), Contribution)


@LEAN
@given(
    bound=st.sampled_from([1e-40, 1e-30, 1e-15, 1.1e-15, 0.5, 100.0, 1e6, 1e12]),
    shares=st.lists(
        st.sampled_from([0.0, 1e-3, 0.35, 0.99, 0.995, 0.9999, 1.0, 1.0001, 1.005, 1.01, 1e5]),
        min_size=SIZE,
        max_size=SIZE,
    ),
    signs=st.lists(st.sampled_from([1, -1]), min_size=SIZE, max_size=SIZE),
)
def test_a_delta_is_admitted_when_no_coordinate_is_beyond_max_abs_however_small_that_is(
    bound, shares, signs
):
    wide = np.array(shares) * signs * bound
    delta = wide.astype(np.float32)
    spec = make_spec(limits=LimitOptions(max_abs=bound), max_staleness=4)
    answer = verdict(arrived(encode_update(update(delta=delta))), standing(spec=spec))
    fits = max(abs(float(value)) for value in delta) <= bound
    assert isinstance(answer, Contribution) == fits


def test_the_cheapest_question_is_asked_first():
    worst = update(epoch=9, spec_digest=1, base_version=77, codec=77, payload=b"\xff")
    refused(encode_update(worst), Reason.WRONG_EPOCH)
    refused(encode_update(replace(worst, epoch=3)), Reason.WRONG_SPEC)
    worst = replace(worst, epoch=3, spec_digest=TENSORS.short_digest)
    refused(encode_update(worst), Reason.FUTURE_BASE)


@LEAN
@given(data=st.binary(max_size=200), size=st.integers(0, 1000))
def test_nothing_that_a_device_can_send_raises(data, size):
    assert isinstance(judge(data, size=max(size, len(data))), Rejected)


@LEAN
@given(payload=st.binary(max_size=64), codec=st.sampled_from(["float32", "topk_int8"]))
def test_no_payload_raises_and_what_is_admitted_is_finite(payload, codec):
    answer = judge(encode_update(update(codec, payload=payload)), codec=codec)
    if isinstance(answer, Contribution):
        assert np.isfinite(answer.delta.values).all()
        assert np.abs(answer.delta.values).max() <= 100


@LEAN
@given(place=st.integers(0, 70), value=st.integers(0, 255))
def test_a_flipped_byte_never_raises(place, value):
    data = bytearray(encode_update(update()))
    data[place % len(data)] = value
    assert isinstance(judge(bytes(data)), Rejected | Contribution)


# -- short headers ------------------------------------------------------------------------------


def short(**given):
    return encode_update(update(spec_digest=None, **given))


def frame(seq=1, **given):
    return carried(Boot(7), Seq(seq), over_the_air(update(**given)))


def test_a_short_header_is_admitted_like_the_long_one():
    assert verdict(arrived(short()), standing()).base_version == 9
    assert np.array_equal(judge(short()).delta.values, DELTA)


def test_the_digest_of_the_base_covers_the_tensors_that_a_short_header_does_not_tell():
    refused(short(base_digest=88), Reason.WRONG_BASE)
    refused(short(epoch=2), Reason.WRONG_EPOCH)
    refused(short(base_version=11), Reason.FUTURE_BASE)


def test_a_frame_is_admitted_with_the_newest_base_that_ends_in_its_bits():
    answer = judge(frame(base_digest=0))  # no digest travels in it
    assert isinstance(answer, Contribution)
    assert (answer.base_version, answer.staleness, answer.num_examples) == (9, 1, 16)
    far = 3 << 16
    late = standing(version=far + 2, bases={far - 1: 1, far + 1: 2}, epoch=35)
    for base in late.bases:
        came = arrived(frame(epoch=35, base_version=base))
        assert verdict(came, late).base_version == base


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"epoch": 4}, Reason.WRONG_EPOCH),
        ({"epoch": 2}, Reason.WRONG_EPOCH),
        ({"base_version": 11}, Reason.FUTURE_BASE),
        ({"base_version": 0xFFFF}, Reason.FUTURE_BASE),
        ({"base_version": 5}, Reason.TOO_STALE),
        ({"base_version": 7}, Reason.UNKNOWN_BASE),
        ({"codec": 99}, Reason.UNKNOWN_CODEC),
        ({"codec": 1}, Reason.WRONG_CODEC),
        ({"payload": b"short"}, Reason.TRUNCATED),
    ],
    ids=str,
)
def test_a_frame_is_refused_for_what_any_update_is(given, reason):
    refused(frame(**given), reason)


def test_a_version_from_before_the_bits_began_anew_is_too_stale():
    late = standing(version=(1 << 16) + 3, bases={0xFFFE: 1, (1 << 16) + 1: 2})
    answer = verdict(arrived(frame(base_version=4)), late)
    assert (answer.reason, answer.detail) == (Reason.TOO_STALE, "base 4 is 65535 versions old")
    assert verdict(arrived(frame(base_version=0xFFFE)), late).reason is Reason.TOO_STALE


@pytest.mark.parametrize("form", [short, frame])
def test_the_head_of_a_short_message_that_was_cut_tells_who_it_was(form):
    world = World()
    data = form(payload=bytes(2 * HEAD_BYTES))
    world.append(arrived(data[:HEAD_BYTES], size=len(data)))
    assert world.state.tally.rejected == {"oversized": 1}
    answer = world.changes().answers[DEVICE]
    assert (answer.boot, answer.seq, answer.outcome) == (7, 1, Reason.OVERSIZED)


@pytest.mark.parametrize("form", [short, frame])
def test_a_short_message_that_cannot_be_read_is_dead_lettered_and_settles_nothing(form):
    world = World()
    data = form()
    world.append(arrived(data[:5]))
    changes = world.changes()
    assert [letter.data for letter in changes.dead] == [data[:5]]
    assert (changes.answers[DEVICE].boot, changes.answers[DEVICE].outcome) == (0, Reason.TRUNCATED)


def test_an_update_is_one_in_whichever_form_it_comes():
    """Who it is stands in device, boot and seq; a frame may be completed otherwise meanwhile."""
    world = World()
    whole = world.update()
    air = carried(whole.boot, whole.seq, over_the_air(whole))
    for data in (encode_update(whole), encode_update(replace(whole, spec_digest=None)), air):
        world.append(arrived(data))
    assert (world.state.tally.folded, world.state.tally.duplicates) == (1, 2)
    world.send()
    world.append(arrived(air))
    assert (world.state.tally.folded, world.state.tally.duplicates) == (2, 3)


@pytest.mark.parametrize("form", ["short", "frame"])
def test_a_sealed_short_message_is_folded_and_an_altered_one_is_corrupt(form):
    world = World(make_spec(checksum=True))
    whole = world.update(spec_digest=None)
    air = carried(whole.boot, whole.seq, over_the_air(whole))
    data = sealed(encode_update(whole) if form == "short" else air, DEVICE)
    for place in range(len(data)):
        altered = bytearray(data)
        altered[place] ^= 0x10
        world.append(arrived(bytes(altered)))
    world.append(arrived(data))
    assert world.state.tally.rejected == {"corrupt": len(data)}
    assert world.state.tally.folded == 1


@LEAN
@given(place=st.integers(0, 60), value=st.integers(0, 255), form=st.sampled_from([short, frame]))
def test_a_flipped_byte_of_a_short_message_never_raises(place, value, form):
    data = bytearray(form())
    data[place % len(data)] = value
    assert isinstance(judge(bytes(data)), Rejected | Contribution)


# -- seals -------------------------------------------------------------------------------------


def test_an_altered_update_settles_nothing_and_the_same_one_is_folded_when_it_comes_whole():
    world = World(make_spec(checksum=True))
    whole = sealed(encode_update(world.update()), DEVICE)
    for place in range(len(whole)):
        altered = bytearray(whole)
        altered[place] ^= 0x10
        world.append(arrived(bytes(altered)))
    assert world.state.tally.rejected == {"corrupt": len(whole)}
    assert not world.state.windows
    answer = world.changes().answers[DEVICE]
    assert (answer.boot, answer.seq, answer.outcome) == (0, 0, Reason.CORRUPT)
    world.append(arrived(whole))
    assert world.state.tally.folded == 1


def test_an_update_under_another_devices_name_is_corrupt():
    world = World(make_spec(checksum=True))
    world.append(arrived(sealed(encode_update(world.update()), DEVICE), device="other"))
    assert world.state.tally.rejected == {"corrupt": 1}


def test_a_seal_that_is_no_longer_asked_for_is_taken_off_all_the_same():
    world = World(make_spec(checksum=True))
    late, plain = world.update(), world.update()
    world.respecify(make_spec())
    world.append(arrived(sealed(encode_update(late), DEVICE)))
    world.append(arrived(encode_update(plain)))
    assert (world.state.tally.folded, world.state.tally.rejected) == (2, {})


def test_a_task_that_never_asked_for_seals_takes_four_bytes_more_for_a_wrong_length():
    world = World()
    world.append(arrived(sealed(encode_update(world.update()), DEVICE)))
    assert world.state.tally.rejected == {"oversized": 1}


def test_the_head_of_a_message_that_was_cut_is_not_folded_though_the_task_allows_its_size():
    world = World(make_spec(limits=LimitOptions(max_update_bytes=1 << 27)))
    head = encode_update(world.update())
    world.append(arrived(head, size=20_000_000))
    assert (world.state.tally.folded, world.state.tally.rejected) == (0, {"oversized": 1})


def test_what_the_head_of_a_cut_message_says_is_not_believed_where_seals_are_asked_for():
    world = World(make_spec(checksum=True))
    world.append(arrived(encode_update(world.update()), size=20_000_000))
    assert world.state.tally.rejected == {"oversized": 1}
    assert not world.state.windows
