import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.lorawan.pieces import (
    HEAD_BYTES,
    RING,
    Assembly,
    Head,
    encode_head,
    port_of,
    read_head,
    read_port,
)
from schemas.errors import InvariantError, WireError

HEAD = Head(first=7, last=65_535, epoch=3, whole=False, length=760, digest=b"abcd")


def test_a_head_has_golden_bytes():
    assert encode_head(HEAD).hex() == "0007ffff3002f861626364"
    assert read_head(encode_head(HEAD) + b"rest") == HEAD


@given(st.binary(max_size=20))
def test_no_garbage_is_a_head_that_does_not_come_out_again(data):
    try:
        head = read_head(data)
    except WireError:
        return
    assert encode_head(head) == data[:HEAD_BYTES]


def test_a_head_of_too_much_is_ours_to_prevent():
    with pytest.raises(InvariantError):
        encode_head(Head(0, 0, 0, whole=True, length=1 << 16, digest=b"abcd"))


def test_every_count_and_turn_has_a_port_of_its_own():
    ports = [port_of(count, turn) for count in range(RING) for turn in (0, 1)]
    assert len(set(ports)) == 2 * RING
    assert min(ports) == 1
    assert max(ports) <= 223
    assert [read_port(port) for port in ports] == [(c, t) for c in range(RING) for t in (0, 1)]
    assert read_port(0) is None
    assert read_port(223) is None


def cut(body: bytes, size: int) -> list[bytes]:
    return [body[start : start + size] for start in range(0, len(body), size)]


@given(
    st.binary(min_size=1, max_size=9_000),
    st.integers(HEAD_BYTES + 1, 222),
    st.lists(st.integers(0, 5), max_size=200),
)
def test_a_transfer_arrives_whatever_is_lost_or_said_twice(diff, size, faults):
    """Loss of a piece, of the answer to it, and pieces that come twice."""
    head = Head(1, 2, 0, whole=False, length=len(diff), digest=b"\1\2\3\4")
    pieces = cut(encode_head(head) + diff, size)
    device, there = Assembly(), 0
    fault = iter(faults)
    for _ in range(len(pieces) + len(faults) + 1):
        said, turn = read_port(device.port)
        if there and said == (there + 1) % RING:
            there += 1
        elif not there and turn == 1:
            there = 1
        doing = next(fault, 0)
        if doing == 1:
            continue  # the piece is lost
        arrived = device.receive(port_of(there, 1), pieces[there])
        if doing == 2 and arrived is None:
            assert device.receive(port_of(there, 1), pieces[there]) is None
        if arrived is not None:
            assert arrived.data == diff
            assert device.pieces == 0
            assert there == len(pieces) - 1
            return
    pytest.fail("it never arrived")


def test_a_piece_of_another_transfer_is_not_taken():
    device = Assembly()
    body = encode_head(HEAD) + bytes(760)
    assert device.receive(port_of(0, 1), body[:51]) is None
    assert device.receive(port_of(1, 0), body[51:102]) is None
    assert device.pieces == 1


def test_a_new_turn_begins_a_new_transfer_and_only_with_its_head():
    device = Assembly()
    device.receive(port_of(0, 1), encode_head(HEAD) + b"old")
    device.receive(port_of(0, 0), bytes(40))
    assert device.port == port_of(1, 1)
    device.receive(port_of(0, 0), encode_head(HEAD) + b"new")
    assert device.port == port_of(1, 0)


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=60)), max_size=40))
def test_no_downlink_raises(downlinks):
    device = Assembly()
    for port, data in downlinks:
        device.receive(port, data)
        assert 1 <= device.port <= 223
