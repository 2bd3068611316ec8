"""TencentPretrain's formulae written down once more, over files with its names.

Nothing of ours is used, so a converted file can be compared with what its own toolkit computes.
Shapes: B rows, L positions, H width, h heads, d width of a head. `seg` is 0 for padding, 1 for the
first segment or prefix, 2 for the second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOW = -10000.0
CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_fast": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


@dataclass
class Original:
    """A model of the original.

    Args:
        config: Its JSON config.
        state: Its weights.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def norm(self, name: str, x: Tensor, is_normal: bool = False) -> Tensor:
        kind = "normal" if is_normal else self.config.get("layernorm", "normal")
        if kind == "normal":
            gain, shift = self.state[f"{name}.gamma"], self.state[f"{name}.beta"]
            return gain * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + shift
        return (
            x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.state[f"{name}.weight"]
        )

    def embed(self, side: str, key: str, ids: Tensor, seg: Tensor) -> Tensor:
        parts, state = self.config[key], self.state
        total = state[f"{side}.word.embedding.weight"][ids]
        if "sinusoidalpos" in parts:
            width = total.shape[-1]
            total = total * math.sqrt(width) + waves(seg, width)
        if "pos" in parts:
            total = total + state[f"{side}.pos.embedding.weight"][: ids.shape[1]]
        if "seg" in parts:
            total = total + state[f"{side}.seg.embedding.weight"][seg]
        if self.config.get("remove_embedding_layernorm"):
            return total
        return self.norm(f"{side}.layer_norm", total, is_normal=True)

    def attend(
        self, name: str, x: Tensor, memory: Tensor, mask: Tensor, bias: Tensor | None, before: Any
    ) -> tuple[Tensor, Tensor]:
        config = self.config
        heads = config["heads_num"]
        kv = config.get("local_kv_heads_num", heads)

        def split(number: int, source: Tensor, count: int) -> Tensor:
            return (
                self.linear(f"{name}.linear_layers.{number}", source)
                .unflatten(-1, (count, -1))
                .transpose(1, 2)
            )

        query, key, value = split(0, x, heads), split(1, memory, kv), split(2, memory, kv)
        if config.get("rotary_position_embedding"):
            query, key = rotate(query), rotate(key)
        key, value = (t.repeat_interleave(heads // kv, 1) for t in (key, value))
        scores = query @ key.transpose(-1, -2)
        if bias is not None:
            scores = scores + bias
        if not config.get("remove_attention_scale"):
            scores = scores / math.sqrt(query.shape[-1])
        scores = scores + mask
        if before is not None:
            scores = scores + before
        context = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        return self.linear(f"{name}.final_linear", context), scores

    def feed(self, name: str, x: Tensor) -> Tensor:
        activation = ACTIVATIONS[self.config["hidden_act"]]
        inner = self.linear(f"{name}.linear_1", x)
        if self.config.get("feed_forward") == "gated":
            return self.linear(
                f"{name}.linear_2", activation(self.linear(f"{name}.linear_gate", x)) * inner
            )
        return self.linear(f"{name}.linear_2", activation(inner))

    def encode(self, ids: Tensor, seg: Tensor) -> Tensor:
        config = self.config
        x = self.embed("embedding", "embedding", ids, seg)
        if config["encoder"] != "transformer":
            return self.encode_sequence(x)
        if config.get("factorized_embedding_parameterization"):
            x = self.linear("encoder.linear", x)
        mask, bias, before = self.mask(seg), None, None
        if config.get("relative_position_embedding"):
            name = "encoder.transformer.0.relative_pos_emb.relative_attention_bias.weight"
            bias = relative(self.state[name], ids.shape[1], True)
        is_pre = config.get("layernorm_positioning") == "pre"
        for number in range(config["layers_num"]):
            name = f"encoder.transformer.{number}"
            name = "encoder.transformer" if config.get("parameter_sharing") else name
            before = before if config.get("has_residual_attention") else None
            y = self.norm(f"{name}.layer_norm_1", x) if is_pre else x
            update, before = self.attend(f"{name}.self_attn", y, y, mask, bias, before)
            x = x + update if is_pre else self.norm(f"{name}.layer_norm_1", x + update)
            y = self.norm(f"{name}.layer_norm_2", x) if is_pre else x
            update = self.feed(f"{name}.feed_forward", y)
            x = x + update if is_pre else self.norm(f"{name}.layer_norm_2", x + update)
        return self.norm("encoder.layer_norm", x) if is_pre else x

    def mask(self, seg: Tensor) -> Tensor:
        """Added to scores [B, 1, L, L]."""
        kind, length = self.config["mask"], seg.shape[1]
        earlier = torch.ones(length, length).tril().bool()[None]
        seen = (seg > 0)[:, None].expand(-1, length, -1)
        if kind == "causal":
            seen = earlier.expand(len(seg), -1, -1)
        elif kind != "fully_visible":
            seen = (seg == 1)[:, None] | ((seg == 2)[:, None] & earlier)
        return torch.where(seen, 0.0, LOW)[:, None]

    def encode_sequence(self, x: Tensor) -> Tensor:
        config = self.config
        kind, hidden, layers = config["encoder"], config["hidden_size"], config["layers_num"]
        if kind == "gatedcnn":
            return self.convolve(x)
        if kind in CELLS:
            both = config.get("bidirectional", False)
            cell = CELLS[kind](
                x.shape[-1], hidden // (1 + both), layers, batch_first=True, bidirectional=both
            )
            return self.filled(cell, "encoder.rnn")(x)[0]
        cell = CELLS[kind.removeprefix("bi")]
        results = []
        for name, inputs in (("forward", x), ("backward", x.flip(1))):
            stack = cell(x.shape[-1], hidden // 2, layers, batch_first=True)
            results.append(self.filled(stack, f"encoder.rnn_{name}")(inputs)[0])
        return torch.cat([results[0], results[1].flip(1)], -1)

    def filled(self, module: nn.Module, name: str) -> nn.Module:
        module.load_state_dict({n: self.state[f"{name}.{n}"] for n in module.state_dict()})
        return module

    def convolve(self, x: Tensor) -> Tensor:
        state, size = self.state, self.config["kernel_size"]
        before = [(0, 0, size - 1, 0)]

        def gated(inputs: Tensor, conv: str, gate: str, bias: str, shift: str) -> Tensor:
            inputs = F.pad(inputs, before[0])
            value = F.conv2d(inputs, state[f"{conv}.weight"], state[f"{conv}.bias"]) + state[bias]
            factor = F.conv2d(inputs, state[f"{gate}.weight"], state[f"{gate}.bias"]) + state[shift]
            return value * torch.sigmoid(factor)

        names = ("encoder.conv_1", "encoder.gate_1", "encoder.conv_b1", "encoder.gate_b1")
        x = shortcut = gated(x[:, None], *names)
        for number in range(self.config["layers_num"] - 1):
            kinds = ("conv", "gate", "conv_b", "gate_b")
            x = gated(x, *(f"encoder.{kind}.{number}" for kind in kinds))
            if (number + 1) % self.config["block_size"] == 0:
                x = shortcut = x + shortcut
        return x.squeeze(-1).transpose(1, 2)

    def decode(self, ids: Tensor, seg: Tensor, memory: Tensor, memory_seg: Tensor) -> Tensor:
        config = self.config
        x = self.embed("tgt_embedding", "tgt_embedding", ids, seg)
        length = ids.shape[1]
        mask = torch.where(torch.ones(length, length).tril().bool(), 0.0, LOW)
        across = torch.where(memory_seg > 0, 0.0, LOW)[:, None, None]
        bias, is_pre = None, config.get("layernorm_positioning") == "pre"
        if config.get("relative_position_embedding"):
            name = "decoder.self_pos_emb.relative_attention_bias.weight"
            bias = relative(self.state[name], length, False)
        for number in range(config["decoder_layers_num"]):
            name = f"decoder.transformer_decoder.{number}"
            y = self.norm(f"{name}.layer_norm_1", x) if is_pre else x
            update, _ = self.attend(f"{name}.self_attn", y, y, mask, bias, None)
            x = x + update if is_pre else self.norm(f"{name}.layer_norm_1", x + update)
            y = self.norm(f"{name}.layer_norm_2", x) if is_pre else x
            update, _ = self.attend(f"{name}.context_attn", y, memory, across, None, None)
            x = x + update if is_pre else self.norm(f"{name}.layer_norm_2", x + update)
            y = self.norm(f"{name}.layer_norm_3", x) if is_pre else x
            update = self.feed(f"{name}.feed_forward", y)
            x = x + update if is_pre else self.norm(f"{name}.layer_norm_3", x + update)
        return self.norm("decoder.layer_norm", x) if is_pre else x

    def head(self, target: str, states: Tensor) -> Tensor:
        """Scores of a target for the states that it reads."""
        if target == "mlm":
            activation = ACTIVATIONS[self.config["hidden_act"]]
            x = activation(self.linear("target.mlm.linear_1", states))
            return self.linear(
                "target.mlm.linear_2", self.norm("target.mlm.layer_norm", x, is_normal=True)
            )
        if target == "sp":
            first = torch.tanh(self.linear("target.sp.linear_1", states[:, 0]))
            return self.linear("target.sp.linear_2", first)
        if target == "bilm":
            return torch.stack(
                [self.linear("target.bilm.output_layer", half) for half in states.chunk(2, -1)], 2
            )
        return self.linear("target.lm.output_layer", states)


def waves(seg: Tensor, width: int) -> Tensor:
    """Row i + 2 of the table for token i of the valid ones, zero elsewhere."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))
    angles = (torch.arange(seg.shape[1]) + 2)[:, None] * frequencies
    table = torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
    return table * (seg > 0)[..., None]


def rotate(x: Tensor) -> Tensor:
    """Neighbouring numbers as complex ones, turned by the position."""
    size, length = x.shape[-1], x.shape[-2]
    frequencies = 1.0 / 10000 ** (torch.arange(0, size, 2).float() / size)
    angles = torch.arange(length).float()[:, None] * frequencies
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(
        torch.ones_like(angles), angles
    )
    return torch.view_as_real(turned).flatten(-2)


def relative(table: Tensor, length: int, is_bidirectional: bool) -> Tensor:
    """Scores [1, h, L, L] by bucket of distance, one pair of positions after the other."""
    count = len(table)
    rows = [
        [bucket(key - query, count, is_bidirectional) for key in range(length)]
        for query in range(length)
    ]
    return table[torch.tensor(rows)].permute(2, 0, 1)[None]


def bucket(distance: int, count: int, is_bidirectional: bool, largest: int = 128) -> int:
    offset = 0
    if is_bidirectional:
        count //= 2
        offset = count if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = count // 2
    if distance < exact:
        return offset + distance
    share = math.log(distance / exact) / math.log(largest / exact)
    return offset + min(exact + int(share * (count - exact)), count - 1)
