import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.errors import CheckpointError, DataError, UserError
from tencentpretrain.train.finetune import FinetuneConfig, prepare, run_finetune
from tencentpretrain.train.saved_checkpoint import Checkpoint, find_latest, open_checkpoint
from tencentpretrain.yaml_text import load_yaml
from tests.tasks import toy

SHORT = {"trainer": {"steps": 4, "log_every": 1}}


def metrics(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def without_times(records: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in r.items() if not k.startswith("perf/")} for r in records]


@pytest.mark.parametrize(("name", "score"), [("classify", "accuracy"), ("ner", "f1")])
def test_a_tiny_model_learns_a_toy_task(tmp_path: Path, name: str, score: str) -> None:
    assert run_finetune(toy.finetune_config(tmp_path, name)) == 0
    records = metrics(tmp_path / "run")
    assert records[-1][f"test/{score}"] == 1.0
    # 96 rows in batches of 16: an epoch has six steps.
    steps = [record["step"] for record in records if "eval/loss" in record]
    assert steps == [6, 12, 18, 24, 30, 36, 40]
    best = open_checkpoint(tmp_path / "run")
    assert best.score == max(r[f"eval/{score}"] for r in records if "eval/loss" in r)
    assert records[-1]["step"] == best.step
    saved = json.loads(best.file("task.json").read_text())
    labels = {"classify": ["no", "yes"], "ner": ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]}
    assert saved["name"] == name
    assert saved[{"classify": "labels", "ner": "tags"}[name]] == labels[name]


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    config = toy.finetune_config(tmp_path, **SHORT)
    run_finetune(config)
    written = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert written.count("test/loss") == 1
    assert run_finetune(config) == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == written


def everything(checkpoint: Checkpoint | None) -> dict[str, torch.Tensor]:
    assert checkpoint is not None
    return checkpoint.tensors("model") | checkpoint.tensors("optimizer")


def test_d89_an_interrupted_run_goes_on_exactly(tmp_path: Path) -> None:
    keys = {"trainer": {"steps": 15, "log_every": 2}}
    run_finetune(toy.finetune_config(tmp_path, **keys))
    whole = find_latest(tmp_path / "run" / "checkpoints")
    records = without_times(metrics(tmp_path / "run"))
    stopped = toy.merged(keys, {"run_dir": str(tmp_path / "other"), "trainer": {"stop_after": 5}})
    for step in (5, 10, 15):
        # No test results before the end of the run.
        assert not any("test/loss" in r for r in records[:-1])
        assert run_finetune(toy.finetune_config(tmp_path, **stopped)) == 0
        found = find_latest(tmp_path / "other" / "checkpoints")
        assert found is not None
        assert found.step == step
        assert ("test/loss" in metrics(tmp_path / "other")[-1]) == (step == 15)
    first, second = everything(whole), everything(found)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert without_times(metrics(tmp_path / "other")) == records


def from_init(folder: Path, init: str, name: str = "classify", **keys: Any) -> FinetuneConfig:
    data = toy.finetune_data(folder, name, **toy.merged(SHORT, keys)) | {"init": init}
    del data["tokenizer"]
    if "model" not in keys:
        del data["model"]
    else:
        data["model"] = keys["model"]
    return decode(FinetuneConfig, data)


def test_a_pre_trained_run_gives_model_tokenizer_and_weights(tmp_path: Path) -> None:
    saved = toy.save_run(tmp_path / "pretrained", toy.MODEL)
    config = from_init(tmp_path, str(tmp_path / "pretrained"), model={"encoder": {"dropout": 0.25}})
    plan = prepare(config)
    weights = saved.tensors("model")
    trained = plan.job.model.state_dict()
    assert [
        n for n in weights if not n.startswith("target.") and not weights[n].equal(trained[n])
    ] == []
    assert {name for name in trained if name not in weights} == {
        f"target.classify.{layer}.{part}"
        for layer in ("dense", "output")
        for part in ("weight", "bias")
    }
    assert not (tmp_path / "run").exists()
    assert run_finetune(config) == 0
    model = load_yaml(open_checkpoint(tmp_path / "run").file("config.yaml"))["model"]
    assert model["encoder"]["dropout"] == 0.25
    assert list(model["target"]) == ["classify"]
    assert (tmp_path / "run" / "tokenizer" / "tokenizer.json").exists()


