"""What the numbers of a link may be. Pure. Refuses the others with ConfigError, by name."""

from schemas.errors import ConfigError


def share(field: str, value: float) -> None:
    """Refuse what is no probability: 0 to 1, both included."""
    if not 0.0 <= value <= 1.0:
        raise ConfigError(field, f"must lie between 0 and 1, not {value}")


def not_negative(field: str, value: float) -> None:
    """Refuse less than nothing, and what is no number."""
    if not value >= 0.0:
        raise ConfigError(field, f"must be 0 or more, not {value}")


def positive(field: str, value: float) -> None:
    """Refuse nothing and less, and what is no number."""
    if not value > 0.0:
        raise ConfigError(field, f"must be more than 0, not {value}")
