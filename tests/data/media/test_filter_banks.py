"""Filter banks are those of `transformers`, and of the sound alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.data.media.filter_banks import FilterBank, FilterBankConfig, Moments
from tencentpretrain.errors import DataError
from tests.helpers.sounds import RATE, wave

transformers = pytest.importorskip("transformers")

WHISPER = {"kind": "whisper", "normalise": "none"}


def bank(**keys: Any) -> FilterBank:
    return FilterBank(decode(FilterBankConfig, keys))


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"bands": 40},
        {"means": False},
        {"variances": False},
        {"normalise": "none"},
        {"rate": 8000},
    ],
)
def test_kaldi_banks_are_those_of_speech2text(keys: dict[str, Any]) -> None:
    rate, bands = keys.get("rate", RATE), keys.get("bands", 80)
    theirs = transformers.Speech2TextFeatureExtractor(
        feature_size=bands,
        num_mel_bins=bands,
        sampling_rate=rate,
        do_ceptral_normalize=keys.get("normalise") != "none",
        normalize_means=keys.get("means", True),
        normalize_vars=keys.get("variances", True),
    )
    samples = wave(0.8, rate=rate)
    expected = theirs(samples, sampling_rate=rate, return_tensors="np")["input_features"][0]
    frames = bank(**keys)(samples)
    assert frames.dtype == np.float32
    assert frames.shape == expected.shape
    assert np.abs(frames - expected).max() < 1e-5


@pytest.mark.parametrize("bands", [80, 128])
@pytest.mark.parametrize("seconds", [0.7, 2.3])
def test_log_mels_are_those_of_whisper(bands: int, seconds: float) -> None:
    theirs = transformers.WhisperFeatureExtractor(feature_size=bands, chunk_length=2)
    samples = wave(seconds)
    expected = theirs(samples, sampling_rate=RATE, return_tensors="np")["input_features"][0]
    frames = bank(**WHISPER, bands=bands, seconds=2)(samples)
    assert frames.shape == (200, bands)
    assert np.abs(frames - expected.T).max() < 1e-5


def test_silence_stays_finite() -> None:
    """The reference divides by the deviation of a band, which is zero here."""
    silent = np.zeros(RATE // 4, np.float32)
    for keys in ({}, WHISPER):
        assert np.isfinite(bank(**keys)(silent)).all()


@pytest.mark.parametrize("keys", [{}, WHISPER])
@pytest.mark.parametrize("count", [1, 100, 399, 400])
def test_short_sounds_have_a_frame(keys: dict[str, Any], count: int) -> None:
    frames = bank(**keys)(wave()[:count])
    assert len(frames) >= 1
    assert np.isfinite(frames).all()


def test_moments_are_those_of_all_frames_at_once(tmp_path: Path) -> None:
    raw = bank(normalise="none")
    parts = [raw(wave(0.2 + 0.1 * n, 300 + 90 * n)) for n in range(4)]
    moments = Moments(80)
    for part in parts:
        moments.add(part)
    path = tmp_path / "statistics.json"
    path.write_bytes(moments.content())
    normalised = bank(normalise="global", statistics=str(path))
    frames = np.concatenate([normalised.normalise(part) for part in parts])
    assert np.abs(frames.mean(0)).max() < 1e-4
    assert np.abs(frames.std(0) - 1).max() < 1e-4
    # It is not the sound's own mean: one alone is elsewhere.
    assert np.abs(normalised(wave(0.2, 300)).mean(0)).max() > 0.1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "do not exist"),
        (b"{", "damaged"),
        (b"[1]", "damaged"),
        (b'{"mean": [1.0], "deviation": [1.0]}', "of 1 bands, but 80"),
    ],
)
def test_bad_statistics_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "statistics.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        bank(normalise="global", statistics=str(path))


@pytest.mark.parametrize("keys", [{"normalise": "global"}, {"statistics": "a.json"}])
def test_statistics_and_their_use_belong_together(keys: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="statistics"):
        decode(FilterBankConfig, keys)
