"""What many processes compute is what one does: losses, norms, metrics and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tencentpretrain.cli import main
from tencentpretrain.train.saved_checkpoint import find_latest
from tests.helpers.launch import launch, messages
from tests.helpers.pretraining import metrics, pretrain, words_of, write_shards
from tests.helpers.records import record_shards, some_pairs

pytestmark = pytest.mark.distributed

STEADY: dict[str, Any] = {
    "trainer.precision": "fp32",
    "model.embedding.dropout": 0,
    "model.encoder.dropout": 0,
    "model.encoder.layers": 2,
    "trainer.max_norm": 0.5,
    "optim.lr": 5e-4,  # AdamW divides small gradients by themselves, and rounding with them
}
MODELS: dict[str, dict[str, Any]] = {
    "bert": {},
    "gpt2": {"model": "gpt2/tiny", "trainer.micro_batch_size": 1},
    "albert": {
        "model": "albert/base",
        "model.embedding.size": 8,
        "model.encoder.heads": 2,
        "model.encoder.ffn": 32,
        "optim": "sgd",
    },
    "bart": {
        "model": "bart/tiny",
        "model.objective.target_length": 32,
        "model.target_embedding.dropout": 0,
        "model.decoder.dropout": 0,
        "model.decoder.layers": 1,
    },
}
# 36 entries are shared equally; the 35 of the others are not.
MODELS["qwen3"] = {
    "model": "qwen3/tiny",
    "model.vocabulary": 36,
    "model.encoder.heads": 4,
    "model.encoder.kv_heads": 2,
    "model.encoder.head_size": 8,
    # Adam makes steps of one size of gradients that are nothing but rounding.
    "optim": "sgd",
}
MODELS["relative"] = MODELS["bart"] | {
    "model.vocabulary": 36,
    "model.encoder.relative": "{buckets: 8, distance: 16}",
    "model.decoder.alibi": True,
    "model.target.lm.label_smoothing": 0.1,
}
# Norms and factors whose gradients are those of all positions.
MODELS["scaled"] = MODELS["bart"] | {
    "model.encoder.norm": "t5",
    "model.encoder.norm_order": "pre",
    "model.encoder.layer_scale": 0.5,
    "model.encoder.residual_attention": True,
    "model.decoder.norm": "legacy",
    "model.decoder.norm_order": "pre",
    "model.decoder.layer_scale": 0.5,
}


class Strategy(NamedTuple):
    """A way to share a run."""

    world: int
    words: tuple[str, ...]


STRATEGIES = {
    "ddp": Strategy(2, ("parallel=ddp",)),
    "fsdp": Strategy(2, ("parallel=fsdp",)),
    "fsdp zero-2": Strategy(2, ("parallel=fsdp", "parallel.reshard=false")),
    "hsdp": Strategy(4, ("parallel=hsdp", "parallel.shard=2")),
    "tp": Strategy(2, ("parallel=tp",)),
    "fsdp_tp": Strategy(4, ("parallel=fsdp_tp", "parallel.tensor=2")),
    "sequence": Strategy(2, ("parallel=tp", "parallel.sequence=true")),
    "fsdp_tp sequence": Strategy(
        4,
        (
            "parallel=fsdp_tp",
            "parallel.tensor=2",
            "parallel.sequence=true",
            "trainer.recompute=full",
        ),
    ),
    "sequence selective": Strategy(
        2, ("parallel=tp", "parallel.sequence=true", "trainer.recompute=selective")
    ),
    "recompute": Strategy(2, ("parallel=fsdp", "trainer.recompute=full")),
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of one process by the name of the model."""
    folder = tmp_path_factory.mktemp("alone")
    for name, keys in MODELS.items():
        assert pretrain(shards, folder / name, **STEADY, **keys, **{"trainer.steps": 5}) == 0
    return {name: folder / name for name in MODELS}


def difference(one: Path, other: Path) -> float:
    """Greatest difference of two runs in weights and in what they recorded; of numbers above 1,
    such as losses, relative to them.
    """
    weights, others = (find_latest(run / "checkpoints") for run in (one, other))
    assert weights is not None
    assert others is not None
    left, right = weights.tensors("model"), others.tensors("model")
    assert left.keys() == right.keys()
    found = [float((left[name] - right[name]).abs().max()) for name in left]
    records = [*zip(metrics(one), metrics(other), strict=True)]
    assert all(a.keys() == b.keys() for a, b in records)
    found += [abs(a[key] - b[key]) / max(1, abs(a[key])) for a, b in records for key in a]
    return max(found)


CASES = [("bert", name) for name in STRATEGIES if "selective" not in name]
CASES += [(name, "fsdp") for name in ("gpt2", "albert", "bart")]
CASES += [("bart", "tp"), ("qwen3", "tp"), ("relative", "fsdp_tp")]
CASES += [(name, "sequence") for name in ("albert", "qwen3", "scaled")]
CASES += [("relative", "fsdp_tp sequence"), ("gpt2", "sequence selective")]


