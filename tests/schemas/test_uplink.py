import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN

from schemas.errors import ConfigError
from schemas.params import ParamSpec, TensorSpec
from schemas.task import CodecOptions, TaskSpec, checked_spec
from schemas.uplink import LEAST_MESSAGE, LINKS, UNBOUNDED, Budget, read_uplink


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("", UNBOUNDED),
        ("222 B", Budget(222)),
        ("222B", Budget(222)),
        ("1 kB", Budget(1000)),
        ("1 KiB", Budget(1024)),
        ("1.5 kB", Budget(1500)),
        ("2 GiB", None),
        ("2048 MiB", Budget(1 << 31)),
        ("20 kB/day", Budget(day_bytes=20_000.0)),
        ("20 kB / day", Budget(day_bytes=20_000.0)),
        ("1 kB/hour", Budget(day_bytes=24_000.0)),
        ("0.5 kB/day", Budget(day_bytes=500.0)),
        ("103 B, 20 kB/day", Budget(103, 20_000.0)),
        ("20 kB/day, 103 B", Budget(103, 20_000.0)),
        ("nb-iot", Budget(1000, 137_000.0)),
        (" nb-iot ", Budget(1000, 137_000.0)),
        ("lora-dr0", Budget(51, 15_800.0)),
    ],
)
def test_a_bound_is_read_as_people_write_it(text: str, budget: Budget | None) -> None:
    if budget is None:
        with pytest.raises(ConfigError):
            read_uplink(text)
    else:
        assert read_uplink(text) == budget


@pytest.mark.parametrize(
    "text", ["a lot", "222", "B", "-5 B", "20 kB/week", "1e3 B", "5 B/", "0 B"]
)
def test_what_is_no_bound_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_uplink(text)
    assert refused.value.field == "uplink"
    assert text.strip() in str(refused.value)


@pytest.mark.parametrize("text", ["103 B, 222 B", "20 kB/day, 1 kB/hour"])
def test_two_bounds_of_one_kind_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="two bounds of one kind: leave one out"):
        read_uplink(text)


def test_a_message_that_can_hold_no_update_is_refused() -> None:
    assert read_uplink(f"{LEAST_MESSAGE} B").message_bytes == LEAST_MESSAGE
    with pytest.raises(ConfigError, match="give 32 B or more"):
        read_uplink(f"{LEAST_MESSAGE - 1} B")


@LEAN
@given(message=st.integers(LEAST_MESSAGE, 1 << 31), day=st.integers(1, 1 << 31))
def test_what_is_written_in_bytes_is_what_is_meant(message: int, day: int) -> None:
    assert read_uplink(f"{message} B, {day} B/day") == Budget(message, float(day))


@LEAN
@given(text=st.text(max_size=40))
def test_any_text_is_a_bound_or_is_refused(text: str) -> None:
    try:
        budget = read_uplink(text)
    except ConfigError:
        return
    assert budget.message_bytes == 0 or budget.message_bytes >= LEAST_MESSAGE


@pytest.mark.parametrize("name", LINKS)
def test_every_link_has_room_for_a_default_update(name: str) -> None:
    budget = read_uplink(name)
    assert budget.day_bytes > 2 * budget.message_bytes
    params = ParamSpec((TensorSpec("w", (9610,)),))
    checked_spec(TaskSpec(params, codec=CodecOptions("sq"), uplink=name))


def test_a_message_must_hold_header_seal_and_the_least_that_the_codec_can_say() -> None:
    params = ParamSpec((TensorSpec("w", (10,)),))

    def task(size: int, *, checksum: bool) -> TaskSpec:
        codec = CodecOptions("float32", checksum=checksum)
        return checked_spec(TaskSpec(params, codec=codec, uplink=f"{size} B"))

    assert task(40 + 28, checksum=False).needs == ("uplink",)
    with pytest.raises(ConfigError, match="needs 68 B here"):
        task(40 + 27, checksum=False)
    assert task(40 + 28 + 4, checksum=True).needs == ("checksum", "uplink")
    with pytest.raises(ConfigError, match="needs 72 B here"):
        task(40 + 28 + 3, checksum=True)
