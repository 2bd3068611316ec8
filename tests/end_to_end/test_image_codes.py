"""From captioned pictures on disk to codes, to models of codes, to pictures again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tencentpretrain.cli import main
from tencentpretrain.train.saved_checkpoint import open_checkpoint
from tests.helpers.image_runs import (
    CELLS,
    CODES,
    SIZE,
    beit_words,
    codec_words,
    preprocess_pictures,
    train_beit,
    train_codec,
    train_dalle,
)
from tests.helpers.launch import launch, messages
from tests.helpers.pretraining import metrics

CPU = ("device=cpu", "precision=fp32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, an autoencoder, another one, and a DALL-E."""
    folder = tmp_path_factory.mktemp("codes")
    shards = preprocess_pictures(folder)
    assert train_codec(shards, folder / "codec") == 0
    assert train_codec(shards, folder / "other", **{"seed": 1, "trainer.steps": 2}) == 0
    assert train_dalle(shards, folder / "dalle", folder / "codec") == 0
    return folder


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return open_checkpoint(run_dir, "latest").tensors("model")


def assert_same(left: Path, right: Path) -> None:
    theirs = weights(right)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights(left).items())


def test_an_autoencoder_in_parts_is_the_same_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    assert train_codec(folder / "shards", parts, **{"trainer.stop_after": 1}) == 0
    usage = weights(parts)["target.reconstruct.codebook.usage"]
    assert int(usage.sum()) == 4 * CELLS
    assert train_codec(folder / "shards", parts) == 0
    assert_same(folder / "codec", parts)
    # Codes started again at step 2, and are counted since.
    usage = weights(parts)["target.reconstruct.codebook.usage"]
    assert int(usage.sum()) == 2 * 4 * CELLS


@pytest.mark.distributed
def test_codes_are_counted_over_all_processes(folder: Path, tmp_path: Path) -> None:
    def train(run_dir: Path, **keys: Any) -> None:
        keys |= {"init": folder / "other", "trainer.steps": 8, "callbacks.restart_codes.every": 4}
        words = codec_words(folder / "shards", run_dir, parallel="ddp", **keys)
        assert launch(tmp_path / "log", 2, words) == [0, 0], messages(tmp_path / "log")

    train(tmp_path / "parts", **{"trainer.stop_after": 2})
    counted = weights(folder / "other")["target.reconstruct.codebook.usage"].sum()
    usage = weights(tmp_path / "parts")["target.reconstruct.codebook.usage"]
    assert int(usage.sum()) == counted + 2 * 4 * CELLS
    train(tmp_path / "parts")
    # Codes started again at step 4, and are counted since.
    usage = weights(tmp_path / "parts")["target.reconstruct.codebook.usage"]
    assert int(usage.sum()) == 4 * 4 * CELLS


def test_micro_batches_change_nothing(folder: Path, tmp_path: Path) -> None:
    keys = {"trainer.micro_batch_size": 2}
    assert train_codec(folder / "shards", tmp_path / "codec", **keys) == 0
    ours, theirs = weights(tmp_path / "codec"), weights(folder / "codec")
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name].float(), tensor.float(), rtol=1e-3, atol=1e-4)
    assert train_dalle(folder / "shards", tmp_path / "dalle", folder / "codec", **keys) == 0
    pairs = zip(losses(tmp_path / "dalle"), losses(folder / "dalle"), strict=True)
    for cut, whole in pairs:
        assert cut == pytest.approx(whole, rel=0.02)  # dropout is drawn for each micro-batch


def losses(run_dir: Path) -> list[float]:
    return [record["train/loss"] for record in metrics(run_dir) if "train/loss" in record]


def test_d32_dalle_trains_and_evaluation_knows_the_codes(folder: Path) -> None:
    """With placeholders for codes its loss would be that of one entry."""
    record = [r for r in metrics(folder / "dalle") if "eval/image/loss" in r][-1]
    assert record["eval/loss"] == pytest.approx(
        (record["eval/text/loss"] + 7 * record["eval/image/loss"]) / 8
    )
    first = next(r for r in metrics(folder / "dalle") if "train/image/loss" in r)
    assert record["eval/image/loss"] == pytest.approx(first["train/image/loss"], rel=0.2)
    assert record["eval/image/accuracy"] < 1


def test_beit_trains_on_codes_and_goes_on_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    shards, codec = folder / "shards", folder / "codec"
    keys = {"model.encoder.depth_dropout": 0.0}
    assert train_beit(shards, tmp_path / "whole", codec, **keys) == 0
    assert train_beit(shards, tmp_path / "parts", codec, **keys, **{"trainer.stop_after": 3}) == 0
    assert train_beit(shards, tmp_path / "parts", codec, **keys) == 0
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert losses(tmp_path / "whole")[-1] < losses(tmp_path / "whole")[0]


