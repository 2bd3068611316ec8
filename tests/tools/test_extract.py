from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tencentpretrain.tokenizers.base import Tokenizer
from tencentpretrain.tools import texts
from tests.helpers.reference_run import reference_run
from tests.helpers.saved_models import call, reopen, save_model, word_tokenizer
from tests.tasks import toy

LINES = ["w9 w10 w11 w12 w13", "w7", "", "w8 w9 w10", "w7 " * 30, "w20 w21"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, Tokenizer]:
    folder = tmp_path_factory.mktemp("bert")
    toy.write(folder / "in.txt", LINES)
    return reference_run(folder, "bert")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose vectors have a width of 32, and many texts beside it."""
    folder = tmp_path_factory.mktemp("toy")
    toy.save_run(folder / "run", toy.MODEL)
    toy.write(folder / "in.txt", [text for _, text in toy.texts(100)])
    return folder / "run"


def extract(
    capsys: pytest.CaptureFixture[str], run: Path, output: Path, **keys: Any
) -> np.ndarray[Any, Any]:
    given = {"checkpoint": run, "input": run.parent / "in.txt", "output": output, **keys}
    assert call(capsys, "extract", **given)[0] == 0
    return np.load(output, allow_pickle=False)


POOLED = {
    "first": lambda states: states[0],
    "last": lambda states: states[-1],
    "mean": lambda states: states.mean(0),
    "max": lambda states: states.amax(0),
}


@pytest.mark.parametrize(
    ("pooling", "layer"), [("first", -1), ("last", 3), ("mean", -2), ("max", 0), ("mean", -1)]
)
def test_vectors_are_pooled_states_of_transformers(
    bert: tuple[Path, nn.Module, Tokenizer],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    pooling: str,
    layer: int,
) -> None:
    run, theirs, tokenizer = bert
    found = extract(capsys, run, tmp_path / "v.npy", pooling=pooling, layer=layer, batch_size=4)
    assert (found.shape, found.dtype) == ((len(LINES), 32), np.float32)
    for line, vector in zip(LINES, found, strict=True):
        names = ["[CLS]", *line.split()[:14], "[SEP]"]
        ids = torch.tensor([[tokenizer.id(name) for name in names]])
        with torch.no_grad():
            states = theirs(input_ids=ids, output_hidden_states=True).hidden_states[layer][0]
        np.testing.assert_allclose(vector, POOLED[pooling](states).numpy(), rtol=1e-4, atol=1e-5)


def test_cut_texts_are_told(
    bert: tuple[Path, nn.Module, Tokenizer],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    extract(capsys, bert[0], tmp_path / "v.npy", length=8)
    assert "1 of 6 lines are longer than length=8 tokens and were cut" in caplog.text


@pytest.mark.parametrize("pooling", ["mean", "last", "max"])
def test_d70_padding_is_told_by_the_mask_and_not_by_the_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pooling: str
) -> None:
    """With padding of id 1, as XLM-R's, and a tokenizer whose texts may hold the padding's name."""
    specials = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")
    toy.save_run(tmp_path / "run", toy.MODEL)
    model, _, config = reopen(tmp_path / "run")
    tokenizer = word_tokenizer(tmp_path, toy.VOCABULARY[5:], specials)
    save_model(tmp_path / "run", model, config["model"], tokenizer, step=20)
    assert tokenizer.pad == 1
    toy.write(tmp_path / "in.txt", ["the film was good and the house", "film", "night and day"])
    together = extract(capsys, tmp_path / "run", tmp_path / "a.npy", pooling=pooling)
    alone = extract(capsys, tmp_path / "run", tmp_path / "b.npy", pooling=pooling, batch_size=1)
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-6)


def test_the_file_grows_while_texts_are_read(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = extract(capsys, run, tmp_path / "a.npy", pooling="mean")
    taken: list[int] = []

    def counted(items: Any) -> Any:
        for part in original(items):
            taken.append(len(part))
            yield part

    original = texts.in_parts
    monkeypatch.setattr(texts, "AT_ONCE", 9)
    monkeypatch.setattr("tencentpretrain.tools.text_vectors.in_parts", counted)
    monkeypatch.setattr("tencentpretrain.tools.vector_file.BLOCK", 7)
    parts = extract(capsys, run, tmp_path / "b.npy", pooling="mean")
    assert taken == [9] * 11 + [1]
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-6)
    table = tmp_path / "c.tsv"
    keys = {"checkpoint": run, "input": run.parent / "in.txt", "output": table}
    assert call(capsys, "extract", **keys, pooling="mean")[0] == 0
    rows = [[float(cell) for cell in row.split("\t")] for row in table.read_text().splitlines()]
    np.testing.assert_allclose(np.array(rows), whole, rtol=1e-5, atol=1e-6)


def test_precision_is_that_of_matrix_products(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exact = extract(capsys, run, tmp_path / "v.npy", pooling="mean")
    keys = {"precision": "bf16", "overwrite": "true"}
    rough = extract(capsys, run, tmp_path / "v.npy", pooling="mean", **keys)
    assert not np.allclose(rough, exact, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(rough, exact, atol=0.1)


def test_whitening_is_that_of_the_paper(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the code that Su et al. published: a singular value decomposition of the covariance."""
    plain = extract(capsys, run, tmp_path / "plain.npy", pooling="mean").astype(np.float64)
    fitted = tmp_path / "white.safetensors"
    keys: dict[str, Any] = {"pooling": "mean", "dimensions": 6}
    white = extract(capsys, run, tmp_path / "white.npy", fit_whitening=fitted, **keys)
    directions, variances, _ = np.linalg.svd(np.cov(plain.T))
    kernel = (directions @ np.diag(1 / np.sqrt(variances)))[:, :6]
    expected = (plain - plain.mean(0)) @ kernel
    signs = np.sign((white * expected).sum(0))
    np.testing.assert_allclose(white, expected * signs, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.cov(white.T), np.eye(6), atol=1e-3)

    again = extract(capsys, run, tmp_path / "again.npy", whitening=fitted, **keys)
    np.testing.assert_array_equal(again, white)
    fewer = extract(
        capsys, run, tmp_path / "fewer.npy", whitening=fitted, pooling="mean", dimensions=2
    )
    np.testing.assert_array_equal(fewer, white[:, :2])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["plain.npy", "white.npy", "white.safetensors", "again.npy", "fewer.npy"]
    )


