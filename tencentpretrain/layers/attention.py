"""Multi-head attention (Vaswani et al., 2017, section 3.2).

Shapes: B rows, S positions, T flat positions (`HeadGrid`), D width, N heads of queries, K heads
of keys and values, H width of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from tencentpretrain.layers.attend import attend, attend_densely
from tencentpretrain.layers.cache import Cache
from tencentpretrain.layers.heads import HeadGrid
from tencentpretrain.layers.mask import AttentionMask
from tencentpretrain.layers.norm import NormName, build_norm
from tencentpretrain.layers.projection import Projecting
from tencentpretrain.layers.rotary import Rotary
from tencentpretrain.types import Hidden


@dataclass(frozen=True)
class HeadShape:
    """How a width is split into heads: N of queries, K of keys and values, each H wide.

    K must divide N: each head of keys serves several of queries (Ainslie et al., 2023).
    """

    heads: int
    kv_heads: int
    size: int


@dataclass(frozen=True)
class View:
    """What one kind of attention is given in all layers of a stack.

    Args:
        queries: Where the heads of queries lie.
        keys: Where those of keys and values lie.
        mask: What each position may see.
        rotary: How queries and keys are turned by their positions, and by which tables.
        cache: Keys and values of earlier positions.
    """

    queries: HeadGrid
    keys: HeadGrid
    mask: AttentionMask
    rotary: tuple[Rotary, tuple[Tensor, Tensor]] | None = None
    cache: Cache | None = None


class Attended(NamedTuple):
    """What attention returns.

    Args:
        states: [T, D].
        probabilities: [B, N, S_q, S_k] before dropout, where they are wanted.
        scores: [B, N, S_q, S_k] before the mask, where a next layer adds them.
    """

    states: Tensor
    probabilities: Tensor | None = None
    scores: Tensor | None = None

    def of(self, states: Tensor) -> Attended:
        """The same with other states; torch 2.11 cannot compile the tuple's own `_replace`."""
        return Attended(states, self.probabilities, self.scores)


class Attention(Projecting):
    """Projections of queries, keys, values and output, and what lies between them.

    Args:
        hidden: Width D of the queries' states and of the output.
        shape: The heads.
        rate: Dropout rate of the probabilities.
        has_bias: Whether the output layer has a bias.
        has_qkv_bias: Whether the other three have one.
        has_key_bias: The same for the keys alone; None is as `has_qkv_bias`.
        norm_eps: Where given, queries and keys are normalised head by head (Qwen3), with this.
        is_scaled: Whether scores are divided by the root of H (T5 does not).
        source: Width of the states that keys and values are made of; None is `hidden`.
    """

    def __init__(
        self,
        hidden: int,
        shape: HeadShape,
        *,
        rate: float,
        has_bias: bool = True,
        has_qkv_bias: bool = True,
        has_key_bias: bool | None = None,
        norm_eps: float | None = None,
        is_scaled: bool = True,
        source: int | None = None,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.rate = rate
        self.scale = 1 / math.sqrt(shape.size) if is_scaled else 1.0
        key_bias = has_qkv_bias if has_key_bias is None else has_key_bias
        source, width = source or hidden, shape.kv_heads * shape.size
        self.query = nn.Linear(hidden, shape.heads * shape.size, bias=has_qkv_bias)
        self.key = nn.Linear(source, width, bias=key_bias)
        self.value = nn.Linear(source, width, bias=has_qkv_bias)
        self.output = nn.Linear(shape.heads * shape.size, hidden, bias=has_bias)
        norm: NormName = "none" if norm_eps is None else "rms"
        self.query_norm = build_norm(norm, shape.size, norm_eps or 0.0)
        self.key_norm = build_norm(norm, shape.size, norm_eps or 0.0)

    def _finish(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        view: View,
        is_wanted: bool = False,
        scores: Tensor | None = None,
    ) -> Attended:
        """Attend and project; arguments as those of `SelfAttention.forward`."""
        rate = self.rate if self.training else 0.0
        if is_wanted or scores is not None:
            context, probabilities, raw = attend_densely(
                query, key, value, view.mask, rate, self.scale, scores
            )
            merged = self.output(view.queries.merge(context))
            return Attended(merged, probabilities, None if scores is None else raw)
        context = attend(query, key, value, view.mask, rate, self.scale)
        return Attended(self.output(view.queries.merge(context)))


class SelfAttention(Attention):
    """Attention of a sequence over itself."""

    def forward(
        self,
        states: Tensor,
        view: View,
        layer: int = 0,
        *,
        is_wanted: bool = False,
        scores: Tensor | None = None,
    ) -> Attended:
        """Attend over flat valid positions.

        Args:
            states: [T, D], flat.
            view: Where their heads lie and what they see.
            layer: Number of the layer in the cache.
            is_wanted: Whether to return the probabilities, too.
            scores: Of the previous layer, to be added (RealFormer).
        """
        queries, keys, values = self.project(states, self.query, self.key, self.value)
        query = self.query_norm(view.queries.split(queries))
        key = self.key_norm(view.keys.split(keys))
        value = view.keys.split(values)
        if view.rotary is not None:
            rotary, tables = view.rotary
            query, key = rotary.turn(query, tables), rotary.turn(key, tables)
        if view.cache is not None:
            key, value = view.cache.append(layer, key, value)
        return self._finish(query, key, value, view, is_wanted, scores)


class CrossAttention(Attention):
    """Attention of one sequence over another, whose keys and values never change."""

    def forward(self, states: Tensor, view: View, memory: Hidden, layer: int = 0) -> Attended:
        """Attend from flat states [T, D] over those of `memory`."""
        (queries,) = self.project(states, self.query)
        query = self.query_norm(view.queries.split(queries))
        known = None if view.cache is None else view.cache.memory(layer)
        if known is None:
            rows = view.keys.flatten(memory.states)
            keys, values = self.project(rows, self.key, self.value)
            known = self.key_norm(view.keys.split(keys)), view.keys.split(values)
            if view.cache is not None:
                view.cache.remember(layer, *known)
        return self._finish(query, *known, view)
