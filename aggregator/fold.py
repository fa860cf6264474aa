"""The fold: log entries in, model versions out.

    model v = fold(origin, log entries in order)

Pure and deterministic: no clock (time is the entry's id), no socket, no randomness. Everything it
depends on is the origin and the entries. What it wants said or stored it writes into `Changes`;
the service commits those. Where commits fall does not change what is folded.

Here an entry finds its effect on the model; what leaves the server is decided in
`aggregator.publishing`, half of the same fold.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import msgspec

from aggregator.admission import (
    Rejected,
    Standing,
    admit,
    codec_id_of,
    read_header,
    without_seal,
)
from aggregator.carrying import begun, carried, names_of
from aggregator.deciding import Decided, Observer, decided
from aggregator.fairness import shares_of
from aggregator.gate import done_because, finish_ms
from aggregator.pacing import LATE, Pacing, noted, paced, scored
from aggregator.publishing import Publisher, params_of
from aggregator.state import (
    Answer,
    Changes,
    DeadLetter,
    DeviceRecord,
    Ledger,
    Publication,
    Release,
    Sender,
    Tally,
    TaskState,
    origin_state,
)
from aggregator.strategies import (
    Advanced,
    Contribution,
    Refused,
    State,
    Strategy,
    strategy_for,
)
from schemas.errors import InvariantError
from schemas.evaluation import Evaluation, reported
from schemas.log import (
    HEAD_BYTES,
    Arrived,
    DeviceErased,
    DeviceSet,
    Entry,
    EntryId,
    EpochSet,
    Evaluated,
    Guided,
    ModelSet,
    PhaseSet,
    PinSet,
    ReleaseSet,
    SpecSet,
    Tick,
)
from schemas.messages import ModelUpdate
from schemas.names import Boot, DeviceId, Epoch
from schemas.outcomes import FOLDED, Reason, outcome_name
from schemas.pace import SCORE
from schemas.params import Params, travelling
from schemas.strategy import gain_of
from schemas.task import Phase, TaskSpec, spec_from_json, spec_to_json
from schemas.window import SeqWindow

FOLD_ID: Final = "fold-1"
"""The arithmetic. Changed arithmetic is a new name, recorded in every checkpoint."""


BOOTS_MAX: Final = 64
"""Boots of one device whose settled numbers are kept: what one device can make us remember. It
makes updates only while all that it has open is of its newest 16 lives."""


class Fold:
    """Applies entries to a TaskState that it owns, and collects the Changes.

    `observer` is told of every update that is decided (a duplicate was before). Contributions of
    `silenced` devices are admitted and keep their place in buffer and versions, but weigh nothing.
    """

    def __init__(
        self,
        state: TaskState,
        *,
        observer: Observer | None = None,
        silenced: frozenset[DeviceId] = frozenset(),
    ) -> None:
        self._observer = observer
        self._silenced = silenced
        self._ledger = Ledger(state)
        self._strategy: Strategy | None = None
        self._standing: Standing | None = None
        self._publisher = Publisher(self._ledger, 0)
        self._shares = shares_of(record.folded for record in state.devices.values())
        if state.spec is not None:
            self._obey(state.spec)

    @property
    def state(self) -> TaskState:
        """What was folded so far."""
        return self._ledger.state

    @property
    def changes(self) -> Changes:
        """What has changed since it was taken."""
        return self._ledger.changes

    def take_changes(self) -> Changes:
        """Hand over what has changed since the last call."""
        return self._ledger.take_changes()

    def apply_all(self, entries: Iterable[Entry]) -> None:
        """Fold entries in order."""
        for entry in entries:
            self.apply(entry)

    def apply(self, entry: Entry) -> None:
        """Fold one entry. Raises InvariantError when the log runs backwards."""
        state = self.state
        if entry.id <= state.cursor:
            msg = f"entry {entry.id} does not follow {state.cursor}"
            raise InvariantError(msg)
        state.cursor = entry.id
        state.started_ms = state.started_ms or entry.id.ms
        ms = entry.id.ms
        match entry.body:
            case Arrived() as arrived:
                self._arrive(entry.id, arrived)
            case SpecSet(json):
                self._respecify(json)
            case Tick():
                self._flush_if_due(ms)
            case command:
                self._obey_people(ms, command)
        self._pass_time(ms)

    def _obey_people(
        self,
        ms: int,
        command: PhaseSet
        | DeviceSet
        | DeviceErased
        | PinSet
        | ModelSet
        | Evaluated
        | Guided
        | ReleaseSet
        | EpochSet,
    ) -> None:
        """Carry out what the operator, or the server's own judge, has written into the log."""
        publisher, state = self._publisher, self.state
        match command:
            case PhaseSet(phase):
                self._enter(phase, ms)
            case DeviceSet() as changed:
                self._set_device(changed, ms)
            case DeviceErased(device):
                self._erase(device, ms)
            case PinSet(tag, version):
                publisher.pin(tag, version, ms)
            case ModelSet(blob, version):
                self._set_model(blob, version, ms)
            case Evaluated(version, num_examples, metrics):
                publisher.reported(version, Evaluation(num_examples, metrics), by_server=True)
            case Guided(_, delta):
                self._heed(delta)
            case ReleaseSet(version, publish) if state.spec is not None:
                back = publisher.decide(state.spec, version, ms, publish=publish)
                self._go_back(back, ms)
            case EpochSet(epoch):
                self._move_to(Epoch(epoch), ms)

    def _heed(self, delta: bytes) -> None:
        """Let updates be compared with this step of the server's own, if a guard is there to."""
        spec, model = self.state.spec, self.state.model
        if spec is None or spec.strategy.robust.guard == "none":
            return
        guide = params_of(delta)
        if guide.size != model.vectors["params"].size:
            msg = f"a guide of {guide.size} numbers for {model.vectors['params'].size}"
            raise InvariantError(msg)
        self.state.model = replace(model, vectors={**model.vectors, "guide": guide})
        self.changes.vectors.add("guide")

    def _move_to(self, epoch: Epoch, ms: int) -> None:
        """Another epoch: everything that names it is said anew."""
        state = self.state
        self._publisher.move_to(epoch)
        self._refresh()
        if state.spec is not None:
            self._say_spec(state.spec)
        self.changes.pace |= state.pacing.said is not None
        self._ledger.tell(ms, "moved", epoch=epoch)

    def next_deadline_ms(self) -> int | None:
        """When a Tick would change something, in milliseconds since 1970; None for never."""
        state, spec = self.state, self.state.spec
        if spec is None:
            return None
        due = [self._publisher.deadline_ms(spec)]
        if state.model.buffered and spec.strategy.flush_after_s:
            due.append(state.buffered_ms + round(spec.strategy.flush_after_s * 1000))
        if spec.finish.seconds and state.phase != "finished":
            due.append(finish_ms(spec.finish, state))
        return min((ms for ms in due if ms is not None), default=None)

    # -- specification ---------------------------------------------------------------------

    def _obey(self, spec: TaskSpec) -> None:
        state = self.state
        self._strategy = strategy_for(spec.strategy, spec.params.buffers)
        self._publisher = Publisher(self._ledger, self._strategy.views)
        self._standing = Standing(
            spec=spec,
            codec_ids=frozenset({*state.codecs, codec_id_of(spec)}),
            size=spec.params.wire_size,
            spec_digest=spec.params.short_digest,
            epoch=state.epoch,
            version=state.model.version,
            bases=state.bases,
        )

    def _refresh(self) -> None:
        """Admit by the epoch and version that hold now."""
        if self._standing is not None:
            now = self.state
            self._standing = replace(self._standing, epoch=now.epoch, version=now.model.version)

    def _respecify(self, json: bytes) -> None:
        """Follow another TaskSpec from here on; what waits in the buffer is folded first."""
        state = self.state
        spec = spec_from_json(json)
        self._check_tensors(spec)
        first = state.spec is None
        if state.spec is not None:
            spec = msgspec.structs.replace(spec, init=state.spec.init)
        if first and spec.params.wire_size != spec.params.size:
            whole = state.model.vectors["params"]
            state.fixed = whole.copy()
            self.changes.vectors.add("fixed")
            state.model = State(state.model.version, {"params": travelling(spec.params, whole)})
        self.changes.vectors |= names_of(state.model)
        while self._strategy is not None and state.model.buffered:
            state.model, _ = self._strategy.flush(state.model)
        old, before = state.model, None if state.spec is None else state.spec.strategy
        strategy = strategy_for(spec.strategy, spec.params.buffers)
        state.model = carried(old, strategy.init(old.vectors["params"]), before, spec.strategy)
        state.buffered_ms = 0
        state.spec = spec
        state.codecs = tuple(sorted({*state.codecs, codec_id_of(spec)}))
        state.sealed = state.sealed or spec.codec.checksum
        self._obey(spec)
        self._publisher.choose_lattice(spec, first=first)
        if strategy.views and not state.views:
            self._publisher.begin_anew()  # it mixes against published models: publish one now
        self.changes.vectors |= names_of(state.model)
        self._say_spec(spec)

    def _check_tensors(self, spec: TaskSpec) -> None:
        """The tensors of a task never change, nor what trains them."""
        state = self.state
        if state.spec is None:
            fits = spec.params.size == state.model.vectors["params"].size
        else:
            fits = spec.params.digest == state.spec.params.digest
            fits = fits and spec.bundle == state.spec.bundle
        if not fits:
            msg = "a task cannot change its tensors or its bundle"
            raise InvariantError(msg)

    def _say_spec(self, spec: TaskSpec) -> None:
        """Publish the specification, with the task's phase and gain in it."""
        gain = gain_of(spec.strategy)
        said = msgspec.structs.replace(spec, phase=self.state.phase, gain=gain)
        self.changes.spec = spec_to_json(said)

    # -- what people decide ----------------------------------------------------------------

    def _enter(self, phase: Phase, ms: int, why: str = "as told") -> None:
        state = self.state
        if state.phase == phase:
            return
        state.phase = phase
        if phase == "running":
            state.since_best = 0
        self._ledger.tell(ms, phase, why=why)
        if state.spec is not None:
            self._say_spec(state.spec)

    def _set_device(self, changed: DeviceSet, ms: int) -> None:
        record = self._ledger.device(changed.device)
        if changed.banned is not None and changed.banned != record.banned:
            record.banned = changed.banned
            if not record.banned:
                self.changes.answers.pop(changed.device, None)
                self.changes.allowed.add(changed.device)
            self._ledger.tell(ms, "banned" if record.banned else "allowed", device=changed.device)
        if changed.tags is not None:
            record.tags = tuple(sorted(changed.tags))
            self._publisher.pin_device(changed.device)

    def _erase(self, device: DeviceId, ms: int) -> None:
        """Leave only the ban, so that the device does not come back unseen."""
        state, changes = self.state, self.changes
        for sender in [sender for sender in state.windows if sender[0] == device]:
            del state.windows[sender]
            changes.senders.discard(sender)
            changes.gone_senders.add(sender)
        if device in state.devices:
            self._shares.forget(state.devices[device].folded)
        if self._strategy is not None:
            state.model, changed = self._strategy.forget(state.model, device)
            changes.vectors |= changed
            state.buffered_ms = state.buffered_ms if state.model.buffered else 0
        state.devices[device] = DeviceRecord(banned=True)
        changes.devices.add(device)
        changes.answers.pop(device, None)
        changes.erased.add(device)
        state.pins.pop(device, None)
        self._publisher.pin_device(device)
        self._ledger.tell(ms, "erased", device=device)

    def _set_model(self, blob: bytes, version: int, ms: int) -> None:
        """Go back to the parameters of a published version, as a new version."""
        state = self.state
        whole = params_of(blob)
        size = state.model.vectors["params"].size if state.fixed is None else state.fixed.size
        if state.spec is None or whole.size != size:
            msg = f"a model of {whole.size} parameters does not fit the task"
            raise InvariantError(msg)
        self._become(travelling(state.spec.params, whole), version, ms)

    def _go_back(self, params: Params | None, ms: int) -> None:
        """Go back to the last published model, when the gate says so."""
        last = self.state.published
        if params is not None and last is not None:
            self._become(params, last.version, ms)

    def _become(self, params: Params, version: int, ms: int) -> None:
        """A new version with these parameters; buffer, momentum and later versions are void."""
        state = self.state
        assert self._strategy is not None  # noqa: S101 - there is a specification
        old = state.model
        state.model = begun(old, self._strategy.init(params))
        self.changes.vectors |= names_of(old) | names_of(state.model)
        self._publisher.withdraw_after(version)
        state.proposed = None
        self._advanced(ms)
        self._ledger.tell(ms, "rolled_back", to=version)

    # -- arrivals --------------------------------------------------------------------------

    def _arrive(self, entry_id: EntryId, arrived: Arrived) -> None:
        if self._standing is None:
            msg = "an update before the first specification"
            raise InvariantError(msg)
        record = self._hear(entry_id, arrived)
        header, arrived = self._opened(arrived, self._standing)
        if isinstance(header, Rejected):
            self._bury(entry_id, arrived, header, record)
            self._observe(entry_id, arrived.device, None, int(header.reason))
            nameless = Answer(Boot(0), 0, header.reason)
            self.changes.answers.setdefault(arrived.device, nameless)
            return
        sender = (arrived.device, header.boot)
        window = self.state.windows.get(sender, SeqWindow())
        known = window.outcome(header.seq)
        if known:
            self.state.tally.duplicates += 1
            record.duplicates += not record.banned
            self.changes.answers[arrived.device] = Answer(header.boot, header.seq, known)
            return
        outcome = self._decide(entry_id, arrived, header, record)
        settled = window.settle(header.seq, outcome)
        stand_in = None
        if record.banned and sender not in self.state.windows:
            stand_in = settled  # nothing is kept of it but that it is banned
        else:
            if sender not in self.state.windows:
                self._join(arrived.device, header.boot, record, entry_id.ms)
            self.state.windows[sender] = settled
            self.changes.senders.add(sender)
            self.changes.gone_senders.discard(sender)
        answer = Answer(header.boot, header.seq, outcome, stand_in)
        self.changes.answers[arrived.device] = answer

    def _opened(
        self, arrived: Arrived, standing: Standing
    ) -> tuple[ModelUpdate | Rejected, Arrived]:
        """Who the message says it is, and the message without its seal."""
        if self.state.sealed:
            found = without_seal(arrived, required=standing.spec.codec.checksum)
            if isinstance(found, Rejected):
                return found, arrived
            arrived = found
        return read_header(arrived, standing), arrived

    def _join(self, device: DeviceId, boot: Boot, record: DeviceRecord, ms: int) -> None:
        """A new spool: the oldest of too many of one device is forgotten."""
        boots = (*record.boots, boot)
        record.boots = boots[-BOOTS_MAX:]
        for old in boots[:-BOOTS_MAX]:
            sender = (device, Boot(old))
            self.state.windows.pop(sender, None)
            self.changes.senders.discard(sender)
            self.changes.gone_senders.add(sender)
        self._ledger.tell(ms, "joined", device=device, boot=boot)

    def _hear(self, entry_id: EntryId, arrived: Arrived) -> DeviceRecord:
        """Note that a device has sent something; of a banned one nothing is noted."""
        known = self.state.devices.get(arrived.device)
        if known is not None and known.banned:
            return known
        record = self._ledger.device(arrived.device)
        if known is None:
            self._publisher.pin_device(arrived.device)
        record.first_ms = record.first_ms or entry_id.ms
        record.last_ms = entry_id.ms
        record.bytes_up += arrived.size
        return record

    def _decide(
        self, entry_id: EntryId, arrived: Arrived, header: ModelUpdate, record: DeviceRecord
    ) -> int:
        """Admit and fold, or refuse: one outcome byte."""
        standing = self._standing
        assert standing is not None  # noqa: S101 - _arrive has looked
        verdict = self._barred(record) or admit(arrived, header, standing)
        if isinstance(verdict, Rejected):
            return self._refuse(entry_id, arrived, header, verdict, record)
        scale = self._shares.factor(record.folded, standing.spec.strategy.fairness)
        silenced = arrived.device in self._silenced
        verdict = replace(verdict, scale=0.0 if silenced else scale)
        into = self.state.model.version + 1
        weight = self._fold(entry_id.ms, verdict)
        if isinstance(weight, Rejected):
            return self._refuse(entry_id, arrived, header, weight, record)
        self._shares.count(record.folded)
        self._observe(entry_id, arrived.device, header, FOLDED, (weight, into, verdict))
        tally = self.state.tally
        tally.folded += 1
        tally.staleness_sum += verdict.staleness
        tally.staleness_max = max(tally.staleness_max, verdict.staleness)
        tally.payload_bytes += len(header.payload)
        tally.weight += weight
        record.folded += 1
        if standing.spec.pace.concurrency:
            self._note_pace(standing.spec, verdict.base_version, header.metrics.get(SCORE))
        record.staleness_sum += verdict.staleness
        record.weight += weight
        record.base = max(record.base, verdict.base_version)
        found = reported(header.metrics)
        if found is not None:
            self._publisher.reported(verdict.base_version, found, by_server=False)
        return FOLDED

    def _refuse(
        self,
        entry_id: EntryId,
        arrived: Arrived,
        header: ModelUpdate,
        rejected: Rejected,
        record: DeviceRecord,
    ) -> int:
        """Bury an update and tell of it: its outcome byte."""
        self._bury(entry_id, arrived, rejected, record)
        self._observe(entry_id, arrived.device, header, int(rejected.reason))
        return int(rejected.reason)

    def _observe(
        self,
        entry_id: EntryId,
        device: DeviceId,
        header: ModelUpdate | None,
        outcome: int,
        folded: tuple[float, int, Contribution] | None = None,
    ) -> None:
        """Tell whoever watches what became of an update."""
        if self._observer is None:
            return
        now = self.state.model.version
        self._observer(decided(entry_id, device, header, outcome, now=now, folded=folded))

    def _barred(self, record: DeviceRecord) -> Rejected | None:
        """Whether anything at all is taken, and from this device."""
        if record.banned:
            return Rejected(Reason.BANNED, "the operator takes nothing from this device")
        if self.state.phase == "finished":
            return Rejected(Reason.FINISHED, "the task is finished")
        return None

    def _fold(self, ms: int, contribution: Contribution) -> float | Rejected:
        """Fold a contribution; return its weight, or why the strategy does not believe it."""
        state = self.state
        assert self._strategy is not None  # noqa: S101 - set together with the standing
        views = {version: state.views[version] for version in state.bases if state.views}
        state.model, outcome = self._strategy.fold(state.model, contribution, views)
        if isinstance(outcome, Refused):
            return Rejected(outcome.reason, outcome.detail)
        self.changes.vectors |= outcome.changed
        if isinstance(outcome, Advanced):
            self._advanced(ms)
        elif not state.buffered_ms:
            state.buffered_ms = ms
        return outcome.weight

    def _advanced(self, ms: int) -> None:
        state = self.state
        state.buffered_ms = ms if state.model.buffered else 0  # a row may wait for its turn
        assert state.spec is not None  # noqa: S101 - nothing folds before a specification
        oldest = state.model.version - state.spec.strategy.staleness_bound
        newest = max(state.bases, default=0)
        for version in [v for v in state.bases if v < oldest and v != newest]:
            del state.bases[version]
        self._refresh()

    def _bury(
        self, entry_id: EntryId, arrived: Arrived, rejected: Rejected, record: DeviceRecord
    ) -> None:
        name = outcome_name(rejected.reason)
        counts = self.state.tally.rejected
        counts[name] = counts.get(name, 0) + 1
        if record.banned:
            return  # counted and answered, but nothing of it is kept
        record.rejected += 1
        head = bytes(arrived.data[:HEAD_BYTES])
        letter = DeadLetter(entry_id, arrived.device, name, rejected.detail, head)
        self.changes.dead.append(letter)
        facts = {"device": arrived.device, "reason": name, "why": rejected.detail}
        self._ledger.tell(entry_id.ms, "rejected", **facts)

    # -- time ------------------------------------------------------------------------------

    def _flush_if_due(self, ms: int) -> None:
        state, spec = self.state, self.state.spec
        if spec is None or self._strategy is None or not spec.strategy.flush_after_s:
            return
        if not state.model.buffered:
            return
        if ms < state.buffered_ms + round(spec.strategy.flush_after_s * 1000):
            return
        state.model, outcome = self._strategy.flush(state.model)
        if isinstance(outcome, Advanced):
            self.changes.vectors |= outcome.changed
            self._advanced(ms)

    def _note_pace(self, spec: TaskSpec, base: int, score: float | None) -> None:
        """One update more tells how many train at once, and maybe how much it was wanted."""
        state = self.state
        state.pacing = noted(state.pacing, spec, base=base, folded=state.tally.folded)
        if score is not None:
            state.pacing = scored(state.pacing, score)

    def _pace(self, spec: TaskSpec) -> None:
        """After a publication: is another share of the fleet to train?"""
        state, before = self.state, self.state.pacing
        if not spec.pace.concurrency:
            fresh = Pacing()
        elif state.published is None or state.published.version == before.version:
            return
        else:
            tally = state.tally
            fresh = paced(
                before,
                spec,
                version=state.published.version,
                folded=tally.folded,
                late=tally.rejected.get(LATE, 0),
            )
        state.pacing = fresh
        self.changes.pace |= fresh.said != before.said

    def _pass_time(self, ms: int) -> None:
        """After every entry: publish or judge what is due, and see whether the task is done."""
        state, spec = self.state, self.state.spec
        if spec is None:
            return
        back = self._publisher.step(spec, ms)
        if back is not None:
            self._go_back(back, ms)
            self._publisher.step(spec, ms)
        self._pace(spec)
        if state.phase == "running" and (why := done_because(spec.finish, state, ms)):
            self._enter("finished", ms, why)
            if state.model.version != state.proposed and state.candidate is None:
                self._publisher.propose(spec, ms, at_once=not spec.gate.metric)


__all__ = [
    "FOLD_ID",
    "Answer",
    "Changes",
    "DeadLetter",
    "Decided",
    "Fold",
    "Observer",
    "Publication",
    "Release",
    "Sender",
    "Tally",
    "TaskState",
    "origin_state",
]
