import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN, NAMES

from broker.routing import Asked, Routed, Unroutable, route
from schemas.asking import ASK_BYTES
from schemas.log import HEAD_BYTES, Arrived
from schemas.names import DeviceId, TaskName, shard_of
from schemas.topics import TaskTopics

PREFIX = "fedmq/v1"
UP = f"{PREFIX}/pumps/up/{shard_of(DeviceId('pump-1'))}/pump-1"


@LEAN
@given(task=NAMES, device=NAMES, payload=st.binary(max_size=200))
def test_what_a_device_publishes_goes_to_its_tasks_log(task, device, payload):
    topic = TaskTopics(PREFIX, TaskName(task)).up(DeviceId(device))
    arrived = Arrived(DeviceId(device), shard_of(DeviceId(device)), payload, len(payload))
    assert route(PREFIX, topic, payload, max_bytes=200) == Routed(TaskName(task), arrived)


@LEAN
@given(task=NAMES, device=NAMES, payload=st.binary(max_size=2 * ASK_BYTES))
def test_what_a_device_asks_goes_to_the_clerk_and_is_bounded(task, device, payload):
    topic = TaskTopics(PREFIX, TaskName(task)).ask(DeviceId(device))
    asked = route(PREFIX, topic, payload, max_bytes=10)
    assert asked == Asked(TaskName(task), DeviceId(device), payload[: ASK_BYTES + 1])


def test_the_shard_is_kept_as_it_came_for_admission_to_judge() -> None:
    wrong = f"{PREFIX}/pumps/up/{'0' if UP.split('/')[-2] != '0' else '1'}/pump-1"
    routed = route(PREFIX, wrong, b"", max_bytes=10)
    assert isinstance(routed, Routed)
    assert routed.arrived.shard == wrong.split("/")[-2]


@pytest.mark.parametrize("size", [HEAD_BYTES, HEAD_BYTES + 1, 5000])
def test_of_an_oversized_message_only_the_head_is_kept_and_its_size(size: int) -> None:
    payload = bytes(index % 251 for index in range(size))
    routed = route(PREFIX, UP, payload, max_bytes=size - 1)
    assert isinstance(routed, Routed)
    assert routed.arrived.data == payload[:HEAD_BYTES]
    assert routed.arrived.size == size


def test_a_message_of_exactly_the_bound_is_kept_whole() -> None:
    routed = route(PREFIX, UP, bytes(5000), max_bytes=5000)
    assert isinstance(routed, Routed)
    assert routed.arrived.data == bytes(5000)


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "other/v1/pumps/up/0/pump-1",
        f"{PREFIX}/pumps/up/0",
        f"{PREFIX}/pumps/up/0/pump-1/more",
        f"{PREFIX}/pumps/down/0/pump-1",
        f"{PREFIX}/Pumps/up/0/pump-1",
        f"{PREFIX}/pumps/up/0/Pump 1",
        f"{PREFIX}/pumps/up/g/pump-1",
        f"{PREFIX}//up/0/pump-1",
    ],
)
def test_a_topic_that_names_no_task_and_device_is_unroutable(topic: str) -> None:
    assert route(PREFIX, topic, b"payload", max_bytes=100) == Unroutable(topic, b"payload")


@LEAN
@given(topic=st.text(max_size=400), payload=st.binary(max_size=3 * HEAD_BYTES))
def test_no_topic_raises_and_nothing_unroutable_is_large(topic, payload):
    found = route(PREFIX, topic, payload, max_bytes=100)
    if isinstance(found, Unroutable):
        assert len(found.topic) <= 256
        assert len(found.data) <= HEAD_BYTES
