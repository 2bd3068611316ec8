import csv
import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from tencentpretrain.config import decode
from tencentpretrain.model import ModelConfig, build_model
from tencentpretrain.tokenizers.base import TOKENIZERS, Tokenizer, build_tokenizer
from tencentpretrain.tokenizers.trainers import TRAINERS
from tencentpretrain.tools.cloze import ClozeConfig, Filler
from tencentpretrain.tools.saved_model import load_model
from tencentpretrain.tools.texts import Line
from tests.helpers.reference_run import reference_run
from tests.helpers.saved_models import call, reopen, save_model
from tests.tasks import toy


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, Tokenizer]:
    return reference_run(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="module")
def run(bert: tuple[Path, nn.Module, Tokenizer]) -> Path:
    return bert[0]


TEXTS = ["w9 [MASK] w30", "no gap", "[MASK] w7 w8 w9 [MASK]", "", "w5 w6 w7 w8 w9 w10 [MASK]"]


def expected(theirs: nn.Module, tokenizer: Tokenizer, text: str) -> list[list[float]]:
    """Probabilities of all entries for each gap, by `transformers`."""
    names = ["[CLS]", *text.split(), "[SEP]"]
    ids = torch.tensor([[tokenizer.id(name) for name in names]])
    with torch.no_grad():
        logits = theirs(input_ids=ids)["prediction_logits"][0]
    return logits.softmax(-1)[ids[0] == tokenizer.mask].tolist()


