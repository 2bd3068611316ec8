"""Small sounds in files of every kind."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from tencentpretrain.config import decode
from tencentpretrain.data.preprocess import PreprocessConfig, run_preprocess
from tencentpretrain.data.shards import ShardSet, open_shards
from tests.helpers.records import vocabulary

RATE = 16000
LETTERS = [*"abcdefghijklmnopqrstuvwxyz"]


def wave(seconds: float = 0.25, pitch: float = 440.0, rate: int = RATE) -> NDArray[np.float32]:
    """A tone with a little noise [N]."""
    times = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(round(pitch)).standard_normal(len(times))
    tone: NDArray[np.float32] = (0.4 * np.sin(2 * np.pi * pitch * times) + 0.01 * noise).astype("f")
    return tone


def encoded(samples: Any, rate: int = RATE, kind: str = "WAV", subtype: str = "PCM_16") -> bytes:
    """The bytes of a file with `samples` [N] or [N, channels]."""
    written = io.BytesIO()
    soundfile.write(written, samples, rate, format=kind, subtype=subtype)
    return written.getvalue()


def tones(folder: Path, texts: list[str], column: str = "text") -> Path:
    """A list of tones, each with its text or label; equal ones have one pitch."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{column}\tpath"]
    for number, text in enumerate(texts):
        name = f"{number}.wav"
        pitch = 200.0 * 2 ** sorted({*texts}).index(text)
        (folder / name).write_bytes(encoded(wave(0.2 + 0.03 * (number % 7), pitch)))
        lines.append(f"{text}\t{name}")
    path = folder / f"{column}.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def spoken_shards(folder: Path, texts: list[str], **keys: Any) -> ShardSet:
    """What preprocess.py makes of `tones` and their texts, letter by letter."""
    content = {
        "tokenizer": {"name": "character", "vocab": str(letters(folder))},
        "corpus": {"path": str(tones(folder / "sounds", texts)), "format": "audio_text", **keys},
        "output": str(folder / "shards"),
        "workers": 1,
    }
    config = decode(PreprocessConfig, content)
    assert run_preprocess(config) == 0
    return open_shards(config.output)


def letters(folder: Path) -> Path:
    """A vocabulary of letters."""
    return vocabulary(folder, "letters", LETTERS)
