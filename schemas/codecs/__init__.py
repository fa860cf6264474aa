"""Codecs: how a delta becomes the bytes of a payload. One idea a file; the table is a literal."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from schemas.codecs.codec import Ask, Codec, CodecOptions
from schemas.codecs.dropout import DROPOUT
from schemas.codecs.eden import EDEN
from schemas.codecs.float16 import FLOAT16
from schemas.codecs.float32 import FLOAT32
from schemas.codecs.int8 import INT8
from schemas.codecs.qsgd import QSGD
from schemas.codecs.sign import SIGN
from schemas.codecs.sq import SQ
from schemas.codecs.stc import STC
from schemas.codecs.topk_int8 import TOPK_INT8
from schemas.errors import ConfigError, WireError
from schemas.outcomes import Reason

CODECS: Final[Mapping[int, Codec]] = MappingProxyType(
    {
        codec.codec_id: codec
        for codec in (FLOAT32, TOPK_INT8, SQ, FLOAT16, INT8, STC, SIGN, QSGD, EDEN, DROPOUT)
    }
)
"""Every codec by the id that travels."""

_BY_NAME: Final = {codec.name: codec for codec in CODECS.values()}


def codec_by_id(codec_id: int) -> Codec:
    """Look a codec up as the wire names it. Raises WireError(UNKNOWN_CODEC)."""
    codec = CODECS.get(codec_id)
    if codec is None:
        raise WireError(Reason.UNKNOWN_CODEC, f"codec {codec_id}; known: {sorted(CODECS)}")
    return codec


def codec_by_name(name: str) -> Codec:
    """Look a codec up as a task names it. Raises ConfigError."""
    codec = _BY_NAME.get(name)
    if codec is None:
        raise ConfigError("codec.name", f"{name!r} is unknown; choose one of {sorted(_BY_NAME)}")
    return codec


__all__ = ["CODECS", "Ask", "Codec", "CodecOptions", "codec_by_id", "codec_by_name"]
