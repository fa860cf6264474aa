from dataclasses import replace

import pytest

from edge_agent.header import headed, payload_bytes
from schemas.messages import ModelUpdate
from schemas.names import Boot, Epoch, ModelVersion, Seq
from schemas.params import ParamSpec, TensorSpec
from schemas.task import CodecOptions, TaskSpec
from schemas.wire import update_header

PARAMS = ParamSpec((TensorSpec("w", (9610,)),))
PLAIN = ModelUpdate(
    epoch=Epoch(1),
    boot=Boot(305419896),
    seq=Seq(20),
    base_version=ModelVersion(300),
    base_digest=1395204033,
    spec_digest=PARAMS.short_digest,
    codec=2,
    num_examples=320,
    payload=b"",
)
MEASURED = replace(PLAIN, metrics={"loss": 0.5})


def task(uplink: str, codec: str = "sq", *, checksum: bool = False) -> TaskSpec:
    return TaskSpec(PARAMS, codec=CodecOptions(codec, checksum=checksum), uplink=uplink)


def test_a_task_without_a_bound_is_told_all_that_there_is() -> None:
    for update in (PLAIN, MEASURED):
        assert headed(update, task("")) is update
    assert payload_bytes(PLAIN, task("")) == 0


@pytest.mark.parametrize("uplink", ["103 B", "20 kB/day", "lora-dr3"])
def test_a_bound_makes_the_header_short(uplink: str) -> None:
    short = headed(PLAIN, task(uplink))
    assert short == replace(PLAIN, spec_digest=None)
    assert (len(update_header(PLAIN)), len(update_header(short))) == (24, 16)


def test_metrics_are_sent_while_header_and_all_take_a_quarter_of_the_message() -> None:
    size = len(update_header(MEASURED))
    assert size == 44
    assert headed(MEASURED, task(f"{4 * size} B")) is MEASURED
    assert headed(MEASURED, task(f"{4 * size - 1} B")) == replace(PLAIN, spec_digest=None)


def test_metrics_are_sent_where_only_a_days_bytes_are_bounded() -> None:
    assert headed(MEASURED, task("20 kB/day")) is MEASURED
    assert payload_bytes(MEASURED, task("20 kB/day")) == 0, "as long as the codec thinks best"


def test_metrics_do_not_take_the_room_that_the_codec_needs_at_least() -> None:
    tight = task(f"{4 * 9610 + 28} B", "float32")
    assert headed(MEASURED, tight) == replace(PLAIN, spec_digest=None)
    assert payload_bytes(headed(MEASURED, tight), tight) >= 4 * 9610


@pytest.mark.parametrize(("checksum", "payload"), [(False, 87), (True, 83)])
def test_header_payload_and_seal_fill_the_message(checksum: bool, payload: int) -> None:  # noqa: FBT001 - pytest's
    spec = task("103 B", checksum=checksum)
    assert payload_bytes(headed(PLAIN, spec), spec) == payload


def test_a_longer_number_leaves_less_for_the_payload() -> None:
    spec = task("103 B")
    short = headed(PLAIN, spec)
    room = [payload_bytes(replace(short, seq=Seq(seq)), spec) for seq in (1, 127, 128, 16_384)]
    assert room == [87, 87, 86, 85]