@pytest.mark.parametrize(("model", "strategy"), CASES)
def test_d21_many_processes_compute_what_one_does(
    model: str, strategy: str, shards: Path, alone: dict[str, Path], tmp_path: Path
) -> None:
    world, words = STRATEGIES[strategy]
    keys = {**STEADY, **MODELS[model], "trainer.steps": 5}
    codes = launch(tmp_path / "log", world, [*words_of(shards, tmp_path / "run", **keys), *words])
    assert codes == [0] * world, messages(tmp_path / "log")
    assert difference(alone[model], tmp_path / "run") < 1e-6


def test_a_run_goes_on_with_other_numbers_of_processes(
    shards: Path, alone: dict[str, Path], tmp_path: Path
) -> None:
    """2 -> 1 -> 4 -> 2 processes, and from one way of sharing to all others."""
    keys = {**STEADY, "trainer.steps": 5}
    run = tmp_path / "run"
    for name in ("fsdp", "none", "fsdp_tp", "hsdp", "tp"):
        if name == "none":
            assert pretrain(shards, run, **keys, **{"trainer.stop_after": 1}) == 0
            continue
        world, words = STRATEGIES[name]
        words = (*words_of(shards, run, **keys), *words, "trainer.stop_after=1")
        assert launch(tmp_path / "log", world, words) == [0] * world, messages(tmp_path / "log")
    assert difference(alone["bert"], run) < 1e-6


def test_what_is_written_in_the_background_is_the_same(
    shards: Path, alone: dict[str, Path], tmp_path: Path
) -> None:
    keys = {**STEADY, "trainer.steps": 5, "checkpoint.background": True}
    world, words = STRATEGIES["fsdp"]
    words = (*words_of(shards, tmp_path / "run", **keys), *words)
    assert launch(tmp_path / "log", world, words) == [0] * world, messages(tmp_path / "log")
    assert difference(alone["bert"], tmp_path / "run") < 1e-6


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp zero-2"])
def test_a_student_learns_all_of_its_parameters(
    strategy: str, shards: Path, alone: dict[str, Path], tmp_path: Path
) -> None:
    """What its teacher adds is tried out in evaluation, before there is an optimiser."""
    keys = {**STEADY, **MODELS["gpt2"], "trainer.steps": 5, "model.target.lm.name": "distill"}
    keys |= {"model.target.lm.teacher": alone["gpt2"], "model.target.lm.divergence": "akl"}
    assert pretrain(shards, tmp_path / "one", **keys) == 0
    world, words = STRATEGIES[strategy]
    words = (*words_of(shards, tmp_path / "two", **keys), *words)
    assert launch(tmp_path / "log", world, words) == [0] * world, messages(tmp_path / "log")
    assert difference(tmp_path / "one", tmp_path / "two") < 1e-6


@pytest.mark.parametrize(
    ("strategy", "wrapper"), [("ddp", "lora"), ("fsdp", "moslora"), ("fsdp", "dora")]
)
def test_an_adapter_is_learned_by_many_processes(
    strategy: str, wrapper: str, shards: Path, alone: dict[str, Path], tmp_path: Path
) -> None:
    """Its checkpoints hold the adapter alone, and go on with any number of processes."""
    keys = {**STEADY, "init": alone["bert"], "trainer.steps": 4, "trainer.eval_every": 2}
    keys |= {f"wrappers.{wrapper}.rank": 3, f"wrappers.{wrapper}.dropout": 0.0}
    assert pretrain(shards, tmp_path / "one", **keys) == 0
    world, words = STRATEGIES[strategy]
    words = (*words_of(shards, tmp_path / "two", **keys), *words, "trainer.stop_after=2")
    assert launch(tmp_path / "log", world, words) == [0] * world, messages(tmp_path / "log")
    assert pretrain(shards, tmp_path / "two", **keys) == 0
    assert difference(tmp_path / "one", tmp_path / "two") < 1e-6
    saved = find_latest(tmp_path / "two" / "checkpoints")
    assert saved is not None
    assert "embedding.word.weight" not in saved.tensors("model")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_rows_are_told_from_those_of_all_processes(strategy: str, tmp_path: Path) -> None:
    """The learned temperature is a single number, which cannot be cut."""
    record_shards(tmp_path, "pair", some_pairs([(1 + n % 7, 2 + n % 5) for n in range(40)]))
    keys = {**STEADY, "model": "siamese/lstm", "optim": "sgd", "trainer.steps": 5}
    shards = tmp_path / "shards"
    assert pretrain(shards, tmp_path / "one", **keys) == 0
    world, words = STRATEGIES[strategy]
    words = (*words_of(shards, tmp_path / "two", **keys), *words)
    codes = launch(tmp_path / "log", world, words)
    assert codes == [0] * world, messages(tmp_path / "log")
    assert difference(tmp_path / "one", tmp_path / "two") < 1e-5


