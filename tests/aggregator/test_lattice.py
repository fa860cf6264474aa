"""A task whose published model walks on a lattice: what is retained, and where it leads devices."""

from dataclasses import dataclass, field

import msgspec
import numpy as np

from aggregator.announce import Shelf, moves, records
from aggregator.checkpoint import migrated, read_small_state, restore, small_state
from aggregator.fold import Fold
from aggregator.publishing import params_of
from aggregator.replay import Replay
from aggregator.segments import Logged
from aggregator.shelf import fresh, renamed
from aggregator.state import origin_state
from schemas.ladder import blob_name, origin_name, path
from schemas.lattice import (
    SPAN,
    Ints,
    applied,
    decode_diff,
    decode_keyframe,
    placed,
    sizes_of,
)
from schemas.log import (
    DeviceSet,
    EpochSet,
    Evaluated,
    ModelSet,
    PinSet,
    to_fields,
)
from schemas.messages import Manifest
from schemas.names import DeviceId
from schemas.outbox import Record, Say, Spread, Sweep
from schemas.params import Params, ParamSpec, TensorSpec, base_digest, model_digest, travelling
from schemas.task import FinishOptions, GateOptions, InitOptions, PublishOptions, TaskSpec
from schemas.wire import decode_manifest
from tests.aggregator.world import (
    DEVICE,
    EPOCH,
    TENSORS,
    Store,
    World,
    image,
    make_spec,
    vector,
)

STEP = 2.0**-4


def spec_of(*, step: float = STEP, lattice: bool = True, **given) -> TaskSpec:
    publish = PublishOptions(lattice=lattice, step=step, chunk_bytes=64, keep=given.pop("keep", 4))
    return make_spec(publish=publish, **given)


