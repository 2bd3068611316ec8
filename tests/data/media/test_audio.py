"""Sounds of every kind become samples, and what is broken is named."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
import torchaudio

from tencentpretrain.data.media.audio import decode_audio
from tencentpretrain.errors import DataError
from tests.helpers.sounds import RATE, encoded, wave

KINDS = [
    ("WAV", "PCM_U8", 8e-3),
    ("WAV", "PCM_16", 4e-5),
    ("WAV", "PCM_24", 2e-7),
    ("WAV", "FLOAT", 0.0),
    ("WAV", "DOUBLE", 0.0),
    ("FLAC", "PCM_16", 4e-5),
    ("OGG", "VORBIS", 0.1),
    ("MP3", "MPEG_LAYER_III", 0.15),
]


@pytest.mark.parametrize(("kind", "subtype", "error"), KINDS)
def test_files_of_all_kinds_are_read(kind: str, subtype: str, error: float) -> None:
    samples = wave()
    decoded = decode_audio(encoded(samples, kind=kind, subtype=subtype), RATE)
    assert decoded.dtype == np.float32
    assert len(decoded) == len(samples)
    assert np.abs(decoded - samples).max() <= error


def test_channels_are_averaged() -> None:
    left, right = wave(pitch=300), wave(pitch=700)
    decoded = decode_audio(encoded(np.stack([left, right], 1), subtype="FLOAT"), RATE)
    assert np.allclose(decoded, (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_other_rates_are_resampled_as_torchaudio_does(rate: int) -> None:
    samples = wave(rate=rate)
    decoded = decode_audio(encoded(samples, rate, subtype="FLOAT"), RATE)
    expected = torchaudio.functional.resample(torch.from_numpy(samples), rate, RATE)
    assert np.allclose(decoded, expected.numpy(), atol=1e-5)
    assert len(decoded) == -(-len(samples) * RATE // rate)


@pytest.mark.parametrize(("kind", "subtype", "error"), KINDS)
@pytest.mark.parametrize("part", [0.5, 0.99])
def test_cut_files_are_refused(kind: str, subtype: str, error: float, part: float) -> None:
    data = encoded(wave(), kind=kind, subtype=subtype)
    with pytest.raises(DataError, match=r"cut|cannot be read"):
        decode_audio(data[: int(len(data) * part)], RATE)


def test_a_pipe_does_not_know_the_size_of_what_it_writes() -> None:
    data = bytearray(encoded(wave()))
    place = data.index(b"data") + 4
    data[place : place + 4] = struct.pack("<I", 0xFFFFFFFF)
    assert len(decode_audio(bytes(data), RATE)) == len(wave())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\xff\xd8\xff\xe0 a picture" * 9, "cannot be read"),
        (encoded(wave(0)), "length of zero"),
        (encoded(np.array([0, np.nan], "f"), subtype="FLOAT"), "no finite numbers"),
        (encoded(np.array([0, np.inf], "f"), subtype="FLOAT"), "no finite numbers"),
        (encoded(wave(), 44099), "common factor"),
    ],
    # A file of floats holds the time at which it was made, and names of tests must not change.
    ids=["empty", "picture", "no samples", "not a number", "infinite", "rate"],
)
def test_what_cannot_be_heard_is_one_sentence(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        decode_audio(data, RATE)
    assert "\n" not in str(error.value)


def test_the_name_of_a_kind_does_not_matter() -> None:
    """What a file is, its bytes tell: nobody asks how it is called."""
    flac = encoded(wave(), kind="FLAC")
    assert len(decode_audio(flac, RATE)) == len(wave())
