"""The agent: adopt a model, train, compress, spool, send, and keep at it until the Receipt comes.

Two lives side by side: training, which never needs the network, and the link, which never needs
the trainer. They meet in the spool. Crash-only: everything that must survive is on the disk.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, TypeAlias

import msgspec
import numpy as np

from edge_agent.compressor import compress
from edge_agent.link import Link
from edge_agent.settings import AgentSettings
from edge_agent.spool import Base, Spool
from edge_agent.trainer import Trainer, TrainResult
from lifetimes.together import together
from mqtt_session.backoff import Backoff
from mqtt_session.session import Session, Will, connect, keep_connected
from schemas.codecs import codec_by_name
from schemas.errors import ConfigError
from schemas.messages import Manifest, ModelUpdate
from schemas.names import Boot, DeviceId, Seq, TaskName, device_id, task_name
from schemas.params import Params, base_digest, flatten, model_digest, unflatten
from schemas.task import TaskSpec, spec_from_json
from schemas.topics import TaskTopics, checked_prefix
from schemas.wire import decode_manifest, encode_update

log = logging.getLogger("fedmq.agent")

OnCreated: TypeAlias = Callable[[Boot, Seq], None]
"""Told of every update that was created, after it is safe on the disk."""

Entropy: TypeAlias = Callable[[int], "np.random.Generator"]
"""Gives the generator of one round of training, by its number."""

RETRY: Final = Backoff(30.0, 3600.0)
"""How long to wait after a trainer has failed, and failed again."""


def entropy_of(seed: int) -> Entropy:
    """Generators for rounds of training: repeatable with a seed, the machine's own below 0."""

    def generator(number: int) -> "np.random.Generator":
        # the shell makes the generators that the core is given
        return np.random.default_rng(None if seed < 0 else [seed, number])  # noqa: TID251

    return generator


@dataclass(frozen=True, slots=True)
class Adopted:
    """The model that this device trains from."""

    manifest: Manifest
    params: Params

    @property
    def base(self) -> Base:
        """Its epoch and version."""
        return self.manifest.epoch, self.manifest.version


@dataclass(frozen=True, slots=True)
class Round:
    """Where training on one base stands: the local model, and the update that holds it."""

    params: Params
    number: int = 0
    seq: Seq | None = None