def test_d9_answers_are_those_of_the_trained_head(
    bert: tuple[Path, nn.Module, Tokenizer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, theirs, tokenizer = bert
    toy.write(tmp_path / "in.txt", TEXTS)
    output = tmp_path / "out.jsonl"
    keys = {"checkpoint": run, "input": tmp_path / "in.txt", "output": output, "top": 7}
    assert call(capsys, "cloze", **keys)[0] == 0
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert [answer["line"] for answer in answers] == [1, 2, 3, 4, 5]
    assert [len(answer["words"]) for answer in answers] == [1, 0, 2, 0, 1]
    for text, answer in zip(TEXTS, answers, strict=True):
        reference = expected(theirs, tokenizer, text) if answer["words"] else []
        for words, values, all_values in zip(
            answer["words"], answer["probabilities"], reference, strict=True
        ):
            best = sorted(range(99), key=lambda number: -all_values[number])[:7]
            assert [tokenizer.id(word) for word in words] == best
            assert values == pytest.approx([all_values[number] for number in best], abs=1e-5)


def test_answers_do_not_depend_on_batches(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toy.write(tmp_path / "in.txt", TEXTS)
    outputs = []
    for number, size in enumerate((1, 2, 32)):
        path = tmp_path / f"{number}.tsv"
        keys = {"checkpoint": run, "input": tmp_path / "in.txt", "output": path}
        assert call(capsys, "cloze", **keys, batch_size=size)[0] == 0
        outputs.append(path.read_text())
        monkeypatch.setattr("tencentpretrain.tools.texts.AT_ONCE", 2)
    assert outputs[0] == outputs[1] == outputs[2]
    assert call(capsys, "cloze", **keys, top=1, overwrite="true")[0] == 0
    assert path.read_text() != outputs[2]
    with (tmp_path / "0.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(json.loads(rows[2]["words"])) == 2


def test_one_text_is_answered_on_the_screen(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, errors = call(
        capsys, "cloze", "text=w9 [MASK] w30 [MASK]", checkpoint=run, top=3, device="cpu"
    )
    first, *gaps = out.splitlines()
    assert (code, first, errors) == (0, "w9 [MASK] w30 [MASK]", [])
    assert len(gaps) == 2
    assert all(len(re.findall(r"\S+ 0\.\d{4}", gap)) == 3 for gap in gaps)


def filler(run: Path) -> Filler:
    keys = {"checkpoint": str(run), "text": "x", "device": "cpu", "precision": "fp32"}
    config = decode(ClozeConfig, keys)
    return Filler(load_model(config, config.machine()), config.machine(), top=3)


def bytewise_tokenizer(folder: Path, text: str) -> Tokenizer:
    """Byte-level pairs that know the words of `text`."""
    kind = decode(TRAINERS.config_class("bpe"), {"name": "bpe"})
    files = TRAINERS.build(kind, lambda: iter([[text]] * 20)).train(300, 2)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    config = {"name": "bpe", "vocab": str(folder)}
    return build_tokenizer(decode(TOKENIZERS.config_class("bpe"), config))


def test_the_space_before_a_gap_belongs_to_the_hidden_word(tmp_path: Path) -> None:
    text = "the cat sat on the mat"
    tokenizer = bytewise_tokenizer(tmp_path / "bpe", text)
    model = build_model(decode(ModelConfig, toy.MODEL), tokenizer.vocab_size)
    save_model(tmp_path / "run", model, toy.MODEL, tokenizer)
    row = filler(tmp_path / "run")._row(Line(1, text.replace("sat", "[MASK]"))).tolist()
    (hidden,) = tokenizer.encode(" sat")
    whole = [tokenizer.cls, *tokenizer.encode(text), tokenizer.sep]
    assert row == [tokenizer.mask if number == hidden else number for number in whole]


def test_rows_of_the_table_without_an_entry_are_no_answers(tmp_path: Path) -> None:
    data = {**toy.MODEL, "vocabulary": 64}
    toy.save_run(tmp_path / "run", data)
    model, tokenizer, _ = reopen(tmp_path / "run")
    with torch.no_grad():
        model.target["mlm"].output.bias[50] = 100.0
    save_model(tmp_path / "run", model, data, tokenizer, step=20)
    (answer,) = filler(tmp_path / "run").answers([Line(1, "the [MASK]")])
    assert all(word in toy.VOCABULARY and p < 1e-6 for word, p in answer.gaps[0])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "either text or input must be given"),
        ({"text": "w9 [MASK]", "input": "a.txt"}, "either text or input must be given"),
        ({"text": "w9 [MASK]", "output": "b.tsv"}, "output needs input"),
        ({"input": "nowhere.txt"}, "nowhere.txt does not exist"),
        ({"input": "empty.txt"}, "empty.txt is empty"),
        ({"input": "latin.txt"}, "latin.txt, line 2, byte 1 is not UTF-8"),
        ({"input": "long.txt"}, "line 2 has 20 tokens, but the model reads 14"),
        ({"input": "a.txt", "output": "old.tsv"}, "old.tsv` exists; choose another name"),
        ({"input": "a.txt", "output": "a.txt"}, "must be another file than what is read"),
        ({"input": "a.txt", "length": 17}, "length: must be at most 16, the positions in"),
        ({"text": "w9 [MASK]", "checkpoint": "gpt2"}, "has not learned to guess masked words"),
        ({"text": "w9 [MASK]", "checkpoint": "none"}, "checkpoint `none` does not exist"),
        ({"text": "w9 [MASK]", "device": "gpu"}, "device must be a name such as cpu or cuda:1"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    keys: dict[str, str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    toy.write(tmp_path / "a.txt", ["w9 [MASK]"])
    toy.write(tmp_path / "old.tsv", ["precious"])
    toy.write(tmp_path / "long.txt", ["[MASK]", "[MASK] " * 20])
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin.txt").write_bytes(b"a\n\xe9t\xe9\n")
    if keys.get("checkpoint") == "gpt2":
        reference_run(tmp_path, "gpt2")
        keys = keys | {"checkpoint": "run"}
    code, out, errors = call(capsys, "cloze", **{"checkpoint": run, **keys})
    assert (code, out, len(errors)) == (2, "", 1)
    assert message in errors[0]
    assert (tmp_path / "old.tsv").read_text() == "precious\n"
