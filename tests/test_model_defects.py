"""What shipped models of the original got wrong, numbered as in the list of its defects."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tencentpretrain.config import decode
from tencentpretrain.layers.norm import T5Norm
from tencentpretrain.model import Model, ModelConfig, build_model
from tencentpretrain.types import SRC, Batch, Stream
from tests.helpers.models import layout_of, model_config, randomise
from tests.helpers.zoo import shipped, shrunk

VOCABULARY = 40


def tiny(name: str, **changes: Any) -> Model:
    config = decode(ModelConfig, shrunk(name).to_dict() | changes)
    return build_model(config, VOCABULARY).eval()


def states_of(model: Model, ids: list[int]) -> Tensor:
    """States [S, D] of one row in the encoder."""
    stream = Stream({"ids": torch.tensor([ids])}, layout_of((len(ids),)))
    return model.encode(Batch({SRC: stream}, {}, len(ids))).hidden.states[0]


@pytest.mark.parametrize("name", ["t5/tiny", "llama/tiny", "modernbert/tiny", "bloom/tiny"])
def test_d5_norms_start_at_one_and_biases_at_zero(name: str) -> None:
    model = tiny(name)
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm | nn.RMSNorm | T5Norm)]
    assert norms
    assert all(bool((norm.weight == 1).all()) for norm in norms)
    biases = [p for n, p in model.named_parameters() if n.endswith("bias")]
    assert all(bool((bias == 0).all()) for bias in biases)


def test_d12_bloom_knows_the_order_of_what_it_has_read() -> None:
    one_layer = shrunk("bloom/tiny").to_dict()["encoder"] | {"layers": 1}
    for keys, is_known in (({}, True), ({"alibi": False}, False)):
        model = tiny("bloom/tiny", encoder=one_layer | keys)
        randomise(model)
        texts = [7, 9, 11, 13, 15], [11, 9, 7, 13, 15]
        before, after = (states_of(model, ids)[-1] for ids in texts)
        assert torch.allclose(before, after, rtol=1e-4, atol=1e-5) != is_known


def test_d12_bloom_normalises_its_embedding() -> None:
    model = tiny("bloom/tiny")
    embedded = model.embedding(Stream({"ids": torch.tensor([[3, 5]])}, layout_of((2,)))).states
    torch.testing.assert_close(embedded.mean(-1), torch.zeros(1, 2), rtol=0, atol=1e-6)
    torch.testing.assert_close(embedded.std(-1, correction=0), torch.ones(1, 2), rtol=0.05, atol=0)


@pytest.mark.parametrize("name", ["t5/tiny", "t5_v1_1/tiny"])
def test_d25_decoders_end_in_the_norm_of_their_blocks(name: str) -> None:
    model = build_model(shipped(name), VOCABULARY, "meta")
    assert model.decoder is not None
    kinds = {type(m) for m in model.modules() if "Norm" in type(m).__name__}
    assert kinds == {T5Norm}
    assert isinstance(model.decoder.norm, T5Norm)


@pytest.mark.parametrize(("name", "halves"), [("pegasus/tiny", True), ("transformer/tiny", False)])
def test_d40_positions_are_those_of_the_family(name: str, halves: bool) -> None:
    model, width = tiny(name), shrunk(name).hidden
    stream = Stream({"ids": torch.full((1, 6), 3)}, layout_of((6,)))
    states = model.embedding(stream).states[0]
    word = model.get_parameter("embedding.word.weight")[3] * math.sqrt(width)
    angles = torch.arange(6.0)[:, None] / 10000 ** (torch.arange(0, width, 2) / width)
    waves = (angles.sin(), angles.cos())
    expected = torch.cat(waves, -1) if halves else torch.stack(waves, -1).flatten(-2)
    torch.testing.assert_close(states - word, expected, rtol=1e-4, atol=1e-5)


def test_d43_logits_of_a_tied_t5_are_divided_by_the_root_of_the_width() -> None:
    assert model_config("t5/base").target["lm"].model_dump()["scale_states"]
    model = tiny("t5/tiny")
    streams = {
        name: Stream({"ids": torch.tensor([[3, 5, 7]])}, layout_of((3,))) for name in ("src", "tgt")
    }
    batch = Batch(streams, {}, 6)
    out = model.encode(batch)
    logits = model.target["lm"].logits(out, batch)
    plain = out.hidden.states[0] @ model.get_parameter("embedding.word.weight").T
    torch.testing.assert_close(logits, plain / math.sqrt(shrunk("t5/tiny").hidden))
    assert float(logits.detach().std()) < 2


@pytest.mark.parametrize("name", ["t5/tiny", "t5_v1_1/tiny"])
def test_d5_output_layers_start_at_the_scale_of_what_they_read(name: str) -> None:
    """A table starts at 1, also where it is the output layer; one of its own at 1 / sqrt(D)."""
    model = build_model(model_config(name), 60)
    words = model.embedding.get_parameter("word.weight")
    output = model.target["lm"].get_parameter("output.weight")
    assert float(words.detach().std()) == pytest.approx(1.0, rel=0.05)
    assert (output is words) == (name == "t5/tiny")
    if output is not words:
        assert float(output.detach().std()) == pytest.approx(output.shape[1] ** -0.5, rel=0.05)
