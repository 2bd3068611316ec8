"""Contrast over more rows than fit: of other processes, and encoded a chunk at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.model import Model, ModelConfig, build_model
from tencentpretrain.types import Batch, Stream
from tests.helpers.models import layout_of, randomise, total_loss
from tests.helpers.two_processes import in_two_processes

ROWS = 6
LENGTHS = (5, 3, 7, 2, 7, 4)


def side(heads: int, dropout: float) -> dict[str, Any]:
    return {
        "embedding": {"parts": {"word": {}}, "dropout": dropout},
        "encoder": {"name": "transformer", "layers": 2, "heads": heads, "dropout": dropout},
    }


def two_towers(dropout: float = 0.0, **keys: Any) -> Model:
    """A model of 16 for the stream "text", and one of 12 for "image"."""
    target = {"streams": ["text", "image"], "size": 8, "pooling": "last", "other_pooling": "first"}
    data = {
        "hidden": 16,
        **side(2, dropout),
        "towers": {"image": {"hidden": 12, **side(3, dropout)}},
        "target": {"contrast": target | keys},
    }
    model = build_model(decode(ModelConfig, data), 30)
    torch.manual_seed(0)
    randomise(model)
    return model.train()


def batch_of(rows: slice = slice(None)) -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(30, (ROWS, 7), generator=generator)[rows] for _ in range(2)]
    lengths = LENGTHS[rows]
    streams = {
        "text": Stream({"ids": ids[0]}, layout_of(lengths, 7)),
        "image": Stream({"ids": ids[1]}, layout_of([7] * len(lengths))),
    }
    return Batch(streams, tokens=sum(lengths) + 7 * len(lengths))


def gradients(model: Model, batch: Batch, units: int = ROWS) -> dict[str, Tensor]:
    """Loss and gradients, those of a sum over `units`."""
    loss = model(batch).losses["contrast"].total / units
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(found) == len(list(model.parameters()))
    return found | {"loss": loss.detach()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("chunk", [1, 2, 4, 6, 9])
def test_a_batch_in_chunks_equals_the_plain_one(chunk: int) -> None:
    plain = gradients(two_towers(), batch_of())
    assert_same(gradients(two_towers(chunk=chunk), batch_of()), plain)


def test_dropout_is_the_same_when_a_chunk_is_encoded_again() -> None:
    """As if the states of all chunks had been kept."""
    model = two_towers(dropout=0.5, chunk=2)
    torch.manual_seed(3)
    found = gradients(model, batch_of())
    model.zero_grad()
    torch.manual_seed(3)
    parts = {
        name: [model.read_stream(name, part.streams[name]) for part in parts_of(2)]
        for name in ("text", "image")
    }
    target = model.target["contrast"]
    vectors = [
        torch.cat([target.vector(hidden, name) for hidden in hiddens])
        for name, hiddens in parts.items()
    ]
    scores = target.scale() * (vectors[0] @ vectors[1].T)
    own = torch.arange(ROWS)
    loss = (torch.nn.functional.cross_entropy(scores, own)
            + torch.nn.functional.cross_entropy(scores.T, own)) / 2  # fmt: skip
    loss.backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_same(found, expected | {"loss": loss.detach()})
    torch.manual_seed(4)
    assert gradients(model, batch_of())["loss"] != loss.detach()


def parts_of(size: int) -> list[Batch]:
    return [batch_of(slice(start, start + size)) for start in range(0, ROWS, size)]


def test_states_of_a_chunk_are_not_kept() -> None:
    """What autograd holds between the passes does not grow with the depth of the model."""

    def held(**keys: Any) -> int:
        sizes: list[int] = []
        model = two_towers(**keys)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            total_loss(model(batch_of()))
        return sum(sizes)

    assert held(chunk=2) < held() / 4


def test_evaluation_in_chunks_is_the_same() -> None:
    plain, chunked = (two_towers(**keys).eval() for keys in ({}, {"chunk": 4}))
    with torch.no_grad():
        one, other = (model(batch_of()).losses["contrast"].total for model in (plain, chunked))
    torch.testing.assert_close(one, other)


def half(rank: int, keys: dict[str, Any]) -> dict[str, Tensor]:
    rows = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
    return gradients(two_towers(**keys), batch_of(rows))


@pytest.mark.parametrize("keys", [{}, {"chunk": 2}])
def test_two_processes_equal_one_with_all_rows(keys: dict[str, Any]) -> None:
    one, other = in_two_processes(half, keys)
    assert_same(
        {name: value + other[name] for name, value in one.items()},
        gradients(two_towers(), batch_of()),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": None}, r"target.contrast.size must be given, as the streams are 16 and 12 wide"),
        ({"chunk": 0}, r"chunk: must be"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        two_towers(**change)


def test_chunks_are_for_a_target_that_is_alone() -> None:
    data = two_towers_data() | {"target": {"contrast": {"chunk": 2}, "mlm": {}}}
    with pytest.raises(ConfigError, match=r"chunk is for models without another target"):
        decode(ModelConfig, data)


def two_towers_data() -> dict[str, Any]:
    return {"hidden": 16, **side(2, 0.0)}
