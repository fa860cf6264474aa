"""The planted bugs, by name: what the machine must find, and never looks at when it judges."""

from typing import Literal, TypeAlias, get_args

Bug: TypeAlias = Literal[
    "puback_before_xadd",
    "late_ack_on_a_reused_client",
    "cursor_before_commit",
    "marks_outside_commit",
    "dedup_by_highest_number",
    "commit_not_compared",
    "receipt_before_fsync",
    "receipt_before_replica",
    "receipt_of_a_redis_that_was",
    "standing_read_after_the_wait",
    "boot_kept_on_an_old_card",
    "sent_update_replaced",
    "update_of_another_start_replaced",
]
Bugs: TypeAlias = frozenset[Bug]

BUGS: tuple[Bug, ...] = get_args(Bug)
