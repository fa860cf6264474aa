"""The table of topics is what is built, what the page says, and what the contract says."""

import re
from pathlib import Path

import pytest

from schemas.channels import CHANNELS
from schemas.names import DeviceId, TaskName
from schemas.topics import DEFAULT_PREFIX, TaskTopics

PAGE = (Path(__file__).parents[2] / "docs" / "wire.md").read_text(encoding="utf-8")
TOPICS = TaskTopics(DEFAULT_PREFIX, TaskName("pumps"))
DEVICE = DeviceId("pump-1")

BUILT = {
    "spec": TOPICS.spec,
    "model": TOPICS.model,
    "candidate": TOPICS.candidate,
    "busy": TOPICS.busy,
    "pace": TOPICS.pace,
    "pin": TOPICS.pin(DEVICE),
    "chunk": TOPICS.chunk("k1-7", 3),
    "update": TOPICS.up(DEVICE),
    "receipt": TOPICS.receipt(DEVICE),
    "state": TOPICS.state(DEVICE),
    "ask": TOPICS.ask(DEVICE),
    "reply": TOPICS.reply(DEVICE),
    "lorawan": TOPICS.lorawan,
}


def matches(suffix: str) -> list[str]:
    """Names of the channels that such a topic belongs to."""
    found = []
    for channel in CHANNELS:
        pattern = re.sub(r"{\w+}", "[^/]+", channel.suffix)
        if re.fullmatch(pattern, suffix):
            found.append(channel.name)
    return found


@pytest.mark.parametrize("name", BUILT)
def test_every_topic_that_is_built_belongs_to_one_channel(name):
    assert matches(BUILT[name].removeprefix(TOPICS.at(""))) == [name]


def test_only_what_people_watch_is_not_built_by_name():
    rest = {channel.name for channel in CHANNELS} - BUILT.keys()
    assert rest == {"metrics", "versions", "events"}


def test_names_and_topics_are_each_there_once():
    assert len({c.name for c in CHANNELS}) == len({c.suffix for c in CHANNELS}) == len(CHANNELS)


def test_a_filter_has_a_plus_for_every_level_that_varies():
    assert {c.filter for c in CHANNELS if "{" in c.suffix} == {
        "model/+",
        "blob/+/+",
        "up/+/+",
        "receipt/+",
        "state/+",
        "ask/+",
        "reply/+",
    }


def test_the_page_lists_the_same_topics_from_the_same_speakers():
    rows = re.findall(
        r"^\| `\{prefix\}/\{task\}/(\S+)` \| (?:\*\*)?(yes|no)(?:\*\*)? \| 1 \| (\w+) ->",
        PAGE,
        re.MULTILINE,
    )
    said = {(suffix, kept == "yes", speaker) for suffix, kept, speaker in rows}
    assert said == {(c.suffix, c.retained, c.speaker) for c in CHANNELS}
