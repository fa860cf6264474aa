"""The topic tree against the plainest reading of the standard (MQTT 3.1.1, section 4.7)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.lab.topic_tree import MAX_LEVELS, TopicTree, is_filter, is_topic

LEAN = settings(deadline=None, max_examples=80)

LEVELS = st.sampled_from(["a", "b", "c", "", "$x", "long name"])
TOPICS = st.lists(LEVELS, min_size=1, max_size=5).map("/".join).filter(is_topic)
FILTERS = (
    st.lists(st.one_of(LEVELS, st.sampled_from(["+", "+", "#"])), min_size=1, max_size=5)
    .map("/".join)
    .filter(is_filter)
)


def matches(topic_filter: str, topic: str) -> bool:
    """The naive reference: level by level."""
    wanted, levels = topic_filter.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in {"+", "#"}:
        return False
    for index, want in enumerate(wanted):
        if want == "#":
            return True
        if index >= len(levels) or want not in {"+", levels[index]}:
            return False
    return len(wanted) == len(levels)


def tree_of(keys) -> TopicTree[str]:
    tree: TopicTree[str] = TopicTree()
    for key in keys:
        tree.put(key, key)
    return tree


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        ("sport/#", "sport", True),
        ("sport/#", "sport/tennis/player", True),
        ("sport/tennis/#", "sport", False),
        ("#", "sport", True),
        ("#", "$SYS/uptime", False),
        ("+/uptime", "$SYS/uptime", False),
        ("$SYS/#", "$SYS/uptime", True),
        ("$SYS/+", "$SYS/uptime", True),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+", "/finance", False),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("a/+/c", "a/$b/c", True),
        ("+/#", "sport", True),
    ],
)
def test_examples_of_the_standard_hold(topic_filter, topic, expected):
    assert matches(topic_filter, topic) is expected
    assert bool(tree_of([topic_filter]).filters_matching(topic)) is expected
    assert bool(tree_of([topic]).topics_matching(topic_filter)) is expected


@LEAN
@given(filters=st.sets(FILTERS, max_size=20), topic=TOPICS)
def test_the_filters_of_a_topic_are_those_that_match_it(filters, topic):
    found = tree_of(filters).filters_matching(topic)
    assert sorted(found) == sorted(key for key in filters if matches(key, topic))


@LEAN
@given(topics=st.sets(TOPICS, max_size=20), topic_filter=FILTERS)
def test_the_topics_of_a_filter_are_those_that_it_matches(topics, topic_filter):
    found = tree_of(topics).topics_matching(topic_filter)
    assert sorted(found) == sorted(key for key in topics if matches(topic_filter, key))


@LEAN
@given(kept=st.sets(FILTERS), gone=st.sets(FILTERS), probe=FILTERS)
def test_what_is_taken_out_leaves_the_rest_and_no_empty_levels(kept, gone, probe):
    tree = tree_of(kept | gone)
    for key in gone - kept:
        assert tree.pop(key) == key
        assert tree.pop(key) is None
    assert tree.get(probe) == (probe if probe in kept else None)
    for key in kept:
        assert tree.get(key) == key
        tree.pop(key)
    assert not tree._root.children


@pytest.mark.parametrize("text", ["", "a/+", "+", "#", "a#", "a\0b", "/" * MAX_LEVELS])
def test_nobody_publishes_to(text):
    assert not is_topic(text)


@pytest.mark.parametrize("text", ["", "a+", "a/#/b", "a#", "#/", "+a/b", "\0", "/" * MAX_LEVELS])
def test_nobody_subscribes_to(text):
    assert not is_filter(text)


@pytest.mark.parametrize("text", ["/", "a", "a/+/b", "+/+", "#", "+/#", "/#", "/" * 199, "a b/ü"])
def test_anybody_subscribes_to(text):
    assert is_filter(text)


def test_an_exact_filter_does_not_walk_its_neighbours():
    """Not a timing: its steps are counted by the nodes that it looks into."""
    tree = tree_of(f"blob/7/{index}" for index in range(3000))
    for node in tree._root.children["blob"].children["7"].children.values():
        node.children = None  # whoever looks into it fails
    assert tree.topics_matching("blob/7/2999") == ["blob/7/2999"]
