"""Samples from a live sensor topic: `--data mqtt:TOPIC`.

Messages are JSON objects of numbers, or bare numbers (then the field is `value`). `window` readings
make a sample; its label is the label field of the window's last reading, or with a horizon that of
so many readings later. Readings from before a lost connection and after it are never in one sample.
"""

import asyncio
import json
import logging
import random
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

import numpy as np

from edge_agent.sources.files import Raw, fitted, known_scale
from edge_agent.sources.readings import picked
from edge_agent.sources.ring import Ring
from edge_agent.sources.samples import Array, Fit, Samples, samples_of
from edge_agent.sources.scaling import Scale, features_in
from edge_agent.sources.topic import Listener, OnReading
from edge_agent.sources.windows import Windower
from lifetimes.together import together
from mqtt_session.settings import MqttSettings
from schemas.bundle import Port
from schemas.errors import ConfigError
from schemas.inputs import InputOptions

log = logging.getLogger("fedmq.agent")

WRITE_S: Final = 30.0
"""Samples are written at most so often."""

LEAST: Final = 32
"""Samples before anything is trained: the scale is measured on them, and stays."""

RING_BYTES_MAX: Final = 64 << 20
"""What the samples that are kept may take; large ones are then fewer."""


def fields_of(reading: Mapping[str, float], given: InputOptions) -> tuple[str, ...]:
    """What a reading's features are: the task's, or the one field that is not the label.

    With a horizon the label's own past is known, and is a feature too.

    Raises:
        ValueError: there are several, whose order JSON does not tell.
    """
    if given.features:
        return given.features
    others = tuple(n for n in reading if n != given.label or given.horizon)
    if len(others) > 1:
        told = f"it has {len(others)} fields, and JSON knows no order"
        raise ValueError(f"{told}: name them in the task's [input] features")
    return others


def held_as(port: Port) -> type[np.floating]:
    """What readings are held as: float64 holds whole numbers up to 2^53."""
    return np.float32 if port.dtype == "float32" else np.float64


