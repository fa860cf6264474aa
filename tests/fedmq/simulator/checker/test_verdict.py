"""Planted bugs: a server that folds wrongly must be found out."""

from dataclasses import replace
from hashlib import sha256
from importlib import import_module

import pytest

import aggregator.strategies
from aggregator.fold import Fold
from fedmq.simulator.checker import fold, judge
from schemas.log import Arrived, Tick
from schemas.names import Boot
from schemas.outcomes import FOLDED
from schemas.strategy import StalenessOptions
from schemas.window import SeqWindow
from tests.aggregator.world import EPOCH, make_spec, ramp
from tests.fedmq.simulator.checker.logs import DEVICES, RandomLog, Recorder

SUM = import_module("aggregator.strategies.running_sum")
SGD = import_module("aggregator.strategies.sgd")
DEVICE = DEVICES[0]
FIFTH = 5


def busy_fleet():
    """Three devices whose updates come stale, late, twice and in another order."""
    spec = make_spec(buffer_size=2, staleness=StalenessOptions(), momentum=0.5)
    recorder = Recorder(spec)
    for turn in range(12):
        made = []
        for number, device in enumerate(DEVICES):
            bases = list(recorder.world.state.bases)
            base = bases[max(0, len(bases) - 1 - (turn + number) % 3)]
            update = recorder.world.update(
                ramp(0.1 * (turn + 1)), device=device, base_version=base, seq=2 * turn + 1
            )
            made.append((recorder.create(update, device), device))
        if turn % 3 == 1:  # the next one overtakes
            device = DEVICES[turn % len(DEVICES)]
            update = recorder.world.update(ramp(0.3), device=device, seq=2 * turn + 10)
            recorder.send(recorder.create(update, device), device)
        for data, device in reversed(made):
            recorder.send(data, device)
        recorder.send(*made[turn % len(made)])  # once more
    recorder.write(Tick())
    return recorder


def judged(recorder, raw=None, *, open_ids=(), removed_ids=(), **changed):
    account = fold(EPOCH, recorder.origin, recorder.raw if raw is None else raw)
    published = changed.pop("published", recorder.published)
    ledgers = changed.pop("ledgers", recorder.ledgers)
    sent_once = changed.pop("sent_once", ())
    service = {**recorder.service, **changed}
    return judge(ledgers, account, open_ids, removed_ids, published, service, sent_once=sent_once)


# -- an honest server --------------------------------------------------------------------------


def test_an_honest_server_has_kept_its_promise():
    recorder = busy_fleet()
    verdict = judged(recorder)
    assert verdict.kept, verdict.sentences()
    assert verdict.created == verdict.folded == 40
    assert (verdict.lost, verdict.folded_twice, verdict.strangers) == ([], [], [])
    assert verdict.versions_checked == recorder.world.state.model.version + 1
    assert verdict.digest == verdict.sequential_digest
    said = " ".join(verdict.sentences())
    assert "40 updates were created: 40 folded, 0 refused" in said
    assert said.endswith("The promise was kept.")


@pytest.mark.parametrize("seed", range(8))
def test_a_fleet_of_all_sorts_is_judged_by_what_came(seed):
    recorder = RandomLog(seed, 150, checksum=True).recorder
    account = fold(EPOCH, recorder.origin, recorder.raw)
    open_ids = {
        (device, line[0], line[1])
        for device, lines in recorder.ledgers.items()
        for line in lines
        if (device, line[0], line[1]) not in account.outcomes
    }
    verdict = judge(recorder.ledgers, account, open_ids, (), recorder.published, recorder.service)
    assert not verdict.mismatches
    assert verdict.created == sum(
        (verdict.folded, verdict.rejected, verdict.open, len(verdict.lost))
    )


def test_the_beginning_of_a_digest_is_enough_and_less_is_not():
    recorder = busy_fleet()
    for digits, kept in ((16, True), (64, True), (15, False), (0, False)):
        published = {v: digest[:digits] for v, digest in recorder.published.items()}
        assert judged(recorder, published=published).kept is kept


# -- planted bugs ------------------------------------------------------------------------------


def dedup_by_highest(monkeypatch):
    monkeypatch.setattr(SeqWindow, "outcome", lambda w, seq: FOLDED if seq <= w.top else 0)


