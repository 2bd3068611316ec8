"""Tasks on sounds, from lists to answers: learned in seconds, scored, saved and predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.data.media.filter_banks import FilterBankConfig, Moments
from tencentpretrain.errors import CheckpointError, DataError
from tencentpretrain.model import ModelConfig, build_model
from tencentpretrain.tasks.base import Inputs, Task
from tencentpretrain.tokenizers.base import build_tokenizer
from tencentpretrain.tokenizers.simple import CharacterTokenizer
from tencentpretrain.tools.extract import ExtractConfig, run_extract
from tencentpretrain.train.finetune import FinetuneConfig, run_finetune
from tencentpretrain.train.predict import PredictConfig, run_predict
from tests.helpers.models import model_config, model_data
from tests.helpers.sounds import encoded, letters, tones, wave
from tests.tasks import toy

TEXTS = ["a", "be", "c"]
SMALL = {
    "hidden": 24,
    "embedding": {"parts": {"frames": {"channels": 16}}, "dropout": 0.0},
    "encoder": {"layers": 1, "heads": 2, "ffn": 32, "dropout": 0.0},
    "target_embedding": {"dropout": 0.0},
    "decoder": {"layers": 1, "heads": 2, "ffn": 32, "dropout": 0.0},
    "target": {"lm": {"label_smoothing": 0.0}},
    "objective": {"augment": {"policy": "none"}, "start": "cls"},
}
COLUMNS = {"audio_classify": "label", "speech2text": "text"}
SCORES = {"audio_classify": ("accuracy", 1.0), "speech2text": ("wer", 0.0)}


def finetune(folder: Path, name: str, **keys: Any) -> FinetuneConfig:
    data = {
        "run_dir": str(folder / "run"),
        "task": {"name": name},
        "data": {
            "train": str(tones(folder / "train", TEXTS * 7, COLUMNS[name])),
            "dev": str(tones(folder / "dev", TEXTS * 2, COLUMNS[name])),
            "bucket": 2,
        },
        "model": model_data("s2t/tiny", SMALL),
        "tokenizer": {"name": "character", "vocab": str(letters(folder))},
        "trainer": {"steps": 60, "batch_size": 7, "precision": "fp32", "eval_every": 60},
        "optim": {"lr": 1e-2},
        "parallel": {"name": "none", "device": "cpu"},
    }
    return decode(FinetuneConfig, toy.merged(data, keys))


@pytest.fixture(scope="module", params=COLUMNS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    assert run_finetune(finetune(folder, request.param)) == 0
    return folder


def predict(folder: Path, output: Path, test: Path | None = None, **keys: Any) -> int:
    name = task_name(folder)
    content = {
        "checkpoint": str(folder / "run"),
        "data": {"test": str(test or folder / "dev" / f"{COLUMNS[name]}.tsv")},
        "output": str(output),
        "device": "cpu",
        "precision": "fp32",
        "batch_size": 4,
    }
    return run_predict(decode(PredictConfig, content | keys))


def task_name(folder: Path) -> str:
    return next(name for name, column in COLUMNS.items() if (folder / f"dev/{column}.tsv").exists())


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_learns_and_predicts_the_same(run: Path, tmp_path: Path) -> None:
    name = task_name(run)
    score, best = SCORES[name]
    last = json.loads((run / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert last[f"eval/{score}"] == best
    assert predict(run, tmp_path / "a.jsonl") == 0
    answers = rows(tmp_path / "a.jsonl")
    assert [answer[COLUMNS[name]] for answer in answers] == TEXTS * 2
    assert [answer["path"] for answer in answers] == [f"{n}.wav" for n in range(6)]


def test_folders_without_labels_are_predicted(run: Path, tmp_path: Path) -> None:
    assert predict(run, tmp_path / "a.jsonl", run / "dev") == 0
    column = COLUMNS[task_name(run)]
    assert [answer[column] for answer in rows(tmp_path / "a.jsonl")] == TEXTS * 2


def test_nothing_but_the_run_is_needed(run: Path, tmp_path: Path) -> None:
    """The saved state has the filter bank, the labels, and what a decoder starts from."""
    name = task_name(run)
    saved = json.loads(next((run / "run").rglob("task.json")).read_text())
    assert saved["bank"]["bands"] == 80
    task, other = toy.task(name), toy.task(name)
    task.load_state(saved)
    other.load_state(task.state())
    assert other.state() == task.state()
    if name == "speech2text":
        assert saved["writing"] == {"start": "cls", "prompt": []}


def test_beams_are_chosen_when_predicting(tmp_path: Path, run: Path) -> None:
    name = task_name(run)
    keys = {} if name == "audio_classify" else {"decoding": {"beams": 3, "max_new_tokens": 8}}
    assert predict(run, tmp_path / "a.jsonl", task={"name": name, **keys}) == 0
    answers = rows(tmp_path / "a.jsonl")
    assert [answer[COLUMNS[name]] for answer in answers] == TEXTS * 2
    with pytest.raises(CheckpointError, match=f"fine-tuned for task={name}"):
        predict(run, tmp_path / "b.jsonl", task={"name": "classify"})


def task(name: str, **keys: Any) -> Task[Any, Any]:
    return toy.task(name, **keys)


@pytest.mark.parametrize("name", COLUMNS)
def test_files_that_cannot_be_used_are_named(name: str, tmp_path: Path) -> None:
    path = tones(tmp_path, TEXTS, COLUMNS[name])
    (tmp_path / "1.wav").write_bytes(encoded(wave())[:100])
    with pytest.raises(DataError, match=r"line 3, `1.wav`: the sound is cut"):
        task(name).read(path, True)
    (tmp_path / "1.wav").write_bytes(encoded(wave()))
    path.write_text(path.read_text().replace("be\t", "\t"))
    with pytest.raises(DataError, match=r"line 3, `1.wav` has no (text|label)"):
        task(name).read(path, True)
    with pytest.raises(DataError, match=r"has no (text|label)"):
        task(name).read(tmp_path, True)


@pytest.mark.parametrize("name", COLUMNS)
def test_models_that_read_words_are_refused(name: str) -> None:
    made = task(name)
    with pytest.raises(ConfigError, match="must read sounds"):
        made.targets(model_config("t5/small"))
    if name == "speech2text":
        data = model_data("s2t/tiny") | {"decoder": None, "target_embedding": None}
        model = decode(ModelConfig, data | {"objective": None, "target": {}, "ties": {}})
        with pytest.raises(ConfigError, match="is needed by task=speech2text"):
            made.targets(model)


def test_bands_must_be_those_of_the_model() -> None:
    with pytest.raises(ConfigError, match=r"bank.bands.*must be 80, .* but is 40"):
        task("audio_classify", bank={"bands": 40}).targets(model_config("s2t/tiny"))


def test_statistics_of_a_corpus_are_kept_with_the_run(tmp_path: Path) -> None:
    moments = Moments(80)
    moments.add(np.random.default_rng(0).standard_normal((50, 80)).astype(np.float32))
    path = tmp_path / "statistics.json"
    path.write_bytes(moments.content())
    made = task("speech2text", bank={"normalise": "global", "statistics": str(path)})
    made.targets(model_config("s2t/tiny"))
    state = json.loads(json.dumps(made.state()))
    path.unlink()
    other = task("speech2text")
    other.load_state(state)
    assert other.state() == made.state()


def test_long_sounds_and_texts_are_cut_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = task("speech2text", length=24, target_length=4)
    found = made.read(tones(tmp_path, ["low", "highest", "low"]), True)
    made.targets(model_config("s2t/tiny"))
    config = decode(
        CharacterTokenizer.Config, {"name": "character", "vocab": str(letters(tmp_path))}
    )
    inputs = Inputs(model_config("s2t/tiny"), build_tokenizer(config))
    with caplog.at_level("WARNING"):
        examples = made.examples(found, inputs, True)
        assert "sounds are cut" not in caplog.text
        examples.vary(0)
        made.examples(made.read(tones(tmp_path / "other", ["A", "b"]), True), inputs, True)
    assert "1 of 2 texts hold what the tokenizer cannot write" in caplog.text
    assert "1 of 3 sounds are cut to 24 frames" in caplog.text
    assert "1 of 3 texts are cut to 4 tokens" in caplog.text
    example = examples.make(0, 1)
    assert len(example["target_ids"]) == len(example["labels"]) == 4
    assert inputs.tokenizer is not None
    assert example["labels"].tolist() == inputs.tokenizer.encode("high")
    batch = examples.collate([examples.make(0, index) for index in range(3)])
    model = build_model(model_config("s2t/tiny", SMALL), inputs.tokenizer.vocab_size)
    assert model(batch).losses["lm"].count == 4 + 4 + 4


def test_vectors_are_those_of_the_trained_encoder(run: Path, tmp_path: Path) -> None:
    output, names = tmp_path / "vectors.npy", tmp_path / "names.txt"
    content = {
        "what": "sounds",
        "checkpoint": str(run / "run"),
        "input": str(run / "dev"),
        "output": str(output),
        "names": str(names),
        "pooling": "mean",
        "device": "cpu",
        "precision": "fp32",
    }
    assert run_extract(decode(ExtractConfig, {**content, "batch_size": 4})) == 0
    vectors = np.load(output)
    assert vectors.shape == (6, 24)
    assert names.read_text().split() == [f"{number}.wav" for number in range(6)]
    again = tmp_path / "again.npy"
    keys = {"output": str(again), "names": None, "batch_size": 1}
    assert run_extract(decode(ExtractConfig, {**content, **keys})) == 0
    assert np.allclose(np.load(again), vectors, atol=1e-5)
    # Sounds of one pitch are nearer to each other than to those of others.
    near = np.linalg.norm(vectors[:3] - vectors[3:], axis=1).mean()
    assert near < 0.5 * np.linalg.norm(vectors[[0, 1, 2]] - vectors[[1, 2, 0]], axis=1).mean()


def test_a_run_that_is_continued_prepares_sounds_as_before(tmp_path: Path) -> None:
    """The model of a continued run no longer has the objective that said how."""
    objective = {"bank": {"normalise": "none"}, "start": "bos"}
    short: dict[str, Any] = {"trainer": {"steps": 4, "eval_every": 4}}
    first = finetune(tmp_path, "speech2text", **short, model={"objective": objective})
    assert run_finetune(first) == 0
    plain = {**first.to_dict(), "model": {}, "tokenizer": None, "init": str(tmp_path / "run")}
    plain["run_dir"] = str(tmp_path / "next")
    stopped = toy.merged(plain, {"trainer": {"stop_after": 2}})
    assert run_finetune(decode(FinetuneConfig, stopped)) == 0
    assert run_finetune(decode(FinetuneConfig, plain)) == 0
    paths = [*(tmp_path / "next").rglob("task.json")]
    assert len(paths) > 1
    for path in paths:
        saved = json.loads(path.read_text())
        assert saved["bank"]["normalise"] == "none"
        assert saved["writing"]["start"] == "bos"


def test_long_sounds_are_scored_too(run: Path, tmp_path: Path) -> None:
    """Windows behind the first have no labels, and may be alone in a batch."""
    name = task_name(run)
    if name != "speech2text":
        pytest.skip("labels of sounds are told by their beginning")
    listing = tones(tmp_path, TEXTS)
    output = tmp_path / "a.jsonl"
    keys = {"task": {"name": name, "length": 8, "overlap": 0.0}, "batch_size": 1}
    assert predict(run, output, listing, **keys) == 0
    assert [answer["path"] for answer in rows(output)] == ["0.wav", "1.wav", "2.wav"]
    assert all(len(answer["text"].split()) > 1 for answer in rows(output))


def test_d69_beams_of_several_sounds_are_those_of_each(run: Path, tmp_path: Path) -> None:
    if task_name(run) != "speech2text":
        pytest.skip("labels are not written")
    keys = {"task": {"name": "speech2text", "decoding": {"beams": 3, "max_new_tokens": 6}}}
    listing = tones(tmp_path, ["d", *TEXTS * 2])
    for size in (1, 3, 7):
        assert predict(run, tmp_path / f"{size}.jsonl", listing, **keys | {"batch_size": size}) == 0
    alone, some, all_at_once = (rows(tmp_path / f"{size}.jsonl") for size in (1, 3, 7))
    assert alone == some == all_at_once


@pytest.mark.parametrize("name", COLUMNS)
def test_keys_given_to_predict_count_more_than_what_was_learned(name: str, tmp_path: Path) -> None:
    model = model_config("s2t/tiny", SMALL)
    bank = decode(FilterBankConfig, {"normalise": "none"}).to_dict()
    state = {"bank": bank, "labels": ["a", "b"], "writing": {"start": "cls", "prompt": []}}
    listing = tones(tmp_path, TEXTS, COLUMNS[name])
    vocab = decode(
        CharacterTokenizer.Config, {"name": "character", "vocab": str(letters(tmp_path))}
    )
    inputs = Inputs(model, build_tokenizer(vocab))
    means = []
    for given in ({}, {"bank": {"means": False}}, {"bank": {"normalise": "utterance"}}):
        again = task(name, **given)
        again.load_state(state)
        examples = again.examples(again.read(listing, False), inputs, False)
        means.append(float(np.abs(examples.make(0, 0)["frames"].mean(0)).max()))
    assert means[0] == means[1] > 1
    assert means[2] < 1e-3


def test_what_is_cut_off_has_no_part_in_training(tmp_path: Path) -> None:
    """A long sound is normalised over what is read of it, in training as in evaluation."""
    made = task("audio_classify", length=16, bank={"normalise": "utterance"})
    made.load_state({"labels": ["a", "b"], "bank": {}})
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(np.concatenate([wave(0.3), 0 * wave(0.5)])))
    rows = made.read(tmp_path, False)
    examples = made.examples(rows, Inputs(model_config("s2t/tiny"), None), False)
    plain = examples.make(0, 0)["frames"]
    examples.vary(0)
    assert np.array_equal(examples.make(0, 0)["frames"], plain)
    assert np.abs(plain.mean(0)).max() < 1e-3
