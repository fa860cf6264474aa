"""Rounds of local training: from a base, through trainer and codec, into the spool.

Everything here runs in a worker thread; what survives is on the disk before it returns.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Final, TypeAlias

import numpy as np

from edge_agent.bundles import loading, stored_bundle
from edge_agent.compressor import compress
from edge_agent.conditions.budget import seconds_of
from edge_agent.header import headed, payload_bytes
from edge_agent.local_model import answered, local_bytes, read_only, told_local, with_local
from edge_agent.pacing import Pacer
from edge_agent.spool import Base, Spool
from edge_agent.trainer import Bundled, Evaluator, Stopped, Trainer, TrainResult
from schemas.codecs import Ask, codec_by_name
from schemas.evaluation import marked
from schemas.inputs import InputOptions
from schemas.messages import Manifest, ModelUpdate
from schemas.names import Boot, Seq
from schemas.params import Params, base_digest, travelling
from schemas.task import TaskSpec, TrainOptions
from schemas.wire import METRICS_MAX, encode_update

OnCreated: TypeAlias = Callable[[Boot, Seq, Seq | None, bytes], None]
"""Told of every update that was created, after it is safe on the disk: its identity, the number of
the update that it replaces, and its message."""

Entropy: TypeAlias = Callable[[int], "np.random.Generator"]
"""Gives the generator of one round of training, by its number."""

log = logging.getLogger("fedmq.agent")

_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)


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
    """Where training on one base stands: the local model, and the update that holds it.

    Attributes:
        params: the local model, float32.
        number: rounds that have ended.
        seq: the update's number; None before the first round has ended.
        found: what the base was found worth before it was trained from.
    """

    params: Params
    number: int = 0
    seq: Seq | None = None
    found: Mapping[str, float] = field(default_factory=dict)


class Rounds:
    """What makes updates of one device for one task.

    Args:
        trainer: the user's.
        spool: the device's disk.
        entropy: the generator for the n-th round of training on this disk.
        watts: what the device draws while it trains; 0: not known.
        on_created: see OnCreated.
        pacer: for how many steps it trains; None: as [train] says.
    """

    def __init__(
        self,
        trainer: Trainer,
        spool: Spool,
        *,
        entropy: Entropy,
        watts: float,
        on_created: OnCreated,
        pacer: Pacer | None = None,
    ) -> None:
        self._trainer = trainer
        self._spool = spool
        self._entropy = entropy
        self._watts = watts
        self._on_created = on_created
        self._pacer = pacer or Pacer("")
        self._begun = spool.created
        self._handed: tuple[str, InputOptions] | None = None
        self._is_stopped = False
        self._left_out: set[str] = set()

    def stop(self) -> None:
        """Train no more in the round that runs; called from another thread, more than once."""
        self._is_stopped = True

    def one(self, model: Adopted, spec: TaskSpec, state: Round) -> Round:
        """Do one round, and put its update into the spool.

        Args:
            model: the base.
            spec: the task.
            state: what the round before has left, or `Round(model.params)`.

        Returns:
            Where it stands now; `state` itself when the round before was sent meanwhile.

        Raises:
            ConfigError: the task asks for joules and this device does not know its watts.
            ValueError: the trainer's answer does not fit the task's tensors, or it does not take
                the task's bundle.
            Stopped: before it trained, or by the trainer.
        """
        self._is_stopped = False
        self.hand_over(spec)
        rng = self._entropy(self._begun)
        self._begun += 1
        start = with_local(spec.params, state.params, self._spool.local())
        tensors = read_only(spec.params, start)
        found = self._evaluated(spec, tensors) if not state.number else state.found
        asked = told_local(spec.params, self._asked(spec))
        if self._is_stopped:
            raise Stopped("it was told to stop")
        began = monotonic()
        result = self._trainer.train(tensors, asked, rng)
        result = replace(result, metrics=self._finite(result.metrics))
        self._pacer.trained(asked, result, monotonic() - began)
        params = answered(spec.params, model.params, result.tensors)
        while True:
            made = self._spool_update(
                model, spec, result, params=params, replaces=state.seq, found=found, rng=rng
            )
            if made is not None:
                seq, message = made
                self._on_created(self._spool.boot, seq, state.seq, message)
                return Round(params, state.number + 1, seq, found)
            if state.seq is not None and not self._spool.is_unsent(self._spool.boot, state.seq):
                return state  # the round before was sent while this one ran: it stays alone

    def is_equipped(self, spec: TaskSpec) -> bool:
        """Whether the trainer has the task's bundle, or needs none."""
        ref = spec.bundle
        if not isinstance(self._trainer, Bundled) or ref is None:
            return True
        return self._handed == (ref.digest, spec.input)

    def hand_over(self, spec: TaskSpec) -> None:
        """Give a trainer that asks for it the task's bundle, once.

        Raises:
            ConfigError: the trainer can never train with it.
            ValueError: it is not here yet, or the trainer does not take it.
        """
        trainer, ref = self._trainer, spec.bundle
        if self.is_equipped(spec) or not isinstance(trainer, Bundled) or ref is None:
            return
        bundle = stored_bundle(self._spool, spec)
        if bundle is None:
            msg = "the task's bundle is not here yet"
            raise ValueError(msg)
        with loading(self._spool, ref):
            trainer.take_bundle(bundle, spec.input)
        self._handed = ref.digest, spec.input

    def _asked(self, spec: TaskSpec) -> TrainOptions:
        """What the trainer is asked for, by this device's watts and its speed."""
        return self._pacer.asked(spec.pace, seconds_of(spec.train, self._watts))

    def _evaluated(self, spec: TaskSpec, tensors: Mapping[str, Params]) -> dict[str, float]:
        """What the trainer finds of the global model, as metrics of the update."""
        if not (spec.evaluate.devices and isinstance(self._trainer, Evaluator)):
            return {}
        found = self._trainer.evaluate(tensors)
        if found is None or not (finite := self._finite(found.metrics)):
            return {}
        return marked(replace(found, metrics=finite))

    def _finite(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Without what is not finite in float32: a server refuses the whole update for it."""
        kept = {name: float(value) for name, value in metrics.items() if abs(value) <= _FLOAT32_MAX}
        fresh = metrics.keys() - kept.keys() - self._left_out
        if fresh:
            self._left_out |= fresh
            named = ", ".join(f"{name}={metrics[name]}" for name in sorted(fresh))
            log.warning("metrics_left_out %s: not finite in float32", named)
        return kept

    def _spool_update(
        self,
        model: Adopted,
        spec: TaskSpec,
        result: TrainResult,
        *,
        params: Params,
        replaces: Seq | None,
        found: Mapping[str, float],
        rng: "np.random.Generator",
    ) -> tuple[Seq, bytes] | None:
        """Encode by what is left behind and make the update; None when either is no longer so."""
        codec = codec_by_name(spec.codec.name)
        own = self._pacer.metrics(spec.pace)
        room = METRICS_MAX - len(found) - len(own)
        update = headed(
            ModelUpdate(
                epoch=model.manifest.epoch,
                boot=self._spool.boot,
                seq=self._spool.next_seq,
                base_version=model.manifest.version,
                base_digest=base_digest(model.manifest.model_digest),
                spec_digest=spec.params.short_digest,
                codec=codec.codec_id,
                num_examples=result.num_examples,
                payload=b"",
                contributions=result.contributions,
                weight=result.weight,
                metrics=dict(list(result.metrics.items())[: max(0, room)]) | own | dict(found),
            ),
            spec,
        )
        delta = travelling(spec.params, params) - travelling(spec.params, model.params)
        left = self._spool.left(replaces)
        before = None if left.residual is None else np.frombuffer(left.residual, dtype="<f4")
        ask = Ask(spec.codec, payload_bytes(update, spec), spec.gain)
        sent = compress(delta, before, codec, ask, rng)
        written: list[bytes] = []

        def write(seq: Seq) -> bytes:
            written.append(encode_update(replace(update, seq=seq, payload=sent.payload)))
            return written[-1]

        rest = None if sent.residual is None else sent.residual.astype("<f4").tobytes()
        seq = self._spool.put(
            write,
            base=model.base,
            residual=rest,
            replaces=replaces,
            local=local_bytes(spec.params, params),
            state=left.state,
        )
        return None if seq is None else (seq, written[-1])
