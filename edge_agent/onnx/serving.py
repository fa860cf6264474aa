"""Predictions of the newest adopted model, for the readings of a live topic.

Every model gets a session of its own, built from bytes with the model's parameters as constants,
and takes the old one's place when it is ready: a reading is told of by one model or the other,
never by a mixture. A prediction is JSON:

    {"version": 57, "epoch": 1, "label": 2, "scores": [0.01, 0.03, 0.96]}     classes
    {"version": 57, "epoch": 1, "value": 41.5}                                numbers

`scores` are probabilities. With more than one output `value` is a list, of yes and no `label` too.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.agent import Agent, GlobalModel
from edge_agent.onnx.session import Session, session_of
from edge_agent.sources.files import known_scale, scaled
from edge_agent.sources.live import LEAST, fields_of, held_as
from edge_agent.sources.readings import picked
from edge_agent.sources.samples import Array, Fit, inputs_of
from edge_agent.sources.scaling import Scale, features_in
from edge_agent.sources.topic import checked_topic
from edge_agent.sources.windows import Windower
from edge_agent.trainer import TrainResult
from lifetimes.together import together
from mqtt_session.session import LinkError
from schemas.bundle import CLASSES, Bundle, BundleManifest
from schemas.errors import ConfigError
from schemas.inputs import InputOptions
from schemas.onnx_file import with_parameters

log = logging.getLogger("fedmq.agent")

Publish: TypeAlias = Callable[[str, bytes], Awaitable[bool]]
"""Publishes; False, or a LinkError: there is no connection just now."""

WAITING_MAX: Final = 64
"""Windows that wait for their prediction; then the oldest are passed over."""


@dataclass(eq=False, slots=True)
class Taken:
    """A bundle that was taken, and what became of readings since.

    Attributes:
        bundle: its graphs.
        fit: its ports and the task's [input].
        windower: makes windows of readings.
        features: fields of a reading, in the order of the model's x; empty: not known yet.
        scale: by which it is fed, once that is known; None: as it comes, too.
        first: windows that the device's own scale is to be measured on.
    """

    bundle: Bundle
    fit: Fit
    windower: Windower
    features: tuple[str, ...]
    scale: Scale | None = None
    first: deque[NDArray[np.float32]] = field(default_factory=lambda: deque(maxlen=LEAST))


@dataclass(frozen=True, slots=True)
class Served:
    """One model, ready to be asked.

    Attributes:
        session: of the inference graph with this model's parameters.
        taken: the bundle it is of: no window of another one is shown to it.
    """

    session: Session
    taken: Taken
    epoch: int
    version: int


class Serving:
    """What tells of the readings of one topic.

    Args:
        topic: where readings come from.
        publish: the topic that predictions go to.
        scale_file: where the device keeps its own scale.
        threads: of one operator; 0: all cores but one.
        spinning: see `session_of`.

    Raises:
        ConfigError: predictions cannot go there.
    """

    def __init__(
        self,
        topic: str,
        publish: str,
        *,
        scale_file: Path,
        threads: int = 0,
        spinning: bool = False,
    ) -> None:
        self._to = checked_topic("publish", publish)
        if publish == topic:
            raise ConfigError("publish", "predictions must not go where readings come from")
        self._what = f"mqtt:{topic}"
        self._scale_file = scale_file
        self._threads, self._spinning = threads, spinning
        self._lock = Lock()
        self._taken: Taken | None = None
        self._newest: GlobalModel | None = None
        self._served: Served | None = None
        self._waiting: asyncio.Queue[tuple[Taken, NDArray[np.float32]]] = asyncio.Queue(WAITING_MAX)
        self.passed_over = 0

    @property
    def served(self) -> tuple[int, int] | None:
        """Epoch and version of the model that is asked now."""
        return None if self._served is None else (self._served.epoch, self._served.version)

    def take_bundle(self, bundle: Bundle, given: InputOptions) -> None:
        """Serve models of this bundle from now on; called in a worker thread.

        The model that is here is served on; readings from before are not told of any more.

        Raises:
            ConfigError: onnxruntime is not installed.
        """
        asked = msgspec.structs.replace(given, horizon=0)
        windower = Windower(asked, held_as(bundle.manifest.x))
        with self._lock:
            self._taken = Taken(bundle, Fit(bundle.manifest, given), windower, given.features)
            self._served, model = None, self._newest
        if model is not None:
            self._begin(model)

    async def follow(self, agent: Agent) -> None:
        """Serve the model that the agent has, and every one that it adopts, until cancelled."""
        async for model in agent.models():
            with self._lock:
                self._newest, is_equipped = model, self._taken is not None
            if is_equipped:
                await asyncio.to_thread(self._begin, model)

    def take(self, reading: Mapping[str, float]) -> None:
        """Take a reading, in the loop. Raises ValueError: it is none for this model."""
        taken = self._taken
        if taken is None or self._served is None:
            return
        if not taken.features:
            fit = taken.fit
            features = fields_of(reading, fit.given)
            if len(features) * fit.given.window != fit.manifest.x.size:
                told = f"it has {len(features)} numbers, the model's x is of another size"
                raise ValueError(f"{told}: name them in [input] features")
            taken.features = features
        window = taken.windower.push(picked(reading, taken.features))
        if window is None:
            return
        if self._waiting.full():
            self._waiting.get_nowait()
            self.passed_over += 1
        self._waiting.put_nowait((taken, window))

    def cut(self) -> None:
        """Readings were lost: no window spans the gap."""
        if self._taken is not None:
            self._taken.windower.cut()

    async def run(self, publish: Publish) -> None:
        """Predict and publish until cancelled."""
        while True:
            taken, window = await self._waiting.get()
            try:
                told = await asyncio.to_thread(self._told, taken, window)
                if told is not None:
                    await publish(self._to, msgspec.json.encode(told))
            except LinkError as exc:
                log.debug("prediction_lost error=%s", exc)
            except Exception as exc:  # noqa: BLE001 - whatever onnxruntime raises: the next may do
                log.warning("not_predicted error=%s", exc)

    def _begin(self, model: GlobalModel) -> None:
        """Get a model ready, and serve it unless it or its bundle was overtaken meanwhile."""
        taken = self._taken
        try:
            served = self._ready(model, taken)
        except ConfigError:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever onnxruntime raises: the next may do
            log.warning("not_served version=%d error=%s", model.version, exc)
            return
        with self._lock:
            if taken is not self._taken or model is not self._newest:
                return
            self._served = served
        log.info("serving epoch=%d version=%d", model.epoch, model.version)

    def _ready(self, model: GlobalModel, taken: Taken | None) -> Served:
        if taken is None:
            raise ValueError("the task's bundle is not here yet")
        session = session_of(
            with_parameters(taken.bundle.infer, model.tensors),
            what="infer.onnx",
            threads=self._threads,
            spinning=self._spinning,
        )
        return Served(session, taken, model.epoch, model.version)

    def _told(self, taken: Taken, window: NDArray[np.float32]) -> dict[str, Any] | None:
        """The prediction of a window, shape (window, features); None: nothing serves its like."""
        served = self._served
        if served is None or served.taken is not taken:
            return None
        fit, features = taken.fit, taken.features
        manifest, window_of = fit.manifest, fit.given.window
        rows: Array = window[None] if window_of > 1 else window
        if taken.scale is None:
            taken.scale = known_scale(rows, fit, self._scale_file, features, self._what)
        if taken.scale is None and _is_scaled(fit):
            taken.first.append(window if window_of > 1 else window[0])
            if len(taken.first) < LEAST:  # a scale that is measured on too few stays for good
                return None
            scaled(np.array(taken.first), fit, self._scale_file, features, self._what)
            taken.scale = known_scale(rows, fit, self._scale_file, features, self._what)
        if taken.scale is not None:
            rows = taken.scale.applied(rows, per=features_in(rows))
        x = inputs_of(rows, manifest.x, self._what, windows=True, layout=fit.given.layout)
        (answer,) = served.session.run([manifest.output.name], {manifest.x.name: x})
        return {"version": served.version, "epoch": served.epoch, **said(manifest, answer[0])}


def _is_scaled(fit: Fit) -> bool:
    """Whether by a scale of the device's own."""
    return fit.given.normalise == "device" and fit.manifest.x.dtype == "float32"