def test_word_vectors_have_the_form_of_word2vec(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "words.txt"
    assert call(capsys, "extract", checkpoint=run, what="words", output=output)[0] == 0
    header, *lines = output.read_text(encoding="utf-8").splitlines()
    assert header == f"{len(toy.VOCABULARY)} 32"
    table = {line.split(" ")[0]: [float(v) for v in line.split(" ")[1:]] for line in lines}
    assert list(table) == list(toy.VOCABULARY)
    weight = reopen(run)[0].embedding.get_parameter("word.weight").detach().numpy()
    np.testing.assert_allclose(np.array(list(table.values())), weight, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"input": "null"}, "input is required for what=texts"),
        ({"what": "words"}, "words need no input"),
        ({"output": "v.txt"}, "output must end in .npy or .tsv"),
        ({"dimensions": 4}, "dimensions needs whitening or fit_whitening"),
        ({"whitening": "a", "fit_whitening": "b"}, "exclude each other"),
        ({"whitening": "nowhere.st"}, "there is no file `nowhere.st` with a whitening"),
        ({"whitening": "a.txt"}, "`a.txt` is no readable safetensors file"),
        ({"fit_whitening": "old.npy"}, "`old.npy` exists"),
        ({"fit_whitening": "w.st", "dimensions": 33}, "must be at most 32, the width"),
        ({"fit_whitening": "w.st", "dimensions": 5}, "differ in 1 directions only"),
        ({"input": "b.txt"}, "b.txt does not exist; did you mean `a.txt`?"),
        ({"input": "."}, ". is not a file"),
        ({"input": "empty.txt"}, "empty.txt is empty"),
        ({"output": "old.npy"}, "old.npy` exists; choose another name"),
        ({"output": "no/v.npy"}, "must be in a folder that exists"),
        ({"layer": 3}, "layer: must be between -3 and 2, but is 3"),
        ({"length": 65}, "length: must be at most 64"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    keys: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    toy.write(tmp_path / "a.txt", ["the film", "the house"])
    toy.write(tmp_path / "old.npy", ["precious"])
    (tmp_path / "empty.txt").touch()
    before = sorted(tmp_path.iterdir())
    given = {"checkpoint": run, "input": "a.txt", "output": "v.npy", **keys}
    code, out, errors = call(capsys, "extract", **given)
    assert (code, out, len(errors)) == (2, "", 1)
    assert message in errors[0]
    assert sorted(tmp_path.iterdir()) == before
