"""Sound out of encoded bytes: wav, flac, ogg and mp3, as one channel at one rate."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torchaudio.transforms import Resample

from tencentpretrain.errors import DataError

Samples = NDArray[np.float32]

UNKNOWN_SIZES: Final = (0, 0xFFFFFFFF)
"""What programs that write to a pipe say of the size of a wav file."""
OGG_MARK: Final = b"OggS"
OGG_END: Final = 4
"""Flag of the last page of an ogg file."""
KERNEL_LIMIT: Final = 1 << 24
"""Most numbers of a filter for another rate; rates without a common factor need more than that."""
FILTER_WIDTH: Final = 6
"""Zero crossings of the filter for another rate on each side, as torchaudio has them."""


def decode_audio(data: bytes, rate: int) -> Samples:
    """Samples [N] of an encoded file, in [-1, 1] for integer ones, at `rate` samples a second.

    The channels are averaged. What the file is, its bytes tell, not its name. A cut mp3 file is
    noticed only where its header counts frames.

    Raises:
        DataError: if it cannot be read, was cut, holds nothing, or has samples that are no numbers.
    """
    samples, given = _read(data)
    if samples.size == 0:
        raise DataError("the sound has a length of zero; leave it out")
    if not np.isfinite(samples).all():
        raise DataError("the sound has samples that are no finite numbers; record it again")
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(1, dtype=np.float32)
    if given == rate:
        return np.ascontiguousarray(mono)
    resampled: Samples = resampler(given, rate)(torch.from_numpy(mono.copy())).numpy()
    if resampled.size == 0:
        raise DataError(f"the sound is shorter than one sample at {rate:,} Hz; leave it out")
    return resampled


def _read(data: bytes) -> tuple[Samples, int]:
    """Samples [N, channels] and their rate in Hz."""
    if not data:
        raise DataError("the sound file is empty; copy it again or leave it out")
    _check_whole(data)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            samples: Samples = file.read(dtype="float32", always_2d=True)
            promised, rate = file.frames, file.samplerate
    except (soundfile.SoundFileError, RuntimeError) as error:
        reason = str(error).rpartition(": ")[2].rstrip(".")
        raise DataError(
            f"the sound cannot be read ({reason}); give a whole wav, flac, ogg or mp3 file"
        ) from error
    if len(samples) < promised:
        raise DataError(
            f"the sound is cut: it has {len(samples):,} of {promised:,} samples; copy it again"
        )
    return samples, int(rate)


def _check_whole(data: bytes) -> None:
    """Find the cuts that the library reads over.

    Raises:
        DataError: if a wav or ogg file is shorter than it says.
    """
    is_cut = False
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        is_cut = any(
            name == b"data" and size not in UNKNOWN_SIZES and start + size > len(data)
            for name, start, size in _chunks(data)
        )
    elif data.startswith(OGG_MARK):
        last = data.rfind(OGG_MARK)
        table = data[last + 26 : last + 27]
        end = last + 27 + table[0] + sum(data[last + 27 : last + 27 + table[0]]) if table else 0
        is_cut = not table or end > len(data) or not data[last + 5] & OGG_END
    if is_cut:
        raise DataError("the sound is cut: the file is shorter than it says; copy it again")


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, first byte and size of each part of a wav file."""
    place = 12
    while place + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, place)
        yield name, place + 8, size
        place += 8 + size + size % 2


@lru_cache(maxsize=16)
def resampler(given: int, rate: int) -> Resample:
    """A filter from one rate in Hz to another, which takes longer to make than to apply.

    Raises:
        DataError: if the two have so small a common factor that it would not fit in memory.
    """
    common = math.gcd(given, rate)
    phases = rate // common
    width = math.ceil(FILTER_WIDTH * (given // common) / min(phases, given // common))
    if phases * (2 * width + given // common) > KERNEL_LIMIT:
        raise DataError(
            f"the sound has {given:,} samples a second, which have hardly a common factor with the "
            f"{rate:,} that are wanted; convert it to a usual rate such as 16,000 or 44,100"
        )
    return Resample(given, rate)