@dataclass
class Office:
    """What Redis keeps and the broker retains after every commit of a world; checks both."""

    world: World
    blobs: dict[str, bytes] = field(default_factory=dict)
    retained: dict[str, bytes] = field(default_factory=dict)
    said: dict[str, bytes] = field(default_factory=dict)
    shelf: Shelf = field(default_factory=Shelf)
    chunks: dict[str, int] = field(default_factory=dict)

    def commit(self) -> list[Record]:
        state, changes = self.world.state, self.world.changes()
        moved = moves(state, self.shelf)
        kept = set(moved.after.kept)
        for old, new in renamed(changes, kept).items():
            if old in self.blobs:
                self.blobs[new] = self.blobs.pop(old)
        self.blobs |= fresh(changes, kept)
        for name in moved.dropped:
            self.blobs.pop(name, None)
        assert set(self.blobs) == kept, "what is kept is all that Redis holds"
        told = list(records(state, changes, moved))
        for record in told:
            self._carry(record)
        self.shelf = moved.after
        assert set(self.retained) == {blob.name for blob in self.shelf.living}
        for suffix in self.said:
            self._check_manifest(suffix)
        return told

    def _carry(self, record: Record) -> None:
        """As a bridge does, which finds all blobs of a commit in Redis."""
        match record:
            case Spread(name, chunk_bytes):
                self.retained[name] = self.blobs[name]
                self.chunks[name] = -(-len(self.blobs[name]) // chunk_bytes)
            case Sweep(name, chunks):
                assert chunks == self.chunks[name]
                del self.retained[name]
            case Say(suffix, payload):
                self.said[suffix] = payload
                self._check_manifest(suffix)

    def _check_manifest(self, suffix: str) -> None:
        if suffix.partition("/")[0] in {"model", "candidate"} and self.said[suffix]:
            self.check(decode_manifest(self.said[suffix]))

    def check(self, manifest: Manifest) -> None:
        """All that it names is there."""
        assert len(self.retained[manifest.blob]) == manifest.blob_bytes
        if manifest.origin:
            assert manifest.origin in self.retained
        for serial in range(manifest.oldest, manifest.serial):
            for rung in path(serial, manifest.serial):
                assert blob_name(manifest.epoch, *rung) in self.retained

    @property
    def manifest(self) -> Manifest:
        return decode_manifest(self.said["model"])

    def device(self) -> "Device":
        return Device(self).fetch(self.manifest)


@dataclass
class Device:
    """Knows W0, fetches keyframes and diffs, and proves what it has."""

    office: Office
    q: Ints | None = None
    exponents: tuple[int, ...] = ()
    manifest: Manifest | None = None
    took: int = 0

    def fetch(self, manifest: Manifest, *, keyframe: bool = False) -> "Device":
        spec, office = self.office.world.spec.params, self.office
        sizes, known = sizes_of(spec), self.manifest
        on = known is not None and known.epoch == manifest.epoch and not keyframe
        if on and manifest.oldest <= known.serial <= manifest.serial:
            for rung in path(known.serial, manifest.serial):
                diff = office.retained[blob_name(manifest.epoch, *rung)]
                self.took += len(diff)
                found = applied(self.q, self.exponents, decode_diff(diff, sizes), sizes)
                self.q, self.exponents = found
        else:
            blob = office.retained[manifest.blob]
            self.took += len(blob)
            self.q, self.exponents = decode_keyframe(blob, sizes)
        self.manifest = manifest
        assert model_digest(spec.digest, self.whole).startswith(manifest.model_digest)
        return self

    @property
    def whole(self) -> Params:
        world, spec = self.office.world, self.office.world.spec.params
        origin = self.manifest.origin
        whole = params_of(self.office.retained[origin]) if origin else world.params
        fixed = whole.copy()
        part = placed(travelling(spec, whole), self.q, self.exponents, sizes_of(spec))
        offset = at = 0
        for tensor in spec.tensors:
            if tensor.kind in {"trained", "buffer"}:
                fixed[offset : offset + tensor.size] = part[at : at + tensor.size]
                at += tensor.size
            offset += tensor.size
        return fixed


def begun(spec: TaskSpec | None = None, **given) -> tuple[World, Office, np.random.Generator]:
    world = World(spec or spec_of(**given))
    office = Office(world)
    office.commit()
    return world, office, np.random.Generator(np.random.PCG64(5))


def train(world: World, rng: np.random.Generator, *, by: float = 0.2, **given) -> None:
    world.send(vector(rng, world.ones.size) * np.float32(by), **given)


def test_what_is_published_is_the_nearest_point_on_the_way_and_bases_name_it():
    world, office, rng = begun()
    for _ in range(5):
        train(world, rng)
    office.commit()
    device = office.device()
    assert np.max(np.abs(device.whole - world.model)) < STEP
    assert not np.array_equal(device.whole, world.model), "the fold keeps what is not published"
    offsets = (device.whole - world.params) / STEP
    assert np.array_equal(offsets, np.round(offsets))
    digest = model_digest(TENSORS.digest, device.whole)
    assert world.state.bases[world.state.model.version] == base_digest(digest)
    release = world.state.published
    assert np.array_equal(params_of(office.blobs[release.params_blob]), device.whole)


def test_from_every_publication_of_the_last_64_diffs_lead_to_the_same_bits():
    world, office, rng = begun(step=2.0**-7)
    began = office.device()
    fleet = [began]
    for n in range(SPAN + 9):
        train(world, rng)
        if n % 3:
            continue  # several publications in one commit
        office.commit()
        fleet.append(office.device())
    office.commit()
    newest, manifest = office.device(), office.manifest
    assert (manifest.serial, manifest.oldest) == (SPAN + 9, 9)
    assert len(manifest.ladder) == 7
    assert all(manifest.ladder)
    for device in fleet:
        behind = device.manifest.serial >= manifest.oldest
        device.took = 0
        assert np.array_equal(device.fetch(manifest).whole, newest.whole)
        assert behind or device.took == manifest.blob_bytes, "who was away for longer takes it all"
    diffs = [name for name in office.retained if name.startswith("d")]
    assert len(office.retained) - len(diffs) == 4 + 1, (
        "keyframes of the kept releases, and the origin"
    )
    assert 64 <= len(diffs) <= 127
    assert len(office.blobs) == len(diffs) + 2 * 4 + 1


def test_the_borders_of_commits_and_a_restored_checkpoint_change_no_byte_of_a_blob():
    given = {"buffer_size": 2, "momentum": 0.5, "keep": 64}
    changed = {40: {"step": STEP / 2}, 50: {"lattice": False}, 54: {}}
    spec = spec_of(**given)
    world = World(spec)
    rng = np.random.Generator(np.random.PCG64(1))
    for n in range(60):
        if n == 30:
            world.append(EpochSet(EPOCH + 1))
        if n in changed:
            world.respecify(spec_of(**(given | changed[n])))
        train(world, rng, base_version=max(world.state.bases) - (n % 2 and 9 < n < 20))
    images, blobs = [], []
    for size, restored in ((1, False), (1, True), (7, True), (1000, False)):
        again = World(None, params=world.params)
        again.spec = spec
        office, store = Office(again), Store()
        made: dict[str, bytes] = {}
        for start in range(0, len(world.log), size):
            again.fold.apply_all(world.log[start : start + size])
            changes = again.fold.changes
            made |= {each.name: each.blob for each in changes.publications} | changes.beside
            if restored:
                store.commit(again.fold)
                again.fold = store.load()
            else:
                office.commit()
        images.append(image(again.state))
        blobs.append(made)
    assert images == [image(world.state)] * 4
    assert blobs[0] == blobs[1]
    for fewer in blobs[2:]:
        for name, data in fewer.items():  # a keyframe may have moved before it was committed
            assert data == blobs[0].get(name, blobs[0].get(name.replace("k4-", "k3-")))
    assert {name[0] for name in blobs[3]} == {"d", "f", "k", "o"}


def test_a_replay_publishes_the_same_models_and_ends_with_what_devices_have():
    world, office, rng = begun()
    digests: dict[int, str] = {}
    for _ in range(6):
        train(world, rng)
        digests |= {v: r.named.model_digest.hex() for v, r in world.fold.changes.releases.items()}
        office.commit()

    def replayed(**given) -> Replay:
        begin = lambda: origin_state(EPOCH, world.params)  # noqa: E731 - as short as it can be
        replay = Replay(begin, recorded=digests, **given)
        for entry in world.log:
            replay.apply(Logged(entry.id, to_fields(entry.body)))
        return replay

    done = replayed()
    assert (done.findings.same, done.findings.different) == (len(digests), [])
    assert np.array_equal(done.model.params, office.device().whole)
    assert replayed(until=3).model.digest == digests[3]
    without = replayed(without=frozenset({DEVICE})).model
    assert np.array_equal(without.params, world.params), "nobody else has sent anything"


def test_a_rolled_back_model_is_one_diff_away_and_within_a_step():
    world, office, rng = begun()
    for _ in range(3):
        train(world, rng, by=1.0)
    office.commit()
    device, good = office.device(), office.blobs["f3-1"]
    world.append(ModelSet(good, 1))
    office.commit()
    device.took = 0
    device.fetch(office.manifest)
    assert device.took == office.manifest.ladder[0]
    assert np.max(np.abs(device.whole - params_of(good))) < STEP
    assert office.manifest.serial == 4
    assert office.manifest.version == 4


def test_a_manifest_names_no_diff_that_was_swept_while_versions_were_held_back():
    gate = GateOptions("accuracy", by="server", margin=0.0, patience_s=0.0)
    world, office, rng = begun(spec_of(gate=gate, max_staleness=1000))
    world.append(Evaluated(0, 9, {"accuracy": 0.9}))
    train(world, rng)
    world.append(Evaluated(1, 9, {"accuracy": 0.95}))
    office.commit()
    device = office.device()
    assert (office.manifest.serial, office.manifest.oldest) == (1, 0)
    for version in range(2, SPAN + 4):
        train(world, rng, base_version=1)
        world.append(Evaluated(version, 9, {"accuracy": 0.1}))
        office.commit()
    assert (office.manifest.serial, office.manifest.oldest) == (1, 1)
    assert office.manifest.blob in office.retained
    train(world, rng, base_version=1)
    version = world.state.model.version
    world.append(Evaluated(version, 9, {"accuracy": 0.99}))
    office.commit()
    assert office.manifest.version == version
    device.fetch(office.manifest)


def test_a_canary_walks_on_from_a_version_that_was_held_back():
    gate = GateOptions(canary=0.5, patience_s=1.0, on_silence="hold")
    world, office, rng = begun(spec_of(gate=gate))
    train(world, rng)
    office.commit()
    candidate = decode_manifest(office.said["candidate"])
    assert (candidate.serial, office.manifest.serial) == (1, 0)
    assert office.retained[candidate.blob]
    canary = Device(office).fetch(candidate)
    world.tick(2000)  # held: nobody else gets it
    train(world, rng)
    office.commit()
    canary.fetch(decode_manifest(office.said["candidate"]))
    assert canary.manifest.serial == 2


def test_a_gate_that_rolls_back_walks_back():
    gate = GateOptions("accuracy", by="server", on_worse="rollback", patience_s=0.0)
    world, office, rng = begun(spec_of(gate=gate))
    world.append(Evaluated(0, 9, {"accuracy": 0.9}))
    office.commit()
    device = office.device()
    before = device.whole
    train(world, rng, by=3.0)
    world.append(Evaluated(1, 9, {"accuracy": 0.1}))
    office.commit()
    assert (office.manifest.version, office.manifest.serial) == (2, 2)
    device.fetch(office.manifest)
    assert np.max(np.abs(device.whole - before)) < STEP


def test_in_another_epoch_no_diff_leads_on_and_pinned_keyframes_have_its_name():
    world, office, rng = begun()
    world.append(DeviceSet(DeviceId(DEVICE), tags=("lab",)))
    for _ in range(4):
        train(world, rng)
    world.append(PinSet("lab", 2))
    office.commit()
    device = office.device()
    pinned = decode_manifest(office.said[f"model/{DEVICE}"])
    assert (pinned.version, pinned.oldest) == (2, pinned.serial), "its diffs may be swept any time"
    held = Device(office).fetch(pinned)
    for _ in range(2):
        train(world, rng)  # is not committed yet when the epochs come
    world.append(EpochSet(EPOCH + 3))
    world.append(EpochSet(EPOCH + 4))
    train(world, rng)
    office.commit()
    manifest = office.manifest
    assert (manifest.epoch, manifest.oldest, manifest.serial) == (EPOCH + 4, 8, 9)
    device.took = 0
    assert device.fetch(manifest).took == manifest.blob_bytes
    again = decode_manifest(office.said[f"model/{DEVICE}"])
    assert (again.epoch, again.version) == (EPOCH + 4, 2)
    assert np.array_equal(held.whole, Device(office).fetch(again).whole)
    assert not [name for name in office.retained if f"{EPOCH}-" in name]
    train(world, rng)
    office.commit()
    device.took = 0
    assert device.fetch(office.manifest).took == office.manifest.ladder[0]


def test_a_keyframe_that_moved_gives_way_to_the_plain_model_of_its_version():
    """All in one commit: published on the lattice, switched off, and published again elsewhere."""
    world, office, rng = begun()
    train(world, rng)
    world.respecify(spec_of(lattice=False))
    world.append(EpochSet(EPOCH + 1))
    office.commit()
    assert (office.manifest.version, office.manifest.codec) == (1, 0)
    assert params_of(office.retained[office.manifest.blob]).tobytes() == world.model.tobytes()


def test_a_lattice_that_is_switched_on_in_a_running_task_begins_with_the_model_of_that_moment():
    world, office, rng = begun(spec_of(lattice=False))
    assert "o" not in {name[0] for name in office.retained}
    train(world, rng)
    office.commit()
    assert office.manifest.codec == 0
    world.respecify(spec_of())
    assert "model" not in [each.suffix for each in office.commit() if isinstance(each, Say)]
    start = world.model.copy()
    assert office.retained[origin_name(start)] == start.tobytes()
    train(world, rng)
    office.commit()
    assert (office.manifest.serial, office.manifest.oldest) == (0, 0)
    assert office.manifest.origin == origin_name(start)
    device = office.device()
    for spec, codec in ((spec_of(lattice=False), 0), (spec_of(), 64)):
        world.respecify(spec)
        office.commit()
        train(world, rng)
        train(world, rng)
        office.commit()
        assert office.manifest.codec == codec
        if not codec:
            assert (
                params_of(office.retained[office.manifest.blob]).tobytes() == world.model.tobytes()
            )
            assert {name[0] for name in office.retained} == {"k"}
            assert {name[0] for name in office.blobs} <= {"k", "f", "o"}
    assert (office.manifest.serial, office.manifest.oldest) == (2, 1), "it counts on"
    assert office.manifest.origin != device.manifest.origin
    device.fetch(office.manifest)


def test_a_lattice_of_one_commit_leaves_nothing():
    world, office, _ = begun(spec_of(lattice=False))
    world.respecify(spec_of())
    world.respecify(spec_of(lattice=False))
    office.commit()
    assert {name[0] for name in office.blobs} == {"k"}


def test_who_switches_it_off_leaves_no_manifest_that_names_swept_diffs():
    world, office, rng = begun()
    for _ in range(3):
        train(world, rng)
    office.commit()
    assert office.manifest.oldest == 0
    world.respecify(spec_of(lattice=False))
    office.commit()
    assert office.manifest.oldest == office.manifest.serial == 3
    assert not [name for name in office.retained if name.startswith("d")]
    Device(office).fetch(office.manifest)


def test_a_version_that_is_published_again_is_the_same_model():
    world, office, rng = begun()
    train(world, rng)
    office.commit()
    before = office.device()
    world.respecify(spec_of(step=STEP / 4, name="fedasync", views=2))
    office.commit()
    assert office.manifest == before.manifest
    assert np.array_equal(world.state.views[1], before.whole)
    world.respecify(spec_of(lattice=False, name="fedasync", views=2))
    train(world, rng)
    office.commit()
    assert office.manifest.codec == 0


def test_a_step_is_halved_on_the_way_and_never_made_larger():
    world, office, rng = begun()
    train(world, rng)
    office.commit()
    device = office.device()
    world.respecify(spec_of(step=STEP / 8))
    train(world, rng)
    office.commit()
    assert device.fetch(office.manifest).took
    assert np.max(np.abs(device.whole - world.model)) < STEP / 8
    world.respecify(spec_of(step=STEP))  # people are refused; a log that says so is folded
    train(world, rng)
    office.commit()
    device.fetch(office.manifest)
    assert np.max(np.abs(device.whole - world.model)) < STEP / 8


def test_a_step_of_millions_and_many_halvings_begins_the_ladder_anew():
    world, office, rng = begun(spec_of(step=1.0))
    train(world, rng)
    office.commit()
    device = office.device()
    far = np.full(world.ones.size, 2.0**22, np.float32)
    world.append(ModelSet(far.tobytes(), 1))
    office.commit()
    device.fetch(office.manifest)
    world.respecify(spec_of(step=2.0**-20))
    world.append(ModelSet((-far).tobytes(), 1))
    office.commit()
    assert device.fetch(office.manifest).manifest.blob_bytes


def test_what_does_not_travel_stays_and_buffers_walk_too():
    kinds = ParamSpec(
        (
            TensorSpec("w", (2, 3)),
            TensorSpec("ice", (4,), "frozen"),
            TensorSpec("mean", (2,), "buffer"),
            TensorSpec("own", (3,), "local"),
        )
    )
    params = np.arange(15, dtype=np.float32)
    world = World(spec_of(params=kinds), params=params)
    office, rng = Office(world), np.random.Generator(np.random.PCG64(2))
    office.commit()
    device = office.device()
    assert office.retained[office.manifest.origin] == params.tobytes()
    for _ in range(3):
        train(world, rng, by=1.0)
        office.commit()
        device.fetch(office.manifest)
    assert device.whole.size == 15
    assert np.array_equal(device.whole[6:10], params[6:10])
    assert np.array_equal(device.whole[12:], params[12:])
    assert not np.array_equal(device.whole[10:12], params[10:12])
    assert np.max(np.abs(travelling(kinds, device.whole) - world.model)) < STEP


def test_fedasync_mixes_against_what_was_published():
    world, office, rng = begun(name="fedasync", views=3, alpha=0.5)
    for _ in range(4):
        train(world, rng)
        office.commit()
        newest = office.device().whole
        assert np.array_equal(world.state.views[max(world.state.views)], newest)
    view, model = world.state.views[3].copy(), world.model.copy()
    now = world.state.views[4].copy()
    delta = vector(rng)
    world.send(delta, base_version=3)
    drift = (view - now) * np.float32(0.5)
    expected = (model + drift) + delta * np.float32(0.5)
    assert np.allclose(world.model, expected, atol=1e-6)


def test_devices_draw_w0_themselves_while_it_is_the_first_model():
    world, office, rng = begun(spec_of(init=InitOptions("zeros", 3)))
    assert office.manifest.origin == ""
    assert not [name for name in office.blobs if name.startswith("o")]
    world.respecify(spec_of(init=InitOptions("zeros", 4)))
    assert world.state.spec.init == InitOptions("zeros", 3), "a task keeps its initial model"
    world.respecify(spec_of(lattice=False))
    world.respecify(spec_of())
    train(world, rng)
    office.commit()
    assert office.manifest.origin == world.state.lattice.name


def test_a_finished_task_has_published_its_last_model():
    seldom = msgspec.structs.replace(spec_of().publish, every=9)
    spec = spec_of(finish=FinishOptions(versions=2))
    world, office, rng = begun(msgspec.structs.replace(spec, publish=seldom))
    train(world, rng)
    office.commit()
    assert office.manifest.version == 0
    train(world, rng)
    office.commit()
    assert (world.state.phase, office.manifest.version) == ("finished", 2)
    office.device()


def test_the_chunks_of_a_lattice_stay_as_long_as_they_were():
    world, office, rng = begun()
    other = msgspec.structs.replace(world.spec.publish, chunk_bytes=128)
    world.respecify(msgspec.structs.replace(world.spec, publish=other))
    train(world, rng)
    office.commit()
    assert office.manifest.chunk_bytes == 64


def test_an_origin_that_is_retained_already_stays_in_its_chunks():
    world, office, rng = begun()
    before = office.manifest
    for lattice in (False, True):
        spec = spec_of(lattice=lattice)
        publish = msgspec.structs.replace(spec.publish, chunk_bytes=80)
        world.respecify(msgspec.structs.replace(spec, publish=publish))
        office.commit()
    train(world, rng)
    office.commit()
    assert office.manifest.origin == before.origin
    assert office.manifest.chunk_bytes == before.chunk_bytes == 64


def test_a_checkpoint_from_before_lattices_is_read():
    world = World()
    small = msgspec.json.decode(small_state(world.state, ()))
    del small["lattice"], small["serial"]
    old = read_small_state(msgspec.json.encode(small | {"schema": 2}))
    devices = {"d": b"{}"}
    found, known = migrated(old, None, (), devices)
    assert known == devices
    state = restore(found, {"params": world.model.tobytes()}, {}, {})
    assert state.lattice is None
    assert state.releases == world.state.releases
    assert Fold(state).state.model.version == 0