@dataclass(slots=True)
class _Making:
    """What samples are made with, from one bundle to the next.

    Attributes:
        scale: that of the samples, once it is known.
    """

    fit: Fit
    ring: Ring
    windower: Windower
    what: str
    scale: Scale | None = None

    @property
    def blank(self) -> Array:
        """One sample of zeros, as `Ring.all` gives it."""
        port, window = self.fit.manifest.x, self.fit.given.window
        return np.zeros((1, window, port.size // window), held_as(port))

    def rows(self, x: Array) -> Array:
        """Samples of the ring, shape (n, window, features), as they are scaled and shaped."""
        return x[:, 0] if self.fit.given.window == 1 else x

    def check(self, x: Array, y: float) -> None:
        """Refuse a sample, x of the ring's shape, that would spoil all. Raises ValueError."""
        rows = self.rows(x[None])
        if self.scale is not None:
            rows = self.scale.applied(rows, per=features_in(rows))
        label = np.array([y]) if self.fit.given.label else None
        samples_of(rows, label, self.fit, self.what, windows=True)

    def fits(self, x: Array, y: float) -> bool:
        """Whether `check` lets it pass."""
        try:
            self.check(x, y)
        except ValueError:
            return False
        return True


class LiveSamples:
    """A Source that fills itself while `run` is running.

    Args:
        settings: where the broker is.
        device: this device's name; the connection's client id is that and `-data`.
        topic: one, without wildcards.
        state: where the samples and the device's scale are kept: a path without ending.
        most: samples that are kept.
        rng: for the jitter of reconnecting.
        longest_s: longest wait before the next try to connect.
        also: is told of every reading, too, and `also_gap` of every gap.

    Raises:
        ConfigError: the topic cannot be listened to.
    """

    def __init__(
        self,
        settings: MqttSettings,
        device: str,
        topic: str,
        *,
        state: Path,
        most: int,
        rng: random.Random,
        longest_s: float = 60.0,
        also: OnReading = lambda _reading: None,
        also_gap: Callable[[], None] = lambda: None,
    ) -> None:
        self._also, self._also_gap = also, also_gap
        self._topic, self._state, self._most = topic, state, most
        self._listener = Listener(
            settings,
            f"{device}-data",
            topic,
            on_reading=self._on_reading,
            on_gap=self._gap,
            rng=rng,
            longest_s=longest_s,
        )
        self._what = f"mqtt:{topic}"
        self._scale_file = state.with_name(state.name + ".scale.json")
        self._making: _Making | None = None

    @property
    def listener(self) -> Listener:
        """What listens, and may publish on the same connection."""
        return self._listener

    @property
    def garbage(self) -> int:
        """Messages that were no readings."""
        return self._listener.garbage.count

    async def run(self) -> None:
        """Listen, and write samples to the disk, until cancelled."""
        try:
            await together(self._listener.run(), self._keep_writing())
        finally:
            self.close()

    def begin(self, fit: Fit) -> None:
        """Make samples for these ports from now on; what is kept of the same form is there again.

        Raises:
            ConfigError: the label is not named, or the file is none of ours.
            ValueError: no sample can be made for them, or the disk takes nothing just now.
        """
        given = fit.given
        if fit.labelled and not given.label:
            remedy = "name the field of a reading that is to be told"
            raise ConfigError("label", f"{remedy} (of a bare number: value)")
        count = fit.manifest.x.size // given.window
        if count * given.window != fit.manifest.x.size:
            told = f"window {given.window} does not divide x of shape {list(fit.manifest.x.shape)}"
            raise ValueError(f"[input] {told}: the model sees all features of a window")
        if given.features and len(given.features) != count:
            told = f"{len(given.features)} features times window {given.window}"
            wanted = list(fit.manifest.x.shape)
            raise ValueError(f"[input] {told} are not x of shape {wanted}")
        self.close()
        self._making = None
        port, label = fit.manifest.x, fit.manifest.label
        form = sha256(json.dumps([self._topic, given.features, given.label, count]).encode())
        form.update(f"{given.window} {given.stride} {given.horizon}".encode())
        form.update(f" {fit.manifest.loss} {fit.classes} {port.dtype} {label.dtype}".encode())
        dtype, shape = held_as(port), (given.window, count)
        room = max(1, RING_BYTES_MAX // (np.dtype(dtype).itemsize * given.window * count + 64))
        path = self._state.with_name(self._state.name + ".samples.sqlite")
        ring = Ring(path, form.hexdigest(), shape, min(self._most, room), dtype)
        making = _Making(fit, ring, Windower(given, dtype), self._what)
        if given.features:
            ring.note_fields(given.features)
        try:
            making.scale = self._known_scale(making)
            making.check(making.blank[0], 0.0)
        except ValueError:
            ring.close()
            raise
        self._drop(making)
        self._making = making

    def close(self) -> None:
        """Write what is left, and close the file."""
        if self._making is not None:
            self._making.ring.close()

    def samples(self) -> Samples:
        """See `Source.samples`."""
        making = self._making
        if making is None:
            raise ValueError("no sample is made before the bundle is here")
        if making.scale is None and (scale := self._known_scale(making)) is not None:
            making.scale = scale
            self._drop(making)
        if lack := self.lacks():
            raise ValueError(lack)
        x, y, first = making.ring.all()
        fit, fields = making.fit, making.ring.fields
        raw = Raw(making.rows(x), y if fit.given.label else None, fields)
        return fitted(raw, fit, self._scale_file, self._what, first=first)

    def _known_scale(self, making: _Making) -> Scale | None:
        rows, fields = making.rows(making.blank), making.ring.fields
        return known_scale(rows, making.fit, self._scale_file, fields, self._what)

    def _drop(self, making: _Making) -> None:
        """Drop samples of before that would spoil all."""
        if dropped := making.ring.keep_what(making.fits):
            log.warning("samples_dropped topic=%s count=%d: they do not fit", self._topic, dropped)

    def seen(self) -> int:
        """See `Source.seen`."""
        return 0 if self._making is None else self._making.ring.count

    def lacks(self) -> str:
        """What is missing before anything can be trained, a sentence; empty: nothing."""
        ring = None if self._making is None else self._making.ring
        kept, least = (0, LEAST) if ring is None else (len(ring), ring.most)
        least = min(LEAST, least)
        return "" if kept >= least else f"{self._what} has given {kept} of {least} samples"

    def _on_reading(self, reading: Mapping[str, float]) -> None:
        self._also(reading)
        self._take(reading)

    def _take(self, reading: Mapping[str, float]) -> None:
        """Called for every reading, in the loop. Raises ValueError: it is none for this model."""
        making = self._making
        if making is None:
            return
        ring, label = making.ring, making.fit.given.label
        if not ring.fields:
            self._note_fields(ring, reading, making.fit)
        numbers = picked(reading, ring.fields)
        told = picked(reading, [label])[0] if label else 0.0
        window = making.windower.push(numbers)
        if window is not None:
            making.check(window, told)
            ring.add(window, told)

    @staticmethod
    def _note_fields(ring: Ring, reading: Mapping[str, float], fit: Fit) -> None:
        """The task's, or the only one there is. Raises ValueError."""
        fields, given = fields_of(reading, fit.given), fit.manifest.x.size // fit.given.window
        if len(fields) != given:
            told = f"it has {len(fields)} numbers besides the label, but x takes {given} a reading"
            raise ValueError(f"{told}: name them in [input] features")
        ring.note_fields(fields)

    def _gap(self) -> None:
        if self._making is not None:
            self._making.windower.cut()
        self._also_gap()

    async def _keep_writing(self) -> None:
        while True:
            await asyncio.sleep(WRITE_S)
            if self._making is None:
                continue
            try:
                await asyncio.to_thread(self._making.ring.write)
            except sqlite3.Error as exc:
                log.warning("samples_not_written error=%s", exc)
