from schemas.outcomes import FOLDED, Reason, outcome_name


def test_the_numbers_that_travel_never_change():
    assert FOLDED == 1
    assert {reason.name: int(reason) for reason in Reason}.items() >= {
        ("MALFORMED", 16),
        ("TRUNCATED", 17),
        ("OVERSIZED", 18),
        ("UNKNOWN_WIRE", 19),
        ("UNKNOWN_CODEC", 20),
        ("WRONG_CODEC", 21),
        ("UNKNOWN_TASK", 22),
        ("WRONG_SHARD", 23),
        ("WRONG_SPEC", 24),
        ("WRONG_EPOCH", 25),
        ("WRONG_BASE", 26),
        ("UNKNOWN_BASE", 27),
        ("FUTURE_BASE", 28),
        ("TOO_STALE", 29),
        ("NOT_FINITE", 30),
        ("BAD_INDEX", 31),
        ("BAD_NUMBER", 32),
    }


def test_every_code_fits_a_byte_and_leaves_0_to_15_alone():
    assert all(16 <= reason <= 255 for reason in Reason)


def test_every_code_has_a_name_even_one_from_the_future():
    assert outcome_name(FOLDED) == "folded"
    assert outcome_name(Reason.TOO_STALE) == "too_stale"
    assert outcome_name(77) == "code_77"
    assert outcome_name(0) == "code_0"
