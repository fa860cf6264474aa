import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedmq.simulator.checker.orders import CODECS
from fedmq.simulator.soak.plan import DENSE, Plan, device_name, soak_spec
from fedmq.simulator.soak.report import MANY, Progress, broken, kept
from fedmq.simulator.soak.schedule import NEEDS_FAKETIME, NEEDS_LINUX
from schemas.errors import ConfigError
from schemas.uplink import read_uplink
from tests.fedmq.simulator.soak.folders import DEVICES, Folder, soaked

ONE, TWO = DEVICES


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path, soaked())


def test_the_report_is_one_json_object_with_all_that_was_promised(folder: Folder) -> None:
    told = json.loads(json.dumps(folder.report()))
    counts = {name: told[name] for name in ("created", "folded", "rejected", "superseded")}
    assert counts == {"created": 8, "folded": 6, "rejected": 1, "superseded": 1}
    assert told["faults"] == sum(told["faults_by_kind"].values()) == 12
    assert (told["lost"], told["folded_twice"], told["open"], told["removed"]) == (0, 0, 0, 0)
    assert told["digest"] == told["sequential_digest"] == soaked().published[3]
    assert (told["duplicates_dropped"], told["unreadable"]) == (2, 1)
    assert (told["version"], told["versions_checked"], told["devices_at_newest"]) == (3, 4, 2)
    assert (told["seed"], told["seconds"], told["devices"]) == (1, 60.2, 2)
    assert (told["broker"], told["redis"], told["codec"]) == ("lab", "valkey", "sq")
    assert (told["lattice"], told["blobs_checked"]) == (True, 0), "no blobs were kept here"
    assert told["kept"] is True
    assert told["mismatches"] == []


def test_a_digest_of_which_only_the_beginning_is_known_is_compared_as_far(folder: Folder) -> None:
    whole = soaked().published
    folder.write_evidence(published={str(v): digest[:16] for v, digest in whole.items()})
    told = folder.report()
    assert told["digest"] == told["sequential_digest"] == whole[3][:16]
    assert told["kept"] is True


def test_what_is_broken_is_in_the_report(folder: Folder) -> None:
    folder.add_line(TWO, 7, 5)
    folder.evidence["published"]["3"] = "0" * 64
    folder.write_evidence(adopted={ONE: 3, TWO: 2})
    told = folder.report()
    assert told["kept"] is False
    assert told["lost"] == 1
    assert told["devices_at_newest"] == 1
    assert told["digest"] == "0" * 64 != told["sequential_digest"]
    assert len(told["mismatches"]) == 1


@pytest.mark.parametrize("adopted", [2, None])
def test_a_device_that_is_behind_keeps_no_promise(folder: Folder, adopted: int | None) -> None:
    folder.write_evidence(adopted={ONE: 3, TWO: adopted})
    assert folder.judged()[0].kept, "the model itself is right"
    assert not folder.kept()


def test_a_soak_without_a_fault_proves_nothing(folder: Folder) -> None:
    folder.progress.struck = {}
    assert folder.judged()[0].kept
    assert not folder.kept()


def test_an_update_that_is_still_open_keeps_no_promise(folder: Folder) -> None:
    folder.add_line(TWO, 7, 5)
    folder.write_evidence(open=[[TWO, 7, 5]])
    assert folder.judged()[0].kept, "nothing is lost as yet"
    assert not folder.kept()


@pytest.mark.parametrize("found", ["tracebacks", "tasks_failed"])
def test_a_process_that_was_in_trouble_keeps_no_promise(folder: Folder, found: str) -> None:
    folder.write_evidence(**{found: {"bridge-1": 2}})
    told = folder.report()
    assert told[found] == {"bridge-1": 2}
    assert told["kept"] is False
    assert any("bridge-1 (2)" in why for why in told["broken"])


@pytest.mark.parametrize(
    ("name", "broker", "kept"),
    [
        ("bridge-0", "mosquitto", False),
        ("aggregator-1", "mosquitto", False),
        ("device-01", "mosquitto", False),
        ("broker", "lab", False),
        ("broker", "mosquitto", True),
        ("redis-a", "lab", True),
    ],
)
def test_a_process_of_ours_that_ended_by_itself_keeps_no_promise(
    folder: Folder, *, name: str, broker: str, kept: bool
) -> None:
    folder.progress.plan = Plan(seed=1, seconds=60.0, broker=broker)
    folder.progress.deaths = {name: 1}
    assert folder.kept() == kept
    assert (f"ended by themselves: {name} (1)" in folder.report()["broken"]) != kept


