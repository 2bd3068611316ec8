"""Students learn from the run of a teacher, online and stored, and are ordinary models after."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tencentpretrain.cli import main
from tencentpretrain.distill.teacher import Teacher
from tencentpretrain.errors import CheckpointError
from tencentpretrain.targets.companion import Setting, without_companions
from tencentpretrain.targets.lm import LmTarget
from tencentpretrain.train.saved_checkpoint import Checkpoint, open_checkpoint
from tencentpretrain.train.source import saved_config, saved_tokenizer
from tests.helpers.models import text_batch
from tests.helpers.pretraining import metrics, pretrain, write_shards
from tests.helpers.saved_models import reopen
from tests.helpers.training import RandomExamples

LM = {
    "model": "gpt2/tiny",
    "model.hidden": 16,
    "model.encoder.layers": 1,
    "model.encoder.heads": 2,
    "model.encoder.ffn": 32,
    "model.objective.length": 32,
    "optim.lr": 0.01,
    "trainer.steps": 4,
    "trainer.eval_every": 4,
    "checkpoint.every": 4,
}
LARGE = {
    "model.hidden": 24,
    "model.encoder.layers": 2,
    "model.embedding.parts.position.length": 48,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards and the runs of teachers."""
    folder = tmp_path_factory.mktemp("distill")
    shards = write_shards(folder / "data")
    assert pretrain(shards, folder / "lm", **LM | LARGE) == 0
    assert pretrain(shards, folder / "bert", **{"model.hidden": 24, "model.encoder.heads": 3}) == 0
    return folder


def shards_of(folder: Path) -> Path:
    return next((folder / "data").glob("shards*"))


def student(folder: Path, run_dir: Path, *, label: str = "lm", **keys: Any) -> int:
    """Train a student of the teacher `label`, or with another one in `keys`."""
    target = f"model.target.{label}"
    known = {f"{target}.name": "distill", f"{target}.divergence": "akl"}
    if f"{target}.stored" not in keys:
        known[f"{target}.teacher"] = folder / ("lm" if label == "lm" else "bert")
    return pretrain(shards_of(folder), run_dir, **(LM if label == "lm" else {}) | known | keys)


def train_records(run_dir: Path) -> list[dict[str, Any]]:
    return [record for record in metrics(run_dir) if "train/loss" in record]


def losses(run_dir: Path) -> list[float]:
    return [record["train/loss"] for record in train_records(run_dir)]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return newest(run_dir).tensors("model")


def newest(run_dir: Path) -> Checkpoint:
    return open_checkpoint(run_dir, "latest")


def test_a_student_is_saved_as_a_model_without_a_teacher(folder: Path, tmp_path: Path) -> None:
    assert student(folder, tmp_path / "run") == 0
    record = train_records(tmp_path / "run")[-1]
    for name in ("ce", "divergence", "fkl", "rkl", "soft_ce", "head_weight", "head_size"):
        assert math.isfinite(record[f"train/lm/{name}"])
    mixed = (record["train/lm/ce"] + record["train/lm/divergence"]) / 2
    assert record["train/loss"] == pytest.approx(mixed)
    # Evaluation asks no teacher: its loss is that of any model.
    evaluated = metrics(tmp_path / "run")[-1]
    assert set(evaluated) == {"step", "eval/loss", "eval/lm/accuracy"}
    assert pretrain(shards_of(folder), tmp_path / "plain", **LM) == 0
    ours, theirs = weights(tmp_path / "run"), weights(tmp_path / "plain")
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    state = newest(tmp_path / "run").tensors("optimizer")
    assert state.keys() == newest(tmp_path / "plain").tensors("optimizer").keys()
    # It starts an ordinary run, and fine-tunes as one.
    keys = {"init": tmp_path / "run", "trainer.steps": 2}
    assert pretrain(shards_of(folder), tmp_path / "next", **LM | keys) == 0


def test_a_student_is_exported_as_a_plain_model(folder: Path, tmp_path: Path) -> None:
    keys = {"model.target.lm.hidden.layers": "{1: 2}", "model.target.lm.hidden.size": 24}
    assert student(folder, tmp_path / "run", **keys, **{"trainer.steps": 2}) == 0
    assert any("features" in name for name in weights(tmp_path / "run"))
    words = [f"checkpoint={tmp_path / 'run'}", f"output={tmp_path / 'out'}"]
    assert main("export", words) == 0
    model, _, config = reopen(tmp_path / "out")
    assert config["model"]["target"]["lm"]["name"] == "lm"
    assert type(model.target["lm"]) is LmTarget
    saved = saved_config(newest(tmp_path / "run"))["model"]
    assert config["model"] == without_companions(saved)
    assert "teacher" not in str(config)


