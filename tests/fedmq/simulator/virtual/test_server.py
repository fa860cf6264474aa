"""The server of the simulator is production's fold: a recorded log gives its versions."""

from fedmq.simulator.virtual.server import Server, refold
from schemas.codecs import codec_by_name
from schemas.log import PhaseSet
from schemas.names import DeviceId
from schemas.task import PublishOptions
from tests.aggregator.world import EPOCH, World, make_spec, ramp, with_gain


def test_a_recorded_log_gives_the_versions_and_digests_that_production_published() -> None:
    world = World(make_spec(buffer_size=3, flush_after_s=5.0, codec="float32"))
    published = []
    for number in range(20):
        world.send(ramp(0.01 * number), device=f"d{number % 4}")
        published += world.changes().publications
    world.send(ramp(), base_version=99)  # refused
    world.tick(after_ms=6000)  # folds the rest
    world.append(PhaseSet("paused"))
    published += world.changes().publications
    wanted = [(int(p.manifest.version), p.manifest.model_digest.hex()[:16]) for p in published]
    assert len(wanted) == 8
    assert refold(world.log, ramp(), EPOCH) == wanted


def test_devices_are_told_the_gain_and_duplicates_are_nobodys_decision() -> None:
    spec = make_spec(buffer_size=4)
    server = Server(spec, ramp())
    assert server.spec.gain == 0.25
    assert with_gain(spec)
    world = World(spec)
    world.fold.state.epoch = server.state.epoch
    data = world.send(ramp(), epoch=server.state.epoch)
    first = server.arrive(1.0, DeviceId("d"), data)
    assert first is not None
    assert first.outcome == 1
    assert server.arrive(1.0, DeviceId("d"), data) is None
    assert codec_by_name("float32").codec_id in server.state.codecs


def test_a_deadline_is_met_by_a_tick_at_that_moment() -> None:
    spec = make_spec(buffer_size=4, flush_after_s=2.0, publish=PublishOptions(every=1))
    server = Server(spec, ramp())
    assert server.due_s() is None
    world = World(spec)
    server.arrive(1.0, DeviceId("d"), world.send(ramp(), epoch=server.state.epoch))
    due_s = server.due_s()
    assert due_s == 3.0
    server.tick(due_s - 0.001)
    assert server.version == 0
    server.tick(due_s)
    assert server.version == 1
    assert server.published.version == 1
