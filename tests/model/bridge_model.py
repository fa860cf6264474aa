"""The bridge, one step at a time: receive, XADD each, PUBACK each; outbox, wait, say, note.

A step is what a crash cannot cut in two.
"""

from broker.routing import Routed, route
from schemas.outbox import Record, Say
from tests.model.broker_model import BrokerModel, Packet
from tests.model.bugs import Bugs
from tests.model.names import PREFIX
from tests.model.redis_model import Place, RedisModel


class BridgeModel:
    """One bridge process after the other."""

    def __init__(self, broker: BrokerModel, redis: RedisModel, bugs: Bugs) -> None:
        self._broker, self._redis, self._bugs = broker, redis, bugs
        self.crash()

    def crash(self) -> None:
        """The process is gone."""
        self._inbox: list[tuple[int, Packet]] = []
        self._batch: list[tuple[int, Packet]] = []
        self._appended = self._acked = 0
        self.lose_link()

    def lose_link(self) -> None:
        """The connection is gone, and with it (a new client!) all that it has brought."""
        self._connection = 0
        self._inbox = []
        if "late_ack_on_a_reused_client" not in self._bugs:
            self._batch = []
            self._appended = self._acked = 0
        self._forget_place()

    def _forget_place(self) -> None:
        self._said: Place | None = None
        self._say: list[tuple[Place, Record]] = []
        self._read_at = (0, 0)
        self._told = 0

    @property
    def connected(self) -> bool:
        """Whether the link holds."""
        return bool(self._connection) and self._connection == self._broker.connection

    def _live(self) -> bool:
        """Whether there is a link; if there was none, there is one after this step."""
        if self.connected:
            return True
        if self._connection:
            self.lose_link()
        self._inbox = self._broker.connect()
        self._connection = self._broker.connection
        return False

    # -- the way up ----------------------------------------------------------------------------

    def step_up(self) -> bool:
        """Do the next thing; False when there is nothing to do."""
        if not self._live():
            return True
        self._inbox += self._broker.deliver()
        if self._acked == self._appended == len(self._batch):
            self._batch, self._inbox = self._inbox, []
            self._appended = self._acked = 0
            return bool(self._batch)
        if "puback_before_xadd" in self._bugs:
            return self._ack() or self._append()
        return self._append() or self._ack()

    def _append(self) -> bool:
        if self._appended == len(self._batch):
            return False
        _, packet = self._batch[self._appended]
        message = route(PREFIX, packet.topic, packet.payload, max_bytes=1 << 20)
        assert isinstance(message, Routed)
        self._redis.append(message.arrived, packet.number)
        self._appended += 1
        return True

    def _ack(self) -> bool:
        if self._acked == len(self._batch):
            return False
        self._broker.ack(self._connection, self._batch[self._acked][0])
        self._acked += 1
        return True

    # -- the way down --------------------------------------------------------------------------

    def step_down(self) -> bool:
        """Do the next thing; False when there is nothing to do, or one must wait."""
        if not self._live():
            return True
        if self._said is None:
            return self._assert_standing()
        if not self._say:
            return self._read_outbox(self._said)
        if not self._may_say():
            return False
        if self._told < len(self._say):
            record = self._say[self._told][1]
            if isinstance(record, Say) and record.retain:
                self._broker.retain(record.suffix, record.payload)
            self._told += 1
        else:
            self._note_said()
        return True

    def _assert_standing(self) -> bool:
        """Say again what the broker may have lost: read, wait, say."""
        redis = self._redis
        if not self._read_at[0]:
            self._standing = redis.data.manifest
            self._read_at = (redis.run_id, redis.now)
            self._sure = False
        elif not self._sure:
            self._sure = self._may_say()
            return self._sure or not self._read_at[0]
        else:
            late = "standing_read_after_the_wait" in self._bugs
            manifest = redis.data.manifest if late else self._standing
            if manifest:
                self._broker.retain("model", manifest)
            self._said = redis.data.said
            self._read_at = (redis.run_id, 0)
        return True

    def _read_outbox(self, after: Place) -> bool:
        redis = self._redis
        if not self._same_redis():
            return True
        self._say = [(place, record) for place, record in redis.data.outbox if place > after]
        self._read_at = (redis.run_id, redis.now)
        self._told = 0
        return bool(self._say)

    def _same_redis(self) -> bool:
        """Whether it is still the server that told us our place."""
        if self._read_at[0] == self._redis.run_id:
            return True
        self._forget_place()
        return False

    def _may_say(self) -> bool:
        """Whether what was read can no more be taken back."""
        run_id, moment = self._read_at
        mode = self._redis.mode
        early = "receipt_before_fsync" in self._bugs and mode == "everysec"
        early |= "receipt_before_replica" in self._bugs and mode == "replica"
        if early:
            return True
        if run_id != self._redis.run_id and "receipt_of_a_redis_that_was" not in self._bugs:
            self._forget_place()
            return False
        return self._redis.is_safe(min(moment, self._redis.now))

    def _note_said(self) -> None:
        self._said = self._say[-1][0]
        left = tuple(pair for pair in self._redis.data.outbox if pair[0] > self._said)
        self._redis.write(said=self._said, outbox=left)
        self._say = []
