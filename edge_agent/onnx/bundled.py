"""The trainer of a device that has data and nothing else: it comes with the task's bundle.

    fedmq-agent --task pumps --device pump-7 --data pump.csv --label fault

Nothing of onnxruntime is imported before the bundle is here.
"""

import asyncio
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.onnx.serving import Serving
from edge_agent.onnx.trainer import OnnxTrainer
from edge_agent.settings import AgentSettings
from edge_agent.sources import Fit, Held, Source, check_data, load
from edge_agent.sources.live import LiveSamples
from edge_agent.sources.topic import checked_topic
from edge_agent.trainer import TrainResult
from lifetimes.together import together
from schemas.bundle import Bundle
from schemas.errors import ConfigError
from schemas.evaluation import Evaluation
from schemas.inputs import InputOptions
from schemas.task import TrainOptions

LIVE: Final = "mqtt:"
"""What the name of a live topic begins with, in --data."""


class BundleTrainer:
    """A Trainer that the task's bundle makes: of `settings.data`, when the bundle is here.

    Args:
        settings: data, label, holdout and where things are kept.

    Raises:
        ConfigError: there is no such data, or it cannot be predicted of.
    """

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._state = Path(settings.state_dir) / settings.state_name
        self._trainer: OnnxTrainer | None = None
        self._live: LiveSamples | None = None
        self.serving: Serving | None = None
        if settings.data.startswith(LIVE):
            self._live = self._listening(settings.data.removeprefix(LIVE))
        elif settings.predict:
            raise ConfigError("predict", "needs a live topic: --data mqtt:TOPIC")
        else:
            check_data(settings.data)

    def take_bundle(self, bundle: Bundle, given: InputOptions) -> None:
        """See `Bundled.take_bundle`.

        Raises:
            ConfigError: a library is missing, or the label must be named.
            ValueError: the data cannot be read or does not fit, or onnxruntime refuses the graphs.
        """
        settings = self._settings
        if settings.label:
            given = msgspec.structs.replace(given, label=settings.label)
        fit = Fit(bundle.manifest, given)
        try:
            self._trainer = OnnxTrainer(
                bundle,
                self._source(fit),
                holdout=settings.holdout,
                threads=settings.threads,
                spinning=settings.spinning,
                keep=self._state.with_name(f"{self._state.name}.round"),
                checkpoint_s=settings.checkpoint_s,
            )
        except OSError as exc:
            raise ValueError(f"{settings.data}: {exc}") from exc
        if self.serving is not None:
            self.serving.take_bundle(bundle, given)

    def train(
        self,
        tensors: Mapping[str, NDArray[np.float32]],
        options: TrainOptions,
        rng: "np.random.Generator",
    ) -> TrainResult:
        """See `Trainer.train`. Raises ValueError."""
        if self._trainer is None:
            raise ValueError("the task's bundle is not here yet")
        return self._trainer.train(tensors, options, rng)

    def evaluate(self, tensors: Mapping[str, NDArray[np.float32]]) -> Evaluation | None:
        """See `Evaluator.evaluate`."""
        return None if self._trainer is None else self._trainer.evaluate(tensors)

    def stop(self) -> None:
        """See `Trainer`."""
        if self._trainer is not None:
            self._trainer.stop()

    def new_samples(self) -> int:
        """How many have come since the last training."""
        return 0 if self._trainer is None else self._trainer.new_samples()

    def lacks(self) -> str:
        """What must come before it can train, a sentence; empty: nothing."""
        return "" if self._live is None else self._live.lacks()

    async def run(self) -> None:
        """Listen to a live topic, if there is one, until cancelled."""
        if self._live is None:
            await asyncio.Event().wait()
        elif self.serving is None:
            await self._live.run()
        else:
            await together(self._live.run(), self.serving.run(self._live.listener.publish))

    def _listening(self, topic: str) -> LiveSamples:
        settings = self._settings
        serving = serving_of(settings, topic) if settings.predict else None
        self.serving = serving
        return LiveSamples(
            settings,
            settings.device,
            topic,
            state=self._state,
            most=settings.samples,
            rng=random.Random(),  # noqa: S311 - jitter only
            longest_s=settings.reconnect_s,
            also=lambda reading: serving.take(reading) if serving is not None else None,
            also_gap=lambda: serving.cut() if serving is not None else None,
        )

    def _source(self, fit: Fit) -> Source:
        if self._live is None:
            scale = self._state.with_name(f"{self._state.name}.scale.json")
            return Held(load(self._settings.data, fit, scale))
        self._live.begin(fit)
        return self._live


def serving_of(settings: AgentSettings, topic: str) -> Serving:
    """What serves a topic's readings, as the settings say. Raises ConfigError."""
    checked_topic("data", topic)
    return Serving(
        topic,
        settings.publish or f"{topic}/prediction",
        scale_file=Path(settings.state_dir) / f"{settings.state_name}.scale.json",
        threads=settings.threads,
        spinning=settings.spinning,
    )