def test_a_continued_run_does_not_need_what_it_started_from(tmp_path: Path) -> None:
    init = tmp_path / "pretrained"
    toy.save_run(init, toy.MODEL)
    run_finetune(from_init(tmp_path, str(init), trainer={"steps": 4, "stop_after": 2}))
    shutil.rmtree(init)
    assert run_finetune(from_init(tmp_path, str(init))) == 0
    assert metrics(tmp_path / "run")[-1]["step"] == 4


def test_a_fine_tuned_run_can_be_fine_tuned_for_another_task(tmp_path: Path) -> None:
    run_finetune(toy.finetune_config(tmp_path, **SHORT))
    config = from_init(tmp_path, str(tmp_path / "run"), "ner", run_dir=str(tmp_path / "second"))
    assert run_finetune(config) == 0
    assert set(open_checkpoint(tmp_path / "second").tensors("model")) >= {"target.tag.output.bias"}


def test_without_a_dev_file_a_tenth_is_held_out(tmp_path: Path) -> None:
    rows = [f"{'yes' if n % 2 else 'no'}\tthe film {n}" for n in range(400)]
    path = toy.write(tmp_path / "many.tsv", ["label\ttext_a", *rows])
    reordered = toy.write(tmp_path / "again.tsv", ["label\ttext_a", *reversed(rows), rows[3]])
    parts = []
    for number, file in enumerate((path, reordered)):
        keys = {"data": {"train": str(file), "dev": None}, "run_dir": str(tmp_path / str(number))}
        plan = prepare(toy.finetune_config(tmp_path, **keys, seed=number))
        parts.append(len(plan.job.examples))
    held_out = 400 - parts[0]
    assert 20 <= held_out <= 60
    # Which rows are held out depends on nothing but the rows; equal rows stay together.
    assert parts[1] in (parts[0], parts[0] + 1)


def test_few_rows_are_held_out_too(tmp_path: Path) -> None:
    path = toy.write(tmp_path / "few.tsv", ["label\ttext_a", "a\tfilm", "b\tnight", "a\tday"])
    keys = {"data": {"train": str(path), "dev": None, "test": None}}
    assert len(prepare(toy.finetune_config(tmp_path, **keys)).job.examples) == 2
    toy.write(path, ["label\ttext_a", "a\tfilm", "b\tfilm"])
    with pytest.raises(DataError, match=r"too few different rows .* give data\.dev"):
        prepare(toy.finetune_config(tmp_path, **keys))


def test_lengths_have_defaults(tmp_path: Path) -> None:
    config = prepare(toy.finetune_config(tmp_path, trainer={"steps": None})).session.config
    assert (config.trainer.epochs, config.trainer.eval_every) == (3.0, 6)
    keys = {"trainer": {"steps": 10, "eval_every": 4}}
    config = prepare(toy.finetune_config(tmp_path, **keys)).session.config
    assert (config.trainer.epochs, config.trainer.eval_every) == (None, 4)