def test_a_task_is_learned_by_many_processes(
    shards: Path, alone: dict[str, Path], tmp_path: Path
) -> None:
    rows = [f"{n % 2}\tw{n % 2} w{n % 7} w{n % 5}" for n in range(25)]
    table = tmp_path / "train.tsv"
    table.write_text("\n".join(["label\ttext_a", *rows]) + "\n")
    given = {
        "task": "classify",
        "init": alone["bert"],
        "data.train": table,
        "data.dev": table,
        "data.test": table,
        "trainer.batch_size": 4,
        "trainer.precision": "fp32",
        "trainer.steps": 4,
        "trainer.eval_every": 2,
        "trainer.log_every": 1,
        "parallel.device": "cpu",
        "model.encoder.dropout": 0,
        "model.embedding.dropout": 0,
        "model.target.classify.dropout": 0,
    }
    words = [f"{key}={value}" for key, value in given.items()]
    assert main("finetune", [*words, f"run_dir={tmp_path / 'one'}"]) == 0
    world, shared = STRATEGIES["fsdp"]
    both = [*words, f"run_dir={tmp_path / 'two'}", *shared]
    codes = launch(tmp_path / "log", world, both, command="finetune")
    assert codes == [0] * world, messages(tmp_path / "log")
    assert difference(tmp_path / "one", tmp_path / "two") < 1e-6


def test_all_start_from_the_weights_of_another_run(
    shards: Path, alone: dict[str, Path], tmp_path: Path
) -> None:
    keys = {**STEADY, "init": alone["bert"], "trainer.steps": 1, "seed": 1}
    assert pretrain(shards, tmp_path / "one", **keys) == 0
    world, words = STRATEGIES["fsdp"]
    words = (*words_of(shards, tmp_path / "two", **keys), *words)
    assert launch(tmp_path / "log", world, words) == [0] * world, messages(tmp_path / "log")
    assert difference(tmp_path / "one", tmp_path / "two") < 1e-6


def test_a_dry_run_rehearses_with_all_processes(shards: Path, tmp_path: Path) -> None:
    world, words = STRATEGIES["fsdp_tp"]
    words = (*words_of(shards, tmp_path / "run", **STEADY), *words, "dry_run=true")
    assert launch(tmp_path / "log", world, words) == [0] * world, messages(tmp_path / "log")
    assert "dry run passed" in messages(tmp_path / "log")["0"]
    assert not (tmp_path / "run").exists()


LOW = {**STEADY, "trainer.steps": 5, "trainer.precision": "bf16"}
# Keys' biases have gradients that are nothing but rounding, which Adam makes steps of one size of.
LOW |= {**MODELS["gpt2"], "optim": "sgd"}


@pytest.mark.parametrize(
    "words",
    [
        ("ddp",),
        ("fsdp", "trainer.recompute=full"),
        ("fsdp_tp",),
        ("fsdp_tp", "parallel.sequence=true"),
    ],
)
def test_gathering_in_bf16_changes_nothing_where_products_are_bf16(
    words: tuple[str, ...], shards: Path, tmp_path: Path
) -> None:
    world = 4 if words[0] == "fsdp_tp" else 2
    for gather in ("fp32", "auto"):
        keys = {**LOW, "parallel.gather": gather}
        given = [*words_of(shards, tmp_path / gather, **keys), f"parallel={words[0]}", *words[1:]]
        given += ["parallel.tensor=2"] * (world == 4)
        codes = launch(tmp_path / "log", world, given)
        assert codes == [0] * world, messages(tmp_path / "log")
    # Biases that are cut by tensors are gathered in bf16 with their matrices.
    assert difference(tmp_path / "fp32", tmp_path / "auto") < (1e-4 if world == 4 else 1e-6)


def test_losses_of_sources_are_those_of_all_processes(shards: Path, tmp_path: Path) -> None:
    keys = STEADY | {"data.path": "null", "data.holdout": 0.2, "trainer.steps": 4}
    for name, seed in (("news", 1), ("books", 2)):
        keys[f"data.mix.{name}.path"] = write_shards(tmp_path, documents=20, seed=seed)
        keys[f"data.mix.{name}.weight"] = seed
    assert pretrain(shards, tmp_path / "one", **keys) == 0
    words = [*words_of(shards, tmp_path / "two", **keys), "parallel=ddp"]
    assert launch(tmp_path / "log", 2, words) == [0, 0], messages(tmp_path / "log")
    assert difference(tmp_path / "one", tmp_path / "two") < 1e-5
    assert all("train/news/nsp/loss" in r for r in metrics(tmp_path / "two") if "train/loss" in r)
