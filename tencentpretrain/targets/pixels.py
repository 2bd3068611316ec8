"""Targets that learn the pixels of masked patches: MAE and SimMIM.

Shapes: B images, P patches, K of them masked in all images, S positions, V values of a patch.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from tencentpretrain.config import Config, PositiveFloat, PositiveInt, Probability, check
from tencentpretrain.embeddings.patch import PatchWaves, cut
from tencentpretrain.encoders.transformer import TransformerEncoder
from tencentpretrain.layers.activation import ActivationName
from tencentpretrain.layers.padding import pad, take_rows
from tencentpretrain.sizes import Patches, Sizes
from tencentpretrain.targets.base import TARGETS, Target, TargetConfig
from tencentpretrain.types import SRC, Batch, Labels, Layout, ModelOutput, Ratio, TargetOutput

EPS = 1e-6
"""Added to the variance of the pixels of a patch."""


class PixelTarget(Target):
    """Predicts the pixels of patches that the encoder did not see.

    Its labels are the flat numbers [K] of the masked patches in the [B * P] grid, as `index`; the
    pixels themselves are those of the stream. The loss of a patch is the mean over its pixels.

    Args:
        sizes: Of the model, which must read patches.
        normalise: Whether the pixels of a patch are normalised by their own mean and deviation.
        name: Of the target.
    """

    def __init__(self, sizes: Sizes, normalise: bool, name: str) -> None:
        super().__init__(name)
        assert sizes.patches is not None
        self.patches: Patches = sizes.patches
        self.normalise = normalise

    @abstractmethod
    def loss(self, predicted: Tensor, wanted: Tensor) -> Tensor:
        """Loss of each value, in the shape [K, V] of both."""

    def units(self, batch: Batch) -> Tensor:
        """Number of masked patches."""
        values = batch.labels[self.label].values
        return torch.tensor(len(values), device=values.device)

    def forward(self, out: ModelOutput, batch: Batch) -> TargetOutput:
        wanted = self._wanted(batch)
        predicted = self.logits(out, batch).to(wanted.dtype)
        loss = self.loss(predicted, wanted).mean(-1).sum()
        return TargetOutput({self.label: Ratio(loss, self.units(batch))}, {})

    def _wanted(self, batch: Batch) -> Tensor:
        """Pixels [K, V] of the masked patches, at least in fp32."""
        values = cut(batch.streams[SRC].inputs["pixels"], self.patches).flatten(0, 1)
        index = batch.labels[self.label].index
        wanted = values if index is None else take_rows(values, index)
        wanted = wanted if wanted.dtype == torch.float64 else wanted.float()
        if not self.normalise:
            return wanted
        variance, mean = torch.var_mean(wanted, -1, keepdim=True)
        return (wanted - mean) * torch.rsqrt(variance + EPS)

    def _places(self, labels: Labels | None) -> Tensor | None:
        """Flat positions [K] of the masked patches in the [B * S] grid; None is all patches."""
        if labels is None or labels.index is None:
            return None
        patches, index = self.patches, labels.index
        image, patch = index // patches.count, index % patches.count
        return image * patches.positions + patches.before + patch

    def _masked(self, states: Tensor, batch: Batch) -> Tensor:
        """States [K, D] of the masked patches, or of all, out of all positions [B, S, D]."""
        places = self._places(batch.labels.get(self.label))
        if places is None:
            return states[:, self.patches.before :].flatten(0, 1)
        return take_rows(states.flatten(0, 1), places)


class PixelDecoderConfig(Config):
    """The decoder of a masked autoencoder: transformer blocks that normalise their inputs."""

    hidden: PositiveInt = 512
    """Width of the decoder; 4 must divide it."""
    layers: PositiveInt = 8
    """Number of blocks."""
    heads: PositiveInt = 16
    """Number of attention heads; must divide the width."""
    ffn: PositiveInt = 2048
    """Width inside the feed-forward layers."""
    activation: ActivationName = "gelu"
    """Activation of the feed-forward layers."""
    norm_eps: PositiveFloat = 1e-6
    """Added to the variance in the norms."""
    qkv_bias: bool = True
    """Whether the linear layers of queries, keys and values have biases."""
    dropout: Probability = 0.0
    """Dropout rate of the updates of each block."""

    @check("hidden", "heads")
    def _divides(self) -> str | None:
        if self.hidden % 4 == 0 and self.hidden % self.heads == 0:
            return None
        return f"hidden must be divisible by 4 and by heads={self.heads}, but is {self.hidden}"

    def stack(self) -> TransformerEncoder.Config:
        """The same as keys of an encoder."""
        own = self.model_dump(exclude={"hidden"})
        return TransformerEncoder.Config(name="transformer", norm_order="pre", **own)


@TARGETS.register("masked_pixels")
class MaskedPixelsTarget(PixelTarget):
    """A small decoder over all patches predicts the masked ones (He et al., 2022, MAE, section 3).

    The encoder sees the patches "kept" of the stream only; a learned vector stands for the others.
    """

    class Config(TargetConfig):
        needs_patches: ClassVar[bool] = True
        decoder: PixelDecoderConfig = PixelDecoderConfig()
        """The decoder, which only pre-training needs."""
        normalise: bool = True
        """Whether the pixels of each patch are normalised by their own mean and deviation."""

    def __init__(self, config: Config, sizes: Sizes, name: str = "masked_pixels") -> None:
        super().__init__(sizes, config.normalise, name)
        width = config.decoder.hidden
        self.input = nn.Linear(sizes.hidden, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.position = PatchWaves(self.patches, width)
        inner = Sizes(width, width, sizes.vocabulary, patches=self.patches)
        self.decoder = TransformerEncoder(config.decoder.stack(), inner)
        self.output = nn.Linear(width, self.patches.values)

    def init_weights(self, std: float) -> None:
        nn.init.normal_(self.mask_token, std=std)

    def logits(self, out: ModelOutput, batch: Batch) -> Tensor:
        """Pixels [K, V] of the masked patches; without labels [B * P, V] of all."""
        states = self.input(out.hidden.states)
        kept = batch.streams[SRC].inputs.get("kept")
        if kept is not None:
            states = self._complete(states, kept)
        states = states + self.position.table.to(states.dtype)
        layout = Layout(torch.ones(states.shape[:2], dtype=torch.bool, device=states.device))
        decoded = self.decoder(states, layout).states
        pixels: Tensor = self.output(self._masked(decoded, batch))
        return pixels

    def loss(self, predicted: Tensor, wanted: Tensor) -> Tensor:
        return (predicted - wanted).square()

    def _complete(self, states: Tensor, kept: Tensor) -> Tensor:
        """States [B, S, D] with those of the `kept` [B, K] patches at their places."""
        rows, before = len(kept), self.patches.before
        first = torch.arange(before, device=kept.device).expand(rows, -1)
        places = torch.cat([first, kept + before], 1)
        shape = rows, self.patches.positions
        seen = torch.zeros(shape, dtype=torch.bool, device=kept.device).scatter_(1, places, True)
        starts = torch.arange(rows, device=kept.device)[:, None] * shape[1]
        grid = pad(states.flatten(0, 1), Layout(seen, (places + starts).flatten()))
        return torch.where(seen[..., None], grid, self.mask_token.to(grid.dtype))


@TARGETS.register("linear_pixels")
class LinearPixelsTarget(PixelTarget):
    """One linear layer predicts the masked patches (Xie et al., 2022, SimMIM, section 3.3)."""

    class Config(TargetConfig):
        needs_patches: ClassVar[bool] = True
        normalise: bool = False
        """Whether the pixels of each patch are normalised by their own mean and deviation."""

    def __init__(self, config: Config, sizes: Sizes, name: str = "linear_pixels") -> None:
        super().__init__(sizes, config.normalise, name)
        self.output = nn.Linear(sizes.hidden, self.patches.values)

    def logits(self, out: ModelOutput, batch: Batch) -> Tensor:
        """Pixels [K, V] of the masked patches; without labels [B * P, V] of all."""
        pixels: Tensor = self.output(self._masked(out.hidden.states, batch))
        return pixels

    def loss(self, predicted: Tensor, wanted: Tensor) -> Tensor:
        return (predicted - wanted).abs()