class Agent:
    """One device in one task.

    Args:
        settings: who it is and where the broker is.
        trainer: the user's.
        spool: the device's disk.
        entropy: the generator for the n-th round of training.
        rng: for the jitter of the link.
        on_created: see OnCreated.
    """

    def __init__(
        self,
        settings: AgentSettings,
        trainer: Trainer,
        spool: Spool,
        *,
        entropy: Entropy,
        rng: random.Random,
        on_created: OnCreated = lambda _boot, _seq: None,
    ) -> None:
        self._settings = settings
        self._trainer = trainer
        self._spool = spool
        self._entropy = entropy
        self._rng = rng
        self._on_created = on_created
        self._device: DeviceId = device_id(settings.device)
        self._task: TaskName = task_name(settings.task)
        self._topics = TaskTopics(checked_prefix(settings.prefix), self._task)
        self._news = asyncio.Event()
        self._spec: TaskSpec | None = None
        self._model: Adopted | None = None
        self._residual: Params | None = None
        self._rounds = spool.created
        self._draining = False
        self._failures = 0
        self._link = Link(
            settings, self._topics, self._device, spool, rng=rng, on_news=self._reload
        )

    async def run(self) -> None:
        """Take part until cancelled."""
        await self._reload()
        raw = self._spool.load("residual")
        self._residual = None if raw is None else np.frombuffer(raw, dtype="<f4")
        await together(self._keep_linked(), self._keep_training())

    def drain(self) -> None:
        """Begin no further round; what is open is still sent until it is settled."""
        self._draining = True
        self._news.set()

    @property
    def online(self) -> bool:
        """Whether the device is connected."""
        return self._link.online

    # -- the link --------------------------------------------------------------------------

    async def _keep_linked(self) -> None:
        backoff = Backoff(min(1.0, self._settings.reconnect_s), self._settings.reconnect_s)
        await keep_connected(self._door, self._link.use, rng=self._rng, backoff=backoff)

    def _door(self) -> AbstractAsyncContextManager[Session]:
        state = self._topics.state(self._device)
        will = Will(state, msgspec.json.encode({"online": False, "boot": self._spool.boot}))
        return connect(self._settings, client_id=self._device, clean=True, will=will)

    # -- the model -------------------------------------------------------------------------

    async def _reload(self) -> None:
        """Take up what the spool holds now: the specification, and a newer model."""
        spec, manifest = await asyncio.to_thread(self._stored)
        if spec is not None:
            self._spec = spec
        if spec is not None and manifest is not None and self._is_news(manifest):
            params = await asyncio.to_thread(self._stored_params, spec, manifest)
            if params is not None:
                self._model = Adopted(manifest, params)
                log.info("adopted epoch=%d version=%d", manifest.epoch, manifest.version)
        self._news.set()

    def _is_news(self, manifest: Manifest) -> bool:
        return self._model is None or self._model.manifest != manifest

    def _stored(self) -> tuple[TaskSpec | None, Manifest | None]:
        spec, manifest = self._spool.load("spec"), self._spool.load("manifest")
        return (
            None if spec is None else spec_from_json(spec),
            None if manifest is None else decode_manifest(manifest),
        )

    def _stored_params(self, spec: TaskSpec, manifest: Manifest) -> Params | None:
        """The model's parameters, if they are what manifest and specification say."""
        raw = self._spool.load("params")
        if raw is None or len(raw) != 4 * spec.params.size:
            return None
        if manifest.codec != 0 or manifest.spec_digest != spec.params.digest:
            return None
        params = np.frombuffer(raw, dtype="<f4")
        if model_digest(spec.params.digest, params) != manifest.model_digest:
            return None
        return params.astype(np.float32, copy=False)

    # -- training --------------------------------------------------------------------------

    async def _keep_training(self) -> None:
        while not self._draining:
            model, spec = self._model, self._spec
            if model is None or spec is None or self._spool.trained == model.base:
                await self._wait_for_news()
            elif not self._spool.has_room:
                log.warning("outbox_full: 64 updates wait for their Receipt")
                await self._wait_for_news()
            else:
                await self._train_on(model, spec)
        await asyncio.Event().wait()  # the link lives on, for what is still open

    async def _wait_for_news(self) -> None:
        await self._news.wait()
        self._news.clear()

    async def _train_on(self, model: Adopted, spec: TaskSpec) -> None:
        """Train from one base; go on while the update is unsent and no newer model is here."""
        before = self._residual
        state = Round(model.params)
        while state.number < spec.train.rounds_per_base and self._model is model:
            if self._draining:
                return
            if state.seq is not None and not self._spool.is_unsent(state.seq):
                return
            try:
                state = await asyncio.to_thread(self._one_round, model, spec, state, before)
            except ConfigError:
                raise
            except Exception as exc:
                self._failures += 1
                pause = RETRY.bound_s(self._failures)
                # a ValueError is a sentence to its user; anything else is to be looked for
                where = None if isinstance(exc, ValueError) else exc
                told = "trainer_failed error=%s: trying again in %.0f s"
                log.log(logging.ERROR, told, exc, pause, exc_info=where)
                await asyncio.sleep(pause)
                continue
            self._failures = 0
            self._link.wake()
            if self._link.online:
                return

    def _one_round(
        self, model: Adopted, spec: TaskSpec, state: Round, before: Params | None
    ) -> Round:
        """One round of local training, and its update into the spool. In a worker thread."""
        rng = self._entropy(self._rounds)
        self._rounds += 1
        tensors = unflatten(spec.params, state.params)
        for view in tensors.values():
            view.flags.writeable = False
        result = self._trainer.train(tensors, spec.train, rng)
        params = flatten(spec.params, result.tensors)
        delta = params - model.params
        seq = self._spool_update(
            model, spec, result, delta=delta, before=before, replaces=state.seq, rng=rng
        )
        if seq is None:  # the round before was sent while this one ran: it stays alone
            return state
        self._on_created(self._spool.boot, seq)
        return Round(params, state.number + 1, seq)

    def _spool_update(
        self,
        model: Adopted,
        spec: TaskSpec,
        result: TrainResult,
        *,
        delta: Params,
        before: Params | None,
        replaces: Seq | None,
        rng: "np.random.Generator",
    ) -> Seq | None:
        codec = codec_by_name(spec.codec.name)
        sent = compress(delta, before, codec, spec.codec, rng)

        def write(seq: Seq) -> bytes:
            return encode_update(
                ModelUpdate(
                    epoch=model.manifest.epoch,
                    boot=self._spool.boot,
                    seq=seq,
                    base_version=model.manifest.version,
                    base_digest=base_digest(model.manifest.model_digest),
                    spec_digest=spec.params.short_digest,
                    codec=codec.codec_id,
                    num_examples=result.num_examples,
                    payload=sent.payload,
                    metrics=result.metrics,
                )
            )

        left = None if sent.residual is None else sent.residual.astype("<f4").tobytes()
        seq = self._spool.put(write, base=model.base, residual=left, replaces=replaces)
        if seq is not None:
            self._residual = sent.residual
        return seq
