from pathlib import Path
from typing import Any

import pytest

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.errors import CheckpointError
from tencentpretrain.tasks.base import Task
from tencentpretrain.tokenizers.wordpiece import WordPieceTokenizer
from tencentpretrain.train import saved_checkpoint
from tencentpretrain.train.durable import FileRecord
from tencentpretrain.train.source import find_source, merge, task_model
from tests.tasks import toy

WHOLE = toy.MODEL


def learned(folder: Path) -> Task[Any, Any]:
    task = toy.task("classify", length=32)
    path = toy.write(folder / "a.tsv", ["label\ttext_a", "0\ta", "1\tb", "2\tc"])
    task.learn(task.read(path, True))
    return task


def test_the_heads_of_the_task_replace_those_of_pre_training(tmp_path: Path) -> None:
    model = task_model(learned(tmp_path), WHOLE, {})
    assert {name: head.name for name, head in model.target.items()} == {"classify": "classify"}
    assert model.objective is None
    assert model.ties == {}
    assert model.target["classify"].classes == 3  # type: ignore[attr-defined]


def test_a_whole_model_may_be_given_at_once(tmp_path: Path) -> None:
    assert task_model(learned(tmp_path), {}, WHOLE) == task_model(learned(tmp_path), WHOLE, {})


def test_other_ties_stay(tmp_path: Path) -> None:
    ties = {"a.weight": "b.weight", **WHOLE["ties"]}
    assert task_model(learned(tmp_path), WHOLE, {"ties": ties}).ties == {"a.weight": "b.weight"}


def test_single_keys_are_merged_over_the_model(tmp_path: Path) -> None:
    overrides = {"encoder": {"dropout": 0.3}, "target": {"classify": {"pooling": "mean"}}}
    model = task_model(learned(tmp_path), WHOLE, overrides)
    encoder: Any = model.encoder
    head: Any = model.target["classify"]
    assert (encoder.dropout, encoder.heads) == (0.3, 2)
    assert (head.pooling, head.classes) == ("mean", 3)


@pytest.mark.parametrize(
    ("source", "overrides", "parts"),
    [
        (WHOLE, {"encoder": {"dropot": 0.3}}, ["model.encoder.dropot", "did you mean `dropout`?"]),
        (
            WHOLE,
            {"target": {"clasify": {}}},
            ["model.target.clasify", "not a target of task=classify", "`classify`"],
        ),
        (WHOLE, {"target": {"mlm": {"weight": 2}}}, ["model.target.mlm", "not a target"]),
        (WHOLE, {"target": {"classify": {"pooling": "sum"}}}, ["model.target.classify.pooling"]),
        (WHOLE, {"target": "classify"}, ["model.target must be a group"]),
        (WHOLE, {"objective": {"length": 64}}, ["model.objective", "for pre-training"]),
        (
            {},
            {"target": {"clasify": {}}, **toy.merged(WHOLE, {"target": {"clasify": {}}})},
            ["`classify`"],
        ),
        ({}, {"hidden": 32}, ["model.embedding", "model.encoder"]),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, source: dict[str, Any], overrides: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        task_model(learned(tmp_path), source, overrides)
    message = str(error.value).replace(": ", " ")
    assert [part for part in parts if part not in message] == []


def test_d51_rows_must_fit_the_positions_of_the_merged_model(tmp_path: Path) -> None:
    overrides = {"embedding": {"parts": {"position": {"length": 16}}}}
    with pytest.raises(ConfigError, match=r"task\.length: must be at most .*=16, but is 32"):
        task_model(learned(tmp_path), {**WHOLE, "objective": None, "target": {}}, overrides)


def test_model_and_tokenizer_come_from_a_run(tmp_path: Path) -> None:
    toy.save_run(tmp_path / "pretrained", WHOLE)
    source = find_source(str(tmp_path / "pretrained"), tmp_path / "run", None)
    assert source.model == WHOLE
    assert source.tokenizer is not None
    assert source.tokenizer.fingerprint == toy.tokenizer(tmp_path).fingerprint


def test_weights_are_not_read_before_they_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    look = saved_checkpoint.content_problem

    def watched(path: Path, record: FileRecord) -> str | None:
        read.append(path.name)
        return look(path, record)

    monkeypatch.setattr(saved_checkpoint, "content_problem", watched)
    toy.save_run(tmp_path / "pretrained", WHOLE)
    find_source(str(tmp_path / "pretrained"), tmp_path / "run", None)
    assert "config.yaml" in read
    assert "model.safetensors" not in read


def test_a_run_that_is_continued_needs_no_other(tmp_path: Path) -> None:
    toy.save_run(tmp_path / "run", {**WHOLE, "hidden": 16})
    source = find_source(str(tmp_path / "removed"), tmp_path / "run", None)
    assert source.model["hidden"] == 16


def test_without_init_the_tokenizer_is_built(tmp_path: Path) -> None:
    vocab = str(toy.vocabulary(tmp_path))
    config = decode(WordPieceTokenizer.Config, {"name": "wordpiece", "vocab": vocab})
    source = find_source("none", tmp_path / "run", config)
    assert source.model == {}
    assert source.tokenizer is not None
    assert find_source("none", tmp_path / "run", None).tokenizer is None


def test_init_must_exist(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        find_source(str(tmp_path / "nowhere"), tmp_path / "run", None)


def test_merge() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merge(base, {"a": {"b": 5}, "e": {"f": 6}}) == {
        "a": {"b": 5, "c": 2},
        "d": 3,
        "e": {"f": 6},
    }
    assert merge(base, {"a": None}) == {"a": None, "d": 3}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}
