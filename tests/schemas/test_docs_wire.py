"""docs/wire.md says what the code does: its numbers are compared, its prose is not."""

import json
import re
from pathlib import Path

import msgspec
import pytest

from schemas.outcomes import Reason
from schemas.params import ParamSpec, TensorSpec
from schemas.task import TaskSpec
from schemas.uplink import LINKS, Budget, read_uplink

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "wire.md").read_text(encoding="utf-8")


def _rows(heading: str) -> list[list[str]]:
    section = PAGE.split(f"{heading}\n", 1)[1].split("\n#", 1)[0]
    return [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]


def _worked_example(first: str, heading: str = "## 10.") -> str:
    """The hex of the block that opens with `first`: the bytes before the first wide gap."""
    example = PAGE.split(heading, 1)[1].split("\n## ", 1)[0]
    block = next(b for b in example.split("\n\n") if b.startswith(f"    {first} "))
    return "".join(re.split(r" {2,}", line.strip())[0] for line in block.splitlines())


@pytest.mark.parametrize(
    ("file", "array"), [("update.json", "99"), ("manifest.json", "9a"), ("receipt.json", "98")]
)
def test_the_worked_example_is_the_first_vector(file, array):
    vector = json.loads((ROOT / "tests" / "vectors" / file).read_text(encoding="utf-8"))[0]
    assert bytes.fromhex(_worked_example(array)).hex() == vector["hex"]


def test_the_short_example_is_the_first_vector():
    file = ROOT / "tests" / "vectors" / "update_short.json"
    vector = json.loads(file.read_text(encoding="utf-8"))[0]
    assert bytes.fromhex(_worked_example("02", "### The short form")).hex() == vector["hex"]


def test_the_table_of_budgets_says_what_is_read():
    rows = _rows("## 17. Budget: what may go up")[2:]
    listed = {json.loads(row[0].strip().strip("`")): row[1:3] for row in rows}
    assert listed.keys() >= set(LINKS)
    for text, numbers in listed.items():
        message, day = (int("0" + re.sub(r"\D", "", number)) for number in numbers)
        assert read_uplink(text) == Budget(message, float(day))


@pytest.mark.parametrize(
    ("heading", "file", "name"),
    [
        ("### 2: `sq`", "codec_sq.json", "the first coordinate hit three times"),
        ("### 5: `stc`", "codec_stc.json", "the worked example's delta"),
    ],
)
def test_the_worked_example_of_a_codec_is_among_its_vectors(heading, file, name):
    section = PAGE.split(f"{heading}\n", 1)[1].split("\n###", 1)[0]
    told = re.search(r"`((?:[0-9a-f]{2} )+[0-9a-f]{2})`", section.split("**Worked example.**")[1])
    vectors = json.loads((ROOT / "tests" / "vectors" / file).read_text(encoding="utf-8"))
    (vector,) = (each for each in vectors if each["name"] == name)
    assert told
    assert bytes.fromhex(told[1]).hex() == vector["hex"]


def test_the_table_of_outcomes_lists_every_reason():
    listed = {row[1].strip(): int(row[0]) for row in _rows("### Outcome codes")[2:]}
    assert listed == {"": 0, "folded": 1} | {r.name.lower(): int(r) for r in Reason}


def test_the_table_of_the_spec_lists_every_field_with_its_default():
    listed = {}
    for name, _, default, _ in _rows("## 8. TaskSpec: the JSON below `spec`")[2:]:
        field = name.replace("*", "").strip().strip("`")
        if not field.startswith("params."):
            listed[field] = json.loads(default.strip().strip("`"))
    assert listed == dict(_leaves(TaskSpec(ParamSpec((TensorSpec("w"),)))))


def _leaves(spec: TaskSpec):
    tables = json.loads(msgspec.json.encode(spec))  # what is left out of the JSON too
    del tables["params"]
    pending = list(tables.items())
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict) and value:
            pending += [(f"{name}.{key}", inner) for key, inner in value.items()]
        else:
            yield name, value
