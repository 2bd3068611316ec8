"""Each config of the original toolkit has a counterpart of its sizes."""

from typing import Any

import pytest

from tests.helpers.zoo import PUBLISHED, shipped

Sizes = tuple[int, int, int, int]
"""Width, width of the feed-forward layers, heads, layers of the encoder."""
BERT: dict[str, Sizes] = {
    "tiny": (128, 512, 2, 2),
    "mini": (256, 1024, 4, 4),
    "small": (512, 2048, 8, 4),
    "medium": (512, 2048, 8, 8),
    "base": (768, 3072, 12, 12),
    "large": (1024, 4096, 16, 24),
    "xlarge": (1536, 6144, 24, 36),
}
BASE, LARGE = BERT["base"], BERT["large"]
LLAMA: dict[str, Sizes] = {"7b": (4096, 11008, 32, 32), "13b": (5120, 13824, 40, 40)}
SIZES: dict[str, Sizes] = {
    **{f"bert/{size}": sizes for size, sizes in BERT.items()},
    "megatron/bert_3.9b": (2560, 10240, 40, 48),
    "megatron/gpt2_8.3b": (3072, 12288, 24, 72),
    "albert/base": BASE,
    "albert/large": LARGE,
    "albert/xlarge": (2048, 8192, 16, 24),
    # As published; the original has 16 heads.
    "albert/xxlarge": (4096, 16384, 64, 12),
    "xlm_r/base": BASE,
    "xlm_r/large": LARGE,
    "gpt2/distil": (768, 3072, 12, 6),
    "gpt2/small": BASE,
    "gpt2/medium": LARGE,
    "gpt2/large": (1280, 5120, 20, 36),
    "gpt2/xlarge": (1600, 6400, 25, 48),
    **{f"llama/{size}": sizes for size, sizes in LLAMA.items()},
    "llama/33b": (6656, 17920, 52, 60),
    "llama/65b": (8192, 22016, 64, 80),
    **{f"llama2/{size}": sizes for size, sizes in LLAMA.items()},
    "llama2/70b": (8192, 28672, 64, 80),
    "bloom/1b1": (1536, 6144, 16, 24),
    "bloom/7b1": (4096, 16384, 32, 30),
    "bloom/176b": (14336, 57344, 112, 70),
    "t5/small": (512, 2048, 8, 6),
    "t5/base": BASE,
    "t5/large": LARGE,
    "t5/3b": (1024, 16384, 32, 24),
    "t5/11b": (1024, 65536, 128, 24),
    "t5_v1_1/small": (512, 1024, 6, 8),
    "t5_v1_1/base": (768, 2048, 12, 12),
    "t5_v1_1/large": (1024, 2816, 16, 24),
    "t5_v1_1/xlarge": (2048, 5120, 32, 24),
    "t5_v1_1/xxlarge": (4096, 10240, 64, 24),
    "bart/base": (768, 3072, 12, 6),
    "bart/large": (1024, 4096, 16, 12),
    "pegasus/base": BASE,
    "pegasus/large": (1024, 4096, 16, 16),
    "transformer/base": (512, 2048, 8, 6),
    "transformer/big": (1024, 4096, 16, 6),
    "sbert/base": BASE,
    "sbert/large": LARGE,
    "vit/base_16": BASE,
    "vit/base_32": BASE,
    "vit/large_16": LARGE,
    "vit/large_32": LARGE,
    "vit/huge_14": (1280, 5120, 16, 32),
    "beit/base": BASE,
    "vilt/base": BASE,
    "clip/base_16": (512, 2048, 8, 12),
    "clip/base_32": (512, 2048, 8, 12),
    "dalle/base": BASE,
    "talk2face/base": BASE,
    "s2t/small": (256, 2048, 4, 12),
    "s2t/medium": (512, 2048, 8, 12),
    "s2t/large": (1024, 4096, 16, 12),
}
RECURRENT = {
    "rnn/lstm": ("lstm", 512, 2),
    "rnn/gru": ("gru", 512, 2),
    "elmo/bilstm": ("lstm", 1536, 2),
    "siamese/lstm": ("lstm", 512, 2),
    "gated_cnn/l9": ("gated_cnn", 807, 9),
    "gated_cnn/l13": ("gated_cnn", 1268, 13),
}
"""Name of the encoder, width, layers."""
SIX = ("s2t/", "t5/small", "bart/base", "transformer/")
"""Models whose decoders have six layers; those of others have as many as the encoder."""


def test_all_are_there() -> None:
    assert len(SIZES) + len(RECURRENT) == 68
    assert {*SIZES, *RECURRENT} <= set(PUBLISHED)


@pytest.mark.parametrize("name", SIZES)
def test_transformers_have_its_sizes(name: str) -> None:
    config = shipped(name)
    encoder: Any = config.encoder
    ffn = encoder.ffn or 4 * config.hidden
    assert (config.hidden, ffn, encoder.heads, encoder.layers) == SIZES[name]
    if config.decoder is not None:
        decoder: Any = config.decoder
        assert decoder.layers == (6 if name.startswith(SIX) else encoder.layers)
        assert (decoder.ffn or 4 * config.hidden) == ffn


@pytest.mark.parametrize("name", RECURRENT)
def test_other_encoders_have_its_sizes(name: str) -> None:
    config = shipped(name)
    encoder: Any = config.encoder
    assert (encoder.name, config.hidden, encoder.layers) == RECURRENT[name]
