"""Dropout under tensor parallelism: of one's own where work is cut, the same where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tencentpretrain.distributed.randomness import call_apart
from tencentpretrain.layers import attend, dropout
from tencentpretrain.train.saved_checkpoint import find_latest
from tests.distributed.test_tensor_parallel import cut
from tests.helpers.launch import launch, messages
from tests.helpers.models import text_batch, tiny_model
from tests.helpers.pretraining import metrics, words_of, write_shards
from tests.helpers.two_processes import in_two_processes

CPU = torch.device("cpu")


def draw() -> Tensor:
    return torch.rand(4)


def test_each_rank_draws_apart_and_goes_on_alike() -> None:
    own, after = [], []
    for rank in (0, 1):
        torch.manual_seed(3)
        own += [call_apart(draw, rank, CPU), call_apart(draw, rank, CPU)]
        after.append(torch.rand(4))
    assert all(not torch.equal(one, other) for n, one in enumerate(own) for other in own[:n])
    assert torch.equal(*after)


def test_an_error_leaves_the_common_generator_in_step() -> None:
    def fail() -> None:
        torch.rand(1)
        raise KeyError

    torch.manual_seed(3)
    with pytest.raises(KeyError):
        call_apart(fail, 0, CPU)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    call_apart(draw, 1, CPU)
    assert torch.equal(state, torch.get_rng_state())


def masks(rank: int, is_sequence: bool) -> list[Tensor]:
    """All masks of one pass, in their order."""
    drawn: list[Tensor] = []
    original = dropout.draw_mask

    def draw_mask(like: Tensor, rate: float) -> Tensor:
        drawn.append(original(like, rate))
        return drawn[-1]

    dropout.draw_mask = attend.draw_mask = draw_mask
    changes = {"embedding": {"dropout": 0.3}, "encoder": {"layers": 2, "dropout": 0.5}}
    model = cut(tiny_model("bert/tiny", changes), is_sequence)
    model.train()(text_batch((8, 8)))
    return drawn


@pytest.mark.distributed
@pytest.mark.parametrize("is_sequence", [False, True])
def test_masks_differ_where_work_is_cut(is_sequence: bool) -> None:
    one, other = in_two_processes(masks, is_sequence)
    # The embedding, then of each block its probabilities and two updates.
    is_cut = [False, *2 * [True, is_sequence, is_sequence]]
    assert [not torch.equal(a, b) for a, b in zip(one, other, strict=True)] == is_cut
    shapes = [(2, 8, 16), *2 * [(2, 8, 8), *2 * [(16 // (1 + is_sequence), 16)]]]
    assert [mask.shape for mask in one] == shapes


@pytest.mark.distributed
@pytest.mark.parametrize(
    "words", [("parallel=tp",), ("parallel=tp", "parallel.sequence=true", "trainer.recompute=full")]
)
def test_a_run_with_dropout_goes_on_bit_for_bit(words: tuple[str, ...], tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "data")
    keys = {"trainer.steps": 4, "trainer.precision": "fp32", "model.encoder.dropout": 0.3}
    runs = {"one": [()], "two": [("trainer.stop_after=1",), ()]}
    for name, parts in runs.items():
        for more in parts:
            given = [*words_of(shards, tmp_path / name, **keys), *words, *more]
            assert launch(tmp_path / "log", 2, given) == [0, 0], messages(tmp_path / "log")
    saved = [find_latest(tmp_path / name / "checkpoints") for name in runs]
    assert saved[0] is not None
    assert saved[1] is not None
    for kind in ("model", "optimizer"):
        one, two = (checkpoint.tensors(kind) for checkpoint in saved if checkpoint is not None)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert metrics(tmp_path / "one")[-1] == metrics(tmp_path / "two")[-1]
