"""Training of an ONNX model on this device: the bundle's step graph, and a descent in numpy.

The step gives loss and gradient of a batch for one flat vector; the descent is that of the
built-in trainers (`edge_agent.trainers.sgd`), so momentum, Adam, clipping and FedProx' pull are the
same. What BatchNorm has measured of a batch is written into its buffers after every step.
"""

import threading
from collections.abc import Callable, Mapping
from hashlib import sha256
from math import isfinite
from pathlib import Path
from time import monotonic
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_agent.onnx.checkpoint import RoundOnDisk
from edge_agent.onnx.losses import figures, mean_loss
from edge_agent.onnx.session import Session, session_of
from edge_agent.sources.samples import Held, Samples, Source, split
from edge_agent.trainer import Stopped, TrainResult
from edge_agent.trainers.local_training import budget, unless_told
from edge_agent.trainers.sgd import Descent, Position, descend, descent_of
from schemas.bundle import Bundle
from schemas.delta import peak
from schemas.evaluation import Evaluation
from schemas.onnx_file import with_parameters
from schemas.params import Kind, Params, ParamSpec, flatten, unflatten
from schemas.task import PersonalOptions, TrainOptions

MEASURED_MAX: Final = 2048
"""Samples on which loss and accuracy are measured before and after a round: evenly spread."""

CHECKPOINT_S: Final = 60.0

_BATCH: Final = 32
"""Samples that are measured at once: 256 cost a small CNN 25 MB, and were no faster."""


