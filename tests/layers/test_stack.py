"""Properties of every kind of stack: cached decoding, distances, grouped heads, contradictions."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.decoders.transformer import TransformerDecoder
from tencentpretrain.encoders.transformer import TransformerEncoder
from tencentpretrain.layers import attend as products
from tencentpretrain.sizes import Sizes
from tencentpretrain.types import NOTHING, Hidden, Layout
from tests.helpers.models import layout_of, model_config, randomise

SIZES = Sizes(16, 16, 50, source=12)
SMALL = {"layers": 2, "heads": 4, "ffn": 24, "dropout": 0.0}
CAUSAL: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"kv_heads": 2},
    "rotary": {"rotary": {}, "kv_heads": 1, "norm_order": "pre", "norm": "rms"},
    "llama3": {"rotary": {"scaling": {"kind": "llama3", "factor": 4.0, "length": 8}}},
    "relative": {"relative": {"buckets": 8, "distance": 6}},
    "alibi": {"alibi": True, "heads": 4, "kv_heads": 2},
    "window": {"window": 2, "global_every": 2, "rotary": {"local_theta": 100.0}},
    "shared": {"share_blocks": True, "residual_attention": True},
}


def encoder_of(**keys: Any) -> TransformerEncoder:
    config = decode(TransformerEncoder.Config, {"name": "transformer", **SMALL, **keys})
    encoder = TransformerEncoder(config, SIZES)
    randomise(encoder)
    return encoder.eval()


def decoder_of(**keys: Any) -> TransformerDecoder:
    config = decode(TransformerDecoder.Config, {"name": "transformer", **SMALL, **keys})
    decoder = TransformerDecoder(config, SIZES)
    randomise(decoder)
    return decoder.eval()


def left_padded(lengths: tuple[int, ...]) -> Layout:
    width = max(lengths)
    return Layout.of(torch.arange(width) >= width - torch.tensor(lengths)[:, None])


@pytest.mark.parametrize("lengths", [(5, 5), (5, 2)])
@pytest.mark.parametrize("kind", CAUSAL)
def test_reading_with_a_cache_equals_reading_at_once(kind: str, lengths: tuple[int, ...]) -> None:
    encoder, states = encoder_of(mask="causal", **CAUSAL[kind]), torch.randn(2, 9, 16)
    prompt = left_padded(lengths)
    valid = torch.cat([prompt.valid, torch.ones(2, 4, dtype=torch.bool)], 1)
    whole = encoder(states, Layout.of(valid)).states
    cache = encoder.make_cache(16)
    found = [encoder(states[:, :5], prompt, NOTHING, cache).states]
    one = Layout.of(torch.ones(2, 1, dtype=torch.bool))
    found += [encoder(states[:, n : n + 1], one, NOTHING, cache).states for n in range(5, 7)]
    two = Layout.of(torch.ones(2, 2, dtype=torch.bool))
    found.append(encoder(states[:, 7:], two, NOTHING, cache).states)
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "grouped", "relative"])
def test_a_decoder_with_a_cache_equals_one_without(kind: str) -> None:
    decoder, states = decoder_of(**CAUSAL[kind]), torch.randn(2, 6, 16)
    memory = Hidden(torch.randn(2, 7, 12), layout_of((7, 4)))
    whole = decoder(states, layout_of((6, 6)), memory).states
    cache, one = decoder.make_cache(6), layout_of((1, 1))
    found = [decoder(states[:, n : n + 1], one, memory, NOTHING, cache).states for n in range(6)]
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-5, atol=1e-5)


def test_a_cache_goes_on_with_chosen_rows() -> None:
    encoder, states = encoder_of(mask="causal"), torch.randn(3, 5, 16)
    rows = torch.tensor([2, 0, 0, 1])
    cache = encoder.make_cache(5)
    assert cache is not None
    encoder(states[:, :4], left_padded((4, 2, 3)), NOTHING, cache)
    cache.select(rows)
    last = torch.randn(4, 1, 16)
    found = encoder(last, layout_of((1, 1, 1, 1)), NOTHING, cache).states
    valid = torch.cat([left_padded((4, 2, 3)).valid[rows], torch.ones(4, 1, dtype=torch.bool)], 1)
    whole = encoder(torch.cat([states[rows, :4], last], 1), Layout.of(valid)).states
    torch.testing.assert_close(found, whole[:, 4:], rtol=1e-5, atol=1e-5)


def test_a_full_cache_refuses_more() -> None:
    encoder = encoder_of(mask="causal")
    cache = encoder.make_cache(3)
    with pytest.raises(ValueError, match="made for 3 positions, but 4 are read"):
        encoder(torch.randn(1, 4, 16), layout_of((4,)), NOTHING, cache)


def test_stacks_that_see_later_positions_have_no_cache() -> None:
    assert encoder_of().make_cache(4) is None


def test_padding_of_either_side_changes_nothing_in_a_decoder() -> None:
    decoder, states, source = decoder_of(), torch.randn(2, 6, 16), torch.randn(2, 7, 12)
    output = decoder(states, layout_of((6, 3)), Hidden(source, layout_of((7, 4)))).states
    alone = decoder(states[1:, :3], layout_of((3,)), Hidden(source[1:, :4], layout_of((4,))))
    torch.testing.assert_close(output[1:, :3], alone.states)
    assert float(output[1, 3:].detach().abs().max()) == 0


@pytest.mark.parametrize("kind", ["rotary", "relative", "alibi"])
def test_only_distances_matter(kind: str) -> None:
    """The same rows further to the right come out the same."""
    encoder, states = encoder_of(mask="causal", **CAUSAL[kind]), torch.randn(1, 4, 16)
    shifted = torch.cat([torch.randn(1, 3, 16), states], 1)
    output = encoder(shifted, Layout.of(torch.arange(7)[None] >= 3)).states
    torch.testing.assert_close(output[:, 3:], encoder(states, layout_of((4,))).states)


def influence(encoder: TransformerEncoder, length: int) -> Tensor:
    states = torch.randn(1, length, 16, requires_grad=True)
    output = encoder(states, layout_of((length,))).states[0]
    rows = [torch.autograd.grad(row.sum(), states, retain_graph=True)[0][0] for row in output]
    return torch.stack([row.abs().sum(-1) > 0 for row in rows])


def test_a_window_limits_the_distance_and_some_layers_have_none() -> None:
    distances = torch.arange(6)[:, None] - torch.arange(6)
    assert torch.equal(influence(encoder_of(layers=1, window=2), 6), distances.abs() <= 2)
    causal = influence(encoder_of(layers=1, window=2, mask="causal"), 6)
    assert torch.equal(causal, (distances <= 2) & (distances >= 0))
    assert influence(encoder_of(layers=2, window=1, global_every=2), 6).all()


def test_grouped_heads_equal_repeated_ones() -> None:
    grouped, plain = encoder_of(kv_heads=2), encoder_of()
    state = grouped.state_dict()
    for name, tensor in state.items():
        if ".key." in name or ".value." in name:
            shape = (2, 1, 4, *tensor.shape[1:])
            state[name] = tensor.view(shape).expand(2, 2, *shape[2:]).flatten(0, 2)
    plain.load_state_dict(state)
    states, layout = torch.randn(2, 5, 16), layout_of((5, 3))
    torch.testing.assert_close(grouped(states, layout).states, plain(states, layout).states)


@pytest.mark.parametrize("kind", ["grouped", "relative", "alibi", "window"])
@pytest.mark.parametrize("mask", ["full", "causal"])
def test_both_products_of_a_cpu_agree_with_their_gradients(
    kind: str, mask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, layout = encoder_of(mask=mask, **CAUSAL[kind]), layout_of((7, 4))
    states = torch.randn(2, 7, 16)

    def gradients() -> tuple[Tensor, ...]:
        output = encoder(states, layout).states
        return output, *torch.autograd.grad((output**2).sum(), [*encoder.parameters()])

    ours = gradients()
    monkeypatch.setattr(products, "CPU_DENSE_LENGTH", 0)
    for mine, theirs in zip(ours, gradients(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kv_heads": 3}, r"encoder.kv_heads must divide encoder.heads=4, but is 3"),
        ({"rotary": {}, "head_size": 3}, r"encoder.head_size must be even"),
        ({"relative": {}, "alibi": True}, r"must not be given together"),
        ({"global_every": 3}, r"encoder.global_every needs encoder.window"),
        ({"relative": {"buckets": 6}}, r"multiple of 4"),
        (
            {"rotary": {"scaling": {"kind": "llama3", "factor": 2.0, "low": 5.0}}},
            r"low=5.0 must be less than high=4.0",
        ),
    ],
)
def test_contradictions_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_config("bert/mini", {"encoder": keys})


def test_rows_skip_later_blocks_more_often() -> None:
    config = TransformerEncoder.Config(layers=4, heads=2, ffn=16, depth_dropout=0.3)
    encoder = TransformerEncoder(config, Sizes(8, 8, 1))
    rates = [
        (block.attention_residual.depth_rate, block.feed_forward_residual.depth_rate)
        for block in encoder.blocks()
    ]
    assert rates == [pytest.approx((0.1 * number,) * 2) for number in range(4)]


def test_keys_may_have_no_bias_and_blocks_no_last_norm() -> None:
    config = TransformerEncoder.Config(
        layers=1, heads=2, ffn=16, key_bias=False, norm_order="pre", last_norm=False
    )
    names = {name for name, _ in TransformerEncoder(config, Sizes(8, 8, 1)).named_parameters()}
    assert "layers.0.attention.query.bias" in names
    assert "layers.0.attention.key.bias" not in names
    assert "norm.weight" not in names
