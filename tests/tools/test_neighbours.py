from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tencentpretrain.types import Batch, Layout, Stream
from tests.helpers.saved_models import call, reopen, save_model
from tests.tasks import toy


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which `good` and `great` have vectors of one direction."""
    folder = tmp_path_factory.mktemp("toy")
    toy.save_run(folder / "run", toy.MODEL)
    model, tokenizer, config = reopen(folder / "run")
    table = model.embedding.get_parameter("word.weight")
    good, great = (tokenizer.id(word) for word in ("good", "great"))
    with torch.no_grad():
        table[great] = 2 * table[good]
    save_model(folder / "run", model, config["model"], tokenizer, step=20)
    return folder / "run"


def pairs(line: str) -> list[tuple[str, float]]:
    """Words and cosines of a printed line."""
    cells = line.partition(": ")[2].split("  ")
    return [(word, float(cosine)) for word, cosine in (cell.split(" ") for cell in cells)]


def test_neighbours_are_those_of_the_greatest_cosine(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(capsys, "neighbours", "words=[good,rome]", checkpoint=run, top=4)
    first, second = out.splitlines()
    assert code == 0
    assert first.startswith("good: great 1.0000")
    model, tokenizer, _ = reopen(run)
    table = model.embedding.get_parameter("word.weight").detach().numpy()
    table = table / np.linalg.norm(table, axis=1, keepdims=True)
    rome = tokenizer.id("rome")
    cosines = table @ table[rome]
    best = [number for number in np.argsort(-cosines) if number != rome][:4]
    assert [word for word, _ in pairs(second)] == [tokenizer.token(int(n)) for n in best]
    assert [c for _, c in pairs(second)] == pytest.approx(cosines[best], abs=1e-4)


@pytest.mark.parametrize("candidates", ["null", "5"])
def test_in_a_text_states_are_compared(
    run: Path, capsys: pytest.CaptureFixture[str], candidates: str
) -> None:
    words = ("words=[film]", "text=the film was good", f"candidates={candidates}")
    code, out, _ = call(capsys, "neighbours", *words, checkpoint=run, top=40, batch_size=7)
    found = dict(pairs(out.strip()))
    assert code == 0
    assert len(found) == (5 if candidates == "5" else len(toy.VOCABULARY) - 1)
    model, tokenizer, _ = reopen(run)

    def state(word: str) -> torch.Tensor:
        names = ["[CLS]", "the", word, "was", "good", "[SEP]"]
        ids = torch.tensor([[tokenizer.id(name) for name in names]])
        layout = Layout.of(torch.ones_like(ids, dtype=torch.bool))
        with torch.no_grad():
            return model.encode(Batch({"src": Stream({"ids": ids}, layout)})).hidden.states[0, 2]

    for word, cosine in found.items():
        expected = torch.cosine_similarity(state("film"), state(word), 0).item()
        assert cosine == pytest.approx(expected, abs=2e-4)
    assert list(found.values()) == sorted(found.values(), reverse=True)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"words": "[]"}, "words must name at least one word"),
        ({"words": "[playing]"}, "but `playing` is read as play ##ing"),
        ({"words": "[zebra]"}, "but `zebra` is read as [UNK]"),
        ({"words": "[film]", "text": "the house"}, "there is no `film` in it"),
        ({"words": "[film]", "candidates": 3}, "candidates needs text"),
        ({"words": "[film]", "text": "film " * 70}, "must have at most 62 tokens, but has 70"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    run: Path, capsys: pytest.CaptureFixture[str], keys: dict[str, Any], message: str
) -> None:
    code, out, errors = call(capsys, "neighbours", checkpoint=run, **keys)
    assert (code, out, len(errors)) == (2, "", 1)
    assert message in errors[0]
