import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN, NAMES

from schemas.errors import ConfigError
from schemas.names import shard_of
from schemas.topics import (
    DEFAULT_PREFIX,
    AskTopic,
    TaskTopics,
    UplinkTopic,
    ask_filter,
    checked_prefix,
    parse_ask,
    parse_uplink,
    read_shards,
    uplink_filters,
)

TOPICS = TaskTopics("fedmq/v1", "digits")


def test_every_topic_is_spelt_as_docs_wire_md_says():
    assert TOPICS.spec == "fedmq/v1/digits/spec"
    assert TOPICS.model == "fedmq/v1/digits/model"
    assert TOPICS.chunk("k1-7", 0) == "fedmq/v1/digits/blob/k1-7/0"
    assert TOPICS.up("pump-7") == f"fedmq/v1/digits/up/{shard_of('pump-7')}/pump-7"
    assert TOPICS.receipt("pump-7") == "fedmq/v1/digits/receipt/pump-7"
    assert TOPICS.state("pump-7") == "fedmq/v1/digits/state/pump-7"
    assert TOPICS.ask("pump-7") == "fedmq/v1/digits/ask/pump-7"
    assert TOPICS.reply("pump-7") == "fedmq/v1/digits/reply/pump-7"
    assert TOPICS.at("metrics") == "fedmq/v1/digits/metrics"
    assert uplink_filters("fedmq/v1") == ("fedmq/v1/+/up/+/+",)


@LEAN
@given(prefix=st.sampled_from(["a", DEFAULT_PREFIX, "x/y.z/Z-9_"]), task=NAMES, device=NAMES)
def test_the_bridge_reads_back_what_a_device_publishes_to(prefix, task, device):
    topic = TaskTopics(prefix, task).up(device)
    assert parse_uplink(prefix, topic) == UplinkTopic(task, shard_of(device), device)


@LEAN
@given(prefix=st.sampled_from(["a", DEFAULT_PREFIX]), task=NAMES, device=NAMES)
def test_the_bridge_reads_back_where_a_device_asks(prefix, task, device):
    topic = TaskTopics(prefix, task).ask(device)
    assert parse_ask(prefix, topic) == AskTopic(task, device)
    assert parse_ask(prefix, TaskTopics(prefix, task).reply(device)) is None
    assert parse_ask(prefix, topic + "/more") is None
    assert parse_ask("other", topic) is None
    assert ask_filter(prefix) == f"{prefix}/+/ask/+"


@pytest.mark.parametrize(
    "topic",
    [
        "t/up/0/d",
        "other/v1/t/up/0/d",
        "fedmq/v1t/up/0/d",
        "fedmq/v1/t/up/0",
        "fedmq/v1/t/up/0/d/e",
        "fedmq/v1/t/receipt/0/d",
        "fedmq/v1/t/up/g/d",
        "fedmq/v1/t/up/F/d",
        "fedmq/v1/t/up//d",
        "fedmq/v1/t/up/00/d",
        "fedmq/v1/T/up/0/d",
        "fedmq/v1/t/up/0/D",
        "fedmq/v1//up/0/d",
        "fedmq/v1/t/up/0/",
        "fedmq/v1/fedmq/v1/t/up/0/d",
        "",
    ],
)
def test_a_topic_that_is_not_an_uplink_is_not_read_as_one(topic):
    assert parse_uplink("fedmq/v1", topic) is None


@LEAN
@given(topic=st.text(max_size=60))
def test_no_topic_raises(topic):
    parse_uplink("fedmq/v1", topic)
    parse_uplink("fedmq/v1", "fedmq/v1/" + topic)


@pytest.mark.parametrize("prefix", ["fedmq/v1", "a", "a/b/c", "Plant_7/x.y/z-1", "a" * 64])
def test_a_prefix_has_one_to_three_levels(prefix):
    assert checked_prefix(prefix) == prefix
    longest = TaskTopics(prefix, "t" * 48).chunk("b" * 48, 2**31)
    assert longest.count("/") <= 7


@pytest.mark.parametrize(
    "prefix",
    ["", "/a", "a/", "a//b", "a/b/c/d", "+", "a/#", "$SYS", "a b", "a\n", "a" * 65],
)
def test_a_prefix_that_no_broker_would_like_is_refused(prefix):
    with pytest.raises(ConfigError) as caught:
        checked_prefix(prefix)
    assert caught.value.field == "prefix"


@pytest.mark.parametrize(
    ("text", "shards"),
    [
        ("", "0123456789abcdef"),
        ("0-7", "01234567"),
        ("a", "a"),
        ("0, 3,a-c", "03abc"),
        ("0-f", "0123456789abcdef"),
    ],
)
def test_shards_are_read_as_people_write_them(text, shards):
    assert read_shards(text) == frozenset(shards)


@pytest.mark.parametrize("text", ["g", "7-0", "0-", "-", "0--3", "00", "A", ","])
def test_other_shards_are_refused(text):
    with pytest.raises(ConfigError, match="hex digits"):
        read_shards(text)


def test_the_filters_of_all_shards_are_one_and_those_of_some_are_one_each():
    assert uplink_filters("p", frozenset("b1")) == ("p/+/up/1/+", "p/+/up/b/+")
    assert uplink_filters("p", frozenset("0123456789abcdef")) == ("p/+/up/+/+",)
