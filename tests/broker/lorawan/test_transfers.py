import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.lorawan.events import Uplink
from broker.lorawan.pieces import Arrived, Assembly, read_port
from broker.lorawan.transfers import Models, Piece, Policy, Step, Transfers
from schemas.names import Boot, DeviceId, Seq

DEVICE = DeviceId("70b3d57ed0000001")
EPOCH = 3


def models(newest: int = 10, *, oldest: int = 0, every: int = 2) -> Models:
    """Publications of every second version, as far as `newest`."""
    found = Models()
    for serial in range(newest // every + 1):
        version = serial * every
        digest = bytes([serial]) * 32
        found.publish(
            epoch=EPOCH, serial=serial, version=version, digest=digest, oldest=min(oldest, serial)
        )
    return found


class Device:
    """A device's end: an Assembly, a version, and FCnt."""

    def __init__(self, version: int = 0, epoch: int = EPOCH, boot: int = 7) -> None:
        self.version, self.epoch, self.boot, self.count = version, epoch, boot, 0
        self.assembly = Assembly()

    def uplink(self) -> Uplink:
        self.count += 1
        frame = bytes([2]) + self.version.to_bytes(2, "big") + bytes([self.epoch << 4]) + bytes(40)
        port = self.assembly.port
        return Uplink(DEVICE, Boot(self.boot), Seq(self.count), port, frame, 12, 0, 125_000, "down")

    def hear(self, piece: Piece) -> Arrived | None:
        arrived = self.assembly.receive(piece.port, piece.data)
        if arrived is not None:
            self.version = arrived.head.last
        return arrived


def begun(transfers: Transfers, device: Device, there: Models, diff: bytes) -> Piece:
    """The first piece of a transfer."""
    uplink = device.uplink()
    step = transfers.hear(uplink, there, 51, 0.0)
    assert isinstance(step, Step)
    piece = transfers.begin(uplink, step, diff, 51, 0.0)
    assert piece is not None
    return piece


def test_a_step_leads_from_the_devices_publication_to_the_newest():
    there = models(10)
    assert there.step(EPOCH, 4) == Step(EPOCH, 2, 4, 5, 10, bytes([5]) * 4)
    assert there.step(EPOCH, 10) is None
    assert Models().step(EPOCH, 0) is None


@pytest.mark.parametrize(("epoch", "version"), [(EPOCH, 3), (EPOCH, 99), (EPOCH + 1, 4)])
def test_from_a_base_that_nobody_knows_a_keyframe_leads(epoch, version):
    step = models(10).step(epoch, version)
    assert step is not None
    assert (step.first, step.first_version) == (None, 0)


def test_from_a_base_whose_diffs_were_swept_a_keyframe_leads():
    assert models(10, oldest=3).step(EPOCH, 6).first == 3
    assert models(10, oldest=3).step(EPOCH, 4).first is None


def test_versions_are_told_modulo_two_to_the_sixteenth():
    there = Models()
    for serial, version in enumerate((65_534, 65_540)):
        there.publish(epoch=1, serial=serial, version=version, digest=b"dddd", oldest=0)
    assert there.step(1, 65_534).first == 0
    assert there.step(1, 65_540 % (1 << 16)) is None


def test_a_note_of_an_earlier_adapter_counts_and_an_older_epochs_does_not():
    there = Models()
    there.remember(EPOCH, {4: 2})
    there.publish(epoch=EPOCH, serial=9, version=18, digest=b"dddd", oldest=0)
    assert there.step(EPOCH, 4).first == 2
    there.remember(EPOCH - 1, {6: 3})
    assert there.step(EPOCH, 6).first is None
    there.publish(epoch=EPOCH + 1, serial=10, version=20, digest=b"eeee", oldest=10)
    assert there.serials == {20: 10}


@given(
    st.integers(1, 6_000),
    st.lists(st.booleans(), max_size=60),
    st.lists(st.sampled_from([51, 115, 222]), max_size=60),
    st.booleans(),
)
def test_a_model_comes_down_though_every_frame_may_be_lost(size, lost, rooms, told):
    """`told`: the network server says what it has sent; else patience must do."""
    transfers, there, device = Transfers(Policy()), models(10), Device()
    diff, chance, room = bytes(i % 251 for i in range(size)), iter(lost), iter(rooms)
    for _ in range(4 * (size // 40 + len(lost)) + 12):
        uplink = device.uplink()
        if next(chance, False):
            continue
        now = next(room, 51)
        answer = transfers.hear(uplink, there, now, 0.0)
        if isinstance(answer, Step):
            answer = transfers.begin(uplink, answer, diff, now, 0.0)
        if answer is None:
            continue
        assert len(answer.data) <= now
        if told:
            transfers.sent(DEVICE)
        arrived = None if next(chance, False) else device.hear(answer)
        if arrived is not None:
            assert arrived.data == diff
            assert arrived.head.last == 10
            assert transfers.hear(device.uplink(), there, 51, 0.0) is None
            assert transfers.under_way == 0
            return
    pytest.fail("it never arrived")


def test_the_target_stays_until_the_device_has_it_and_then_the_next_is_one_diff():
    transfers, there, device = Transfers(Policy()), models(4), Device()
    assert device.hear(begun(transfers, device, there, bytes(60))) is None
    there.publish(epoch=EPOCH, serial=3, version=6, digest=b"dddd", oldest=0)
    there.publish(epoch=EPOCH, serial=4, version=8, digest=b"eeee", oldest=0)
    last = transfers.hear(device.uplink(), there, 51, 0.0)
    assert isinstance(last, Piece)
    device.hear(last)
    assert device.version == 4
    step = transfers.hear(device.uplink(), there, 51, 0.0)
    assert isinstance(step, Step)
    assert (step.first_version, step.last_version) == (4, 8)


def test_a_piece_that_may_still_wait_is_not_said_twice_but_not_waited_for_for_ever():
    transfers, there, device = Transfers(Policy()), models(4), Device()
    piece = begun(transfers, device, there, bytes(300))
    assert transfers.hear(device.uplink(), there, 51, 0.0) is None
    assert transfers.hear(device.uplink(), there, 51, 0.0) == piece
    transfers.sent(DEVICE)
    assert transfers.hear(device.uplink(), there, 51, 0.0) == piece


def test_a_piece_is_cut_anew_only_when_it_no_longer_fits():
    transfers, there, device = Transfers(Policy()), models(4), Device()
    piece = begun(transfers, device, there, bytes(300))
    for room, size in ((222, len(piece.data)), (40, 40)):
        transfers.sent(DEVICE)
        again = transfers.hear(device.uplink(), there, room, 0.0)
        assert isinstance(again, Piece)
        assert len(again.data) == size


def test_an_adapter_that_has_forgotten_begins_with_the_other_turn():
    there, device = models(4), Device()
    first = begun(Transfers(Policy()), device, there, bytes(300))
    device.hear(first)
    again = begun(Transfers(Policy()), device, there, bytes(300))
    assert read_port(again.port) == (0, 1 - read_port(first.port)[1])
    device.hear(again)
    assert device.assembly.pieces == 1


def test_a_device_that_has_lost_its_pieces_gets_them_anew():
    transfers, there, device = Transfers(Policy()), models(4), Device()
    device.hear(begun(transfers, device, there, bytes(300)))
    device.hear(transfers.hear(device.uplink(), there, 51, 0.0))
    device.assembly = Assembly()
    assert isinstance(transfers.hear(device.uplink(), there, 51, 0.0), Step)


@pytest.mark.parametrize("how", ["join", "boot"])
def test_another_session_begins_anew(how):
    transfers, there, device = Transfers(Policy()), models(4), Device()
    begun(transfers, device, there, bytes(300))
    if how == "join":
        transfers.joined(DEVICE)
    device.boot, device.count = 8, 0
    assert isinstance(transfers.hear(device.uplink(), there, 51, 0.0), Step)


def test_an_uplink_that_is_said_again_opens_no_window():
    transfers, there, device = Transfers(Policy()), models(4), Device()
    uplink = device.uplink()
    assert isinstance(transfers.hear(uplink, there, 51, 0.0), Step)
    assert transfers.hear(uplink, there, 51, 0.0) is None


def test_who_is_near_enough_gets_nothing():
    there = models(10)
    for version, behind, begins in ((8, 1, True), (8, 2, False), (6, 2, True)):
        answer = Transfers(Policy(behind=behind)).hear(Device(version).uplink(), there, 51, 0.0)
        assert isinstance(answer, Step) is begins
    there.last = True
    final = Transfers(Policy(behind=60)).hear(Device(8).uplink(), there, 51, 0.0)
    assert isinstance(final, Step)
    there.last = False
    lost = Transfers(Policy(behind=60)).hear(Device(3).uplink(), there, 51, 0.0)
    assert isinstance(lost, Step)  # nothing that it sends could be folded


def test_a_day_has_only_so_many_downlinks():
    transfers, there, device = Transfers(Policy(day=2)), models(4), Device()
    begun(transfers, device, there, bytes(900))
    said = []
    for hour in range(1, 50):
        transfers.sent(DEVICE)
        if transfers.hear(device.uplink(), there, 51, 3600.0 * hour) is not None:
            said.append(hour)
    assert said == [1, 24, 25, 48, 49]


def test_a_poll_and_a_window_too_small_for_a_head_begin_nothing():
    transfers, there, device = Transfers(Policy()), models(4), Device()
    uplink = device.uplink()
    step = transfers.hear(uplink, there, 11, 0.0)
    assert isinstance(step, Step)
    assert transfers.begin(uplink, step, bytes(30), 11, 0.0) is None
    assert transfers.hear(device.uplink(), there, 0, 0.0) is None