def test_a_dry_run_leaves_nothing(tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    config = toy.finetune_config(tmp_path, **SHORT, dry_run=True)
    files = sorted(tmp_path.rglob("*"))
    assert run_finetune(config) == 0
    assert sorted(tmp_path.rglob("*")) == files != before


def broken(folder: Path, name: str, content: str) -> dict[str, Any]:
    path = folder / f"broken_{name}.tsv"
    path.write_text(content, encoding="utf-8")
    return {"data": {name: str(path)}}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dev", "label\ttext_a\nyes\tfilm\nmaybe\tfilm\n", r"broken_dev\.tsv, line 3: .*`maybe`"),
        ("test", "label\ttext_a\nmaybe\tfilm\n", r"broken_test\.tsv, line 2: .*`maybe`"),
        ("train", "lable\ttext_a\nyes\tfilm\n", "no column `label`"),
        ("train", "", "is empty"),
        ("dev", "label\ttext_a\nyes\n", "line 2 must have 2 fields"),
        ("test", "text_a\nfilm\n", "no column `label`"),
    ],
)
def test_bad_data_is_refused_before_anything_is_made(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    config = toy.finetune_config(tmp_path, **broken(tmp_path, name, content))
    with pytest.raises(DataError, match=message) as error:
        run_finetune(config)
    assert error.value.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_configs_that_cannot_be(tmp_path: Path) -> None:
    data = toy.finetune_data(tmp_path)
    with pytest.raises(ConfigError, match="tokenizer comes with init"):
        decode(FinetuneConfig, {**data, "init": "runs/bert"})
    with pytest.raises(ConfigError, match="model is required where init=none"):
        decode(FinetuneConfig, {**data, "model": {}})
    with pytest.raises(ConfigError, match=r"task\.name: .*did you mean `classify`"):
        decode(FinetuneConfig, {**data, "task": {"name": "clasify"}})
    with pytest.raises(ConfigError, match=r"task\.lenght: .*did you mean `length`"):
        decode(FinetuneConfig, {**data, "task": {"name": "ner", "lenght": 9}})
    wrong = {"model": {"encoder": {"dropot": 0.1}, "hiden": 8}, "optim": {"lrr": 1}}
    with pytest.raises(ConfigError) as error:
        decode(FinetuneConfig, toy.merged(data, wrong))
    for key in ("model.encoder.dropot", "model.hiden", "optim.lrr"):
        assert f"{key}: is not a known key" in str(error.value)
    with pytest.raises(ConfigError, match=r"task\.length: must be at most"):
        run_finetune(decode(FinetuneConfig, toy.merged(data, {"task": {"length": 65}})))
    assert not (tmp_path / "run").exists()


def test_a_run_cannot_change_on_its_way(tmp_path: Path) -> None:
    run_finetune(toy.finetune_config(tmp_path, trainer={"steps": 4, "stop_after": 2}))
    changed = toy.finetune_config(tmp_path, **SHORT, model={"encoder": {"dropout": 0.4}})
    with pytest.raises(ConfigError, match=r"model\.encoder\.dropout: is 0\.4, but the run in"):
        run_finetune(changed)
    with pytest.raises(ConfigError, match=r"task\.length"):
        run_finetune(toy.finetune_config(tmp_path, **SHORT, task={"length": 30}))
    config = toy.finetune_config(tmp_path, **SHORT)
    toy.write(Path(str(config.data.train)), ["label\ttext_a", "yes\tfilm", "no\tday"])
    with pytest.raises(CheckpointError, match="was trained on other data") as error:
        run_finetune(config)
    assert error.value.exit_code == 2


def test_init_must_be_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist") as error:
        run_finetune(from_init(tmp_path, str(tmp_path / "nowhere")))
    assert error.value.exit_code == 2


def test_user_code_of_a_checkpoint_must_be_allowed(tmp_path: Path) -> None:
    model = {**toy.MODEL, "encoder": {"name": "evil.module:Encoder", "layers": 1}}
    run_dir = tmp_path / "pretrained"
    toy.save_run(run_dir, toy.MODEL)
    # Such a checkpoint is made by hand: this process could not build the model.
    checkpoint = toy.save_run(run_dir, toy.MODEL, saved=model)
    assert checkpoint.file("config.yaml").read_text().count("evil.module") == 1
    with pytest.raises(ConfigError, match=r"plugins=\[evil\]"):
        run_finetune(from_init(tmp_path, str(run_dir)))


def test_pairs_are_learned_too(tmp_path: Path) -> None:
    # The label says whether both texts are of one kind, which no text tells alone.
    files = {}
    words = {"good": toy.GOOD[:1], "bad": toy.BAD[:1]}
    for name, size in (("train", 64), ("dev", 16)):
        lines = ["label\ttext_a\ttext_b"]
        for number in range(size):
            first, second = "good" if number % 2 else "bad", "good" if number % 4 < 2 else "bad"
            label = "same" if first == second else "other"
            lines.append(f"{label}\t{words[first][0]}\t{words[second][0]}")
        files[name] = str(toy.write(tmp_path / f"pairs_{name}.tsv", lines))
    keys = {"data": {**files, "test": None}, "trainer": {"steps": 120, "eval_every": 40}}
    run_finetune(toy.finetune_config(tmp_path, **keys, model={"encoder": {"dropout": 0.0}}))
    assert metrics(tmp_path / "run")[-1]["eval/accuracy"] == 1.0
