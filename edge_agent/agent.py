"""The agent: adopt a model, train, compress, spool, send, and keep at it until the Receipt comes.

Two lives side by side: training, which never needs the network, and the link, which never needs
the trainer. They meet in the spool. Crash-only: everything that must survive is on the disk.

    async with Agent(settings, trainer) as agent:
        async for model in agent.models():
            serve(model.tensors)
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic, time
from types import TracebackType
from typing import Final, Self, TypeVar

import msgspec
import numpy as np

from edge_agent import disk
from edge_agent.allowance import told
from edge_agent.bundles import missing
from edge_agent.conditions.looking import Unmet, looking, readings_of
from edge_agent.link import Connection, Link
from edge_agent.local_model import read_only, with_local
from edge_agent.pacing import Pacer
from edge_agent.rounds import Adopted, Entropy, OnCreated, Round, Rounds, entropy_of
from edge_agent.settings import AgentSettings
from edge_agent.spool import DiskFull, Spool
from edge_agent.trainer import Bundled, Trainer
from edge_agent.worker import done_aside
from lifetimes.together import end, together
from mqtt_session.backoff import Backoff
from mqtt_session.session import Will, connect, keep_connected
from schemas.errors import ConfigError
from schemas.lattice import KEYFRAME
from schemas.messages import Manifest
from schemas.names import DeviceId, Seq, TaskName, device_id, task_name
from schemas.pace import Facts
from schemas.params import Params, model_digest
from schemas.task import TaskSpec, device_spec_from_json
from schemas.topics import TaskTopics, checked_prefix
from schemas.uplink import read_uplink
from schemas.watch import DeviceState
from schemas.wire import decode_manifest, encode_manifest

log = logging.getLogger("fedmq.agent")

_Result = TypeVar("_Result")

RETRY: Final = Backoff(30.0, 3600.0)
"""How long to wait after a trainer, or the disk, has failed, and failed again."""


@dataclass(frozen=True, slots=True)
class GlobalModel:
    """A model that the device has adopted.

    Attributes:
        epoch: the task's epoch.
        version: its number.
        tensors: by name, read-only float32; `local` ones are this device's own.
    """

    epoch: int
    version: int
    tensors: Mapping[str, Params]


class Agent:
    """One device in one task: run it, or live beside it with `async with`.

    Args:
        settings: who it is and where the broker is.
        trainer: the user's.
        spool: the device's disk; None: the one that the settings name, closed at the end.
        entropy: the generator for the n-th round of training; None: by the settings' seed.
        rng: for the jitter of the link; None: by the settings' seed.
        on_created: see OnCreated.
        unmet: looks at the device before it trains; None: with all that this device has.
        connection: the user's own MQTT connection; None: the agent makes its own.

    Raises:
        ConfigError: a name, the prefix or the spool cannot work.
    """

    def __init__(
        self,
        settings: AgentSettings,
        trainer: Trainer,
        spool: Spool | None = None,
        *,
        entropy: Entropy | None = None,
        rng: random.Random | None = None,
        on_created: OnCreated = lambda _boot, _seq, _replaced, _message: None,
        unmet: Unmet | None = None,
        connection: Connection | None = None,
    ) -> None:
        self._settings = settings
        self._owns_spool = spool is None
        where = Path(settings.state_dir) / settings.spool_name
        self._spool = spool or Spool(where, disk_mb=settings.disk_mb)
        # jitter only; the shell makes the generators that the core is given
        self._rng = rng or random.Random(None if settings.seed < 0 else settings.seed)  # noqa: S311
        self._unmet = unmet or looking(settings, trainer)
        self._connection = connection
        self._running: asyncio.Task[None] | None = None
        self._pulse = asyncio.Event()
        self._resting = ""
        self._rests_on: Adopted | None = None
        self._device: DeviceId = device_id(settings.device)
        self._task: TaskName = task_name(settings.task)
        self._topics = TaskTopics(checked_prefix(settings.prefix), self._task)
        self._news = asyncio.Event()
        self._spec: TaskSpec | None = None
        self._model: Adopted | None = None
        self._pacer = Pacer(self._device, self._spool.load("pace"))
        self._readings = readings_of(settings, trainer)
        self._rounds = Rounds(
            trainer,
            self._spool,
            entropy=entropy or entropy_of(settings.seed),
            watts=settings.watts,
            on_created=on_created,
            pacer=self._pacer,
        )
        self._draining = False
        self._working = False
        self._failures = 0
        self._trainer = trainer
        self._is_bundled = isinstance(trainer, Bundled)
        self._link = Link(
            settings,
            self._topics,
            self._device,
            self._spool,
            rng=self._rng,
            on_news=self._reload,
            bundled=self._is_bundled,
        )

    async def run(self) -> None:
        """Take part until cancelled; a round that runs then is told to stop (`Trainer`)."""
        with suppress(DiskFull):  # it is read again at every connect
            await self._reload()
        await together(self._keep_linked(), self._keep_training())

    def drain(self) -> None:
        """Begin no further round; what is open is still sent until it is settled."""
        self._draining = True
        self._news.set()

    @property
    def online(self) -> bool:
        """Whether the device is connected."""
        return self._link.online

    # -- beside a user's program -----------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Begin to take part, beside whatever else the program does."""
        self._running = asyncio.create_task(self.run(), name=f"fedmq.agent[{self._task}]")
        self._running.add_done_callback(lambda _task: self._beat())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop; what is open stays on the disk. Passes on what has ended the agent before."""
        running, self._running = self._running, None
        failure = running.exception() if running and running.done() else None
        if running is not None:
            await end([running])
        if self._owns_spool:
            self._spool.close()
        if failure is not None and exc is None:
            raise failure

    async def models(self) -> AsyncIterator[GlobalModel]:
        """The model that is here, and every one that is adopted from now on.

        A model that is overtaken before it is asked for is left out. Raises what ended the agent.
        """
        seen: Adopted | None = None
        while True:
            seen, spec = await self._other_than(seen), self._spec
            if seen is not None and spec is not None:
                local = await asyncio.to_thread(self._spool.local)
                params = with_local(spec.params, seen.params, local)
                manifest = seen.manifest
                tensors = read_only(spec.params, params)
                yield GlobalModel(manifest.epoch, manifest.version, tensors)

    async def _other_than(self, seen: Adopted | None) -> Adopted | None:
        await self.until(lambda: self._model is not seen)
        return self._model

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds, looking whenever anything has changed.

        Raises what ended the agent, if it ends before.
        """
        while not holds():
            if self._running is not None and self._running.done():
                self._running.result()
                return
            await self._pulse.wait()

    def _beat(self) -> None:
        """Something has changed: whoever waits looks again."""
        self._pulse.set()
        self._pulse = asyncio.Event()

    @property
    def version(self) -> int | None:
        """The version that is adopted; None before the first."""
        return None if self._model is None else self._model.manifest.version

    @property
    def caught_up(self) -> bool:
        """Whether the newest model that counts for this device is adopted."""
        if self._model is None or not self._link.caught_up:
            return False
        return self._spool.load("manifest") == encode_manifest(self._model.manifest)

    @property
    def held_s(self) -> float:
        """How long until what is due may go up, of the bytes a day that the task allows."""
        return self._link.held_s

    @property
    def resting(self) -> str:
        """Why nothing is trained from the model that is here; empty while that is not known."""
        return self._resting if self._rests_on is self._model else ""

    @property
    def working(self) -> bool:
        """Whether the trainer trains just now, or gets ready for it."""
        return self._working

    @property
    def created(self) -> int:
        """Updates that were ever created on this disk."""
        return self._spool.created

    @property
    def replaced(self) -> int:
        """Updates that were replaced before they were sent, on this disk."""
        return self._spool.superseded

    @property
    def open_updates(self) -> int:
        """Updates that wait for their Receipt."""
        return len(self._spool.open_updates())

    # -- the link --------------------------------------------------------------------------

    async def _keep_linked(self) -> None:
        backoff = Backoff(min(1.0, self._settings.reconnect_s), self._settings.reconnect_s)
        await keep_connected(self._door, self._link.use, rng=self._rng, backoff=backoff)

    def _door(self) -> AbstractAsyncContextManager[Connection]:
        if self._connection is not None:
            return nullcontext(self._connection)
        state = self._topics.state(self._device)
        will = Will(state, msgspec.json.encode(DeviceState(online=False, boot=self._spool.boot)))
        return connect(self._settings, client_id=self._device, clean=True, will=will)

    # -- the model -------------------------------------------------------------------------

    async def _reload(self) -> None:
        """Take up what the spool holds now: the specification, and a newer model."""
        spec, manifest = await asyncio.to_thread(self._stored)
        if spec is not None:
            self._spec = spec
        if spec is not None and manifest is not None and self._is_news(manifest):
            params = await asyncio.to_thread(self._stored_params, spec, manifest)
            if params is not None and self._is_news(manifest):  # not adopted meanwhile
                self._model = Adopted(manifest, params)
                log.info("adopted epoch=%d version=%d", manifest.epoch, manifest.version)
        self._news.set()
        self._beat()

    def _is_news(self, manifest: Manifest) -> bool:
        return self._model is None or self._model.manifest != manifest

    def _stored(self) -> tuple[TaskSpec | None, Manifest | None]:
        spec, manifest = self._spool.load("spec"), self._spool.load("manifest")
        return (
            None if spec is None else device_spec_from_json(spec),
            None if manifest is None else decode_manifest(manifest),
        )

    def _stored_params(self, spec: TaskSpec, manifest: Manifest) -> Params | None:
        """The model's parameters, if they are what manifest and specification say."""
        raw = self._spool.load("params")
        if raw is None or len(raw) != 4 * spec.params.size:
            return None
        if manifest.codec not in (0, KEYFRAME):
            return None
        if not spec.params.digest.startswith(manifest.spec_digest):  # all of it, or its beginning
            return None
        params = np.frombuffer(raw, dtype="<f4")
        if not model_digest(spec.params.digest, params).startswith(manifest.model_digest):
            return None
        return params.astype(np.float32, copy=False)

    # -- training --------------------------------------------------------------------------

    async def _keep_training(self) -> None:
        while not self._draining:
            try:
                await self._train_or_rest()
            except DiskFull as exc:
                self._failures += 1
                pause = RETRY.bound_s(self._failures)
                # TRY400: a full disk is no place in the code
                log.error("disk_full error=%s: trying again in %.0f s", exc, pause)  # noqa: TRY400
                await asyncio.sleep(pause)
        self._resting, self._rests_on = "it was told to stop", self._model
        self._beat()
        await asyncio.Event().wait()  # the link lives on, for what is still open

    async def _train_or_rest(self) -> None:
        model, spec = self._model, self._spec
        if spec is not None:
            self._check_disk(spec)
        if model is None or spec is None:
            await self._rest(self._lacking(spec) or "no model is here yet")
        elif not await self._is_equipped(spec):
            return
        elif barred_s := self._link.barred_s:
            await self._rest("the server takes nothing from this device: banned", barred_s)
        elif self._spool.trained == model.base:
            await self._rest("this model was trained from")
        elif not self._has_room(spec):
            why = f"{self.open_updates} updates wait for their Receipt"
            log.warning("outbox_full: %s", why)
            await self._rest(why)
        elif held_s := self._held_s(spec):
            await self._save_up(held_s)
        elif unmet := await self._times_are_bad(spec):
            await self._wait_for_better_times(unmet)
        elif waits_s := await self._waits_s(model, spec):
            # a timer that stood still while the device slept is looked past by its clock
            longest_s = min(waits_s, self._settings.conditions_every_s)
            await self._rest("not drawn for this model", longest_s)
        else:
            self._resting = ""
            await self._train_on(model, spec)

    def _check_disk(self, spec: TaskSpec) -> None:
        """Refuse a bound in which the task cannot live."""
        bound, needed = self._spool.disk_mb, disk.megabytes_needed(spec)
        if 0 < bound < needed:
            raise ConfigError("disk_mb", f"{bound} MB cannot hold this task: give {needed}")

    def _lacking(self, spec: TaskSpec | None) -> str:
        """Why a trainer that trains with a task's bundle has none; empty: it has, or needs none."""
        if spec is None or not self._is_bundled:
            return ""
        if spec.bundle is not None:
            return missing(self._spool, spec)
        why = f"the task {self._task!r} has no bundle, and the trainer trains with nothing else"
        if why != self._resting:
            remedy = "create it with --bundle, or give this device a trainer of its own (--trainer)"
            log.error("trainer: %s: %s", why, remedy)
        return why

    def _has_room(self, spec: TaskSpec) -> bool:
        """Whether another number may be opened, and the largest update of the task would fit."""
        if not self._spool.has_room:
            return False
        bound = self._spool.disk_mb * disk.MB
        room = disk.room_for_updates(bound, spec)
        return not bound or self._spool.open_bytes + disk.update_bytes(spec) <= room

    def _held_s(self, spec: TaskSpec) -> float:
        """How long until one more update may go up, behind those that wait to be sent."""
        if not read_uplink(spec.uplink).day_bytes:
            return 0.0
        waiting = [len(each.message) for each in self._spool.open_updates() if not each.sent]
        return self._link.next_s(spec, waiting)

    async def _save_up(self, held_s: float) -> None:
        """Wait until the next packet may go up; say so once of every model."""
        why = f"the uplink's allowance: {told(held_s)} until the next packet"
        if not self.resting.startswith("the uplink's allowance"):
            log.info("not_training: %s", why)
        await self._rest(why, held_s)

    async def _rest(self, why: str, longest_s: float | None = None) -> None:
        """Wait for news, but not longer than this."""
        self._resting, self._rests_on = why, self._model
        self._beat()
        try:
            async with asyncio.timeout(longest_s):
                await self._news.wait()
        except TimeoutError:
            return
        self._news.clear()

    async def _is_equipped(self, spec: TaskSpec) -> bool:
        """Whether there is something to train with, and for; if not, it has rested.

        A trainer is given the bundle of a task that rests, too: it may collect samples, or serve.
        """
        why, level = self._lacking(spec), logging.INFO
        try:
            if not why and not self._rounds.is_equipped(spec):
                await self._aside(partial(self._rounds.hand_over, spec))
        except (ConfigError, DiskFull):
            raise
        except ValueError as exc:  # nothing that passes by itself, as a condition does
            why, level = str(exc), logging.WARNING
        except Exception as exc:  # noqa: BLE001 - user's code, or a library's
            await self._wait_for_another(spec, exc)
            return False
        if not why and spec.phase != "running":
            why = f"the task is {spec.phase}"
        if why:
            await self._wait_for_better_times([why], level)
        return not why

    async def _wait_for_another(self, spec: TaskSpec, exc: Exception) -> None:
        """The trainer has choked on a bundle: wait for a while, or until the task has another."""
        why = f"the trainer did not take the task's bundle: {exc!r}"
        until = monotonic() + self._failed(exc)
        while not self._draining and self._spec is not None and (left_s := until - monotonic()) > 0:
            if (self._spec.bundle, self._spec.input) != (spec.bundle, spec.input):
                return
            await self._rest(why, left_s)

    async def _times_are_bad(self, spec: TaskSpec) -> Sequence[str]:
        """What speaks against training now, a sentence each."""
        return await asyncio.to_thread(self._looked, spec)

    def _looked(self, spec: TaskSpec) -> Sequence[str]:
        lacks = getattr(self._trainer, "lacks", None)
        lack = str(lacks()) if callable(lacks) else ""
        return [*filter(None, [lack]), *self._unmet(spec.train.when)]

    async def _wait_for_better_times(self, unmet: Sequence[str], level: int = logging.INFO) -> None:
        """Look again later, or when there is news; say why only when it is another reason."""
        why = "; ".join(unmet)
        if why != self._resting:
            log.log(level, "not_training: %s", why)
        await self._rest(why, self._settings.conditions_every_s)

    async def _waits_s(self, model: Adopted, spec: TaskSpec) -> float:
        """How long until the device draws again whether it trains; 0: it does."""
        if not spec.pace.concurrency:
            return 0.0
        now = await asyncio.to_thread(self._readings)
        folded = self._spool.created - self._spool.superseded
        facts = Facts(now.battery, now.unmetered, self._link.left_share, folded=folded)
        self._pacer.hint = self._link.hint
        waits_s = self._pacer.waits_s(spec.pace, model.base, monotonic(), time(), facts)
        if (record := self._pacer.unwritten) is not None:
            with suppress(DiskFull):  # then a start more or less is forgotten
                await asyncio.to_thread(self._spool.save, pace=record)
                self._pacer.written(record)
        return waits_s

    def _may_replace(self, seq: Seq, spec: TaskSpec) -> bool:
        """Whether an update is still unsent, and there is a number for what replaces it."""
        return self._spool.is_unsent(self._spool.boot, seq) and self._has_room(spec)

    async def _train_on(self, model: Adopted, spec: TaskSpec) -> None:
        """Train from one base; go on while the update is unsent and no newer model is here."""
        state = Round(model.params)
        while state.number < spec.train.rounds_per_base and self._model is model:
            if self._draining:
                return
            if state.seq is not None and not self._may_replace(state.seq, spec):
                return
            if state.number and await self._times_are_bad(spec):
                return
            try:
                state = await self._aside(partial(self._rounds.one, model, spec, state))
            except (ConfigError, DiskFull):
                raise
            except Exception as exc:  # noqa: BLE001 - user's code
                await asyncio.sleep(self._failed(exc))
                continue
            self._failures = 0
            self._link.wake()
            self._beat()
            if self._link.online:
                return

    async def _aside(self, work: Callable[[], _Result]) -> _Result:
        """Let the trainer work; when the agent is to end, it is told so."""
        self._working = True
        try:
            return await done_aside(work, self._tell_to_stop)
        finally:
            self._working = False
            self._beat()

    def _tell_to_stop(self) -> None:
        self._rounds.stop()
        stop = getattr(self._trainer, "stop", None)
        if callable(stop):
            stop()

    def _failed(self, exc: Exception) -> float:
        """Say how the trainer has failed; how long to wait now, each time longer."""
        self._failures += 1
        pause = RETRY.bound_s(self._failures)
        # a ValueError is a sentence to its user; anything else is to be looked for
        where = None if isinstance(exc, ValueError) else exc
        told = "trainer_failed error=%s: trying again in %.0f s"
        log.log(logging.ERROR, told, exc, pause, exc_info=where)
        return pause