def test_an_interrupted_student_goes_on_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    layers = {"model.target.lm.attention.layers": "{1: 2}"}
    assert student(folder, tmp_path / "whole", **layers) == 0
    assert student(folder, tmp_path / "parts", **layers, **{"trainer.stop_after": 2}) == 0
    assert student(folder, tmp_path / "parts", **layers) == 0
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    other = weights(tmp_path / "parts")
    assert all(torch.equal(t, other[n]) for n, t in weights(tmp_path / "whole").items())


def test_micro_batches_change_nothing(folder: Path, tmp_path: Path) -> None:
    keys = {"model.encoder.dropout": 0.0, "model.embedding.dropout": 0.0, "trainer.steps": 2}
    keys |= {"model.target.mlm.hidden.layers": "{1: 1}", "model.target.mlm.hidden.size": 24}
    for name, micro in (("whole", 4), ("cut", 1)):
        micros = {"trainer.micro_batch_size": micro}
        assert student(folder, tmp_path / name, label="mlm", **keys | micros) == 0
    for whole, cut in zip(losses(tmp_path / "whole"), losses(tmp_path / "cut"), strict=True):
        assert whole == pytest.approx(cut, rel=1e-5)


def test_two_targets_have_one_teacher(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tencentpretrain")
    keys = {"model.target.nsp.name": "distill", "model.target.nsp.teacher": folder / "bert"}
    assert student(folder, tmp_path / "run", label="mlm", **keys, **{"trainer.steps": 2}) == 0
    record = train_records(tmp_path / "run")[-1]
    assert {"train/mlm/fkl", "train/nsp/fkl"} <= record.keys()
    assert caplog.text.count("the teacher is that of checkpoint") == 1


def test_an_encoder_decoder_learns_from_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = "{layers: 1, heads: 2, ffn: 32}"
    bart = {
        "model": "bart/base",
        "model.hidden": 16,
        "model.encoder": stack,
        "model.decoder": stack,
        "model.objective.length": 32,
        "model.objective.target_length": 32,
        "trainer.steps": 2,
    }
    shards = shards_of(folder)
    assert pretrain(shards, tmp_path / "teacher", **bart | {"model.hidden": 24}) == 0
    keys = {
        "model.target.lm.teacher": tmp_path / "teacher",
        "model.target.lm.hidden": "{layers: {1: 1}, size: 24, part: encoder}",
        "model.target.lm.attention": "{layers: {1: 1}}",
    }
    assert student(folder, tmp_path / "run", **bart | keys) == 0
    names = ("lm/loss", "lm/hidden/loss", "lm/attention/loss", "lm/divergence")
    assert all(math.isfinite(train_records(tmp_path / "run")[-1][f"train/{n}"]) for n in names)
    capsys.readouterr()
    assert student(folder, tmp_path / "other", **{"model.target.lm.teacher": tmp_path / "teacher"})
    assert "has a decoder, but the student reads no target row" in capsys.readouterr().err


def test_a_changed_teacher_is_noticed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = {"model.target.lm.teacher": tmp_path / "teacher"}
    shards, small = shards_of(folder), LM | {"trainer.steps": 2}
    assert pretrain(shards, tmp_path / "teacher", **small) == 0
    assert student(folder, tmp_path / "run", **teacher, **{"trainer.stop_after": 2}) == 0
    assert pretrain(shards, tmp_path / "teacher", **small | {"trainer.steps": 4}) == 0
    capsys.readouterr()
    assert student(folder, tmp_path / "run", **teacher) == 2
    assert "was trained on other teacher" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model.target.lm.teacher": "nowhere"}, "`nowhere` does not exist"),
        ({"model.objective.length": 64}, "reads rows of at most 48 tokens, but one has 64"),
        ({"model.target.lm.hidden.layers": "{1: 9}"}, "layers 9 were asked"),
        ({"model.target.lm.hidden.layers": "{1: 1}"}, "set hidden.size=24"),
    ],
)
def test_teachers_that_do_not_fit_are_refused_before_the_start(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    keys: dict[str, Any],
    message: str,
) -> None:
    assert student(folder, tmp_path / "run", **keys) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_another_vocabulary_or_task_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = {"model.target.lm.teacher": folder / "bert"}
    assert student(folder, tmp_path / "run", **teacher) == 2
    assert "has not learned `lm`: its targets are mlm, nsp" in capsys.readouterr().err
    for number, (keys, message) in enumerate(
        (
            ({"words": 20}, "has another vocabulary than the data: 35 entries, not 25"),
            ({"order": -1}, "entry 5 is `w0`, not `w29`"),
        )
    ):
        shards = write_shards(tmp_path / f"data{number}", **keys)  # type: ignore[arg-type]
        words = {"model.target.lm.name": "distill", "model.target.lm.teacher": folder / "lm"}
        assert pretrain(shards, tmp_path / "run", **LM | words) == 2
        assert message in capsys.readouterr().err


