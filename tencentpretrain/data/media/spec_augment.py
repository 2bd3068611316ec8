"""SpecAugment: hiding bands and stretches of time (Park et al., 2019, arXiv:1904.08779).

Without the paper's warping of time, which it finds to help least (section 5).
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import numpy as np

from tencentpretrain.config import Config, NonNegativeInt, Probability
from tencentpretrain.data.media.filter_banks import Frames


class Policy(NamedTuple):
    """Numbers and widths of masks, and the greatest share of a sound that one may hide."""

    band_masks: int = 0
    band_width: int = 0
    time_masks: int = 0
    time_width: int = 0
    time_share: float = 1.0


POLICIES: Final = {
    "none": Policy(),
    "lb": Policy(1, 27, 1, 100, 1.0),
    "ld": Policy(2, 27, 2, 100, 1.0),
    "sm": Policy(2, 15, 2, 70, 0.2),
    "ss": Policy(2, 27, 2, 70, 0.2),
}
"""Table 1 of the paper: LibriSpeech basic and double, Switchboard mild and strong."""


class SpecAugmentConfig(Config):
    """What is hidden of frames while training."""

    policy: Literal["none", "lb", "ld", "sm", "ss"] = "none"
    """Policy of the paper: LibriSpeech basic or double, Switchboard mild or strong."""
    band_masks: NonNegativeInt | None = None
    """Masks over bands; null here and below is as in the policy."""
    band_width: NonNegativeInt | None = None
    """Greatest width of such a mask, in bands."""
    time_masks: NonNegativeInt | None = None
    """Masks over time."""
    time_width: NonNegativeInt | None = None
    """Greatest width of such a mask, in frames."""
    time_share: Probability | None = None
    """Greatest share of a sound that one such mask hides."""

    def resolved(self) -> Policy:
        """The policy with what is said otherwise."""
        given = {name: getattr(self, name) for name in Policy._fields}
        changes = {name: value for name, value in given.items() if value is not None}
        return POLICIES[self.policy]._replace(**changes)


def spec_augment(frames: Frames, policy: Policy, random: np.random.Generator) -> Frames:
    """A copy of `frames` [T, F] in which masks hold the mean of all values.

    Args:
        frames: Of one sound.
        policy: What is hidden.
        random: Of the example.
    """
    length, bands = frames.shape
    masked = frames.copy()
    mean = frames.mean()
    for _ in range(policy.band_masks):
        start, stop = _mask(bands, min(policy.band_width, bands), random)
        masked[:, start:stop] = mean
    width = min(policy.time_width, int(policy.time_share * length))
    for _ in range(policy.time_masks):
        start, stop = _mask(length, width, random)
        masked[start:stop] = mean
    return masked


def _mask(size: int, width: int, random: np.random.Generator) -> tuple[int, int]:
    """A stretch of up to `width` of `size` places."""
    chosen = int(random.integers(0, width + 1))
    start = int(random.integers(0, size - chosen + 1))
    return start, start + chosen
