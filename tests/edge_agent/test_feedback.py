"""Error feedback on the disk: what a refused update has taken out of the residual comes back."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from edge_agent.compressor import compress, may_restore, restored
from edge_agent.spool import Base, Spool
from schemas.codecs import CODECS, Ask, CodecOptions, codec_by_name
from schemas.delta import to_dense
from schemas.messages import ModelUpdate
from schemas.names import Boot, Epoch, ModelVersion, Seq
from schemas.outcomes import FOLDED, Reason
from schemas.task import TrainOptions
from schemas.wire import encode_update

BASE: Base = (Epoch(1), ModelVersion(3))
SIZE = 40


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with closing(Spool(tmp_path / "spool.sqlite")) as spool:
        yield spool


def made(spool: Spool, residual: bytes | None, replaces: Seq | None = None) -> Seq:
    """An update that leaves this behind."""
    seq = spool.put(lambda n: b"update %d" % n, base=BASE, residual=residual, replaces=replaces)
    assert seq is not None
    return seq


def sent(spool: Spool, residual: bytes | None) -> Seq:
    seq = made(spool, residual)
    assert spool.mark_sent(spool.boot, seq)
    return seq


def refuse(spool: Spool, seq: Seq, **given: object) -> None:
    assert spool.settle(spool.boot, lambda n: n == seq, refused=seq, **given) == [seq]  # type: ignore[arg-type]


# -- rolled back -------------------------------------------------------------------------------


def test_when_the_newest_is_refused_the_residual_is_what_it_was_before(spool: Spool) -> None:
    sent(spool, b"one")
    second = sent(spool, b"two")
    refuse(spool, second)
    assert spool.load("residual") == b"one"
    assert spool.load("before") is None


def test_when_the_first_is_refused_there_is_no_residual_again(spool: Spool) -> None:
    refuse(spool, sent(spool, b"one"))
    assert spool.load("residual") is None
    assert spool.left().residual is None


def test_when_an_older_one_is_refused_nothing_changes_and_the_newest_may_still_be(
    spool: Spool,
) -> None:
    first, second = sent(spool, b"one"), sent(spool, b"two")
    refuse(spool, first)
    assert spool.load("residual") == b"two"
    refuse(spool, second)
    assert spool.load("residual") == b"one"


@pytest.mark.parametrize("refused", [None, 7])
def test_what_is_folded_or_of_which_nothing_is_told_keeps_its_residual(
    spool: Spool, refused: Seq | None
) -> None:
    sent(spool, b"one")
    spool.settle(spool.boot, lambda _: True, refused=refused)
    assert spool.load("residual") == b"one"
    assert spool.load("before") is None, "nothing more is kept for it"


def test_a_refusal_that_comes_again_takes_nothing_back_twice(spool: Spool) -> None:
    sent(spool, b"one")
    second = sent(spool, b"two")
    refuse(spool, second)
    assert spool.settle(spool.boot, lambda _: True, refused=second) == [1]
    assert spool.load("residual") == b"one"


def test_rounds_on_one_base_are_rolled_back_together(spool: Spool) -> None:
    sent(spool, b"one")
    second = made(spool, b"two")
    assert spool.left(second).residual == b"one", "each round starts from before the first"
    third = made(spool, b"three", replaces=second)
    assert spool.left(third).residual == b"one"
    assert spool.left().residual == b"three"
    spool.mark_sent(spool.boot, third)
    refuse(spool, third)
    assert spool.load("residual") == b"one"


def test_a_codec_without_error_feedback_has_nothing_to_roll_back(spool: Spool) -> None:
    first, second = sent(spool, b"one"), sent(spool, None)
    refuse(spool, second)
    refuse(spool, first)
    assert spool.load("residual") == b"one"


def test_a_later_life_rolls_back_what_an_earlier_one_made(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    with closing(Spool(path)) as spool:
        sent(spool, b"one")
        boot, second = spool.boot, sent(spool, b"two")
    with closing(Spool(path)) as later:
        assert later.settle(boot, lambda n: n == second, refused=second) == [second]
        assert later.load("residual") == b"one"


def test_once_another_life_has_made_one_the_earlier_is_the_newest_no_more(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    with closing(Spool(path)) as spool:
        boot, first = spool.boot, sent(spool, b"one")
    with closing(Spool(path)) as later:
        assert made(later, b"two") == first
        assert later.settle(boot, lambda _: True, refused=first) == [first]
        assert later.load("residual") == b"two"


def test_what_was_encoded_with_a_residual_that_is_no_more_is_not_written(spool: Spool) -> None:
    first = sent(spool, b"one")
    left = spool.left()
    refuse(spool, first)
    late = spool.put(lambda _: b"late", base=BASE, residual=b"two", state=left.state)
    assert late is None
    assert (spool.created, spool.load("residual")) == (1, None)
    again = spool.put(lambda _: b"now", base=BASE, residual=b"two", state=spool.left().state)
    assert again == 2


# -- restored ----------------------------------------------------------------------------------


def add(message: bytes, residual: bytes | None) -> bytes:
    return (residual or b"nothing") + b" and " + message


def test_with_few_steps_what_is_refused_is_added_instead_whichever_it_was(spool: Spool) -> None:
    first, second = sent(spool, b"one"), sent(spool, b"two")
    refuse(spool, first, restore=add)
    assert spool.load("residual") == b"two and update 1"
    refuse(spool, second, restore=add)
    assert spool.load("residual") == b"two and update 1 and update 2"


def test_what_was_restored_is_in_the_round_that_replaces_too(spool: Spool) -> None:
    first = sent(spool, b"one")
    second = made(spool, b"two")
    refuse(spool, first, restore=add)
    assert spool.left(second).residual == b"one and update 1"
    assert spool.left().residual == b"two and update 1"


def test_nothing_is_restored_where_the_codec_has_none_to_add(spool: Spool) -> None:
    refuse(spool, sent(spool, b"one"), restore=lambda _message, _residual: None)
    assert spool.load("residual") == b"one"


@pytest.mark.parametrize(
    ("steps", "outcome", "may"),
    [
        (0, Reason.TOO_STALE, False),
        (1, Reason.TOO_STALE, True),
        (4, Reason.UNKNOWN_BASE, True),
        (5, Reason.TOO_STALE, False),
        (1, Reason.BAD_NUMBER, False),
        (1, Reason.NOT_FINITE, False),
        (1, FOLDED, False),
        (1, 77, False),
    ],
)
def test_only_what_was_good_and_came_from_few_steps_is_restored(
    steps: int, outcome: int, may: object
) -> None:
    assert may_restore(TrainOptions(steps=steps), outcome) is may


def message(codec: str, payload: bytes) -> bytes:
    number = codec_by_name(codec).codec_id
    return encode_update(
        ModelUpdate(Epoch(1), Boot(7), Seq(1), ModelVersion(3), 9, None, number, 1, payload)
    )


EVERY_CODEC = pytest.mark.parametrize("name", [codec.name for codec in CODECS.values()])


@EVERY_CODEC
def test_residual_and_what_was_sent_are_together_what_there_was(name: str) -> None:
    rng = np.random.default_rng(1)
    codec, delta = codec_by_name(name), rng.standard_normal(SIZE).astype(np.float32)
    one = compress(delta, None, codec, Ask(CodecOptions(name, density=0.2)), rng)
    left = None if one.residual is None else one.residual.tobytes()
    back = restored(message(name, one.payload), left, SIZE)
    if not codec.error_feedback:
        assert back is None
        return
    assert back is not None
    np.testing.assert_allclose(np.frombuffer(back, "<f4"), delta, rtol=1e-5, atol=1e-6)
    alone = restored(message(name, one.payload), None, SIZE)
    assert alone is not None
    payload = to_dense(codec.decode(memoryview(one.payload), SIZE), SIZE)
    np.testing.assert_array_equal(np.frombuffer(alone, "<f4"), payload)


@pytest.mark.parametrize(
    ("data", "residual"),
    [
        (b"", None),
        (b"\xff garbage", None),
        (message("topk_int8", b""), None),
        (message("topk_int8", b"\x01" + bytes(12)), bytes(4 * SIZE - 4)),
    ],
)
def test_what_cannot_be_added_leaves_the_residual_as_it_is(
    data: bytes, residual: bytes | None
) -> None:
    assert restored(data, residual, SIZE) is None


# -- power cuts --------------------------------------------------------------------------------


def history(path: Path) -> tuple[bytes, list[tuple[object, ...]]]:
    """The log that a life leaves behind, and what the disk held after each transaction."""
    spool = Spool(path)
    states = [state(spool)]
    for number in range(8):
        residual = bytes([number + 1]) * 6000
        seq = made(spool, residual)
        states.append(state(spool))
        spool.mark_sent(spool.boot, seq, allowance=b"%d" % number)
        states.append(state(spool))
        if number % 2:
            refuse(spool, seq, restore=add if number % 4 == 3 else None)
        else:
            spool.settle(spool.boot, lambda _: True)
        states.append(state(spool))
    log = path.with_name(path.name + "-wal").read_bytes()
    shutil.copy(path, path.with_suffix(".copy"))
    spool.close()
    return log, states


def state(spool: Spool) -> tuple[object, ...]:
    kept = [spool.load(key) for key in ("residual", "before", "allowance")]
    return spool.open_updates(), *kept, spool.created


def test_wherever_the_power_is_cut_update_residual_and_what_was_before_belong_together(
    tmp_path: Path,
) -> None:
    log, states = history(tmp_path / "spool.sqlite")
    assert len(set(map(repr, states))) == len(states) == 25
    reached = []
    for number in range(80):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        shutil.copy(tmp_path / "spool.copy", folder / "spool.sqlite")
        (folder / "spool.sqlite-wal").write_bytes(log[: len(log) * (number + 1) // 80])
        with closing(Spool(folder / "spool.sqlite")) as spool:
            found = state(spool)
        if found[-1]:
            reached.append(states.index(found))
    assert reached == sorted(reached)
    assert set(reached) >= set(range(3, 25)), "a cut after every transaction"