def staleness_off_by_one(monkeypatch):
    right = aggregator.strategies.staleness_weight

    def wrong(options, paper):
        return lambda stale: right(options, paper)(stale + 1)

    monkeypatch.setattr(aggregator.strategies, "staleness_weight", wrong)


def divided_by_the_sum_of_weights(monkeypatch):
    add, step, weights = SUM.add_scaled, SGD._step, []

    def noted(total, delta, weight):
        weights.append(weight)
        add(total, delta, weight)

    def wrong(*vectors, size, **rates):
        step(*vectors, size=size.dtype.type(sum(weights)), **rates)
        weights.clear()

    monkeypatch.setattr(SUM, "add_scaled", noted)
    monkeypatch.setattr(SGD, "_step", wrong)


def on_the_fifth_update(monkeypatch, name, wrong):
    right, seen = getattr(Fold, name), []

    def patched(self, *given):
        if name == "_fold" or isinstance(given[0].body, Arrived):
            seen.append(1)
        if len(seen) == FIFTH:
            seen.append(1)
            return wrong(self, right, *given)
        return right(self, *given)

    monkeypatch.setattr(Fold, name, patched)


def skipped_entry(monkeypatch):
    on_the_fifth_update(monkeypatch, "apply", lambda _self, _right, _entry: None)


def entry_folded_twice(monkeypatch):
    def twice(self, right, ms, contribution):
        right(self, ms, contribution)
        return right(self, ms, contribution)

    on_the_fifth_update(monkeypatch, "_fold", twice)


def forgotten_count(monkeypatch):
    def uncounted(self, right, entry):
        right(self, entry)
        self.state.tally.folded -= 1

    on_the_fifth_update(monkeypatch, "apply", uncounted)


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (dedup_by_highest, "duplicates_dropped"),
        (staleness_off_by_one, "for the service"),
        (divided_by_the_sum_of_weights, "for the service"),
        (skipped_entry, "updates_folded"),
        (entry_folded_twice, "for the service"),
        (forgotten_count, "updates_folded"),
    ],
)
def test_a_planted_bug_is_found(monkeypatch, plant, found):
    plant(monkeypatch)
    verdict = judged(busy_fleet())
    assert not verdict.kept
    assert any(found in mismatch for mismatch in verdict.mismatches)
    assert verdict.sentences()[-1] == "The promise was NOT kept."


# -- what else can go wrong --------------------------------------------------------------------


def test_what_is_in_no_log_no_spool_and_on_no_card_is_lost():
    recorder = busy_fleet()
    recorder.create(recorder.world.update(device=DEVICE), DEVICE)
    who = (DEVICE, *recorder.ledgers[DEVICE][-1][:2])
    assert judged(recorder).lost == [who]
    assert not judged(recorder).kept
    assert judged(recorder, open_ids={who}).open == 1
    assert judged(recorder, open_ids={who}).kept
    assert judged(recorder, removed_ids={who}).removed == 1
    assert judged(recorder, removed_ids={who}).kept


def test_what_is_settled_without_ever_having_come_is_lost():
    recorder = Recorder()
    late = recorder.world.update(seq=1)
    recorder.send(recorder.create(recorder.world.update(seq=65), DEVICE), DEVICE)
    recorder.send(recorder.create(late, DEVICE), DEVICE)
    assert judged(recorder).lost == [(DEVICE, 7, 1)]


def test_an_update_that_was_replaced_is_superseded():
    recorder = Recorder()
    old, new = recorder.world.update(), recorder.world.update()
    recorder.create(old, DEVICE)
    recorder.send(recorder.create(new, DEVICE, replaced=old.seq), DEVICE)
    verdict = judged(recorder)
    assert verdict.kept
    assert (verdict.superseded, verdict.folded) == (1, 1)


def test_an_update_may_be_replaced_by_a_later_life():
    recorder = Recorder()
    old, new = recorder.world.update(), recorder.world.update(boot=Boot(8), seq=1)
    recorder.create(old, DEVICE)
    recorder.send(recorder.create(new, DEVICE, replaced=(old.boot, old.seq)), DEVICE)
    verdict = judged(recorder)
    assert verdict.kept
    assert (verdict.superseded, verdict.folded) == (1, 1)


