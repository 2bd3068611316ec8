"""SpecAugment, speeds, and frames put together to a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tencentpretrain.config import decode
from tencentpretrain.data.media.filter_banks import FilterBank, FilterBankConfig
from tencentpretrain.data.media.hearing import Hearing, VariationConfig, frames_stream
from tencentpretrain.data.media.spec_augment import Policy, SpecAugmentConfig, spec_augment
from tencentpretrain.data.order import generator
from tests.helpers.sounds import encoded, wave


def hearing(**keys: Any) -> Hearing:
    return Hearing(FilterBank(FilterBankConfig()), decode(VariationConfig, keys))


def frames(length: int = 60, bands: int = 40) -> Any:
    return np.random.default_rng(0).standard_normal((length, bands)).astype(np.float32) + 5


def test_policies_are_those_of_the_paper() -> None:
    assert decode(SpecAugmentConfig, {"policy": "ld"}).resolved() == Policy(2, 27, 2, 100, 1.0)
    assert decode(SpecAugmentConfig, {"policy": "sm"}).resolved() == Policy(2, 15, 2, 70, 0.2)
    own = decode(SpecAugmentConfig, {"policy": "lb", "time_masks": 0, "band_width": 3})
    assert own.resolved() == Policy(1, 3, 0, 100, 1.0)


@pytest.mark.parametrize("seed", range(5))
def test_masks_are_stretches_of_the_mean_and_nothing_else_changes(seed: int) -> None:
    before = frames()
    after = spec_augment(before, Policy(1, 10, 1, 20), generator(seed))
    assert (before == frames()).all()
    changed = after != before
    assert (after[changed] == before.mean()).all()
    bands, times = changed.all(0), changed.all(1)
    assert bands.sum() <= 10
    assert times.sum() <= 20
    assert (changed == (bands[None] | times[:, None])).all()
    for hidden in (bands, times):
        places = hidden.nonzero()[0]
        assert not len(places) or len(places) == places[-1] - places[0] + 1


def test_masks_have_every_width_up_to_the_greatest() -> None:
    counts = [
        int((spec_augment(frames(), Policy(0, 0, 1, 3), generator(seed)) != frames()).all(1).sum())
        for seed in range(60)
    ]
    assert {*counts} == {0, 1, 2, 3}


def test_time_masks_hide_no_more_than_their_share() -> None:
    for seed in range(20):
        after = spec_augment(frames(50), Policy(0, 0, 1, 100, 0.2), generator(seed))
        assert (after != frames(50)).all(1).sum() <= 10


def test_sounds_vary_only_with_a_generator() -> None:
    heard = hearing(augment={"policy": "ld"}, speeds=[0.9, 1.1])
    data = encoded(wave(0.5))
    plain = heard(data)
    assert (heard(data) == plain).all()
    varied = [heard(data, generator(1, epoch)) for epoch in range(3)]
    assert all((heard(data, generator(1, e)) == v).all() for e, v in enumerate(varied))
    assert any(v.shape != plain.shape for v in varied)


def test_speeds_change_the_length() -> None:
    data = encoded(wave(1.0))
    fast, slow = (hearing(speeds=[speed])(data, generator(0)) for speed in (2.0, 0.5))
    plain = hearing()(data)
    assert len(fast) == pytest.approx(len(plain) / 2, abs=2)
    assert len(slow) == pytest.approx(len(plain) * 2, abs=2)


def test_lengths_are_never_underestimated() -> None:
    for speeds in ([], [0.8, 1.3]):
        heard = hearing(speeds=speeds)
        for seconds in (0.02, 0.1234, 0.5):
            samples = wave(seconds)
            limit = heard.frames(np.array([-(-1000 * len(samples) // 16000)]))[0]
            made = [heard(encoded(samples), generator(seed)) for seed in range(6)]
            assert max(map(len, made)) <= max(limit, 1)


def test_frames_are_padded_and_lengths_known_on_the_host() -> None:
    rows = [frames(9), frames(4), frames(6)]
    stream, tokens = frames_stream(rows, 8, 100)
    values, layout = stream.inputs["frames"], stream.layout
    assert values.shape == (3, 16, 40)
    assert tokens == layout.count == 19
    assert layout.lengths == (9, 4, 6)
    for row, length in enumerate(layout.lengths):
        assert torch.equal(values[row, :length], torch.from_numpy(rows[row]))
        assert not values[row, length:].any()
        assert layout.valid[row].tolist() == [place < length for place in range(16)]