def store(folder: Path, output: Path, *words: str, teacher: str = "lm") -> int:
    given = [
        f"checkpoint={folder / teacher}",
        f"data.path={shards_of(folder)}",
        "data.holdout=0.1",
        f"output={output}",
        "device=cpu",
        "precision=fp32",
        *words,
    ]
    return main("store_teacher", given)


@pytest.mark.parametrize(("label", "divergence"), [("lm", "akl"), ("mlm", "jsd")])
def test_learning_from_all_that_is_stored_is_learning_from_the_teacher(
    label: str, divergence: str, folder: Path, tmp_path: Path
) -> None:
    teacher = "lm" if label == "lm" else "bert"
    assert store(folder, tmp_path / "store", "top=100", teacher=teacher) == 0
    target = f"model.target.{label}"
    keys = {f"{target}.divergence": divergence, f"{target}.temperature": 2.0, "trainer.steps": 4}
    assert student(folder, tmp_path / "online", label=label, **keys) == 0
    keys |= {f"{target}.stored": tmp_path / "store", "data.workers": 1}
    assert student(folder, tmp_path / "stored", label=label, **keys) == 0
    for one, other in zip(
        train_records(tmp_path / "online"), train_records(tmp_path / "stored"), strict=True
    ):
        for name in ("loss", f"{label}/divergence", f"{label}/ce", f"{label}/fkl"):
            assert one[f"train/{name}"] == pytest.approx(other[f"train/{name}"], rel=1e-4)


def test_few_stored_entries_need_a_divergence_that_can_do_with_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert store(folder, tmp_path / "store", "top=5") == 0
    stored = {"model.target.lm.stored": tmp_path / "store", "trainer.steps": 2}
    assert student(folder, tmp_path / "run", **stored) == 2
    assert "choose akl_topk" in capsys.readouterr().err
    stored["model.target.lm.divergence"] = "akl_topk"
    warm = {"model.target.lm.temperature": 2.0}
    assert student(folder, tmp_path / "run", **stored, **warm) == 2
    assert "temperature: must be 1" in capsys.readouterr().err
    assert student(folder, tmp_path / "run", **stored) == 0
    assert math.isfinite(losses(tmp_path / "run")[-1])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"seed": 3}, "has read other rows than these"),
        ({"trainer.steps": 50}, "has read 1 epochs, but this run takes"),
        ({"data.holdout": 0.5}, "which are not epochs of"),
    ],
)
def test_what_was_stored_for_other_rows_is_refused(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    keys: dict[str, Any],
    message: str,
) -> None:
    assert store(folder, tmp_path / "store", "top=35") == 0
    stored = {"model.target.lm.stored": tmp_path / "store", "trainer.steps": 2}
    assert student(folder, tmp_path / "run", **stored | keys) == 2
    assert message in capsys.readouterr().err


