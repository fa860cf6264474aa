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
from hashlib import sha256
from pathlib import Path
from typing import Final

from edge_agent.sources.files import Raw, fitted
from edge_agent.sources.readings import picked
from edge_agent.sources.ring import Ring
from edge_agent.sources.samples import Fit, Samples
from edge_agent.sources.topic import Listener, OnReading
from edge_agent.sources.windows import Windower
from lifetimes.together import together
from mqtt_session.settings import MqttSettings
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
    """What a reading's features are: the task's, or all fields but the label, by name.

    With a horizon the label's own past is known, and is a feature too.
    """
    others = tuple(sorted(n for n in reading if n != given.label or given.horizon))
    return given.features or others


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
        self._fit: Fit | None = None
        self._ring: Ring | None = None
        self._windower: Windower | None = None

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
            ValueError: no sample can be made for them.
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
        if self._ring is not None:
            self._ring.close()
        form = sha256(json.dumps([self._topic, given.features, given.label, count]).encode())
        form.update(f"{given.window} {given.stride} {given.horizon}".encode())
        shape = (given.window, count)
        room = max(1, RING_BYTES_MAX // (4 * given.window * count + 64))
        path = self._state.with_name(self._state.name + ".samples.sqlite")
        ring = Ring(path, form.hexdigest(), shape, min(self._most, room))
        if given.features and ring.fields != given.features:
            ring.note_fields(given.features)
        self._windower = Windower(given)
        self._ring, self._fit = ring, fit

    def close(self) -> None:
        """Write what is left, and close the file."""
        if self._ring is not None:
            self._ring.close()

    def samples(self) -> Samples:
        """See `Source.samples`."""
        fit, ring = self._fit, self._ring
        if fit is None or ring is None:
            raise ValueError("no sample is made before the bundle is here")
        x, y, first = ring.all()
        if lack := self.lacks():
            raise ValueError(lack)
        scale = self._state.with_name(self._state.name + ".scale.json")
        rows = x[:, 0] if fit.given.window == 1 else x
        raw = Raw(rows, y if fit.given.label else None, ring.fields)
        return fitted(raw, fit, scale, f"mqtt:{self._topic}", first=first)

    def seen(self) -> int:
        """See `Source.seen`."""
        return 0 if self._ring is None else self._ring.count

    def lacks(self) -> str:
        """What is missing before anything can be trained, a sentence; empty: nothing."""
        kept, least = (0, LEAST) if self._ring is None else (len(self._ring), self._ring.most)
        least = min(LEAST, least)
        return "" if kept >= least else f"mqtt:{self._topic} has given {kept} of {least} samples"

    def _on_reading(self, reading: Mapping[str, float]) -> None:
        self._also(reading)
        self._take(reading)

    def _take(self, reading: Mapping[str, float]) -> None:
        """Called for every reading, in the loop. Raises ValueError: it is none for this model."""
        fit, ring, windower = self._fit, self._ring, self._windower
        if fit is None or ring is None or windower is None:
            return
        label = fit.given.label
        if not ring.fields:
            self._note_fields(ring, reading, fit)
        numbers = picked(reading, ring.fields)
        told = picked(reading, [label])[0] if label else 0.0
        window = windower.push(numbers)
        if window is not None:
            ring.add(window, told)

    @staticmethod
    def _note_fields(ring: Ring, reading: Mapping[str, float], fit: Fit) -> None:
        """All fields but the label, by name: an object has no order. Raises ValueError."""
        fields, given = fields_of(reading, fit.given), fit.manifest.x.size // fit.given.window
        if len(fields) != given:
            told = f"it has {len(fields)} numbers besides the label, but x takes {given} a reading"
            raise ValueError(f"{told}: name them in [input] features")
        try:
            ring.note_fields(fields)
        except sqlite3.Error as exc:
            raise ValueError(f"the disk does not take it: {exc}") from exc

    def _gap(self) -> None:
        if self._windower is not None:
            self._windower.cut()
        self._also_gap()

    async def _keep_writing(self) -> None:
        while True:
            await asyncio.sleep(WRITE_S)
            if self._ring is None:
                continue
            try:
                await asyncio.to_thread(self._ring.write)
            except sqlite3.Error as exc:
                log.warning("samples_not_written error=%s", exc)
