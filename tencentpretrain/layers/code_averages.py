"""Codes that are moving averages of what they replaced (van den Oord et al., 2017, appendix A.1).

Shapes: K codes, C width of a code, N vectors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CodeAverages(nn.Module):
    """How often each code is taken, and the vectors that took it in the step that is under way.

    With n_i vectors of sum s_i in a step, the paper keeps N_i = d N_i + (1 - d) n_i and
    m_i = d m_i + (1 - d) s_i, and the code is m_i / N_i. The code itself stands for m_i here:
    it goes (1 - d) n_i / N_i of its way to s_i / n_i, which is the same, and holds for a code that
    was moved to another place in between.

    Args:
        codes: K.
        size: C.
        decay: d, what is left of an average after a step.
    """

    frequency: Tensor
    taken: Tensor

    def __init__(self, codes: int, size: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("frequency", torch.empty(codes))
        # Sums of the vectors, and how many they are: of one step, so that no checkpoint needs them.
        self.register_buffer("taken", torch.empty(codes, size + 1), persistent=False)

    def init_weights(self, std: float) -> None:
        """As if each code had been taken once."""
        self.frequency.fill_(1.0)
        self.clear()

    def clear(self) -> None:
        """Begin a step."""
        self.taken.zero_()

    def add(self, codes: Tensor, vectors: Tensor) -> None:
        """Remember that `vectors` [..., C] took `codes` [...]."""
        rows = vectors.detach().flatten(0, -2).float()
        self.taken.index_add_(0, codes.flatten(), F.pad(rows, (0, 1), value=1.0))

    def move(self, weight: Tensor, taken: Tensor, is_finite: Tensor) -> Tensor:
        """The codes [K, C] after a step, and remember how often they were taken.

        Args:
            weight: [K, C] the codes before it.
            taken: [K, C + 1] `taken`, added over all processes.
            is_finite: [] whether the step counts; if not, nothing changes.
        """
        sums, counts = taken[:, :-1], taken[:, -1]
        frequency = self.decay * self.frequency + (1 - self.decay) * counts
        share = (1 - self.decay) * counts / frequency.clamp(min=torch.finfo(torch.float32).tiny)
        means = sums / counts.clamp(min=1)[:, None]
        moved = torch.lerp(weight, means, share[:, None])
        self.frequency.copy_(torch.where(is_finite, frequency, self.frequency))
        return torch.where(is_finite, moved, weight)
