"""All the parts together, what became of every update, and the laws that must hold."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Final, Literal, TypeAlias

from aggregator.fold import Fold
from schemas.messages import Manifest
from schemas.names import Boot, DeviceId, Seq
from schemas.outcomes import FOLDED
from schemas.params import model_digest
from schemas.window import SeqWindow
from schemas.wire import decode_manifest, decode_receipt
from tests.model.aggregator_model import AggregatorModel, image, load
from tests.model.bridge_model import BridgeModel
from tests.model.broker_model import BrokerModel, Packet
from tests.model.bugs import Bugs
from tests.model.device_model import DeviceModel, OpenUpdate
from tests.model.names import FIRST, SPEC, TOPICS, UPDATES, origin
from tests.model.redis_model import Mode, RedisModel

Fate: TypeAlias = Literal["open", "settled", "superseded", "removed"]

LIVES: Final = 16
"""A device makes updates only while what it has open is of so many of its newest lives."""

ROUNDS: Final = 60
"""A story must come to rest within so many."""

STEPS: Final = 500
"""What one part may do at one go before it counts as running for ever."""


class World:
    """One story."""

    def __init__(self, mode: Mode, bugs: Bugs, *, lives_max: int = LIVES) -> None:
        self.redis = RedisModel(mode, FIRST)
        self.broker = BrokerModel(self._note_said, self._check_released)
        self.bridge = BridgeModel(self.broker, self.redis, bugs)
        self.aggregators = [AggregatorModel(name, self.redis, bugs) for name in "ab"]
        boots = count(1)
        self.devices = [
            DeviceModel(name, _first_manifest(), boots, bugs, lives_max=lives_max)
            for name in ("d", "e")
        ]
        self.fates: list[Fate] = []
        self.names: list[tuple[str, int, int]] = []
        self._packets = count(1)
        self._on_the_wire: dict[tuple[str, int, int], bytes] = {}
        self._manifests: list[Manifest] = []

    # -- what happens --------------------------------------------------------------------------

    def train(self, device: DeviceModel) -> None:
        """A round of training."""
        replaces = device.replaceable()
        if len(self.fates) == UPDATES or not (device.has_room or replaces):
            return
        made = device.train(len(self.fates), replaces)
        self.fates.append("open")
        self.names.append((device.name, made.boot, made.seq))
        if replaces is not None:
            self.fates[replaces.index] = "superseded"

    def send(self, device: DeviceModel, update: OpenUpdate, *, arrives: bool = True) -> None:
        """Publish an open update, over a link that may lose it."""
        device.mark_sent(update)
        name = (device.name, update.boot, update.seq)
        assert self._on_the_wire.setdefault(name, update.data) == update.data, f"{name} twice"
        if arrives:
            packet = Packet(next(self._packets), TOPICS.up(device.name), update.data)
            self.broker.publish_up(packet)

    def live_a_day(self, device: DeviceModel, *, trains: bool, steps: int) -> None:
        """Go the whole way of an update, one step after the other, and stop after so many."""
        way = self._way(device, trains=trains)
        for _ in range(steps):
            if next(way, None) is None:
                return

    def _way(self, device: DeviceModel, *, trains: bool) -> Iterator[bool]:
        if trains:
            self.train(device)
        yield True
        if device.disk.open:
            self.send(device, device.disk.open[-1])
        yield True
        parts = (self.bridge.step_up, self.aggregators[0].step, self.bridge.step_down)
        for step in parts:
            while step():
                yield True
        self.hear(device)

    def hear(self, device: DeviceModel) -> None:
        """Read what is retained."""
        retained = self.broker.memory.retained
        if manifest := retained.get("model"):
            device.hear_manifest(decode_manifest(manifest))
        if receipt := retained.get(f"receipt/{device.name}"):
            self.settle(device, receipt)

    def settle(self, device: DeviceModel, receipt: bytes) -> None:
        """Let a device read a Receipt."""
        for index in device.hear_receipt(decode_receipt(receipt)):
            self.fates[index] = "settled"

    def restore_image(self, device: DeviceModel) -> None:
        """Put an old copy of the card in."""
        gone, back = device.restore_image()
        for index in gone:
            self.fates[index] = "removed"
        for index in back:
            self.fates[index] = "open"

    def _note_said(self, suffix: str, payload: bytes) -> None:
        if suffix == "model":
            self._manifests.append(decode_manifest(payload))

    # -- the end -------------------------------------------------------------------------------

    def come_to_rest(self) -> None:
        """Heal everything, and let all run until nothing is open."""
        self.redis.write(holder="")
        for _ in range(ROUNDS):
            self._pump()
            if not any(device.disk.open for device in self.devices):
                break
            for device in self.devices:
                for update in device.disk.open[:3]:
                    self.send(device, update)
        else:
            msg = "updates stay open for ever"
            raise AssertionError(msg)
        self.redis.write(holder="")
        run(self.aggregators[1].step)  # who was stopped wakes up
        self._pump()

    def _pump(self) -> None:
        run(self.bridge.step_up)
        run(self.aggregators[0].step)
        self.redis.make_safe()
        run(self.bridge.step_down)
        for device in self.devices:
            self.hear(device)

    # -- the laws ------------------------------------------------------------------------------

    def check_always(self) -> None:
        """What must hold at every moment."""
        counts = load(self.redis.data).model.vectors["params"].tolist()
        assert max(counts) <= 1, f"folded so many times: {counts}"
        if self.redis.mode == "always":
            lost = self.broker.acked - self.redis.data.packets
            assert not lost, f"acknowledged, and lost: {sorted(lost)}"

    def _check_released(self, packet: Packet) -> None:
        """What must hold when the broker forgets a message: Redis has said that it has it."""
        assert packet.number in self.redis.ever_logged, "acknowledged, and not in the log"

    def check_at_rest(self) -> None:
        """What must hold when all is done."""
        self.check_always()
        fold = Fold(origin())
        truth: dict[int, Manifest] = {}
        for entry in self.redis.data.log:
            fold.apply(entry)
            published = fold.take_changes().publications
            truth |= {each.manifest.version: each.manifest for each in published}
        state = load(self.redis.data)
        assert image(state) == image(fold.state), "the state is not the fold of the log"
        counts = state.model.vectors["params"].tolist()
        for index, (fate, name) in enumerate(zip(self.fates, self.names, strict=True)):
            device, boot, seq = name
            window = fold.state.windows.get((self._named(device), Boot(boot)), SeqWindow())
            outcome = window.outcome(Seq(seq))
            match fate:
                case "settled":
                    assert outcome, f"{name} is settled, and was never decided"
                    assert counts[index] == (outcome == FOLDED), f"{name} is settled, and lost"
                case "superseded":
                    assert not counts[index], f"{name} was replaced, and is folded"
                case "open":
                    raise AssertionError(f"{name} is open")
        self._check_manifests(truth)

    def _named(self, device: str) -> DeviceId:
        return next(each.name for each in self.devices if each.name == device)

    def _check_manifests(self, truth: dict[int, Manifest]) -> None:
        """What was published is never taken back, and the newest is there."""
        for manifest in self._manifests:
            assert truth.get(manifest.version) == manifest, f"{manifest.version} was taken back"
        retained = self.broker.memory.retained.get("model")
        if self._manifests and retained is not None:
            newest = decode_manifest(retained).version
            assert newest == max(truth), f"{newest} is retained, {max(truth)} is published"


def run(step: Callable[[], bool]) -> None:
    """Let one part go on until it has nothing to do."""
    for _ in range(STEPS):
        if not step():
            return
    msg = "a part runs for ever"
    raise AssertionError(msg)


def _first_manifest() -> Manifest:
    world = RedisModel("always", FIRST)
    fold = Fold(origin())
    fold.apply_all(world.data.log)
    last = fold.state.published
    assert last is not None
    assert last.named.model_digest == model_digest(
        SPEC.params.digest, fold.state.model.vectors["params"]
    )
    return last.named
