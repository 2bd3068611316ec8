"""Checksums of files: what finds truncated and altered shards and checkpoints."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Final

CHUNK_BYTES: Final = 1 << 20


class Checksum:
    """CRC-32 of bytes that come in pieces; `str()` of it is what the indices store."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes | memoryview) -> None:
        """Add the next bytes; lets other threads run meanwhile."""
        self._value = zlib.crc32(data, self._value)

    def __str__(self) -> str:
        return f"crc32:{self._value:08x}"


def file_checksum(path: Path) -> str:
    """Checksum of a whole file, in constant memory."""
    checksum = Checksum()
    buffer = bytearray(CHUNK_BYTES)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(buffer):
            checksum.update(view[:size])
    return str(checksum)
