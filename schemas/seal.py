"""A seal on what travels: four bytes that tell whether the others are as they were sent. Pure.

For links without TLS whose bytes may be altered on the way: one flipped bit in a number that
settles updates would lose one. A task asks for it with `codec.checksum`; then updates, receipts and
manifests end with CRC-32 (ISO 3309, as in zlib), big-endian, over the device's name and all bytes
before it (manifests are for everybody: no name; receipts and manifests have a mark before it). It
finds what chance does; against people there is TLS.
"""

from typing import Final
from zlib import crc32

from schemas.names import DeviceId

SEAL_BYTES: Final = 4

EVERYBODY: Final = DeviceId("")
"""Whose name a manifest is sealed with."""

MARK: Final = b"\xc1"
"""Between an array and its seal: a byte that no MessagePack holds, so that an altered length of the
array can never take the seal for an element that a newer peer has appended."""


def sealed(message: bytes, device: DeviceId) -> bytes:
    """Append the seal to what goes from or to this device."""
    return message + crc32(message, crc32(device.encode())).to_bytes(SEAL_BYTES, "big")


def unsealed(data: bytes, device: DeviceId) -> bytes | None:
    """The message without its seal; None when the seal is missing or wrong."""
    body = data[:-SEAL_BYTES]
    found = int.from_bytes(data[-SEAL_BYTES:], "big")
    if not body or crc32(body, crc32(device.encode())) != found:
        return None
    return body


def sealed_array(array: bytes, device: DeviceId) -> bytes:
    """A receipt or a manifest, with mark and seal."""
    return sealed(array + MARK, device)


def opened(data: bytes, device: DeviceId) -> bytes:
    """A receipt or manifest that may be sealed: without its seal, or as it is.

    A sealed one that was altered still has mark and seal, which its reader refuses.
    """
    body = unsealed(data, device)
    return data if body is None or not body.endswith(MARK) else body[: -len(MARK)]
