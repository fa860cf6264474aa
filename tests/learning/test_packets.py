import numpy as np
import pytest

from benchmarks.learning.models import mlp
from benchmarks.learning.others import sizes
from benchmarks.learning.packets import SHORTEST, USUAL, offer, packets
from schemas.short import SHORT
from schemas.topics import TaskTopics

SPEC = mlp(64, (128,), 10).spec


def test_a_publish_is_topic_header_payload_and_six_bytes_of_mqtt():
    sent = packets(SPEC, 2, bytes(39), USUAL, short=True)
    topic = TaskTopics(USUAL.prefix, USUAL.task).up(USUAL.device)
    assert sent.publish == 2 + 2 + len(topic) + 2 + sent.header + 39
    assert len(SHORT) < sent.header < packets(SPEC, 2, bytes(39), USUAL, short=False).header
    assert packets(SPEC, 2, bytes(39), SHORTEST, short=True).publish < sent.publish


def test_what_is_lost_is_sent_until_it_is_acknowledged():
    sent = packets(SPEC, 2, bytes(103), USUAL, short=True)
    rng = np.random.default_rng(1)
    up = []
    for _ in range(4000):
        total, said = 0, False
        while not said:  # PUBLISH, its PUBACK
            total += sent.publish
            said = rng.random() < 0.8 and rng.random() < 0.8
        heard = False
        while not heard:  # the Receipt, the PUBACK of each that came
            if rng.random() < 0.8:
                total += sent.receipt_ack
                heard = rng.random() < 0.8
        up.append(total)
    assert np.mean(up) == pytest.approx(sent.up(0.2), rel=0.03)
    assert sent.up(0.0) == sent.publish + 4


def test_a_version_on_the_lattice_is_offered_in_fewer_bytes():
    assert offer(SPEC, USUAL, lattice=True).manifest < offer(SPEC, USUAL, lattice=False).manifest


def test_others_are_counted_by_what_their_serialisation_makes():
    delta = np.random.default_rng(1).normal(0, 0.01, SPEC.size).astype(np.float32)
    found = sizes(SPEC, delta)
    assert 4 * SPEC.size < found["Flower (npy)"] < 4.1 * SPEC.size
    assert 4 * SPEC.size < found["FedML (pickle)"] < 4.1 * SPEC.size
    assert found["NVFlare edge (JSON)"] > 20 * SPEC.size
    assert found["QAFeL 4-bit"] == SPEC.size // 2 + 4
    assert found["OpenFL STC 10 %"] < SPEC.size / 4
