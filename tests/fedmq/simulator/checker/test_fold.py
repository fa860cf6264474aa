import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.simulator.checker import BadLog, NotCovered, fold, look
from fedmq.simulator.checker.fold import BELOW
from fedmq.simulator.checker.settled import BOOTS
from schemas.log import (
    DeviceErased,
    EpochSet,
    Evaluated,
    ModelSet,
    PhaseSet,
    PinSet,
    Tick,
    to_fields,
)
from schemas.names import Boot
from schemas.outcomes import outcome_name
from schemas.params import ParamSpec, TensorSpec
from schemas.strategy import StalenessOptions
from schemas.task import FinishOptions, GateOptions, LimitOptions, PublishOptions, spec_to_json
from tests.aggregator.world import EPOCH, World, arrived, make_spec
from tests.fedmq.simulator.checker.logs import DEVICES, RandomLog, Recorder, seal

MANY = settings(deadline=None, max_examples=60)
DEVICE = DEVICES[0]


def account_of(recorder):
    return fold(EPOCH, recorder.origin, recorder.raw)


def agrees(recorder):
    """The checker and the product say the same of one log, bit for bit."""
    account, state = account_of(recorder), recorder.world.state
    assert account.version == state.model.version
    assert account.digest == recorder.world.digest.hex()
    assert account.digests.keys() == recorder.published.keys()
    for version, digest in recorder.published.items():  # of a lattice the manifest tells 16 digits
        assert account.digests[version].startswith(digest)
    assert account.folded == state.tally.folded
    assert account.rejected == state.tally.rejected
    assert account.duplicates == state.tally.duplicates
    assert account.buffered == state.model.buffered
    assert account.cursor == str(state.cursor)
    if account.points:
        assert state.lattice is not None
        assert account.points[-1].q.tolist() == state.lattice.q.tolist()
        assert account.points[-1].exponents == state.lattice.exponents
        assert look(account, recorder.manifest, recorder.blobs).mismatches == []
    for (device, boot), window in state.windows.items():
        for seq in range(max(1, window.top - 63), window.top + 1):
            if code := window.outcome(seq):
                ours = account.outcomes[device, boot, seq]
                assert ours in {outcome_name(code), "folded"}  # folded before it was forgotten
    return account


@MANY
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 150))
def test_it_says_what_the_product_says_of_any_log(seed, steps):
    agrees(RandomLog(seed, steps, checksum=False).recorder)


@MANY
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 150))
def test_it_says_what_the_product_says_of_any_log_with_seals(seed, steps):
    agrees(RandomLog(seed, steps, checksum=True).recorder)


def test_the_random_logs_hold_every_outcome_that_there_is():
    seen = set()
    for seed in range(40):
        for checksum in (False, True):
            account = agrees(RandomLog(seed, 120, checksum=checksum).recorder)
            seen |= set(account.outcomes.values()) | account.rejected.keys()
    assert seen >= {
        *("folded", "malformed", "truncated", "oversized", "unknown_wire", "unknown_codec"),
        *("wrong_codec", "wrong_shard", "wrong_spec", "wrong_epoch", "wrong_base", "unknown_base"),
        *("future_base", "too_stale", "not_finite", "bad_index", "bad_number", "banned"),
        *("finished", "corrupt", BELOW),
    }


def test_a_long_log_of_one_task_is_folded_alike():
    spec = make_spec(
        codec="sq",
        buffer_size=3,
        momentum=0.9,
        server_lr=0.7,
        staleness=StalenessOptions(),
        examples_unit=50,
        publish=PublishOptions(lattice=True, step=2.0**-6),
    )
    account = agrees(RandomLog(5, 2000, checksum=False, spec=spec).recorder)
    assert account.version > 200
    assert len(account.points) == 65


# -- one rule after another --------------------------------------------------------------------


def test_the_initial_model_is_version_0_and_is_published_by_the_first_specification():
    recorder = Recorder()
    account = agrees(recorder)
    assert (account.version, list(account.digests)) == (0, [0])
    assert account.digest == account.digests[0]


def test_what_came_below_the_window_was_never_folded():
    recorder = Recorder()
    late = recorder.world.update(seq=1)
    for seq in (65, 2):
        recorder.send(recorder.create(recorder.world.update(seq=seq), DEVICE), DEVICE)
    recorder.send(recorder.create(late, DEVICE), DEVICE)
    account = agrees(recorder)
    assert (account.folded, account.duplicates) == (2, 1)
    assert account.outcomes[DEVICE, 7, 1] == BELOW


def test_what_is_folded_again_after_its_boot_was_forgotten_is_folded_twice():
    recorder = Recorder(make_spec(max_staleness=1000))
    data = recorder.create(recorder.world.update(), DEVICE)
    recorder.send(data, DEVICE)
    for boot in range(100, 100 + BOOTS):
        recorder.send(recorder.create(recorder.world.update(boot=Boot(boot)), DEVICE), DEVICE)
    recorder.send(data, DEVICE)
    account = agrees(recorder)
    assert account.folded_twice == [(DEVICE, 7, 1)]
    assert not account.changed_bytes


