"""Supervised pre-training from files to steps: labelled texts, pairs and conversations."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from tencentpretrain.data.loader import Loader
from tencentpretrain.data.shards import open_shards
from tencentpretrain.tokenizers.base import load_tokenizer
from tests.helpers.pretraining import metrics, pretrain
from tests.helpers.records import (
    WORDS,
    json_lines,
    record_objective,
    record_shards,
    some_chats,
    some_pairs,
    vocabulary,
)

SIZES = [(1 + number % 7, 2 + number % 5) for number in range(40)]
LABELS = "\n".join(
    f"{'good' if number % 2 else 'bad'}\t{' '.join(WORDS[number % 9 : number % 9 + 4])}"
    + ("\tw1 w2" if number % 3 else "")
    for number in range(40)
)
CORPORA = {"label": LABELS, "pair": some_pairs(SIZES), "chat": some_chats(SIZES)}
CORPORA["text"] = json_lines({"text": line} for line in CORPORA["pair"].splitlines())
PARTS = {"parts": {"word": {}, "position": {"length": 64}, "segment": {}}}
STACK = {"layers": 1, "heads": 2, "ffn": 32}


def model_file(
    folder: Path, objective: str, targets: dict[str, Any], mask: str = "full", **keys: Any
) -> Path:
    """A tiny model of words, positions and segments."""
    content = {
        "hidden": 16,
        "embedding": PARTS,
        "encoder": {"name": "transformer", **STACK, "mask": mask},
        "target": targets,
        "objective": {"name": objective},
        **keys,
    }
    path = folder / "model.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def train(folder: Path, shards: Path, model: Path, name: str = "run", **keys: Any) -> int:
    steps = {"trainer.steps": 2, "trainer.eval_every": 2, "checkpoint.every": 2}
    return pretrain(shards, folder / name, model=model, **steps, **keys)


CLASSIFY = {"classify": {"classes": 2}}
CASES = [
    ("cls", "label", CLASSIFY, "full"),
    ("cls_mlm", "label", {"mlm": {}, **CLASSIFY}, "full"),
    ("prefix_lm", "pair", {"lm": {}}, "prefix"),
    ("sft", "chat", {"lm": {}}, "causal"),
    ("pairs", "pair", {"contrast": {}}, "full"),
]


@pytest.mark.parametrize(("objective", "content", "targets", "mask"), CASES)
def test_d99_two_steps_of_each_objective(
    tmp_path: Path, objective: str, content: str, targets: dict[str, Any], mask: str
) -> None:
    record_shards(tmp_path, content, CORPORA[content])
    model = model_file(tmp_path, objective, targets, mask)
    assert train(tmp_path, tmp_path / "shards", model) == 0
    records = metrics(tmp_path / "run")
    losses = [r["train/loss"] for r in records if "train/loss" in r]
    assert len(losses) == 2
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    evaluated = next(r for r in records if "eval/loss" in r)
    for target in targets:
        assert math.isfinite(evaluated[f"eval/{target}/loss" if len(targets) > 1 else "eval/loss"])
    tokenizers = {path.name for path in (tmp_path / "run").iterdir() if "tokenizer" in path.name}
    assert tokenizers == {"tokenizer"}


@pytest.mark.parametrize("has_two", [False, True])
def test_both_tokenizers_of_a_translation_are_kept(tmp_path: Path, has_two: bool) -> None:
    keys: dict[str, Any] = {}
    if has_two:
        second = vocabulary(tmp_path, "second", WORDS)
        keys = {"target_tokenizer": {"name": "space", "vocab": str(second)}}
    record_shards(tmp_path, "pair", CORPORA["pair"], **keys)
    decoder = {"name": "transformer", **STACK}
    parts = {"parts": {"word": {}, "position": {"length": 128}}}
    model = model_file(tmp_path, "translate", {"lm": {}}, decoder=decoder, target_embedding=parts)
    assert train(tmp_path, tmp_path / "shards", model) == 0
    shards = open_shards(tmp_path / "shards")
    run = tmp_path / "run"
    for folder in (run, run / "checkpoints" / "step_00000002"):
        assert load_tokenizer(folder / "tokenizer").fingerprint == shards.tokenizer_fingerprint
        assert (folder / "target_tokenizer").exists() == has_two
        if has_two:
            saved = load_tokenizer(folder / "target_tokenizer")
            assert saved.fingerprint == shards.target_fingerprint
    manifest = json.loads((run / "checkpoints" / "step_00000002" / "manifest.json").read_text())
    assert ("target tokenizer" in manifest["fingerprints"]) == has_two


def test_weights_of_another_target_vocabulary_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder = {"name": "transformer", **STACK}
    parts = {"parts": {"word": {}, "position": {"length": 128}}}
    model = model_file(tmp_path, "translate", {"lm": {}}, decoder=decoder, target_embedding=parts)
    for name, order in (("one", 1), ("other", -1)):
        second = vocabulary(tmp_path, name, WORDS[::order])
        keys = {"target_tokenizer": {"name": "space", "vocab": str(second)}}
        record_shards(tmp_path, "pair", CORPORA["pair"], name=f"shards_{name}", **keys)
    assert train(tmp_path, tmp_path / "shards_one", model) == 0
    again = {"init": tmp_path / "run", "name": "next"}
    assert train(tmp_path, tmp_path / "shards_other", model, **again) == 2
    assert "trained with another tokenizer" in capsys.readouterr().err
    assert train(tmp_path, tmp_path / "shards_one", model, **again) == 0


def test_d33_json_lines_train_a_language_model(tmp_path: Path) -> None:
    record_shards(tmp_path, "text", CORPORA["text"], file="corpus.jsonl")
    model = model_file(tmp_path, "lm", {"lm": {}}, "causal")
    assert train(tmp_path, tmp_path / "shards", model) == 0
    assert [r["step"] for r in metrics(tmp_path / "run") if "train/loss" in r] == [1, 2]


@pytest.mark.parametrize(("objective", "content", "targets", "mask"), CASES)
def test_missing_data_is_told_before_anything_is_made(
    tmp_path: Path,
    objective: str,
    content: str,
    targets: dict[str, Any],
    mask: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    record_shards(tmp_path, "text", CORPORA["text"], file="corpus.jsonl")
    model = model_file(tmp_path, objective, targets, mask)
    assert train(tmp_path, tmp_path / "shards", model) == 2
    assert f"preprocess with corpus.content={content}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("classes", [1, 3])
def test_classes_are_compared_with_the_labels(
    tmp_path: Path,
    classes: int,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    record_shards(tmp_path, "label", LABELS)
    model = model_file(tmp_path, "cls", {"classify": {"classes": classes}})
    with caplog.at_level(logging.WARNING):
        code = train(tmp_path, tmp_path / "shards", model)
    said = capsys.readouterr().err + caplog.text
    assert code == (2 if classes < 2 else 0)
    if classes < 2:
        assert "classes: must be 2, the labels of the data (bad, good), but is 1" in said
    else:
        assert "classes=3, but the data has only 2 labels (bad, good)" in said


def test_a_label_that_only_the_evaluation_has_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record_shards(tmp_path, "label", LABELS)
    record_shards(tmp_path, "label", "good\tw1 w2\nbest\tw3 w4\n", name="dev")
    record_shards(tmp_path, "label", "best\tw3 w4\n" * 9, name="more")
    model = model_file(tmp_path, "cls", {"classify": {"classes": 3}})
    shards, dev = tmp_path / "shards", tmp_path / "dev"
    assert train(tmp_path, shards, model, **{"data.dev": dev}) == 2
    said = f"error: {dev}: the label `best` is not in the training data; "
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    # Another source of a mixture may have it, whichever comes first.
    mix: dict[str, Any] = {"data.path": "null", "data.mix.a.path": shards, "data.mix.a.dev": dev}
    assert train(tmp_path, shards, model, **mix) == 2
    assert said in capsys.readouterr().err
    assert train(tmp_path, shards, model, **mix, **{"data.mix.b.path": tmp_path / "more"}) == 0


def test_labels_that_no_target_learns_may_be_new(tmp_path: Path) -> None:
    record_shards(tmp_path, "label", LABELS)
    record_shards(tmp_path, "label", "good\tw1 w2\nbest\tw3 w4\n", name="dev")
    model = model_file(tmp_path, "mlm", {"mlm": {}})
    assert train(tmp_path, tmp_path / "shards", model, **{"data.dev": tmp_path / "dev"}) == 0


@pytest.mark.parametrize("objective", ["cls_mlm", "sft", "translate"])
def test_worker_processes_make_the_same_batches(tmp_path: Path, objective: str) -> None:
    content = {"cls_mlm": "label", "sft": "chat", "translate": "pair"}[objective]
    shards = record_shards(tmp_path, content, CORPORA[content])
    made = record_objective(objective, shards, length=32)
    first = [next(iter(Loader(made, 6, 6, seed=1, workers=workers)))[0] for workers in (0, 2)]
    for name, stream in first[0].streams.items():
        assert stream.inputs["ids"].equal(first[1].streams[name].inputs["ids"])
    for name, labels in first[0].labels.items():
        assert labels.values.equal(first[1].labels[name].values)
