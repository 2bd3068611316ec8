"""Vectors replaced by the nearest of a learned few (van den Oord et al., 2017, VQ-VAE).

Shapes: K codes, C width of a code, N vectors.
"""

from __future__ import annotations

from typing import ClassVar, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tencentpretrain.layers.code_averages import CodeAverages

CHUNK_BYTES: Final = 1 << 26
"""Size of the fp32 distances that are alive at once."""


class Codebook(nn.Module):
    """A table `weight` [K, C]; `usage` [K] counts how often each code was taken in training.

    Args:
        codes: K.
        size: C.
        is_normalised: Whether codes and what they replace are brought to length 1.
        decay: Of the averages that move the codes; None leaves that to their gradient.
    """

    counters: ClassVar = ("usage",)
    """Buffers in which each rank of data counts for itself."""
    usage: Tensor

    def __init__(
        self, codes: int, size: int, *, is_normalised: bool = False, decay: float | None = None
    ) -> None:
        super().__init__()
        self.is_normalised = is_normalised
        self.weight = nn.Parameter(torch.empty(codes, size), requires_grad=decay is None)
        self.averages = None if decay is None else CodeAverages(codes, size, decay)
        self.register_buffer("usage", torch.empty(codes, dtype=torch.int64))

    def init_weights(self, std: float) -> None:
        """As published: uniform within one K-th around 0."""
        nn.init.uniform_(self.weight, -1 / len(self.weight), 1 / len(self.weight))
        self.usage.zero_()

    def forward(self, codes: Tensor) -> Tensor:
        """Vectors [..., C] of `codes` [...], in fp32."""
        return self.scaled(F.embedding(codes, self.weight))

    def scaled(self, vectors: Tensor) -> Tensor:
        """Vectors [..., C] in fp32, of length 1 where codes are."""
        vectors = vectors.float()
        return F.normalize(vectors, dim=-1) if self.is_normalised else vectors

    def scores(self, vectors: Tensor) -> Tensor:
        """How near each code is to scaled `vectors` [N, C]: fp32 [N, K].

        It is minus the squared distance, but for the square of the vector, which all have alike.
        """
        table = self.scaled(self.weight.detach())
        with torch.autocast(vectors.device.type, enabled=False):
            return torch.addmm(table.square().sum(1).neg(), vectors.float(), table.t(), alpha=2.0)

    def nearest(self, vectors: Tensor) -> Tensor:
        """Codes [...] nearest to scaled `vectors` [..., C]; the first of several as near."""
        rows = vectors.detach().flatten(0, -2)
        most = max(1, CHUNK_BYTES // (4 * len(self.weight)))
        found = [self.scores(part).argmax(1) for part in rows.split(most)]
        return torch.cat(found).view(vectors.shape[:-1])

    def count(self, codes: Tensor) -> None:
        """Remember that `codes` were taken."""
        taken = codes.flatten()
        self.usage.scatter_add_(0, taken, torch.ones_like(taken))


def straight_through(vectors: Tensor, chosen: Tensor) -> Tensor:
    """`chosen` with the gradient of `vectors` (van den Oord et al., 2017, section 3.2).

    The values are those of `chosen` bit for bit, as when an image is made of codes.
    """
    passed: Tensor = vectors - vectors.detach()
    return chosen.detach() + passed


def perplexity(codes: Tensor, count: int) -> Tensor:
    """How many of `count` codes would be as surprising if all were taken alike []: fp32."""
    taken = codes.flatten()
    zeros = torch.zeros(count, device=codes.device)
    shares = zeros.scatter_add_(0, taken, torch.ones_like(taken, dtype=torch.float32)) / len(taken)
    entropy: Tensor = torch.special.entr(shares).sum()
    return entropy.exp()


def split_busiest(weight: Tensor, usage: Tensor, least: float, noise: Tensor) -> int:
    """Give each code that is hardly taken the place of one of those taken most, beside it.

    As in the design of codebooks by splitting (Linde, Buzo and Gray, 1980, section II).

    Args:
        weight: [K, C] the codes; changed in place.
        usage: [K] how often each was taken.
        least: Codes taken less often than this share of the mean are moved.
        noise: [K, C] of deviation 1; how far from the other code, in hundredths of the mean size
            of an entry.

    Returns:
        How many were moved.
    """
    is_dead = usage < least * usage.float().mean()
    order = usage.argsort(descending=True, stable=True)
    alive, dead = order[~is_dead[order]], order[is_dead[order]]
    if not len(dead) or not len(alive):
        return 0
    places = torch.arange(len(dead), device=usage.device) % len(alive)
    step = 0.01 * weight.square().mean().sqrt()
    weight[dead] = weight[alive[places]] + step * noise[: len(dead)]
    return len(dead)