def test_a_number_that_comes_again_with_other_bytes_is_told():
    recorder = Recorder()
    update = recorder.world.update()
    recorder.send(recorder.create(update, DEVICE), DEVICE)
    other = replace(update, num_examples=2)
    recorder.send(recorder.create(other, DEVICE), DEVICE)
    account = agrees(recorder)
    assert account.changed_bytes == [(DEVICE, 7, 1)]
    assert account.duplicates == 1


def test_the_same_update_with_and_without_a_seal_is_the_same():
    recorder = Recorder(make_spec(checksum=True))
    data = recorder.create(recorder.world.update(), DEVICE)
    recorder.send(seal(data, DEVICE), DEVICE)
    recorder.follow(make_spec())
    recorder.send(data, DEVICE)
    account = agrees(recorder)
    assert (account.folded, account.duplicates, account.changed_bytes) == (1, 1, [])


def test_an_altered_update_of_a_sealed_task_is_corrupt_and_settles_nothing():
    recorder = Recorder(make_spec(checksum=True))
    data = seal(recorder.create(recorder.world.update(), DEVICE), DEVICE)
    for place in range(len(data)):
        altered = bytearray(data)
        altered[place] ^= 4
        recorder.send(bytes(altered), DEVICE)
    account = agrees(recorder)
    assert account.rejected == {"corrupt": len(data)}
    assert account.nameless == len(data)
    assert not account.outcomes
    recorder.send(data, DEVICE)
    assert agrees(recorder).folded == 1


def test_a_message_of_which_only_the_head_was_carried_is_oversized_whatever_the_task_allows():
    recorder = Recorder()
    data = recorder.create(recorder.world.update(), DEVICE)
    fields = {**to_fields(arrived(data, device=DEVICE)), b"n": b"4000"}
    account = fold(EPOCH, recorder.origin, [*recorder.raw, ("2000000-0", fields)])
    assert account.rejected == {"oversized": 1}
    assert account.heard == {}


@pytest.mark.parametrize("more", [0, 1])
def test_a_message_may_be_as_long_as_the_task_allows_and_no_longer(more):
    recorder = Recorder()
    update = recorder.world.update(codec=99, payload=bytes(4096 + 64 - 16 + more))
    data = recorder.create(update, DEVICE)
    assert len(data) == 4096 + 64 + more
    recorder.send(data, DEVICE)
    assert agrees(recorder).rejected == {"oversized" if more else "unknown_codec": 1}


def test_a_seal_does_not_count_for_the_length_of_a_message():
    probe = Recorder()
    longest = len(probe.create(probe.world.update(), DEVICE))
    recorder = Recorder(
        make_spec(checksum=True, limits=LimitOptions(max_update_bytes=longest)),
    )
    recorder.send(seal(recorder.create(recorder.world.update(), DEVICE), DEVICE), DEVICE)
    assert agrees(recorder).folded == 1


def test_a_task_that_is_done_publishes_what_it_has():
    publish, finish = PublishOptions(every=5), FinishOptions(versions=3)
    recorder = Recorder(make_spec(publish=publish, finish=finish))
    for _ in range(4):
        recorder.send(recorder.create(recorder.world.update(), DEVICE), DEVICE)
    account = agrees(recorder)
    assert list(account.digests) == [0, 3]
    assert account.rejected == {"finished": 1}


def test_a_buffer_waits_anew_after_another_specification():
    spec = make_spec(buffer_size=3, flush_after_s=0.05)
    recorder = Recorder(spec)
    recorder.send(recorder.create(recorder.world.update(), DEVICE), DEVICE)
    recorder.follow(make_spec(buffer_size=4, flush_after_s=0.05))
    recorder.write(Tick(), after_ms=40)
    recorder.send(recorder.create(recorder.world.update(), DEVICE), DEVICE)
    recorder.write(Tick(), after_ms=40)
    account = agrees(recorder)
    assert (account.version, account.buffered) == (1, 1)
    recorder.write(Tick(), after_ms=10)
    account = agrees(recorder)
    assert (account.version, account.buffered) == (2, 0)


@pytest.mark.parametrize(("after_ms", "versions"), [(48, [0]), (49, [0, 1])])
def test_a_version_is_published_when_its_time_has_come_to_the_millisecond(after_ms, versions):
    recorder = Recorder(make_spec(publish=PublishOptions(every=5, seconds=0.05)))
    recorder.send(recorder.create(recorder.world.update(), DEVICE), DEVICE)
    recorder.write(Tick(), after_ms=after_ms)
    assert list(agrees(recorder).digests) == versions


