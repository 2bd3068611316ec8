"""Log-mel filter banks: what models of speech read of a sound.

Shapes: N samples, T frames, F bands.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchaudio.compliance import kaldi

from tencentpretrain.config import Config, PathLike, PositiveFloat, PositiveInt, check
from tencentpretrain.data.media.audio import Samples
from tencentpretrain.errors import DataError

Frames = NDArray[np.float32]

WINDOW: Final = 0.025
"""Seconds that a frame looks at."""
STEP: Final = 0.01
"""Seconds between two frames."""
FULL_SCALE: Final = 1 << 15
"""Kaldi reads samples of 16 bits."""
EMPHASIS: Final = 0.97
"""Part of each sample that is taken off the next one, so that high frequencies are louder."""
MEL_LIMIT: Final = 8000.0
"""Highest frequency in Hz of Whisper's bands."""
BEND: Final = 1000.0
"""Frequency in Hz where the scale of mels turns from linear to logarithmic."""
MEL_WIDTH: Final = 200 / 3
"""Hz in a mel below it."""
LOG_STEP: Final = math.log(6.4) / 27
"""Logarithm of the factor that a mel is above it."""
RANGE: Final = 8.0
"""Powers of ten below the loudest value, beyond which Whisper hears nothing."""
STILL: Final = 1e-8
"""Deviation of a band that never changes."""


class FilterBankConfig(Config):
    """How sounds become frames."""

    kind: Literal["kaldi", "whisper"] = "kaldi"
    """Kaldi's filter banks (S2T), or those of Whisper."""
    rate: PositiveInt = 16000
    """Samples a second; sounds of another rate are resampled."""
    bands: PositiveInt = 80
    """Number of mel bands."""
    normalise: Literal["utterance", "global", "none"] = "utterance"
    """Whether each band gets mean 0 and variance 1 over the sound, over the corpus, or neither."""
    means: bool = True
    """Whether normalising makes means 0."""
    variances: bool = True
    """Whether normalising makes variances 1."""
    statistics: PathLike | None = None
    """File with the means and deviations of the corpus, which scripts/audio_statistics.py made."""
    seconds: PositiveFloat | None = None
    """Length that all sounds are filled up or cut to (30 for Whisper); null leaves them as are."""

    @check("normalise", "statistics")
    def _statistics_are_there(self) -> str | None:
        if (self.normalise == "global") == (self.statistics is not None):
            return None
        if self.statistics is None:
            return "statistics is required for normalise=global"
        return "statistics is for normalise=global; leave it out"


class FilterBank:
    """Makes frames of samples; a pure function.

    Args:
        config: How.
        statistics: Means and deviations [F] of the corpus, where they are known; otherwise they
            are read where the config needs them.

    Raises:
        DataError: if the file of statistics is missing, damaged, or of other bands.
    """

    def __init__(
        self, config: FilterBankConfig, statistics: tuple[Frames, Frames] | None = None
    ) -> None:
        self.config = config
        self.statistics = statistics
        if config.statistics is not None and statistics is None:
            self.statistics = read_statistics(config.statistics, config.bands)

    def __call__(self, samples: Samples) -> Frames:
        """Frames [T, F] of `samples` [N]; what is shorter than one window ends in silence."""
        return self.normalise(self.raw(samples))

    def raw(self, samples: Samples) -> Frames:
        """The same before normalising."""
        config = self.config
        least = math.ceil(config.rate * WINDOW)
        if config.seconds is not None:
            least = round(config.rate * config.seconds)
            samples = samples[:least]
        if len(samples) < least:
            samples = np.pad(samples, (0, least - len(samples)))
        wave = torch.from_numpy(np.ascontiguousarray(samples))
        bank = _whisper if config.kind == "whisper" else _kaldi
        frames: Frames = bank(wave, config.rate, config.bands).numpy()
        return frames

    def normalise(self, frames: Frames) -> Frames:
        """`frames` [T, F] with the means and variances that the config asks for."""
        config = self.config
        if config.normalise == "none":
            return frames
        mean, deviation = self.statistics or (frames.mean(0), frames.std(0))
        centred: Frames = frames - mean if config.means else frames
        if not config.variances:
            return centred
        # A band that never changes, as in silence, has no deviation to divide by.
        scaled: Frames = np.divide(centred, np.maximum(deviation, STILL), dtype=np.float32)
        return scaled

    @property
    def frame_limit(self) -> int | None:
        """Frames of every sound, where all have one length."""
        seconds = self.config.seconds
        return None if seconds is None else round(seconds / STEP)


