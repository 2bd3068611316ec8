import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.errors import CheckpointError, DataError, UserError
from tencentpretrain.train.finetune import run_finetune
from tencentpretrain.train.predict import PredictConfig, run_predict
from tencentpretrain.train.saved_checkpoint import open_checkpoint
from tests.tasks import toy


@pytest.fixture(scope="module", params=["classify", "ner"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a fine-tuned run, its files and its vocabulary."""
    folder = tmp_path_factory.mktemp(request.param)
    run_finetune(toy.finetune_config(folder, request.param))
    return folder


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reviews")
    run_finetune(toy.finetune_config(folder, trainer={"steps": 30}))
    return folder


def predict(folder: Path, test: Path, output: Path, **keys: Any) -> int:
    data = {"checkpoint": str(folder / "run"), "data": {"test": str(test)}, "output": str(output)}
    return run_predict(
        decode(PredictConfig, {**data, "device": "cpu", "precision": "fp32", **keys})
    )


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_predictions_equal_the_evaluation(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        assert predict(run, run / "test.tsv", tmp_path / "out.tsv") == 0
    last = json.loads((run / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    scores = {name: value for name, value in last.items() if name.startswith("test/")}
    for name, value in scores.items():
        assert f"{name} {value:.4f}" in caplog.text
    given = [row["label"] for row in table(run / "test.tsv")]
    answers = table(tmp_path / "out.tsv")
    assert [answer["label"] for answer in answers] == given
    if "probability" in answers[0]:
        assert list(answers[0]) == ["label", "probability", "probabilities.no", "probabilities.yes"]
        for answer in answers:
            assert answer["probability"] == answer[f"probabilities.{answer['label']}"]
    else:
        words = [row["text_a"].split() for row in table(run / "test.tsv")]
        entities = [json.loads(answer["entities"]) for answer in answers]
        for sentence, found in zip(words, entities, strict=True):
            for entity in found:
                assert entity["text"].split() == sentence[entity["start"] : entity["end"]]
        assert {entity["type"] for found in entities for entity in found} == {"PER", "LOC"}


def test_d57_unlabelled_files_give_the_same_answers(run: Path, tmp_path: Path) -> None:
    texts = [row["text_a"] for row in table(run / "test.tsv")]
    unlabelled = toy.write(tmp_path / "plain.tsv", ["text_a", *texts])
    predict(run, run / "test.tsv", tmp_path / "labelled.tsv")
    predict(run, unlabelled, tmp_path / "unlabelled.tsv")
    assert (tmp_path / "unlabelled.tsv").read_text() == (tmp_path / "labelled.tsv").read_text()


def test_d76_answers_are_in_the_order_of_the_rows(run: Path, tmp_path: Path) -> None:
    texts = [row["text_a"] for row in table(run / "test.tsv")] + ["", "the " * 50]
    answers = []
    for number, order in enumerate((texts, texts[::-1])):
        path = toy.write(tmp_path / f"{number}.tsv", ["text_a", *order])
        predict(run, path, tmp_path / f"{number}.jsonl", batch_size=5)
        lines = (tmp_path / f"{number}.jsonl").read_text().splitlines()
        answers.append([json.loads(line)["label"] for line in lines])
    assert answers[0] == answers[1][::-1]
    assert len(answers[0]) == len(texts)


def test_one_checkpoint_may_be_named(reviews: Path, tmp_path: Path) -> None:
    path = open_checkpoint(reviews / "run", "latest").path
    predict(reviews, reviews / "test.tsv", tmp_path / "out.tsv", checkpoint=str(path))
    assert len(table(tmp_path / "out.tsv")) == 48


def test_details_may_be_left_out(reviews: Path, tmp_path: Path) -> None:
    predict(reviews, reviews / "test.tsv", tmp_path / "out.tsv", details=False)
    assert list(table(tmp_path / "out.tsv")[0]) == ["label", "probability"]


def test_labels_that_are_not_known_do_not_keep_from_predicting(
    reviews: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = toy.write(tmp_path / "a.tsv", ["label\ttext_a", "yes\tgood", "?\tbad"])
    with caplog.at_level("INFO"):
        predict(reviews, path, tmp_path / "out.tsv")
    assert "line 3: the label `?` is not in the training data" in caplog.text
    assert "test/accuracy" not in caplog.text
    assert [row["label"] for row in table(tmp_path / "out.tsv")] == ["yes", "no"]


def test_files_are_not_overwritten_by_accident(reviews: Path, tmp_path: Path) -> None:
    output = toy.write(tmp_path / "out.tsv", ["precious"])
    with pytest.raises(ConfigError, match="overwrite=true"):
        predict(reviews, reviews / "test.tsv", output)
    assert output.read_text() == "precious\n"
    predict(reviews, reviews / "test.tsv", output, overwrite=True)
    assert len(table(output)) == 48
    with pytest.raises(ConfigError, match=r"another file than what is read"):
        predict(reviews, output, output, overwrite=True)
    with pytest.raises(ConfigError, match="is a directory"):
        predict(reviews, reviews / "test.tsv", tmp_path)
    with pytest.raises(ConfigError, match="a folder that exists"):
        predict(reviews, reviews / "test.tsv", tmp_path / "nowhere" / "out.tsv")


def test_no_part_of_a_file_is_left(
    reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        yield {"label": "yes"}
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tencentpretrain.tasks.classify.ClassifyTask.decode", fail)
    with pytest.raises(OSError, match="No space left"):
        predict(reviews, reviews / "test.tsv", tmp_path / "out.tsv")
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_is_found_before_the_model_runs(reviews: Path, tmp_path: Path) -> None:
    path = toy.write(tmp_path / "a.tsv", ["text", "film"])
    with pytest.raises(DataError, match="no column `text_a`") as error:
        predict(reviews, path, tmp_path / "out.tsv")
    assert error.value.exit_code == 2
    with pytest.raises(DataError, match="does not exist"):
        predict(reviews, tmp_path / "nowhere.tsv", tmp_path / "out.tsv")
    with pytest.raises(CheckpointError, match="does not exist"):
        predict(tmp_path, path, tmp_path / "out.tsv")
    toy.save_run(tmp_path / "run", toy.MODEL)
    with pytest.raises(CheckpointError, match="not of a fine-tuned run"):
        predict(tmp_path, path, tmp_path / "out.tsv")
    assert not (tmp_path / "out.tsv").exists()


def test_user_code_of_a_checkpoint_must_be_allowed(tmp_path: Path) -> None:
    model = {**toy.MODEL, "target": {"classify": {"classes": 2}}, "objective": None, "ties": {}}
    files = {"task.json": b'{"name": "classify", "labels": ["a", "b"], "is_pair": false}'}
    toy.save_run(tmp_path / "run", model, files=files, task={"name": "evil.tasks:Task"})
    path = toy.write(tmp_path / "a.tsv", ["text_a", "film"])
    with pytest.raises(ConfigError, match=r"plugins=\[evil\]"):
        predict(tmp_path, path, tmp_path / "out.tsv")
    files["task.json"] = b'{"labels": 3}'
    toy.save_run(tmp_path / "run", model, files=files, task={"name": "classify"})
    with pytest.raises(UserError, match=r"task\.json. is damaged"):
        predict(tmp_path, path, tmp_path / "out.tsv")
