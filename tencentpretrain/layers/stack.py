"""What transformer encoders and decoders have in common: keys, layers, positions, one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from tencentpretrain.config import ComponentConfig, PositiveFloat, PositiveInt, Probability
from tencentpretrain.layers.activation import ActivationName
from tencentpretrain.layers.attention import HeadShape, View
from tencentpretrain.layers.block import Block, BlockConfig, NormOrder
from tencentpretrain.layers.cache import Cache
from tencentpretrain.layers.heads import HeadGrid
from tencentpretrain.layers.mask import MaskName, build_mask
from tencentpretrain.layers.norm import NormName, build_norm
from tencentpretrain.layers.patch_scores import PatchScores
from tencentpretrain.layers.relative import RelativeBuckets, RelativeConfig, alibi_scores
from tencentpretrain.layers.rotary import Rotary, RotaryConfig
from tencentpretrain.sizes import Patches
from tencentpretrain.types import Hidden, Layout, Want


class StackConfig(ComponentConfig):
    """Keys of a stack of transformer blocks."""

    layers: PositiveInt = 12
    """Number of blocks."""
    heads: PositiveInt = 12
    """Number of attention heads; must divide the width of the model unless head_size is given."""
    kv_heads: PositiveInt | None = None
    """Number of heads of keys and values, each for several of queries; null is as many as heads."""
    head_size: PositiveInt | None = None
    """Width of a head; null is the width of the model divided by heads."""
    ffn: PositiveInt | None = None
    """Width inside the feed-forward layers; null is four times the width of the model."""
    gated: bool = False
    """Whether feed-forward layers multiply by an activated gate (GLU variants)."""
    activation: ActivationName = "gelu"
    """Activation of the feed-forward layers."""
    norm: NormName = "layer"
    """Kind of norm: layer, layer_gain (no bias), rms, t5, none or legacy (UER, TencentPretrain)."""
    norm_eps: PositiveFloat = 1e-12
    """Added to the variance in the norms."""
    norm_order: NormOrder = "post"
    """Whether a norm follows the residual sum (post) or precedes each update of a block (pre)."""
    first_norm: bool = True
    """Whether the first block normalises the input of its attention (pre only; ModernBERT not)."""
    last_norm: bool = True
    """Whether a norm follows the last block (pre only; BEiT norms the mean of states instead)."""
    mask: MaskName = "full"
    """What a position sees: everything (full), itself and the past (causal), or prefix."""
    window: PositiveInt | None = None
    """Greatest distance of a position that is seen, in positions; null is any."""
    global_every: PositiveInt | None = None
    """The first of so many layers each sees at any distance in spite of window; null is none."""
    rotary: RotaryConfig | None = None
    """Rotary positions; null is none."""
    relative: RelativeConfig | None = None
    """Learned scores by distance (T5); null is none."""
    alibi: bool = False
    """Whether scores fall with the distance (ALiBi)."""
    patch_scores: Literal["shared", "apart"] | None = None
    """Learned scores by the offset of patches (BEiT), for all layers or each; null is none."""
    scale_scores: bool = True
    """Whether scores are divided by the root of head_size (T5 does not)."""
    qk_norm: bool = False
    """Whether queries and keys are normalised head by head (Qwen3)."""
    bias: bool = True
    """Whether the linear layers have biases."""
    qkv_bias: bool | None = None
    """The same for those of queries, keys and values; null is as bias (Qwen2 has only these)."""
    key_bias: bool | None = None
    """The same for those of keys alone; null is as the others (BEiT's have none)."""
    layer_scale: PositiveFloat | None = None
    """What learned factors of the updates of each block start with (BEiT); null is no factors."""
    residual_attention: bool = False
    """Whether the scores of the layer before are added to those of each layer (RealFormer)."""
    share_blocks: bool = False
    """Apply one block `layers` times (ALBERT) instead of `layers` different ones."""
    dropout: Probability = 0.1
    """Dropout rate of the updates of each block."""
    attention_dropout: Probability | None = None
    """Dropout rate of the attention probabilities; null is the same as dropout."""
    depth_dropout: Probability = 0.0
    """Rate at which rows go without the updates of the last block; it grows from 0 at the first."""

    def misfit(self, hidden: int) -> str | None:
        """What is wrong with a stack of these keys in a model of width `hidden`."""
        kind, kv_heads = self.part, self.kv_heads or self.heads
        if self.head_size is None and hidden % self.heads:
            return f"{kind}.heads must divide the width hidden={hidden}, but is {self.heads}"
        if self.heads % kv_heads:
            return f"{kind}.kv_heads must divide {kind}.heads={self.heads}, but is {kv_heads}"
        if self.rotary is not None and self.head_shape(hidden).size % 2:
            size = self.head_shape(hidden).size
            return f"{kind}.head_size must be even for rotary positions, but is {size}"
        if self.relative is not None and self.alibi:
            return f"{kind}.relative and {kind}.alibi must not be given together"
        if self.patch_scores is not None and (self.relative is not None or self.alibi):
            return f"{kind}.patch_scores must be null beside {kind}.relative and {kind}.alibi"
        if self.global_every is not None and self.window is None:
            return f"{kind}.global_every needs {kind}.window, but it is null"
        return None

    @property
    def part(self) -> str:
        """What users call this part of a model."""
        return "encoder"

    def head_shape(self, hidden: int) -> HeadShape:
        """How the width `hidden` is split."""
        size = self.head_size or hidden // self.heads
        return HeadShape(self.heads, self.kv_heads or self.heads, size)

    def depth_rate(self, number: int) -> float:
        """Rate at which rows go without the updates of block `number`."""
        return self.depth_dropout * number / max(self.layers - 1, 1)

    def block_config(self, hidden: int, source: int | None = None) -> BlockConfig:
        """What all blocks of a stack of width `hidden` share."""
        return BlockConfig(
            hidden,
            self.head_shape(hidden),
            self.ffn or 4 * hidden,
            is_gated=self.gated,
            activation=self.activation,
            norm=self.norm,
            norm_eps=self.norm_eps,
            norm_order=self.norm_order,
            dropout=self.dropout,
            attention_dropout=(
                self.dropout if self.attention_dropout is None else self.attention_dropout
            ),
            has_bias=self.bias,
            has_qkv_bias=self.bias if self.qkv_bias is None else self.qkv_bias,
            has_key_bias=self.key_bias,
            has_head_norm=self.qk_norm,
            is_scaled=self.scale_scores,
            layer_scale=self.layer_scale,
            source=source,
        )


class TransformerStack(nn.Module):
    """A stack of blocks that computes on valid positions only.

    Args:
        config: Its keys.
        hidden: Width D.
        source: Width of the other sequence, where its blocks read one.
        patches: The patches that it reads, if it does.

    Raises:
        ValueError: if scores of patches are wanted, and there are none.
    """

    block: ClassVar[type[Block]]

    def __init__(
        self,
        config: StackConfig,
        hidden: int,
        source: int | None = None,
        patches: Patches | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.hidden = hidden
        self.heads = config.head_shape(hidden)
        blocks = config.block_config(hidden, source)
        self.layers = nn.ModuleList(
            self.block(
                blocks,
                has_first_norm=config.first_norm or number > 0,
                depth_rate=config.depth_rate(number),
            )
            for number in range(1 if config.share_blocks else config.layers)
        )
        final = config.norm if config.norm_order == "pre" and config.last_norm else "none"
        self.norm = build_norm(final, hidden, config.norm_eps)
        self.relative: RelativeBuckets | None = None
        if config.relative is not None:
            self.relative = RelativeBuckets(
                config.relative, config.heads, hidden, is_bidirectional=config.mask != "causal"
            )
        self.patch_scores = nn.ModuleList()
        if config.patch_scores is not None:
            if patches is None:
                raise ValueError("patch_scores need an embedding with patches, but it has none")
            tables = 1 if config.patch_scores == "shared" else config.layers
            self.patch_scores.extend(PatchScores(patches, config.heads) for _ in range(tables))
        rotary = config.rotary
        self._rotary = self._local_rotary = None
        if rotary is not None:
            size = self.heads.size
            self._rotary = Rotary(rotary, size, rotary.theta)
            self._local_rotary = Rotary(rotary, size, rotary.local_theta or rotary.theta)

    def run(
        self, hidden: Tensor, layout: Layout, want: Want, cache: Cache | None, *others: Any
    ) -> Hidden:
        """Apply the blocks to `hidden` [B, S, D]; each is given `others`, too."""
        views = self._views(layout, cache)
        grid = views[0].queries
        states = grid.unpad(hidden)
        wanted = [hidden] if 0 in want.layers else []
        attentions, projections = [], []
        scores = hidden.new_zeros(()) if self.config.residual_attention else None
        for number, block in enumerate(self.blocks()):
            is_wanted = number + 1 in want.attentions
            if number + 1 in want.projections:
                query, key, value = (grid.pad(rows) for rows in block.project(states))
                projections.append((query, key, value))
            states, probabilities, scores = block(
                states, views[number], *others, number, is_wanted=is_wanted, scores=scores
            )
            if number + 1 in want.layers:
                wanted.append(grid.pad(states))
            if probabilities is not None and is_wanted:
                attentions.append(probabilities)
        last = grid.pad(self.norm(states))
        return Hidden(last, layout, tuple(wanted), tuple(attentions), tuple(projections))

    def _views(self, layout: Layout, cache: Cache | None) -> list[View]:
        """What self-attention is given in each layer."""
        config, past = self.config, 0 if cache is None else cache.length
        keys = None if cache is None else cache.extend(layout)
        length = layout.valid.shape[1]
        queries = self.head_grid(layout, self.heads.heads)
        same = self.heads.heads == self.heads.kv_heads
        key_grid = queries if same else self.head_grid(layout, self.heads.kv_heads)
        tables = self._scores(length, past + length, layout)

        def view(window: int | None, rotary: Rotary | None, scores: Tensor | None) -> View:
            mask = build_mask(
                config.mask, layout, window=window, scores=scores, past=past, keys=keys
            )
            turn = None
            if rotary is not None:
                turn = rotary, rotary.tables(past, length, layout.valid.device)
            return View(queries, key_grid, mask, turn, cache)

        every = config.global_every or 0
        made: dict[tuple[bool, int], View] = {}
        views = []
        for number in range(config.layers):
            is_near = config.window is not None and not (every and number % every == 0)
            table = number if len(tables) > 1 else 0
            if (is_near, table) not in made:
                window = config.window if is_near else None
                rotary = self._local_rotary if is_near else self._rotary
                made[is_near, table] = view(window, rotary, tables[table])
            views.append(made[is_near, table])
        return views

    def _scores(self, queries: int, keys: int, layout: Layout) -> list[Tensor | None]:
        """Scores by distance [1, N, S_q, S_k], for all layers or for each."""
        scores: list[Tensor] = []
        if self.relative is not None:
            scores = [self.relative(queries, keys)]
        elif self.config.alibi:
            scores = [alibi_scores(self.config.heads, queries, keys, layout.valid.device)]
        elif len(self.patch_scores):
            scores = self._patch_scores(keys, layout)
        return [self.own_heads(table) for table in scores] or [None]

    def head_grid(self, layout: Layout, heads: int) -> HeadGrid:
        """Where the positions of `layout` and their `heads` lie."""
        return HeadGrid(layout, heads)

    def own_heads(self, scores: Tensor) -> Tensor:
        """Those of `scores` [1, N, S_q, S_k] whose heads this process has: all, unless cut."""
        return scores

    def _patch_scores(self, length: int, layout: Layout) -> list[Tensor]:
        """Scores by offset of patches; all tables are read at the same places."""
        tables = [table for table in self.patch_scores if isinstance(table, PatchScores)]
        wanted = tables[0].patches.positions
        if length != wanted:
            raise ValueError(
                f"scores of patches need all {wanted} positions of an image, but there are {length}"
            )
        index = tables[0].index(layout.valid.device)
        return [table(index) for table in tables]

    def blocks(self) -> Sequence[Block]:
        """Layers in order."""
        blocks = [block for block in self.layers if isinstance(block, Block)]
        return blocks * self.config.layers if self.config.share_blocks else blocks

    def make_cache(self, capacity: int) -> Cache | None:
        """A cache for rows of up to `capacity` positions; None where later ones are seen."""
        return None if self.config.mask == "full" else Cache(self.config.layers, capacity)

    def residual_outputs(self) -> Sequence[nn.Linear]:
        """Linear layers whose outputs are added to the residual stream."""
        return [linear for block in self.blocks() for linear in block.residual_outputs()]

    def flops(self, length: int) -> int:
        """Multiply-adds, counted as 2, of a forward pass over one position of a row of `length`."""
        weights = sum(p.numel() for block in self.blocks() for p in block.parameters())
        products = 4 * length * self.heads.heads * self.heads.size * self.config.layers
        return 2 * weights + products
