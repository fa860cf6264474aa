"""Values under MQTT topics or filters, and the two questions asked of them.

Filters are kept to find those that match a published topic; retained topics are kept to find those
that a new filter matches. Pure. Refuses nothing: `is_topic` and `is_filter` are asked beforehand.
"""

from collections.abc import Iterable
from typing import Final, Generic, TypeVar

MAX_LEVELS: Final = 200
"""The deepest topic; mosquitto draws the same line (TOPIC_HIERARCHY_LIMIT)."""

_Value = TypeVar("_Value")


def is_topic(text: str) -> bool:
    """Say whether a message may be published there."""
    wild = "+" in text or "#" in text
    return bool(text) and not wild and "\0" not in text and text.count("/") < MAX_LEVELS


def is_filter(text: str) -> bool:
    """Say whether a client may subscribe to that: wildcards fill their level, `#` the last one."""
    levels = text.split("/")
    if not text or "\0" in text or len(levels) > MAX_LEVELS or "#" in levels[:-1]:
        return False
    return all(len(level) == 1 or not ("+" in level or "#" in level) for level in levels)


class _Node(Generic[_Value]):
    __slots__ = ("children", "value")

    def __init__(self) -> None:
        self.children: dict[str, _Node[_Value]] = {}
        self.value: _Value | None = None


class TopicTree(Generic[_Value]):
    """One node a level. No recursion, so that no topic is too deep."""

    def __init__(self) -> None:
        self._root: _Node[_Value] = _Node()

    def get(self, key: str) -> _Value | None:
        """Find the value of exactly this topic or filter, in one step a level."""
        node = self._root
        for level in key.split("/"):
            if level not in node.children:
                return None
            node = node.children[level]
        return node.value

    def put(self, key: str, value: _Value) -> None:
        """Keep a value under this topic or filter, in place of any other."""
        node = self._root
        for level in key.split("/"):
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = _Node()
            node = child
        node.value = value

    def pop(self, key: str) -> _Value | None:
        """Forget a value, and every level that held nothing else."""
        path = [self._root]
        levels = key.split("/")
        for level in levels:
            if (child := path[-1].children.get(level)) is None:
                return None
            path.append(child)
        value, path[-1].value = path[-1].value, None
        _prune(path, levels)
        return value

    def filters_matching(self, topic: str) -> list[_Value]:
        """The values of all filters that match a topic."""
        found: list[_Node[_Value]] = []
        frontier = [self._root]
        wild = not topic.startswith("$")
        for level in topic.split("/"):
            if wild:
                found += _step(frontier, ("#",))
            frontier = _step(frontier, (level, "+") if wild else (level,))
            wild = True
        found += frontier + _step(frontier, ("#",))
        return [node.value for node in found if node.value is not None]

    def topics_matching(self, topic_filter: str) -> list[_Value]:
        """The values of all topics that a filter matches."""
        frontier = [self._root]
        for level in topic_filter.split("/"):
            if level == "#":
                frontier += _below(_children(frontier, hidden=self._root))
                break
            if level == "+":
                frontier = _children(frontier, hidden=self._root)
            else:
                frontier = _step(frontier, (level,))
        return [node.value for node in frontier if node.value is not None]


def _prune(path: list[_Node[_Value]], levels: list[str]) -> None:
    for parent, level in zip(reversed(path[:-1]), reversed(levels), strict=True):
        child = parent.children[level]
        if child.children or child.value is not None:
            return
        del parent.children[level]


def _step(nodes: Iterable[_Node[_Value]], names: tuple[str, ...]) -> list[_Node[_Value]]:
    return [node.children[name] for node in nodes for name in names if name in node.children]


def _children(nodes: Iterable[_Node[_Value]], hidden: _Node[_Value]) -> list[_Node[_Value]]:
    """All children; below the root (`hidden`) no wildcard sees a level that begins with `$`."""
    return [
        child
        for node in nodes
        for name, child in node.children.items()
        if node is not hidden or not name.startswith("$")
    ]


def _below(nodes: list[_Node[_Value]]) -> list[_Node[_Value]]:
    found = list(nodes)
    for node in found:  # grows while it is walked: breadth first
        found += node.children.values()
    return found