def test_a_run_must_find_the_autoencoder_as_it_was(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codec = tmp_path / "codec"
    codec.symlink_to(folder / "codec")
    keys = {"trainer.stop_after": 2}
    assert train_dalle(folder / "shards", tmp_path / "run", codec, **keys) == 0
    codec.unlink()
    codec.symlink_to(folder / "other")
    assert train_dalle(folder / "shards", tmp_path / "run", codec) == 2
    assert "was trained on other image codes" in capsys.readouterr().err


def generate(folder: Path, output: Path, *words: str) -> int:
    given = [f"checkpoint={folder / 'dalle'}", f"output={output}", *CPU, "temperature=1", *words]
    return main("generate", given)


def test_pictures_are_a_function_of_the_seed(folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red picture\na large blue picture\n")
    grid = [f"input={prompts}", "samples=3"]
    for name, words in {"a": grid, "b": [*grid, "batch_size=2"], "c": [*grid, "seed=1"]}.items():
        assert generate(folder, tmp_path / f"{name}.png", *words) == 0
    first, second, third = (np.array(Image.open(tmp_path / f"{n}.png")) for n in "abc")
    assert first.shape == (2 * SIZE + 2, 3 * SIZE + 4, 3)
    assert (first == second).all()
    assert (first != third).any()
    # One picture is what it is among many, but for how many images a convolution adds up at once.
    assert generate(folder, tmp_path / "one.png", "prompt=a red picture") == 0
    one = np.array(Image.open(tmp_path / "one.png")).astype(int)
    assert abs(one - first[:SIZE, :SIZE]).max() <= 1
    assert (first[:SIZE, :SIZE] != first[:SIZE, SIZE + 2 : 2 * SIZE + 2]).any()


def test_codes_are_written_as_json_lines(folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a red picture"}\n{"prompt": "a picture"}\n')
    words = [f"input={prompts}", "samples=2"]
    assert generate(folder, tmp_path / "codes.jsonl", *words) == 0
    records = [json.loads(line) for line in (tmp_path / "codes.jsonl").read_text().splitlines()]
    assert [(r["line"], r["sample"]) for r in records] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    for record in records:
        assert len(record["codes"]) == CELLS
        assert all(0 <= code < CODES for code in record["codes"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prompt=a"], "output: must name a file that ends in .png or .jsonl"),
        (["prompt=a", "output=a.png", "stop=[x]"], "stop: is for texts, but the model makes"),
        (["prompt=a", "output=a.png", "max_new_tokens=5"], "max_new_tokens: is for texts"),
        (["prompt=a large large large large large large picture", "output=a.png"],
         "prompt 1 has 10 tokens with special ones, but captions were at most 9 in training"),
        (["prompt=a", "output=a.png", "codes=nothing"], "codes: is required: the autoencoder"),
    ],
)  # fmt: skip
def test_what_pictures_cannot_be_is_refused(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code = main("generate", [f"checkpoint={folder / 'dalle'}", *CPU, *words])
    assert code == 2
    assert message in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_autoencoders_learn(folder: Path) -> None:
    records = [r for r in metrics(folder / "codec") if "train/loss" in r]
    values: list[Any] = [r["train/reconstruct/squared_error"] for r in records]
    assert values[-1] < values[0]
    assert all(1 <= r["train/reconstruct/perplexity"] <= CODES for r in records)


AVERAGED = {
    "model.target.reconstruct.decay": 0.5,
    "trainer.max_norm": 0,
    "optim": "sgd",
    "optim.lr": 0.01,
}


def test_codes_that_are_averages_go_on_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    """Of steps in parts and micro-batches, with codes that start again between."""
    shards = folder / "shards"
    assert train_codec(shards, tmp_path / "whole", **AVERAGED) == 0
    assert train_codec(shards, tmp_path / "parts", **AVERAGED, **{"trainer.stop_after": 3}) == 0
    assert train_codec(shards, tmp_path / "parts", **AVERAGED) == 0
    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert train_codec(shards, tmp_path / "cut", **AVERAGED, **{"trainer.micro_batch_size": 1}) == 0
    cut, whole = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    for name, tensor in whole.items():
        torch.testing.assert_close(cut[name].float(), tensor.float(), rtol=1e-4, atol=1e-5)
    start = {"trainer.steps": 1, "callbacks": "null", "model.target.reconstruct.decay": 0.999999}
    assert train_codec(shards, tmp_path / "still", **AVERAGED | start) == 0
    book = "target.reconstruct.codebook.weight"
    assert float((weights(tmp_path / "still")[book] - whole[book]).abs().max()) > 1e-3
    assert all("train/reconstruct/codebook" not in record for record in metrics(tmp_path / "cut"))


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_codes_of_many_processes_are_averages_of_all(
    folder: Path, tmp_path: Path, strategy: str
) -> None:
    keys = AVERAGED | {"parallel": strategy}
    words = codec_words(folder / "shards", tmp_path / "many", **keys)
    assert launch(tmp_path / "log", 2, words) == [0, 0], messages(tmp_path / "log")
    assert train_codec(folder / "shards", tmp_path / "one", **AVERAGED) == 0
    many, one = weights(tmp_path / "many"), weights(tmp_path / "one")
    for name, tensor in one.items():
        if name.endswith(".usage"):
            continue  # each process counts its own
        torch.testing.assert_close(many[name].float(), tensor.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.distributed
def test_d59_many_processes_learn_the_codes_that_one_does(folder: Path, tmp_path: Path) -> None:
    """Each has the autoencoder whole, which nothing shares or wraps."""
    keys = {"model.encoder.depth_dropout": 0.0, "optim": "sgd", "optim.lr": 0.01}
    given = folder / "shards", tmp_path / "many", folder / "codec"
    words = beit_words(*given, **keys, parallel="ddp")
    assert launch(tmp_path / "log", 2, words) == [0, 0], messages(tmp_path / "log")
    assert train_beit(folder / "shards", tmp_path / "one", folder / "codec", **keys) == 0
    many, one = weights(tmp_path / "many"), weights(tmp_path / "one")
    for name, tensor in one.items():
        torch.testing.assert_close(many[name], tensor, rtol=1e-4, atol=1e-6)
