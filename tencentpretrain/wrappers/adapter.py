"""Modules with a low-rank update beside a weight that stays: linear layers and tables of ids.

They keep the names of the parameters of what they stand for, so that any checkpoint fits them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tencentpretrain.embeddings.base import EmbeddingPart
from tencentpretrain.layers.dropout import dropout
from tencentpretrain.types import Layout, Stream
from tencentpretrain.wrappers.factors import (
    DOWN,
    MIXER,
    Update,
    down_values,
    mixer_values,
    random_stream,
    row_norms,
    updated,
)


class Adapter(nn.Module):
    """The factors beside a weight [O, I]: A [R, I], B [O, R], and where asked for W [R, R], m [O].

    While merged, the updated weight lies beside the weight, which nothing ever changes: unmerging
    is exact, and what is saved does not depend on it. Training drops what is merged.
    """

    weight: Tensor
    lora_a: nn.Parameter
    lora_b: nn.Parameter
    lora_mixer: nn.Parameter | None
    lora_magnitude: nn.Parameter | None
    merged: Tensor | None
    rate_factors: Mapping[str, float]
    """Factors of the learning rate of own parameters, which optimisers ask for."""

    def attach(self, weight: Tensor, update: Update, seed: int, name: str) -> None:
        """Take over `weight` and put factors beside it that change nothing yet.

        Args:
            weight: [O, I].
            update: Kind of the update.
            seed: Of the factors.
            name: Of this module in its model, which decides with the seed what is drawn.
        """
        self.update, self._seed, self._name = update, seed, name
        self.rate_factors = {MIXER: update.mixer_rate}
        weight.requires_grad_(False)
        self.weight = weight
        outputs, inputs = weight.shape
        self.lora_a = self._factor(update.rank, inputs)
        self.lora_b = self._factor(outputs, update.rank)
        self.lora_mixer = self.lora_magnitude = None
        if update.mixer != "none":
            self.lora_mixer = self._factor(update.rank, update.rank)
            self.lora_mixer.requires_grad_(update.is_mixer_trained)
        if update.has_magnitude:
            self.lora_magnitude = self._factor(outputs)
        self.register_buffer("merged", None, persistent=False)
        self.init_factors()

    def _factor(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(self.weight.new_empty(shape))

    def init_factors(self) -> None:
        """Fill the factors so that the update is zero."""
        update = self.update
        with torch.no_grad():
            stream = random_stream(self._seed, self._name, DOWN)
            self.lora_a.copy_(down_values(self.lora_a.shape, update.down, stream))
            self.lora_b.zero_()
            if self.lora_mixer is not None:
                stream = random_stream(self._seed, self._name, MIXER)
                self.lora_mixer.copy_(mixer_values(update.rank, update.mixer, stream))
            if self.lora_magnitude is not None:
                self.lora_magnitude.copy_(row_norms(self.weight))

    def merge(self) -> None:
        """Put the updated weight beside the weight, so that a forward pass costs no more."""
        with torch.no_grad():
            self.merged = updated(
                self.weight,
                self.lora_a,
                self.lora_b,
                self.update.scale,
                self.lora_mixer,
                self.lora_magnitude,
            )

    def unmerge(self) -> None:
        """Compute with the factors again."""
        self.merged = None

    def train(self, mode: bool = True) -> Self:
        """As in torch; for training what is merged is dropped, because factors are to change."""
        if mode:
            self.unmerge()
        return super().train(mode)


class AdaptedLinear(Adapter, nn.Linear):
    """A linear layer with an update: x W0^T + b + scale * ((drop(x) A^T) W^T) B^T.

    Args:
        linear: What it stands for; its parameters become this module's.
        update: Kind of the update.
        seed: Of the factors.
        name: Of the layer in its model.
    """

    def __init__(self, linear: nn.Linear, update: Update, seed: int, name: str) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.bias = linear.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)
        self.training = linear.training
        self.attach(linear.weight, update, seed, name)

    def init_weights(self, std: float) -> None:
        """Fill the layer as the model fills any other, and the factors."""
        nn.init.normal_(self.weight, std=std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self.init_factors()

    def forward(self, input: Tensor) -> Tensor:
        """Map [..., I] to [..., O]."""
        if self.merged is not None:
            return F.linear(input, self.merged, self.bias)
        rows = input.reshape(-1, self.in_features)
        wide = F.linear(rows, self.weight, self.bias)
        narrow = F.linear(dropout(rows, self.update.dropout, self.training), self.lora_a)
        if self.lora_mixer is not None:
            narrow = F.linear(narrow, self.lora_mixer)
        # One pass over the output, where a product and a sum would take two and another tensor.
        wide = torch.addmm(wide, narrow, self.lora_b.t(), alpha=self.update.scale)
        if self.lora_magnitude is not None:
            wide = self._rescaled(wide, self.lora_magnitude)
        return wide.view(*input.shape[:-1], self.out_features)

    def _rescaled(self, wide: Tensor, magnitude: Tensor) -> Tensor:
        """Give the rows of the updated weight their own norms (Liu et al., 2024, section 4).

        The norm that is divided by counts as a constant (section 4.3). The bias is in `wide`
        already, but is not to be scaled.
        """
        with torch.no_grad(), torch.autocast(wide.device.type, enabled=False):
            changed = torch.addmm(self.weight, self.lora_b, self.lora_a, alpha=self.update.scale)
            norms = row_norms(changed)
        factor, bias = magnitude / norms, self._parameters["bias"]
        if bias is None:
            return wide * factor.to(wide.dtype)
        return torch.addcmul(((1 - factor) * bias).to(wide.dtype), wide, factor.to(wide.dtype))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.update.rank}, scale={self.update.scale:g}"


class AdaptedTable(Adapter, EmbeddingPart):
    """A table of an embedding with an update: rows of W0, and rows of B times scale * A.

    Args:
        part: What it stands for, with one parameter `weight` that its output is linear in.
        update: Kind of the update; without mixer and magnitude.
        seed: Of the factors.
        name: Of the part in its model.
    """

    def __init__(self, part: EmbeddingPart, update: Update, seed: int, name: str) -> None:
        super().__init__()
        weight = part.get_parameter("weight")
        self.has_content = part.has_content
        self.training = part.training
        self.attach(weight, update, seed, name)
        # It only says how rows are found, so it is no submodule and keeps no memory.
        part.register_parameter("weight", nn.Parameter(weight.detach().to("meta")))
        self.__dict__["_part"] = part

    def init_weights(self, std: float) -> None:
        """Fill the table as the model fills any other, and the factors."""
        nn.init.normal_(self.weight, std=std)
        self.init_factors()

    def layout(self, stream: Stream) -> Layout:
        part: EmbeddingPart = self.__dict__["_part"]
        return part.layout(stream)

    def forward(self, stream: Stream, layout: Layout) -> Tensor:
        """Embed what the part reads of `stream`."""
        if self.merged is not None:
            return self._rows(self.merged, stream, layout)
        narrow = self._rows(self.lora_b, stream, layout)
        return self._rows(self.weight, stream, layout) + self.update.scale * (narrow @ self.lora_a)

    def _rows(self, table: Tensor, stream: Stream, layout: Layout) -> Tensor:
        """What the part says with another table."""
        rows: Tensor = functional_call(self.__dict__["_part"], {"weight": table}, (stream, layout))
        return rows


def is_adaptable(module: nn.Module) -> bool:
    """Whether a module can be given an update; those that have one count, too."""
    if isinstance(module, Adapter):
        return True
    if isinstance(module, EmbeddingPart):
        tensors = module.state_dict(keep_vars=True)
        return list(tensors) == ["weight"] and tensors["weight"].dim() == 2
    return type(module) is nn.Linear


def merge(model: nn.Module) -> None:
    """Merge all adapters of `model` for fast inference; costs the memory of their weights."""
    for module in model.modules():
        if isinstance(module, Adapter):
            module.merge()


def unmerge(model: nn.Module) -> None:
    """Undo `merge`, exactly."""
    for module in model.modules():
        if isinstance(module, Adapter):
            module.unmerge()