def test_shards_of_text_are_no_stored_teacher(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = {"model.target.lm.stored": shards_of(folder)}
    assert student(folder, tmp_path / "run", **stored) == 2
    assert "is not a stored teacher" in capsys.readouterr().err
    stored["model.target.lm.stored"] = tmp_path / "nowhere"
    assert student(folder, tmp_path / "run", **stored) == 2
    assert "nowhere does not exist; make a stored teacher with" in capsys.readouterr().err
    assert student(folder, tmp_path / "run", **{"model.target.lm.teacher": shards_of(folder)}) == 2
    assert "holds shards, not a run; what a teacher has said is `stored`" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def write_table(path: Path, labels: tuple[str, ...] = ("no", "yes")) -> Path:
    rows = [f"{labels[n % len(labels)]}\tw{n % 7} w{(n * 3) % 11} w{n % 5}" for n in range(24)]
    path.write_text("\n".join(["label\ttext_a", *rows]) + "\n")
    return path


def finetune(init: Path, table: Path, run_dir: Path, *words: str) -> int:
    keys = {
        "task": "classify",
        "init": init,
        "data.train": table,
        "data.dev": table,
        "run_dir": run_dir,
        "trainer.steps": 4,
        "trainer.batch_size": 8,
        "trainer.log_every": 1,
        "parallel.device": "cpu",
    }
    return main("finetune", [*(f"{key}={value}" for key, value in keys.items()), *words])


def test_classes_are_learned_from_a_fine_tuned_teacher(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path / "train.tsv")
    assert finetune(folder / "bert", table, tmp_path / "teacher") == 0
    target = "model.target.classify"
    words = [
        f"{target}.name=distill",
        f"{target}.teacher={tmp_path / 'teacher'}",
        f"{target}.divergence=mse",
        f"{target}.inner.dropout=0.3",
        f"{target}.hidden.layers={{0: 0}}",
    ]
    assert finetune(folder / "bert", table, tmp_path / "run", *words) == 0
    record = train_records(tmp_path / "run")[-1]
    mixed = (record["train/classify/ce"] + record["train/classify/divergence"]) / 2
    assert record["train/classify/loss"] == pytest.approx(mixed)
    inner = saved_config(newest(tmp_path / "run"))["model"]["target"]["classify"]["inner"]
    assert (inner["classes"], inner["dropout"]) == (2, 0.3)
    answers = [f"checkpoint={tmp_path / 'run'}", f"data.test={table}"]
    output = tmp_path / "answers.tsv"
    assert main("predict", [*answers, f"output={output}", "device=cpu"]) == 0
    assert len(output.read_text().splitlines()) == 25
    other = write_table(tmp_path / "other.tsv", ("maybe", "no"))
    capsys.readouterr()
    assert finetune(folder / "bert", other, tmp_path / "wrong", *words) == 2
    error = capsys.readouterr().err
    assert "knows the classes [['no', 'yes']], but the data has [['maybe', 'no']]" in error


def test_a_student_starts_from_chosen_layers_of_its_teacher(folder: Path, tmp_path: Path) -> None:
    keys = {"model.hidden": 24, "init": folder / "lm", "init_layers": "{encoder: [2]}"}
    keys |= {"model.embedding.parts.position.length": 48}
    assert student(folder, tmp_path / "run", **keys, **{"trainer.steps": 1, "optim.lr": 1e-12}) == 0
    ours, theirs = weights(tmp_path / "run"), weights(folder / "lm")
    name = "attention.query.weight"
    torch.testing.assert_close(ours[f"encoder.layers.0.{name}"], theirs[f"encoder.layers.1.{name}"])
    torch.testing.assert_close(ours["encoder.norm.weight"], theirs["encoder.norm.weight"])


def test_the_teacher_is_frozen_in_a_precision_of_its_own(folder: Path) -> None:
    batch = text_batch((6, 3), targets=("lm",), vocabulary=35)
    answers = []
    for dtype in (torch.float32, torch.bfloat16):
        checkpoint = open_checkpoint(folder / "lm")
        setting = Setting(torch.device("cpu"), dtype, RandomExamples(), 1)
        teacher = Teacher.of(checkpoint.path, dtype, _with_tokenizer(setting, checkpoint))
        teacher.teach("lm")
        assert {p.dtype for p in teacher.model.parameters()} == {dtype}
        assert not any(p.requires_grad for p in teacher.model.parameters())
        before = torch.random.get_rng_state()
        answer = teacher(batch).extras["teaching"]["lm"].answer
        assert torch.equal(torch.random.get_rng_state(), before)
        answers.append(answer.part(slice(None)).states.float())
        assert not answer.states.requires_grad
    torch.testing.assert_close(answers[0], answers[1], rtol=0.05, atol=0.05)


def test_a_teacher_that_rules_entries_out_is_refused(folder: Path) -> None:
    checkpoint = open_checkpoint(folder / "bert")
    setting = Setting(torch.device("cpu"), torch.float32, RandomExamples(), 1)
    teacher = Teacher.of(checkpoint.path, torch.float32, _with_tokenizer(setting, checkpoint))
    teacher.teach("mlm")
    teacher.model.get_parameter("target.mlm.output.bias")[7] = -torch.inf
    with pytest.raises(CheckpointError, match="rules entries out by an infinite bias of `mlm`"):
        teacher.teach("mlm")


def _with_tokenizer(setting: Setting, checkpoint: Checkpoint) -> Setting:
    return replace(setting, tokenizer=saved_tokenizer(checkpoint))