def test_a_model_that_is_gone_back_to_is_a_new_version_and_voids_what_came_after():
    recorder = Recorder(make_spec(momentum=0.5, buffer_size=2))
    for _ in range(5):
        recorder.send(recorder.create(recorder.world.update(), DEVICE), DEVICE)
    withdrawn = recorder.world.update(base_version=2)
    recorder.write(ModelSet(recorder.origin, 0))
    recorder.send(recorder.create(withdrawn, DEVICE), DEVICE)
    account = agrees(recorder)
    assert (account.version, account.buffered) == (3, 0)
    assert account.rejected == {"unknown_base": 1}
    assert account.digests[3] == account.digests[0]


# -- what it refuses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        (make_spec(name="fedasync"), "fedasync"),
        (make_spec(gate=GateOptions("accuracy", by="server")), "gate"),
        (make_spec(gate=GateOptions(canary=0.5)), "gate"),
        (make_spec(finish=FinishOptions(metric="loss")), "metric"),
        (
            make_spec(params=ParamSpec((TensorSpec("w", (7,)), TensorSpec("b", (1,), "frozen")))),
            "frozen",
        ),
    ],
)
def test_a_task_that_it_does_not_know_how_to_fold_is_refused(spec, what):
    raw = [("1-0", {b"k": b"spec", b"p": spec_to_json(spec)})]
    with pytest.raises(NotCovered, match=what):
        fold(EPOCH, Recorder().origin, raw)


@pytest.mark.parametrize("path", ["novel", "strategy.novel", "codec.novel", "strategy.staleness.c"])
def test_a_field_that_it_does_not_know_is_refused_by_name(path):
    tables = json.loads(spec_to_json(make_spec()))
    *way, last = path.split(".")
    here = tables
    for name in way:
        here = here[name]
    here[last] = 0
    raw = [("1-0", {b"k": b"spec", b"p": json.dumps(tables).encode()})]
    with pytest.raises(NotCovered, match=path.replace(".", "[.]")):
        fold(EPOCH, Recorder().origin, raw)


def test_what_devices_train_with_is_passed_over():
    recorder = Recorder()
    tables = json.loads(recorder.raw[0][1][b"p"])
    tables["bundle"] = {"digest": "ab" * 32, "bytes": 5, "chunk_bytes": 4096}
    tables["needs"] = ["bundle"]
    told = (recorder.raw[0][0], {b"k": b"spec", b"p": json.dumps(tables).encode()})
    plain = fold(EPOCH, recorder.origin, recorder.raw)
    assert fold(EPOCH, recorder.origin, [told, *recorder.raw[1:]]).version == plain.version


@pytest.mark.parametrize("codec", ["rotated_int4"])
def test_a_codec_that_it_does_not_know_is_refused(codec):
    tables = json.loads(spec_to_json(make_spec()))
    tables["codec"]["name"] = codec
    with pytest.raises(NotCovered, match=codec):
        fold(
            EPOCH, Recorder().origin, [("1-0", {b"k": b"spec", b"p": json.dumps(tables).encode()})]
        )


@pytest.mark.parametrize(
    "body", [DeviceErased(DEVICE), PinSet("x", None), Evaluated(0, 1, {"loss": 1.0})]
)
def test_an_entry_that_it_does_not_know_is_refused(body):
    recorder = Recorder()
    with pytest.raises(NotCovered, match="kind"):
        fold(EPOCH, recorder.origin, [*recorder.raw, ("2000000-0", to_fields(body))])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {b"k": b"up"},
        {b"k": b"phase", b"p": b"{"},
        {b"k": b"phase", b"p": b"[]"},
        {b"k": b"epoch", b"p": b'{"epoch":"x"}'},
        {b"k": b"spec", b"p": b"nonsense"},
        {b"k": b"spec", b"p": b"[]"},
        {b"k": b"spec", b"p": b'{"params":{"tensors":[{"name":"w","shape":[9]}]}}'},
        {b"k": b"model", b"v": b"0", b"p": b"1234"},
    ],
)
def test_an_entry_that_cannot_be_read_is_a_bad_log(fields):
    recorder = Recorder()
    with pytest.raises(BadLog):
        fold(EPOCH, recorder.origin, [*recorder.raw, ("2000000-0", fields)])


@pytest.mark.parametrize("text", ["0-0", "1000001-0", "5-1", "x", "7", "-1-0", "9-9-9"])
def test_ids_that_do_not_ascend_are_a_bad_log(text):
    recorder = Recorder()
    with pytest.raises(BadLog):
        fold(EPOCH, recorder.origin, [*recorder.raw, (text, {b"k": b"tick"})])


def test_an_update_before_the_first_specification_is_a_bad_log():
    world = World()
    raw = [("1-0", to_fields(arrived(b"x")))]
    with pytest.raises(BadLog, match="before the first specification"):
        fold(EPOCH, world.model.tobytes(), raw)


def test_an_epoch_or_a_phase_before_the_first_specification_is_obeyed():
    raw = [("1-0", to_fields(EpochSet(9))), ("2-0", to_fields(PhaseSet("paused")))]
    spec = [("3-0", {b"k": b"spec", b"p": spec_to_json(make_spec())})]
    account = fold(EPOCH, np.zeros(8, "<f4").tobytes(), raw + spec)
    assert list(account.digests) == [0]
