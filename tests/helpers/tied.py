import torch
from torch import Tensor, nn


class Tied(nn.Module):
    """An embedding and an output that are one parameter, a buffer to save and one not to."""

    def __init__(self, width: int = 4, tied: bool = True) -> None:
        super().__init__()
        self.word = nn.Embedding(5, width)
        self.norm = nn.BatchNorm1d(width)
        self.output = nn.Linear(width, 5)
        if tied:
            self.output.weight = self.word.weight
        self.register_buffer("table", torch.arange(3.0), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.output(self.norm(self.word(ids)))


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
