import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tencentpretrain.tokenizers.base import Tokenizer
from tests.helpers.reference_run import reference_run
from tests.helpers.saved_models import call
from tests.tasks import toy

Run = tuple[Path, nn.Module, Tokenizer]
DOCUMENTS = ["w9 w10 w11", "w7", "w30 w31 w8 w8 w12 w5", "w6 w90"]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return reference_run(tmp_path_factory.mktemp("gpt2"), "gpt2")


def measure(
    capsys: pytest.CaptureFixture[str], run: Path, text: Path, **keys: Any
) -> dict[str, float]:
    output = text.with_suffix(".json")
    given = {"checkpoint": run, "input": text, "output": output, "overwrite": "true", **keys}
    code, out, _ = call(capsys, "perplexity", **given)
    assert code == 0
    found: dict[str, float] = json.loads(output.read_text())
    for name, value in found.items():
        if name == "log_probability":
            continue
        cell = re.search(rf"^{name.replace('_', ' ')} +(\S+)$", out, re.MULTILINE)
        assert cell is not None
        printed = float(cell[1].replace(",", ""))
        assert printed == (math.inf if value is None else pytest.approx(value, abs=1e-3))
    return found


def loss(theirs: nn.Module, ids: list[int]) -> tuple[float, int]:
    """Sum of the losses of `transformers` over a document, and how many tokens it is of."""
    if len(ids) < 2:
        return 0.0, 0
    tokens = torch.tensor([ids])
    with torch.no_grad():
        mean = theirs(input_ids=tokens, labels=tokens).loss
    return float(mean) * (len(ids) - 1), len(ids) - 1


@pytest.mark.parametrize(("bos", "eos"), [(False, False), (True, False), (True, True)])
def test_the_loss_is_that_of_transformers(
    gpt2: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], bos: bool, eos: bool
) -> None:
    run, theirs, tokenizer = gpt2
    text = toy.write(tmp_path / "a.txt", DOCUMENTS)
    keys = {"documents": "lines", "bos": str(bos).lower(), "eos": str(eos).lower()}
    found = measure(capsys, run, text, **keys)
    before, behind = [tokenizer.require("cls")] * bos, [tokenizer.require("sep")] * eos
    losses = [loss(theirs, [*before, *tokenizer.encode(d), *behind]) for d in DOCUMENTS]
    total, count = (sum(part) for part in zip(*losses, strict=True))
    words = sum(len(document.split()) for document in DOCUMENTS)
    size = sum(map(len, DOCUMENTS))
    assert (found["documents"], found["words"], found["bytes"]) == (4, words, size)
    assert (found["tokens"], found["unpredicted"]) == (count, 0 if bos else 4)
    assert found["loss"] == pytest.approx(total / count, rel=1e-5)
    assert found["token_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert found["word_perplexity"] == pytest.approx(math.exp(total / words), rel=1e-4)
    assert found["byte_perplexity"] == pytest.approx(math.exp(total / size), rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(total / size / math.log(2), rel=1e-5)


@pytest.mark.parametrize(("stride", "size"), [(1, 30), (8, 64), (15, 61)])
def test_a_sliding_window_gives_what_transformers_documents(
    gpt2: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], stride: int, size: int
) -> None:
    """The loop of its page on perplexity, whose windows also hold the last token they score.

    Sizes are such that its last window is full; ours always is.
    """
    run, theirs, tokenizer = gpt2
    long = " ".join(f"w{5 + 7 * number % 94}" for number in range(size))
    text = toy.write(tmp_path / "a.txt", [long])
    found = measure(capsys, run, text, documents="lines", length=15, stride=stride)
    ids = torch.tensor([tokenizer.encode(long)])
    total, done = 0.0, 0
    for begin in range(0, size, stride):
        end = min(begin + 16, size)
        targets = ids[:, begin:end].clone()
        targets[:, : done - begin] = -100
        with torch.no_grad():
            mean = theirs(input_ids=ids[:, begin:end], labels=targets).loss
        total += float(mean) * int((targets[:, 1:] != -100).sum())
        done = end
        if end == size:
            break
    assert found["tokens"] == size - 1
    assert found["loss"] == pytest.approx(total / (size - 1), rel=1e-5)


def test_documents_are_those_that_corpora_have(
    gpt2: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = toy.write(tmp_path / "a.txt", ["w9 w10", "w11 w12", "", "w7 w8 w9"])
    found = {kind: measure(capsys, gpt2[0], text, documents=kind) for kind in ("auto", "lines")}
    whole = measure(capsys, gpt2[0], text, documents="text")
    assert [f["documents"] for f in (found["auto"], found["lines"], whole)] == [2, 3, 1]
    assert [f["tokens"] for f in (found["auto"], found["lines"], whole)] == [5, 4, 6]
    assert whole["bytes"] == text.stat().st_size
    kept = measure(capsys, gpt2[0], text, keep_newlines="true")
    assert kept["bytes"] == found["auto"]["bytes"] + 3
    table = toy.write(tmp_path / "b.jsonl", ['{"text": "w9 w10"}', '{"text": "w9"}'])
    assert measure(capsys, gpt2[0], table)["documents"] == 2


def test_a_text_without_spaces_is_one_improbable_word(
    gpt2: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = toy.write(tmp_path / "a.txt", ["-".join(["w9"] * 400)])
    found = measure(capsys, gpt2[0], text)
    assert (found["words"], found["word_perplexity"]) == (1, None)
    assert math.isfinite(found["byte_perplexity"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"input": "nowhere.txt"}, "nowhere.txt does not exist"),
        ({"input": "empty.txt"}, "holds no text of which a token could be predicted"),
        ({"output": "old.json"}, "old.json` exists; choose another name"),
        ({"output": "a.txt"}, "must be another file than what is read"),
        ({"length": 17}, "length: must be at most 16"),
        ({"length": 8, "stride": 9}, "stride must be at most length=8, but is 9"),
        ({"stride": 17}, "stride: must be at most length=16, but is 17"),
        ({"checkpoint": "bert"}, "has not learned to predict the next token"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    gpt2: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    keys: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    toy.write(tmp_path / "a.txt", DOCUMENTS)
    toy.write(tmp_path / "old.json", ["{}"])
    (tmp_path / "empty.txt").touch()
    if keys.get("checkpoint") == "bert":
        toy.save_run(tmp_path / "bert", toy.MODEL)
    given = {"checkpoint": gpt2[0], "input": "a.txt", **keys}
    code, out, errors = call(capsys, "perplexity", **given)
    assert (code, out, len(errors)) == (2, "", 1)
    assert message in errors[0]


def test_a_line_that_is_no_text_is_named(
    gpt2: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "latin.txt").write_bytes(b"w9\n\xe9t\xe9\n")
    keys = {"checkpoint": gpt2[0], "input": tmp_path / "latin.txt", "output": tmp_path / "a.json"}
    code, out, errors = call(capsys, "perplexity", **keys)
    assert (code, out, len(errors)) == (1, "", 1)
    assert "latin.txt, line 2, byte 3: byte e9 is not UTF-8" in errors[0]
    assert not (tmp_path / "a.json").exists()
