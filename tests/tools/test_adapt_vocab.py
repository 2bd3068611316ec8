from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tencentpretrain.model import Model
from tencentpretrain.tokenizers.base import Tokenizer
from tencentpretrain.train.saved_checkpoint import open_checkpoint
from tencentpretrain.types import Batch, Layout, Stream
from tests.helpers.models import model_data
from tests.helpers.pretraining import pretrain, write_shards
from tests.helpers.saved_models import SPECIALS, call, reopen
from tests.tasks import toy

TEXT = "the film was seen in a house by night"
NEW = ("comet", "harbour", "##ness")
GPT2 = model_data(
    "gpt2/tiny",
    {"hidden": 32, "encoder": {"layers": 2, "heads": 2, "ffn": 64}, "objective": {"length": 64}},
    {"embedding": {"parts": {"position": {"length": 64}}}, "target": {"lm": {"bias": True}}},
)


def vocabulary(folder: Path, specials: Sequence[str] = SPECIALS) -> Path:
    """The toy vocabulary in another order, without some entries and with others."""
    kept = [word for word in toy.VOCABULARY[5:][::-1] if word not in ("rome", "paris")]
    path = folder / "new.txt"
    toy.write(path, [NEW[0], *specials, *kept[:9], *NEW[1:], *kept[9:]])
    return path


def adapt(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    data: dict[str, Any],
    specials: Sequence[str] = SPECIALS,
    **keys: Any,
) -> tuple[str, Path]:
    """What is printed, and the directory that is written."""
    toy.save_run(folder / "run", data)
    given = {"checkpoint": folder / "run", "tokenizer": "wordpiece", "output": folder / "new"}
    given |= {"tokenizer.vocab": vocabulary(folder, specials), **keys}
    code, out, _ = call(capsys, "adapt_vocab", **given)
    assert code == 0
    return out, folder / "new"


def states(model: Model, tokenizer: Tokenizer, text: str) -> torch.Tensor:
    start, end = tokenizer.require("cls"), tokenizer.require("sep")
    ids = torch.tensor([[start, *tokenizer.encode(text), end]])
    layout = Layout.of(torch.ones_like(ids, dtype=torch.bool))
    with torch.no_grad():
        return model.encode(Batch({"src": Stream({"ids": ids}, layout)})).hidden.states


@pytest.mark.parametrize("data", [toy.MODEL, {**toy.MODEL, "vocabulary": 64}, GPT2])
def test_old_entries_give_equal_states_and_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: dict[str, Any]
) -> None:
    out, path = adapt(capsys, tmp_path, data)
    old, before, _ = reopen(tmp_path / "run")
    new, after, config = reopen(path)
    assert config["model"]["vocabulary"] is None
    assert after.encode(TEXT) != before.encode(TEXT)
    assert torch.equal(states(old, before, TEXT), states(new, after, TEXT))
    name = next(iter(config["model"]["target"]))
    heads = (old.target[name].output, new.target[name].output)
    for number in range(after.vocab_size):
        place = before.id(after.token(number))
        if place is None:
            assert after.token(number) in NEW
            continue
        assert torch.equal(heads[0].weight[place], heads[1].weight[number])
        assert torch.equal(heads[0].bias[place], heads[1].bias[number])
    total = len(toy.VOCABULARY)
    assert f"{total}, of which {total - 2} are kept" in out
    assert f"{total + 1}, of which 3 start anew\n" in out
    assert "embedding.word.weight" in out
    assert f"target.{name}.output.bias" in out


def test_new_entries_start_as_the_mean_or_at_random(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for kind in ("mean", "random", "other"):
        (tmp_path / kind).mkdir()
        start = "mean" if kind == "mean" else "random"
        keys = {"new_entries": start, "seed": 3 if kind == "other" else 0}
        model, tokenizer, _ = reopen(adapt(capsys, tmp_path / kind, toy.MODEL, **keys)[1])
        ids = [tokenizer.id(entry) for entry in NEW]
        table = model.embedding.get_parameter("word.weight")
        found[kind] = (table[ids], model.target["mlm"].output.bias[ids])
    old = reopen(tmp_path / "mean" / "run")[0]
    mean = old.embedding.get_parameter("word.weight").mean(0)
    torch.testing.assert_close(found["mean"][0], mean.expand(3, -1))
    torch.testing.assert_close(
        found["mean"][1], old.target["mlm"].output.bias.mean().expand(3), rtol=0, atol=1e-7
    )
    assert 0.01 < found["random"][0].std() < 0.03
    assert not found["random"][0][0].equal(found["random"][0][1])
    assert not found["random"][0].equal(found["other"][0])
    assert found["random"][1].tolist() == [0.0] * 3


def test_special_tokens_keep_the_row_of_their_role(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    roles = {"pad": "<pad>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
    keys = {f"tokenizer.specials.{role}": name for role, name in roles.items()}
    out, path = adapt(capsys, tmp_path, toy.MODEL, ["[UNK]", *roles.values()], **keys)
    old, before, _ = reopen(tmp_path / "run")
    new, after, _ = reopen(path)
    assert torch.equal(states(old, before, TEXT), states(new, after, TEXT))
    tables = [model.embedding.get_parameter("word.weight") for model in (old, new)]
    for role in roles:
        assert torch.equal(tables[0][before.require(role)], tables[1][after.require(role)])
    for pair in ("[PAD] -> <pad>", "[CLS] -> <s>", "[SEP] -> </s>", "[MASK] -> <mask>"):
        assert pair in out


def test_an_adapted_model_trains_on_its_new_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_shards(tmp_path / "data", words=20)
    assert pretrain(first, tmp_path / "run", **{"trainer.steps": 1}) == 0
    second = write_shards(tmp_path / "data", words=30, order=-1)
    keys = {"init": tmp_path / "run", "trainer.steps": 1}
    assert pretrain(second, tmp_path / "wrong", **keys) == 2
    assert "another tokenizer" in capsys.readouterr().err
    vocab = tmp_path / "data" / "vocab30.txt"
    given: dict[str, Any] = {"tokenizer": "wordpiece", "tokenizer.vocab": vocab}
    given |= {"checkpoint": tmp_path / "run", "output": tmp_path / "new"}
    assert call(capsys, "adapt_vocab", **given)[0] == 0
    assert pretrain(second, tmp_path / "right", **keys | {"init": tmp_path / "new"}) == 0
    assert "optimizer.safetensors" not in open_checkpoint(tmp_path / "new").manifest.files


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"checkpoint": "nowhere"}, "checkpoint `nowhere` does not exist"),
        ({"tokenizer.vocab": "nowhere.txt"}, "nowhere.txt does not exist"),
        ({"output": "old"}, "`old` exists"),
        ({"new_entries": "zero"}, "new_entries: must be one of mean or random"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    keys: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").mkdir()
    toy.save_run(tmp_path / "run", toy.MODEL)
    given = {"checkpoint": "run", "tokenizer": "wordpiece", "output": "new"}
    given |= {"tokenizer.vocab": str(vocabulary(tmp_path)), **keys}
    code, out, errors = call(capsys, "adapt_vocab", **given)
    assert (code, out, len(errors)) == (2, "", 1)
    assert message in errors[0]