def _kaldi(wave: Tensor, rate: int, bands: int) -> Tensor:
    """Kaldi's compute-fbank-feats without dither: Povey's window, natural logarithms.

    As `torchaudio.compliance.kaldi.fbank`, whose tables are made anew for every sound.
    """
    window, weights = _kaldi_tables(rate, bands)
    rows = (wave * FULL_SCALE).unfold(0, len(window), round(rate * STEP))
    rows = rows - rows.mean(1, keepdim=True)
    before = torch.cat([rows[:, :1], rows[:, :-1]], 1)
    shaped = (rows - EMPHASIS * before) * window
    power = torch.fft.rfft(shaped, 2 * (len(weights) - 1)).abs().square()
    energies: Tensor = (power @ weights).clamp(min=torch.finfo(torch.float32).eps)
    return energies.log()


@lru_cache(maxsize=8)
def _kaldi_tables(rate: int, bands: int) -> tuple[Tensor, Tensor]:
    """Povey's window, and the weights [frequencies, F] of the bands from 20 Hz on."""
    size = int(rate * WINDOW)
    padded = 1 << (size - 1).bit_length()
    banks, _ = kaldi.get_mel_banks(bands, padded, float(rate), 20.0, 0.0, 100.0, -500.0, 1.0)
    window = torch.hann_window(size, periodic=False).pow(0.85)
    # The highest frequency has no part in any band.
    return window, torch.nn.functional.pad(banks, (0, 1)).T.contiguous()


def _whisper(wave: Tensor, rate: int, bands: int) -> Tensor:
    """Whisper's (Radford et al., 2022, section 2.2): decimal logarithms, nearly in [-1, 1]."""
    window, step = round(rate * WINDOW), round(rate * STEP)
    if len(wave) <= window // 2:
        wave = torch.nn.functional.pad(wave, (0, window // 2 + 1 - len(wave)))
    spectrum = torch.stft(wave, window, step, window=torch.hann_window(window), return_complex=True)
    power = spectrum[:, :-1].abs().square().contiguous()
    mel = _slaney(rate, window, bands).T @ power
    logarithms = mel.clamp(min=1e-10).log10()
    audible = logarithms.maximum(logarithms.max() - RANGE)
    return ((audible + 4.0) / 4.0).T.contiguous()


@lru_cache(maxsize=8)
def _slaney(rate: int, window: int, bands: int) -> Tensor:
    """Weights [window // 2 + 1, F] of the bands (Slaney, 1998, Auditory toolbox), all of one area.

    In double precision, as published tables are; torchaudio computes them in single precision.
    """
    edges = _hertz(np.linspace(0.0, _mel(MEL_LIMIT), bands + 2))
    slopes = edges - np.linspace(0.0, rate / 2, window // 2 + 1)[:, None]
    widths = np.diff(edges)
    rising, falling = -slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]
    triangles = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))
    return torch.from_numpy(triangles.astype(np.float32))


def _mel(hertz: float) -> float:
    """Linear below 1,000 Hz, then logarithmic: 27 mels for a factor of 6.4."""
    if hertz < BEND:
        return hertz / MEL_WIDTH
    return BEND / MEL_WIDTH + math.log(hertz / BEND) / LOG_STEP


def _hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of `_mel`."""
    bend = BEND / MEL_WIDTH
    curved = BEND * np.exp(LOG_STEP * (mels - bend))
    return np.where(mels < bend, mels * MEL_WIDTH, curved)


class Moments:
    """Means and deviations over frames that come in parts, in double precision.

    Args:
        bands: Number F of the bands.
    """

    def __init__(self, bands: int) -> None:
        self.count = 0
        self._mean = np.zeros(bands)
        self._squares = np.zeros(bands)

    def add(self, frames: Frames) -> None:
        """Count `frames` [T, F] (Chan et al., 1979, Updating formulae, eq. 2.1)."""
        count = len(frames)
        mean = frames.mean(0, dtype=np.float64)
        squares = ((frames - mean) ** 2).sum(0)
        total, step = self.count + count, mean - self._mean
        self._squares += squares + step**2 * (self.count * count / total)
        self._mean += step * (count / total)
        self.count = total

    def content(self) -> bytes:
        """What a file of statistics holds."""
        deviation = np.sqrt(self._squares / max(self.count, 1))
        values = {"frames": self.count, "mean": [*self._mean], "deviation": [*deviation]}
        return (json.dumps(values, indent=2) + "\n").encode()


def read_statistics(path: Path, bands: int) -> tuple[Frames, Frames]:
    """Means and deviations [F] of a file that `Moments.content` was written to.

    Raises:
        DataError: if it is missing or holds something else.
    """
    advice = "make it with scripts/audio_statistics.py"
    if not path.is_file():
        raise DataError(f"the statistics {path} do not exist; {advice}")
    try:
        content = json.loads(path.read_bytes())
        mean, deviation = (np.array(content[key], np.float32) for key in ("mean", "deviation"))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"the statistics {path} are damaged ({error!r}); {advice}") from error
    if mean.shape != (bands,) or deviation.shape != (bands,):
        raise DataError(
            f"the statistics {path} are of {mean.size} bands, but {bands} are read; {advice}"
        )
    return mean, deviation