def said(manifest: BundleManifest, answer: NDArray[Any]) -> dict[str, Any]:
    """One answer, shape (outputs, ...), in words: a class with its probabilities, or numbers."""
    given = answer.astype(np.float64)
    if manifest.loss in CLASSES:
        odds = np.exp(given - given.max())
        return {"label": int(given.argmax()), "scores": _short(odds / odds.sum())}
    if manifest.loss == "bce-with-logits":
        scores = 1 / (1 + np.exp(-np.clip(given, -700, 700)))
        yes = (scores > 0.5).astype(int).reshape(-1).tolist()
        return {"label": yes[0] if len(yes) == 1 else yes, "scores": _short(scores)}
    numbers = _short(given)
    return {"value": numbers[0] if len(numbers) == 1 else numbers}


def _short(numbers: NDArray[np.float64]) -> list[float]:
    return [float(f"{number:.6g}") for number in numbers.reshape(-1)]


class OnlyServing:
    """Stands in the trainer's place on a device that serves and never trains.

    Args:
        serving: what is given the task's bundle.
        label: the field that is no feature; empty: as the task says.
    """

    def __init__(self, serving: Serving, label: str = "") -> None:
        self._serving = serving
        self._label = label

    def take_bundle(self, bundle: Bundle, given: InputOptions) -> None:
        """See `Bundled.take_bundle`."""
        named = msgspec.structs.replace(given, label=self._label or given.label)
        self._serving.take_bundle(bundle, named)

    def lacks(self) -> str:
        """It never trains."""
        return "this device only serves"

    def train(self, *_: object) -> TrainResult:
        """It never trains. Raises ValueError."""
        raise ValueError(self.lacks())


async def serve(agent: Agent, serving: Serving, *more: Any) -> None:
    """Run an agent, what serves its models, and what they need beside, until cancelled."""
    await together(agent.run(), serving.follow(agent), *more)
