from typing import Any

import pytest
import torch
from torch import Tensor

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.encoders.base import ENCODERS, Encoder
from tencentpretrain.encoders.transformer import TransformerEncoder
from tencentpretrain.sizes import Sizes
from tencentpretrain.types import Layout, Want
from tests.helpers.models import layout_of, model_config, randomise

SMALL = {"layers": 2, "heads": 2, "ffn": 24, "dropout": 0.0}
LENGTHS = (7, 3, 5)
KINDS: dict[str, dict[str, Any]] = {
    "post": {},
    "pre": {"norm_order": "pre"},
    "causal": {"norm_order": "pre", "mask": "causal"},
    "prefix": {"mask": "prefix"},
    "shared": {"share_blocks": True, "layers": 3},
    "rms": {"norm": "rms", "bias": False, "activation": "silu"},
    "grouped": {"kv_heads": 1, "mask": "causal", "qkv_bias": True, "bias": False, "gated": True},
    "rotary": {"rotary": {}, "head_size": 6, "qk_norm": True},
    "rotary interleaved": {"rotary": {"layout": "interleaved"}, "mask": "causal"},
    "relative": {"relative": {"buckets": 8, "distance": 6}, "scale_scores": False, "norm": "t5"},
    "relative causal": {"relative": {"buckets": 4, "distance": 3}, "mask": "causal"},
    "alibi": {"alibi": True, "mask": "causal", "kv_heads": 1},
    "window": {"window": 2, "global_every": 2, "layers": 3, "rotary": {"local_theta": 100.0}},
    "window causal": {"window": 2, "mask": "causal", "first_norm": False, "norm_order": "pre"},
    "realformer": {"residual_attention": True, "layers": 3},
    "legacy": {"norm": "legacy", "norm_order": "pre"},
}


def encoder_of(**keys: Any) -> TransformerEncoder:
    config = decode(TransformerEncoder.Config, {"name": "transformer", **SMALL, **keys})
    encoder = TransformerEncoder(config, Sizes(16, 16, 50))
    randomise(encoder)
    return encoder.eval()


def every_kind(function: Any) -> Any:
    return pytest.mark.parametrize("kind", KINDS)(function)


@every_kind
def test_padding_changes_no_real_position_and_comes_out_zero(kind: str) -> None:
    encoder, states = encoder_of(**KINDS[kind]), torch.randn(3, 7, 16)
    layout, wider = layout_of(LENGTHS), layout_of(LENGTHS, 11)
    output = encoder(states, layout).states
    noise = torch.cat([states, torch.full((3, 4, 16), 1e3)], 1)
    noise[~wider.valid] = 1e3
    widened = encoder(noise, wider).states
    torch.testing.assert_close(widened[:, :7][layout.valid], output[layout.valid])
    assert float(widened[~wider.valid].detach().abs().max()) == 0
    for row, length in enumerate(LENGTHS):
        alone = encoder(states[row : row + 1, :length], layout_of((length,))).states
        torch.testing.assert_close(alone[0], output[row, :length])


@every_kind
def test_skipping_padding_equals_computing_on_it(kind: str) -> None:
    """A layout that does not list its tokens makes the encoder work on the whole grid."""
    encoder = encoder_of(**KINDS[kind])
    layout = layout_of(LENGTHS)
    documents = torch.where(layout.valid, 0, 1)
    whole = Layout(layout.valid, documents=documents)
    gradients = []
    for chosen in (layout, whole):
        states = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(1))
        states.requires_grad_()
        output = encoder(states, chosen).states[layout.valid]
        found = torch.autograd.grad((output**2).sum(), [states, *encoder.parameters()])
        gradients.append((output, found[0][layout.valid], *found[1:]))
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def influence(encoder: Encoder, layout: Layout, length: int) -> Tensor:
    """Whether output position i of row 0 depends on input position j, as [i, j]."""
    states = torch.randn(len(layout.valid), length, 16, requires_grad=True)
    output = encoder(states, layout).states[0]
    rows = [torch.autograd.grad(row.sum(), states, retain_graph=True)[0][0] for row in output]
    return torch.stack([row.abs().sum(-1) > 0 for row in rows])


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("lengths", [(6, 6), (6, 4)])
def test_causal_never_looks_ahead(dropout: float, lengths: tuple[int, ...]) -> None:
    encoder = encoder_of(mask="causal", dropout=0.0, attention_dropout=dropout).train()
    found = influence(encoder, layout_of(lengths), 6)
    assert not found.triu(1).any()
    assert found.diagonal().all()
    if dropout == 0:
        assert torch.equal(found, torch.ones(6, 6).tril().bool())


