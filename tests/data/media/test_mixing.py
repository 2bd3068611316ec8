"""Mixup and CutMix: shares that are what is in the picture."""

import numpy as np
import pytest
import torch

from tencentpretrain.config import decode
from tencentpretrain.data.media.mixing import MixConfig, mix, paste
from tencentpretrain.data.order import generator

BLACK = torch.zeros(3, 20, 30, dtype=torch.uint8)
WHITE = torch.full_like(BLACK, 200)


def config(**keys: float) -> MixConfig:
    return decode(MixConfig, keys)


@pytest.mark.parametrize("keys", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_the_share_is_that_of_the_pixels(keys: dict[str, float]) -> None:
    shares = []
    for number in range(100):
        mixed, share = mix(WHITE, BLACK, config(**keys), generator(number))
        assert mixed.dtype == torch.uint8
        assert float(mixed.float().mean() / 200) == pytest.approx(share, abs=0.0026)
        shares.append(share)
    assert min(shares) < 0.3
    assert max(shares) > 0.8
    assert (WHITE == 200).all()
    assert not BLACK.any()


def test_mixup_blends_and_cutmix_cuts() -> None:
    blended, share = mix(WHITE, BLACK, config(mixup=1.0), generator(3))
    assert blended.unique().tolist() == [round(200 * share)]
    cut, _ = mix(WHITE, BLACK, config(cutmix=1.0), generator(3))
    assert cut.unique().tolist() == [0, 200]
    both = [mix(WHITE, BLACK, config(mixup=1.0, cutmix=1.0), generator(n))[0] for n in range(100)]
    kinds = [len(mixed.unique()) for mixed in both]
    assert 30 < kinds.count(1) < 70


def test_the_pasted_part_has_the_shape_of_the_whole() -> None:
    mixed, share = paste(WHITE, BLACK, 0.75, generator(1))
    rows, columns = (mixed[0] == 0).any(1).sum(), (mixed[0] == 0).any(0).sum()
    assert rows <= 10
    assert columns <= 15
    assert share == pytest.approx(1 - int(rows * columns) / 600)


def test_only_the_chosen_share_of_images_is_mixed() -> None:
    chosen = config(mixup=1.0, probability=0.25)
    count = sum(chosen.applies(generator(number)) for number in range(1000))
    assert count == pytest.approx(250, abs=50)
    assert not config().applies(generator(0))
    assert not config(mixup=1.0, probability=0).is_on


def test_shares_follow_the_beta_distribution() -> None:
    shares = [mix(WHITE, BLACK, config(mixup=0.2), generator(n))[1] for n in range(2000)]
    # Mean 1/2, variance 1 / (4 (2 a + 1)).
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
    assert np.var(shares) == pytest.approx(1 / 5.6, abs=0.01)
