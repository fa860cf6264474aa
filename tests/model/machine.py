"""The machine: hypothesis chooses who does something next, and what breaks."""

from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.model.bugs import Bugs
from tests.model.redis_model import Mode
from tests.model.world_model import World

WHO = st.sampled_from((0, 0, 1))
FEW = st.integers(1, 4)
MOSTLY = st.sampled_from((True, True, False))
PLACE = st.one_of(st.integers(1, 24), st.just(64))
"""After how many steps of an update's way a day is cut short."""


class Machine(RuleBasedStateMachine):
    """Devices, a broker, a bridge, a Redis and two aggregators, and all may die at any step."""

    bugs: ClassVar[Bugs] = frozenset()
    modes: ClassVar[tuple[Mode, ...]] = ("always", "everysec", "replica")
    stories: ClassVar[int] = 0

    world: World

    @initialize(data=st.data())
    def begin(self, data: Any) -> None:
        type(self).stories += 1
        self.world = World(data.draw(st.sampled_from(self.modes)), self.bugs)

    # -- everyday life -------------------------------------------------------------------------

    @rule(who=WHO)
    def train(self, who: int) -> None:
        self.world.train(self.world.devices[who])

    @rule(who=WHO, which=st.integers(0, 3), arrives=MOSTLY)
    def send(self, *, who: int, which: int, arrives: bool) -> None:
        device = self.world.devices[who]
        if device.disk.open:
            update = device.disk.open[which % len(device.disk.open)]
            self.world.send(device, update, arrives=arrives)

    @rule(who=WHO, trains=st.booleans(), place=PLACE)
    def live_a_day(self, *, who: int, trains: bool, place: int) -> None:
        self.world.live_a_day(self.world.devices[who], trains=trains, steps=place)

    @rule(who=WHO)
    def hear(self, who: int) -> None:
        self.world.hear(self.world.devices[who])

    @rule(steps=FEW)
    def lift(self, steps: int) -> None:
        for _ in range(steps):
            self.world.bridge.step_up()

    @rule(steps=FEW)
    def tell(self, steps: int) -> None:
        for _ in range(steps):
            self.world.bridge.step_down()

    @rule(who=WHO, steps=FEW)
    def aggregate(self, who: int, steps: int) -> None:
        for _ in range(steps):
            self.world.aggregators[who].step()

    @rule(writes=st.integers(0, 4))
    def sync(self, writes: int) -> None:
        self.world.redis.make_safe(writes)

    # -- what breaks ---------------------------------------------------------------------------

    @rule(crash=st.booleans())
    def break_bridge(self, *, crash: bool) -> None:
        if crash:
            self.world.bridge.crash()
        else:
            self.world.bridge.lose_link()

    @rule(who=WHO)
    def crash_aggregator(self, who: int) -> None:
        self.world.aggregators[who].crash()

    @rule()
    def lose_lease(self) -> None:
        self.world.redis.write(holder="")

    @rule(lost=st.sampled_from((0, 1, 2, 4, 100)))
    def kill_redis(self, lost: int) -> None:
        self.world.redis.kill(lost)

    @rule(keeps=st.booleans(), back=st.booleans())
    def kill_broker(self, *, keeps: bool, back: bool) -> None:
        self.world.broker.kill(keeps=keeps)
        if back:
            self.world.bridge.step_up()

    @rule()
    def save_broker(self) -> None:
        self.world.broker.save()

    @rule(who=WHO)
    def restart_device(self, who: int) -> None:
        self.world.devices[who].start()

    @rule(who=WHO)
    def copy_card(self, who: int) -> None:
        self.world.devices[who].take_image()

    @rule(who=WHO, trains=st.booleans(), place=PLACE, copies=st.booleans())
    def put_old_card_in(self, *, who: int, trains: bool, place: int, copies: bool) -> None:
        device = self.world.devices[who]
        if copies:
            device.take_image()
            self.world.live_a_day(device, trains=trains, steps=place)
        self.world.restore_image(device)

    @rule(who=WHO, place=PLACE, what=st.integers(0, 6), after=PLACE)
    def live_a_day_on_which_something_breaks(
        self, who: int, place: int, what: int, after: int
    ) -> None:
        world = self.world
        device = world.devices[who]
        world.live_a_day(device, trains=True, steps=place)
        match what:
            case 0:
                world.bridge.crash()
            case 1:
                world.broker.kill(keeps=False)
                world.bridge.step_up()
            case 2:
                world.broker.kill(keeps=True)
            case 3:
                world.aggregators[0].crash()
                world.redis.write(holder="")
            case 4:
                world.redis.kill(100)
            case 5:
                world.redis.write(holder="")
                for _ in range(after):
                    world.aggregators[1].step()
            case _:
                device.start()
        world.live_a_day(device, trains=True, steps=after)

    @rule(who=WHO, place=PLACE, looks=FEW, lost=st.sampled_from((0, 100)))
    def reconnect_while_the_aggregator_goes_on(
        self, who: int, place: int, looks: int, lost: int
    ) -> None:
        world = self.world
        world.live_a_day(world.devices[who], trains=True, steps=place)
        world.bridge.lose_link()
        world.redis.make_safe()
        for _ in range(looks):
            world.bridge.step_down()
        for _ in range(8):
            world.aggregators[0].step()
        world.bridge.step_down()
        world.redis.kill(lost)

    # -- the laws ------------------------------------------------------------------------------

    @invariant()
    def nothing_is_folded_twice_or_acknowledged_too_early(self) -> None:
        self.world.check_always()

    def teardown(self) -> None:
        self.world.come_to_rest()
        self.world.check_at_rest()