def test_the_prefix_is_seen_by_all() -> None:
    layout = layout_of((6, 4), prefix=torch.tensor([3, 1]))
    found = influence(encoder_of(mask="prefix", layers=1), layout, 6)
    expected = torch.ones(6, 6).tril().bool()
    expected[:, :3] = True
    assert torch.equal(found, expected)


@pytest.mark.parametrize("mask", ["full", "causal"])
def test_packed_documents_equal_rows_of_their_own(mask: str) -> None:
    encoder = encoder_of(mask=mask)
    first, second = torch.randn(4, 16), torch.randn(2, 16)
    packed = torch.cat([first, second, torch.randn(1, 16)])[None]
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, -1]])
    output = encoder(packed, layout_of((6,), 7, documents=documents)).states[0]
    for document, part in ((first, output[:4]), (second, output[4:6])):
        alone = encoder(document[None], layout_of((len(document),))).states[0]
        torch.testing.assert_close(part, alone)


@every_kind
def test_wanted_layers_and_attentions_are_returned_and_change_nothing(kind: str) -> None:
    encoder, layout = encoder_of(**KINDS[kind]), layout_of(LENGTHS)
    states = torch.randn(3, 7, 16)
    plain = encoder(states, layout)
    assert plain.layers == plain.attentions == ()
    layers = len(encoder.blocks())
    hidden = encoder(states, layout, Want(tuple(range(layers + 1)), (1, layers)))
    torch.testing.assert_close(hidden.states, plain.states)
    assert torch.equal(hidden.layers[0], states)
    last = hidden.layers[-1][layout.valid]
    torch.testing.assert_close(encoder.norm(last), hidden.states[layout.valid])
    assert len(hidden.attentions) == 2
    for probabilities in hidden.attentions:
        assert probabilities.shape == (3, 2, 7, 7)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(3, 2, 7))
    (one,) = encoder(states, layout, Want(attentions=(2,))).attentions
    if layers == 2:
        torch.testing.assert_close(one, hidden.attentions[1])


def test_a_shared_block_equals_copies_of_it() -> None:
    shared, separate = encoder_of(share_blocks=True, layers=3), encoder_of(layers=3)
    for block in separate.layers:
        block.load_state_dict(shared.layers[0].state_dict())
    states, layout = torch.randn(3, 7, 16), layout_of(LENGTHS)
    torch.testing.assert_close(shared(states, layout).states, separate(states, layout).states)
    assert 3 * sum(p.numel() for p in shared.parameters()) == sum(
        p.numel() for p in separate.parameters()
    )
    assert len(shared.blocks()) == len(separate.blocks()) == 3
    assert len(shared.residual_outputs()) == len(separate.residual_outputs()) == 6
    assert shared.flops(7) == separate.flops(7)


def test_flops_are_those_of_the_products() -> None:
    products = 4 * 16 * 16 + 2 * 16 * 24
    norms_and_biases = 4 * 16 + 24 + 16 + 4 * 16
    expected = 2 * (2 * (products + norms_and_biases) + 2 * 2 * 7 * 16)
    assert encoder_of().flops(7) == expected


def test_dropout_is_off_in_evaluation_and_seeded_in_training() -> None:
    encoder, layout = encoder_of(dropout=0.3), layout_of(LENGTHS)
    states = torch.randn(3, 7, 16)
    assert torch.equal(encoder(states, layout).states, encoder(states, layout).states)
    encoder.train()

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return encoder(states, layout).states

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_the_dropout_of_attention_follows_that_of_the_updates() -> None:
    assert encoder_of(dropout=0.3).layers[0].attention.rate == 0.3
    separate = encoder_of(dropout=0.3, attention_dropout=0.0)
    assert separate.layers[0].attention.rate == 0.0
    assert separate.layers[0].attention_residual.dropout.rate == 0.3


def test_only_pre_norm_stacks_have_a_final_norm() -> None:
    assert isinstance(encoder_of(norm_order="post").norm, torch.nn.Identity)
    assert isinstance(encoder_of(norm_order="pre", norm="rms").norm, torch.nn.RMSNorm)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match=r"encoder.heads must divide the width hidden=256.* 5"):
        model_config("bert/mini", {"encoder": {"heads": 5}})


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_every_encoder_zeroes_padding(name: str) -> None:
    cls = ENCODERS.config_class(name)
    config = decode(cls, {k: v for k, v in SMALL.items() if k in cls.model_fields} | {"name": name})
    encoder = ENCODERS.build(config, Sizes(16, 16, 50))
    randomise(encoder)
    layout = layout_of(LENGTHS)
    output = encoder.eval()(torch.randn(3, 7, 16), layout).states
    assert output.shape == (3, 7, 16)
    assert float(output[~layout.valid].detach().abs().max()) == 0