class OnnxTrainer:
    """A Trainer and Evaluator for a task with a bundle.

    Args:
        bundle: read and checked.
        samples: that fit its ports, or where they come from.
        holdout: the share that is never trained on; the global model is measured on it.
        threads: of one operator; 0: all cores but one.
        spinning: see `session_of`.
        clock: in seconds, for the task's budget of time.
        keep: file for a round that is half done; None: it is begun anew after a power cut.
        checkpoint_s: seconds between two writes of it; 0: none.

    Raises:
        ConfigError: onnxruntime is not installed.
        ValueError: it refuses the bundle's graphs, or the share is none.
    """

    def __init__(
        self,
        bundle: Bundle,
        samples: Samples | Source,
        *,
        holdout: float = 0.0,
        threads: int = 0,
        spinning: bool = False,
        clock: Callable[[], float] = monotonic,
        keep: Path | None = None,
        checkpoint_s: float = CHECKPOINT_S,
    ) -> None:
        if not 0 <= holdout < 1:
            raise ValueError(f"holdout is {holdout}: choose a share of at least 0 and below 1")
        self._bundle = bundle
        self._source: Source = Held(samples) if isinstance(samples, Samples) else samples
        self._holdout = holdout
        self._threads, self._spinning = threads, spinning
        self._clock = clock
        self._keep = keep if checkpoint_s > 0 else None
        self._checkpoint_s = checkpoint_s
        self._trained = 0
        self._told = threading.Event()
        self._step = self._session(bundle.step, "step.onnx")
        self._spec: ParamSpec = bundle.manifest.params
        self._still = self._marked("buffer") | self._marked("frozen")
        self._buffers = np.flatnonzero(self._marked("buffer"))

    def train(
        self,
        tensors: Mapping[str, NDArray[np.float32]],
        options: TrainOptions,
        rng: "np.random.Generator",
    ) -> TrainResult:
        """See `Trainer.train`. `options.options`: as in `edge_agent.trainers.sgd`.

        Raises:
            ValueError: tensors or samples do not fit the bundle, an option is bad, or it diverged.
            Stopped: it was told so; where it was is written down.
        """
        self._told.clear()
        if options.personal != PersonalOptions():
            raise ValueError(
                "train.personal is not done with a bundle: leave it out; give what every device "
                "keeps to itself kind `local`"
            )
        how, seen = descent_of(options), self._source.seen()
        mine, _ = split(self._source.samples(), self._holdout)
        if not len(mine):
            raise ValueError("no sample is left to train on: lower --holdout")
        start = self._flat(tensors)
        kept = self._round(start, mine, how)
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # divergence is found below, once
                before = self._measured(tensors, shown := _spread(mine))
                end, steps = self._descended(start, mine, how, options, rng, kept)
                parts = unflatten(self._spec, end)
                after = self._measured(parts, shown) if isfinite(peak(end)) else {}
        except Stopped:
            kept.write()
            raise
        kept.end()
        if not after or not all(map(isfinite, after.values())):
            raise ValueError("training diverged: lower train.learning_rate, or set clip")
        metrics = {"loss_before": before["loss"], "loss_after": after.pop("loss"), **after}
        if options.seconds:
            metrics["steps"] = float(steps)
        self._trained = seen
        return TrainResult(parts, len(mine), metrics)

    def evaluate(self, tensors: Mapping[str, NDArray[np.float32]]) -> Evaluation | None:
        """See `Evaluator.evaluate`: loss, and accuracy or rmse, on what is held out."""
        self._told.clear()
        if not self._holdout:
            return None
        _, held = split(self._source.samples(), self._holdout)
        return Evaluation(len(held), self._measured(tensors, held)) if len(held) else None

    def stop(self) -> None:
        """See `Trainer`: what runs ends within a step, and goes on there the next time."""
        self._told.set()

    def new_samples(self) -> int:
        """How many have come since the last training."""
        return max(0, self._source.seen() - self._trained)

    def _session(self, model: bytes, what: str) -> Session:
        return session_of(model, what=what, threads=self._threads, spinning=self._spinning)

    def _marked(self, kind: Kind) -> NDArray[np.bool_]:
        """Where tensors of a kind lie in the flat vector."""
        return np.concatenate([np.full(t.size, t.kind == kind) for t in self._spec.tensors])

    def _flat(self, tensors: Mapping[str, NDArray[np.float32]]) -> Params:
        try:
            return flatten(self._spec, tensors)
        except ValueError as exc:
            told = f"the task's tensors are not the bundle's: {exc}"
            raise ValueError(f"{told}; create the task with the bundle it belongs to") from exc

    def _descended(  # noqa: PLR0917 - what a round is made of
        self,
        start: Params,
        mine: Samples,
        how: Descent,
        options: TrainOptions,
        rng: "np.random.Generator",
        kept: RoundOnDisk,
    ) -> tuple[Params, int]:
        """The descent, from `start` or from where it was cut off, and the steps made just now."""
        manifest, step = self._bundle.manifest, self._step
        outputs = ["gradient", "buffers"] if self._buffers.size else ["gradient"]
        measured: list[NDArray[np.generic]] = []
        steps = 0

        def gradient(params: Params, rows: NDArray[np.int64]) -> Params:
            feeds = {
                manifest.x.name: mine.x[rows],
                manifest.label.name: mine.y[rows],
                "theta": params,
            }
            slope, *measured[:] = step.run(outputs, feeds)
            return slope.astype(np.float32, copy=False)

        def after(at: Position) -> None:
            nonlocal steps
            steps += 1
            if measured:
                at.params[self._buffers] = measured[0]
            kept.note(at)

        begun = kept.begun(start.size, adam=how.optimizer == "adam")
        enough = budget(options, self._clock, spent_s=kept.spent_s)
        end = descend(
            start,
            gradient,
            len(mine),
            how,
            rng,
            enough=unless_told(self._told, enough),
            still=self._still if self._still.any() else None,
            begun=begun,
            after=after,
        )
        return end, steps

    def _round(self, start: Params, mine: Samples, how: Descent) -> RoundOnDisk:
        """The round of these: bundle, base, options and samples make it the same one."""
        digest = sha256(f"{self._bundle.digest} {how} {len(mine)}".encode())
        if self._keep is not None:
            for array in (start, mine.x) if mine.y is mine.x else (start, mine.x, mine.y):
                digest.update(np.ascontiguousarray(array).data)
        return RoundOnDisk(
            self._keep, digest.hexdigest(), clock=self._clock, every_s=self._checkpoint_s
        )

    def _measured(
        self, tensors: Mapping[str, NDArray[np.float32]], samples: Samples
    ) -> dict[str, float]:
        """Loss, and accuracy or rmse, of the inference graph with these tensors."""
        manifest = self._bundle.manifest
        session = self._session(with_parameters(self._bundle.infer, tensors), "infer.onnx")
        parts: list[NDArray[np.generic]] = []
        for i in range(0, len(samples), _BATCH):
            if self._told.is_set():
                raise Stopped("it was told to stop")
            feeds = {manifest.x.name: samples.x[i : i + _BATCH]}
            parts.append(session.run([manifest.output.name], feeds)[0])
        answers = np.concatenate(parts)
        loss = mean_loss(manifest.loss, answers, samples.y)
        return {"loss": loss, **figures(manifest.loss, answers, samples.y)}


def _spread(samples: Samples) -> Samples:
    """At most MEASURED_MAX of them, evenly."""
    stride = -(-len(samples) // MEASURED_MAX)
    return Samples(samples.x[::stride], samples.y[::stride])
