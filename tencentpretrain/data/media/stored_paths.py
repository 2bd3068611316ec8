"""Files that shards name by their paths: whether they are still those that were preprocessed."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from tencentpretrain.data.media.records import read_file
from tencentpretrain.data.shard_arrays import ShardArrays
from tencentpretrain.data.shard_format import PATH, PATH_CRC, PATH_SIZE
from tencentpretrain.errors import DataError

AT_ONCE: Final = 4096
"""Files that a thread looks at in a row."""
MEND: Final = "put back the files that were preprocessed, or preprocess the corpus again"


def path_of(shard: ShardArrays, document: int) -> str:
    """The path of the file of a document of `shard`."""
    return shard.read(PATH, document, 0, None).tobytes().decode()


def read_stored(shard: ShardArrays, document: int) -> bytes:
    """All bytes of the file of a document of `shard`.

    Raises:
        DataError: naming the file that is gone, or is another one than was preprocessed.
    """
    path = path_of(shard, document)
    data = read_file(path)
    if PATH_CRC in shard.columns and zlib.crc32(data) != _number(shard, PATH_CRC, document):
        raise DataError(f"{path} has changed since it was preprocessed; {MEND}")
    return data


def check_stored(shards: Sequence[ShardArrays]) -> None:
    """Look whether the files of all documents are there and have their sizes; none is read.

    Raises:
        DataError: naming the first file that is missing or has changed, and how many there are.
    """
    pieces = [(shard, start) for shard in shards for start in range(0, shard.documents, AT_ONCE)]
    with ThreadPoolExecutor() as pool:  # a disk in the network answers many questions at a time
        found = list(pool.map(lambda piece: _wrong(*piece), pieces))
    count = sum(len(wrong) for wrong in found)
    if count:
        shard, document, reason = next(wrong[0] for wrong in found if wrong)
        total = sum(shard.documents for shard in shards)
        raise DataError(
            f"{shard}: {path_of(shard, document)} {reason}; {count:,} of {total:,} files are "
            f"missing or have changed since they were preprocessed; {MEND}"
        )


def _wrong(shard: ShardArrays, start: int) -> list[tuple[ShardArrays, int, str]]:
    """The documents from `start` on whose files are missing or of another size, with the reason."""
    wrong = []
    for document in range(start, min(start + AT_ONCE, shard.documents)):
        try:
            size = os.stat(path_of(shard, document)).st_size
        except OSError as error:
            wrong.append((shard, document, f"cannot be read ({error.strerror})"))
            continue
        # Shards of earlier versions know no sizes.
        if PATH_SIZE in shard.columns and size != (was := _number(shard, PATH_SIZE, document)):
            wrong.append((shard, document, f"has {size} bytes instead of {was}"))
    return wrong


def _number(shard: ShardArrays, column: str, document: int) -> int:
    return int(shard.read(column, document, 0, None)[0])