def test_an_update_that_is_folded_with_its_successor_is_folded_twice():
    recorder = Recorder()
    old, new = recorder.world.update(), recorder.world.update()
    recorder.send(recorder.create(old, DEVICE), DEVICE)
    recorder.send(recorder.create(new, DEVICE, replaced=old.seq), DEVICE)
    verdict = judged(recorder)
    assert verdict.folded_twice == [(DEVICE, 7, 1)]
    assert not verdict.kept


def test_an_update_that_was_replaced_and_refused_has_broken_a_rule():
    recorder = Recorder()
    old, new = recorder.world.update(epoch=9), recorder.world.update()
    recorder.send(recorder.create(old, DEVICE), DEVICE)
    recorder.send(recorder.create(new, DEVICE, replaced=old.seq), DEVICE)
    assert judged(recorder).mismatches == [
        f"{DEVICE}/7/1 was replaced as never sent, and yet it came"
    ]


def test_a_stranger_who_was_folded_is_in_a_model_where_he_does_not_belong():
    recorder = busy_fleet()
    recorder.ledgers.pop(DEVICE)
    verdict = judged(recorder)
    assert len(verdict.strangers) > 10
    assert verdict.strangers_folded == verdict.strangers
    assert not verdict.kept
    assert any("Of these folded all the same" in line for line in verdict.sentences())


def test_a_stranger_who_was_refused_is_told_and_breaks_no_promise():
    recorder = busy_fleet()
    recorder.send(Recorder().create(recorder.world.update(epoch=9, seq=99), DEVICE), DEVICE)
    verdict = judged(recorder)
    assert (verdict.strangers, verdict.strangers_folded) == ([(DEVICE, 7, 99)], [])
    assert verdict.kept


def test_what_is_sent_once_and_never_comes_is_not_lost():
    recorder = busy_fleet()
    recorder.create(recorder.world.update(device=DEVICE), DEVICE)
    who = (DEVICE, *recorder.ledgers[DEVICE][-1][:2])
    came = (DEVICE, *recorder.ledgers[DEVICE][0][:2])
    verdict = judged(recorder, sent_once={who, came})
    assert (verdict.unsent, verdict.lost, verdict.folded) == (1, [], 40)
    assert verdict.kept
    assert "Sent once, and lost on the way: 1." in verdict.sentences()


def test_an_update_that_was_altered_before_it_was_folded_is_not_kept():
    recorder = Recorder()
    update = recorder.world.update()
    recorder.create(update, DEVICE)
    altered = replace(update, num_examples=9)
    altered_bytes = Recorder().create(altered, DEVICE)
    recorder.send(altered_bytes, DEVICE)
    verdict = judged(recorder)
    assert verdict.wrong_bytes == verdict.settled_wrong == [(DEVICE, 7, 1)]
    assert not verdict.kept


def test_an_altered_duplicate_is_told_and_breaks_no_promise():
    recorder = Recorder()
    update = recorder.world.update()
    recorder.send(recorder.create(update, DEVICE), DEVICE)
    recorder.send(Recorder().create(replace(update, num_examples=9), DEVICE), DEVICE)
    verdict = judged(recorder)
    assert verdict.wrong_bytes == verdict.changed_bytes == [(DEVICE, 7, 1)]
    assert verdict.settled_wrong == []
    assert verdict.kept


@pytest.mark.parametrize(
    "changed",
    [
        {"version": 0},
        {"updates_folded": 1},
        {"duplicates_dropped": 1},
        {"updates_rejected": {"malformed": 1}},
        {"published": {}},
        {"published": {0: "f" * 64}},
        {"published": {99: "f" * 64}},
    ],
)
def test_a_service_that_says_something_else_is_found(changed):
    verdict = judged(busy_fleet(), **changed)
    assert verdict.mismatches
    assert not verdict.kept


def test_a_service_that_has_not_published_what_is_due_is_found():
    recorder = busy_fleet()
    newest = max(recorder.published)
    del recorder.published[newest]
    assert f"version {newest} is due" in judged(recorder).mismatches[0]


def test_ledgers_that_contradict_themselves_are_found():
    line = (7, 1, sha256(b"").hexdigest(), None)
    recorder = Recorder()
    ledgers = {DEVICE: [line, line, (7, 3, "", 2)]}
    mismatches = judged(recorder, ledgers=ledgers).mismatches
    assert any("created twice" in mismatch for mismatch in mismatches)
    assert any("which nobody created" in mismatch for mismatch in mismatches)