@pytest.mark.parametrize(
    ("faults", "why", "kept"),
    [
        (MANY, "the replica does not follow just now", False),
        (MANY - 1, "the replica does not follow just now", True),
        (MANY, NEEDS_FAKETIME, True),
        (MANY, NEEDS_LINUX, True),
    ],
)
def test_what_was_drawn_for_hours_must_have_been_struck_once(
    folder: Folder, *, faults: int, why: str, kept: bool
) -> None:
    folder.progress.next_fault = faults
    folder.progress.left_out = {f"failover redis: {why}": 3}
    assert folder.kept() == kept
    folder.progress.struck["failover redis"] = 1
    assert folder.kept()


def test_a_fleet_that_did_nothing_has_kept_nothing(folder: Folder) -> None:
    verdict, account, evidence = folder.judged()
    idle = replace(verdict, created=0, folded=0)
    assert idle.kept
    assert not kept(folder.progress, idle, account, evidence)
    why = list(broken(folder.progress, idle, account, evidence))
    assert why == ["nothing was created", "nothing was folded"]


def test_an_honest_soak_has_nothing_broken(folder: Folder) -> None:
    assert folder.report()["broken"] == []


def test_what_was_lost_keeps_no_promise(folder: Folder) -> None:
    folder.add_line(TWO, 7, 5)
    assert not folder.kept()


def test_the_words_say_what_it_came_to(folder: Folder) -> None:
    said = folder.words()
    for words in (
        "12 faults in 60 s on 2 devices (seed 1)",
        "the model is at version 3, the newest published is 3: all devices have it.",
        "8 updates were created: 6 folded, 1 refused,",
        "Lost: none. Folded twice: none.",
        "bit for bit",
        "The promise was kept.",
        "Came twice and was counted once: 2; could not be read, and settled nothing: 1.",
    ):
        assert words in said
    for words in ("Left out", "Ended by themselves"):
        assert words not in said


def test_the_words_say_what_is_wrong(folder: Folder) -> None:
    folder.add_line(TWO, 7, 5)
    folder.progress.left_out = {"clock redis: needs libfaketime": 3}
    folder.progress.deaths = {"bridge-0": 2}
    folder.write_evidence(adopted={ONE: 3, TWO: None})
    said = folder.words()
    for words in (
        f"NOT on {TWO}",
        f"Lost: 1 ({TWO}/7/5)",
        "The promise was NOT kept",
        f"the newest model is not on {TWO}",
        "Left out: clock redis: needs libfaketime (3).",
        "Ended by themselves and were started again: bridge-0 (2).",
    ):
        assert words in said


def test_faults_are_those_that_were_struck() -> None:
    progress = Progress(Plan(seed=1, seconds=1.0), left_out={"clock redis: no": 9})
    assert progress.faults == 0
    progress.struck = {"kill device": 2, "flood bridge": 1}
    assert progress.faults == 3


def test_devices_have_a_mix_of_links_or_the_one_that_was_asked_for() -> None:
    mixed, one = Plan(seed=1, seconds=1.0), Plan(seed=1, seconds=1.0, profile="lte-m")
    assert {mixed.profile_of(number) for number in range(6)} == {"wifi-bad", "lte-m", "nb-iot"}
    assert {one.profile_of(number) for number in range(6)} == {"lte-m"}
    assert len({device_name(number) for number in range(64)}) == 64


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("seed", [1, 2])
def test_the_task_of_a_soak_asks_for_checksums_a_budget_and_a_lattice(
    codec: str, seed: int
) -> None:
    spec = soak_spec(Plan(seed=seed, seconds=1.0, codec=codec))
    assert spec.codec.name == codec
    assert spec.codec.checksum, "or corrupt bytes would be folded"
    assert spec.publish.lattice
    assert not soak_spec(Plan(seed=seed, seconds=1.0, lattice=False)).publish.lattice
    assert (spec.init is None) == (seed == 1), "half of all fleets fetch the first model"
    budget = read_uplink(spec.uplink)
    assert budget.day_bytes == 1e8
    assert bool(budget.message_bytes) == (codec not in DENSE)


@pytest.mark.parametrize(
    ("codec", "words"), [("zip", "topk_int8"), ("eden", "the checker does not read")]
)
def test_a_codec_that_there_is_not_or_that_nobody_could_check_is_refused(
    codec: str, words: str
) -> None:
    with pytest.raises(ConfigError, match="codec") as refused:
        soak_spec(Plan(seed=1, seconds=1.0, codec=codec))
    assert words in refused.value.remedy
