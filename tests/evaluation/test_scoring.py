from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tencentpretrain.config import decode
from tencentpretrain.errors import CheckpointError
from tencentpretrain.evaluation import scoring
from tencentpretrain.evaluation.scoring import CausalScorer, Score, windows
from tencentpretrain.tools.saved_model import ToolConfig, load_model
from tests.helpers.models import model_data
from tests.helpers.reference_run import reference_run
from tests.tasks import toy


def scorer(run: Path, length: int | None = None, batch_size: int = 3) -> CausalScorer:
    keys = {"checkpoint": str(run), "device": "cpu", "precision": "fp32", "batch_size": batch_size}
    config = decode(ToolConfig, keys)
    return CausalScorer(load_model(config, config.machine()), config.machine(), length)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    run, theirs, _ = reference_run(tmp_path_factory.mktemp("gpt2"), "gpt2")
    return run, theirs


def rows(*sizes: int) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(5, 99, size).tolist() for size in sizes]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 60), st.integers(1, 12), st.data())
def test_every_token_is_scored_once_with_enough_before_it(
    size: int, length: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, length))
    start = data.draw(st.integers(1, max(1, size)))
    scored: list[int] = []
    for begin, end, first in windows(size, length, stride, start):
        assert 0 <= begin < first <= end < size
        assert end - begin <= length
        assert first - begin >= min(first, length - stride + 1)
        scored += range(first, end + 1)
    assert scored == list(range(start, size))


def reference(theirs: nn.Module, ids: list[int]) -> torch.Tensor:
    """Log-probabilities [S, V] of the token behind each position."""
    with torch.no_grad():
        logits: torch.Tensor = theirs(input_ids=torch.tensor([ids])).logits
    return logits[0].log_softmax(-1)


def test_scores_are_those_of_transformers(
    gpt2: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "CHUNK_BYTES", 4 * 99 * 5)  # several parts of each batch
    run, theirs = gpt2
    sequences, firsts = rows(9, 17, 1, 0, 4, 12), [1, 6, 1, 1, 4, 11]
    scores = scorer(run).score(sequences, firsts)
    for ids, first, score in zip(sequences, firsts, scores, strict=True):
        if len(ids) <= first:
            assert score == Score(0.0, 0, True)
            continue
        table = reference(theirs, ids[:-1])
        logs = [float(table[place - 1, ids[place]]) for place in range(first, len(ids))]
        assert score.count == len(logs)
        assert score.log_probability == pytest.approx(sum(logs), rel=1e-5)


def test_the_likeliest_continuation_is_told_from_others(gpt2: tuple[Path, nn.Module]) -> None:
    run, theirs = gpt2
    (prompt,) = rows(5)
    greedy = list(prompt)
    for _ in range(4):
        greedy.append(int(reference(theirs, greedy)[-1].argmax()))
    other = [*greedy[:-1], (greedy[-1] + 1) % 99]
    scores = scorer(run).score([greedy, other], [5, 5])
    assert [score.is_greedy for score in scores] == [True, False]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (toy.MODEL, "has not learned to predict the next token: its targets are mlm, nsp"),
        (
            model_data("gpt2/tiny", {"encoder": {"mask": "prefix"}, "hidden": 128}),
            "is not of a causal model",
        ),
    ],
)
def test_models_that_see_the_future_are_refused(
    tmp_path: Path, data: dict[str, object], message: str
) -> None:
    toy.save_run(tmp_path / "run", data)
    with pytest.raises(CheckpointError, match=message):
        scorer(tmp_path / "run")
