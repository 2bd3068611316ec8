from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.data.loader import shared_batches
from tencentpretrain.distributed.parallel import PARALLELS
from tencentpretrain.errors import DataError
from tencentpretrain.help_table import key_table
from tencentpretrain.train.callbacks.evaluation import evaluate_loss
from tencentpretrain.train.meter import Meter
from tencentpretrain.train.sources import PretrainData, Sources
from tests.end_to_end.test_pretrain import assert_same_checkpoint, newest
from tests.helpers.models import model_config, tiny_model
from tests.helpers.pictures import class_folders, media_shards
from tests.helpers.pretraining import metrics, pretrain, write_shards

OBJECTIVE = model_config("bert/tiny", {"objective": {"length": 32}}).objective


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three sources of 40, 20 and 10 documents with one tokenizer, and one with another."""
    folder = tmp_path_factory.mktemp("sources")
    made = {
        name: write_shards(folder, documents=documents, seed=seed)
        for seed, (name, documents) in enumerate({"news": 40, "books": 20, "code": 10}.items())
    }
    return made | {"other": write_shards(folder, order=-1, seed=9)}


def data_of(shards: dict[str, Path], **keys: Any) -> PretrainData:
    """News, books and code mixed, with `weights` and other keys."""
    weights = keys.pop("weights", {"news": None, "books": None, "code": None})
    mix = {name: {"path": shards[name], "weight": weight} for name, weight in weights.items()}
    return decode(PretrainData, {"mix": mix, "holdout": 0.2, **keys})


def words(shards: dict[str, Path], **weights: float) -> dict[str, Any]:
    """Keys of a command line that mixes."""
    keys: dict[str, Any] = {"data.path": "null", "data.holdout": 0.2}
    for name, weight in weights.items():
        keys |= {f"data.mix.{name}.path": shards[name], f"data.mix.{name}.weight": weight}
    return keys


def built(data: PretrainData, seed: int = 1) -> Sources:
    assert OBJECTIVE is not None
    return Sources(data, OBJECTIVE, seed)


def test_a_mixture_is_trained_on_and_continued_bit_for_bit(
    shards: dict[str, Path], tmp_path: Path
) -> None:
    keys = words(shards, news=0.7, books=0.3)
    assert pretrain(shards["news"], tmp_path / "whole", **keys) == 0
    for _ in range(2):
        stopped = {"trainer.stop_after": 5, "data.workers": 1}
        assert pretrain(shards["news"], tmp_path / "parts", **keys, **stopped) == 0
    assert_same_checkpoint(newest(tmp_path / "parts"), newest(tmp_path / "whole"))
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    evaluated = [record for record in metrics(tmp_path / "whole") if "eval/loss" in record]
    assert [record["step"] for record in evaluated] == [4, 8]
    for record in evaluated:
        for name in ("news", "books"):
            assert {f"eval/{name}/loss", f"eval/{name}/mlm/accuracy"} <= record.keys()
        losses = sorted(record[f"eval/{name}/loss"] for name in ("news", "books"))
        assert losses[0] < record["eval/loss"] < losses[1]
    for record in metrics(tmp_path / "whole"):
        if "train/loss" in record:
            losses = sorted(record[f"train/{name}/loss"] for name in ("news", "books"))
            assert losses[0] < record["train/loss"] < losses[1]
            assert "train/news/nsp/loss" in record


def test_a_run_is_not_continued_with_other_weights(
    shards: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(shards["news"], tmp_path / "run", **words(shards, news=0.7, books=0.3))
    changed = words(shards, news=0.6, books=0.4) | {"trainer.steps": 20}
    assert pretrain(shards["news"], tmp_path / "run", **changed) == 2
    assert "trained on other data" in capsys.readouterr().err


def test_each_source_is_evaluated_as_if_alone(shards: dict[str, Path]) -> None:
    weights = {"news": 0.001, "books": 0.002, "code": 0.005}
    sources = built(data_of(shards, weights=weights, dev_examples=3))
    model = tiny_model("bert/tiny", {"objective": {"length": 32}})
    parallel = PARALLELS.build(PARALLELS.default("none"))
    trainer: Any = SimpleNamespace(
        model=model,
        device=torch.device("cpu"),
        dtype=torch.float32,
        parallel=parallel,
        annotators=(),
    )
    results = sources.evaluate(trainer, 2)
    totals = {"mlm": np.zeros(2), "nsp": np.zeros(2)}
    for name, weight in weights.items():
        dev = sources.sources[name].dev
        assert dev is not None
        count = min(3, len(dev))
        alone = evaluate_loss(model, shared_batches(dev, 2, 3, is_shuffled=True), trainer)
        for key, value in alone.items():
            assert results[key.replace("eval", f"eval/{name}", 1)] == pytest.approx(value, abs=1e-6)
        meter = Meter(model.target.weights, "eval", trainer.device)
        with torch.inference_mode():
            for shared in shared_batches(dev, count, 3, is_shuffled=True):
                meter.add(model(shared.batch))
        for target, ratio in meter.losses.items():
            totals[target] += np.array([float(ratio.total), float(ratio.count)]) * weight / count
    expected = {target: total / count for target, (total, count) in totals.items()}
    assert results["eval/mlm/loss"] == pytest.approx(expected["mlm"], abs=1e-6)
    assert results["eval/loss"] == pytest.approx(sum(expected.values()), abs=1e-6)


def test_sources_without_weights_are_drawn_from_by_their_size(shards: dict[str, Path]) -> None:
    for power in (1.0, 0.5, 0.0):
        sources = built(data_of(shards, mix_power=power))
        sizes = [len(source.train) for source in sources.sources.values()]
        weights = [source.weight for source in sources.sources.values()]
        assert sizes[0] > sizes[1] > sizes[2]
        assert weights == [size**power for size in sizes]
        assert len(sources.examples) == sum(sizes)
        assert sources.order is not None
        _, indices = sources.order(np.arange(4000))
        drawn = np.histogram(indices, np.cumsum([0, *sizes]))[0] / 4000
        assert np.allclose(drawn, np.array(weights) / sum(weights), atol=0.002)


def test_what_is_drawn_for_a_source_does_not_depend_on_others(shards: dict[str, Path]) -> None:
    alone = built(data_of(shards, weights={"books": None}))
    mixed = built(data_of(shards))
    twin = built(data_of({**shards, "code": shards["books"]}))
    for index in range(len(alone.examples)):
        one, other = (s.sources["books"].train.make(2, index)["ids"] for s in (alone, mixed))
        assert one.tolist() == other.tolist()
    pairs = [
        (source.make(2, i)["ids"].tolist(), other.make(2, i)["ids"].tolist())
        for source, other in [(twin.sources["books"].train, twin.sources["code"].train)]
        for i in range(len(source))
    ]
    assert sum(a != b for a, b in pairs) > len(pairs) / 2


def test_a_source_can_have_documents_of_its_own_to_evaluate_on(shards: dict[str, Path]) -> None:
    mix = {
        "news": {"path": shards["news"], "dev": shards["code"]},
        "books": {"path": shards["books"]},
    }
    sources = built(decode(PretrainData, {"mix": mix, "holdout": 0}))
    assert sources.sources["news"].dev is not None
    assert sources.sources["news"].dev.shards.documents == 10
    assert len(sources.sources["news"].train.documents) == 40
    assert sources.sources["books"].dev is None
    prints = sources.fingerprints()
    assert prints.keys() == {"tokenizer", "data", "dev data"}
    without = built(data_of(shards, weights={"news": None, "books": None}, holdout=0))
    assert {**without.fingerprints(), "dev data": prints["dev data"]} == prints


def test_one_source_needs_no_name(shards: dict[str, Path]) -> None:
    paths = [shards["news"], shards["books"]]
    sources = built(decode(PretrainData, {"path": paths, "dev": shards["code"]}))
    assert sources.order is None
    assert sources.shards.documents == 60
    assert sources.fingerprints()["data"] == sources.shards.fingerprint


def test_sources_must_have_one_tokenizer(shards: dict[str, Path]) -> None:
    with pytest.raises(DataError, match=r"`.*` was made with another tokenizer than `.*`; prepro"):
        built(data_of(shards, weights={"news": None, "other": None}))
    with pytest.raises(DataError, match="another tokenizer"):
        built(decode(PretrainData, {"path": shards["news"], "dev": shards["other"]}))


def test_sources_with_and_without_texts_are_told_apart(
    shards: dict[str, Path], tmp_path: Path
) -> None:
    media_shards(tmp_path / "s", class_folders(tmp_path / "data", count=1))
    paths = [shards["news"], tmp_path / "s"]
    with pytest.raises(DataError, match=r"`.*/s` holds images without texts, but `.*` texts; giv"):
        built(decode(PretrainData, {"path": paths[0], "dev": paths[1]}))
    with pytest.raises(DataError, match=r"/s holds images without texts, but .* texts; give direc"):
        built(decode(PretrainData, {"path": paths}))


WRONG = {
    "nothing": ({}, r"data.path \(or data.mix\) is required"),
    "both": ({"path": "a", "mix": {"a": {"path": "a"}}}, "give data.path or data.mix, not both"),
    "dev": ({"mix": {"a": {"path": "a"}}, "dev": "b"}, "data.dev belongs to data.path"),
    "some weights": (
        {"mix": {"a": {"path": "a", "weight": 1}, "b": {"path": "b"}}},
        "give each source of data.mix a weight, or none of them",
    ),
    "power with weights": (
        {"mix": {"a": {"path": "a", "weight": 1}}, "mix_power": 0.5},
        "mix_power is for sources of data.mix without weights",
    ),
    "power without a mixture": ({"path": "a", "mix_power": 0.5}, "mix_power is for sources"),
    "name": ({"mix": {"a/b": {"path": "a"}}}, "letters, digits, _ and -, but one is `a/b`"),
    "weight": (
        {"mix": {"a": {"path": "a", "weight": 0}}},
        r"^mix.a.weight: must be > 0.0, but is 0$",
    ),
    "path": ({"mix": {"a": {"weight": 1}}}, r"^mix.a.path: is required"),
    "key": ({"mix": {"a": {"path": "a", "wieght": 1}}}, "did you mean `weight`"),
}


@pytest.mark.parametrize("case", WRONG)
def test_contradictions_are_told(case: str) -> None:
    values, message = WRONG[case]
    with pytest.raises(ConfigError, match=message):
        decode(PretrainData, values)


def test_a_source_is_not_called_as_a_target(
    shards: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"data.path": "null", "data.mix.mlm.path": shards["news"]}
    assert pretrain(shards["news"], tmp_path / "run", **keys) == 2
    assert "data.mix must not name a source `mlm`: that is a target" in capsys.readouterr().err


def test_help_explains_the_keys_of_a_source() -> None:
    table = key_table(PretrainData)
    assert "  mix.<name>.weight " in table
    assert "  mix.<name>.path " in table
