"""Every model that is shipped: it is valid, has its published size, and trains when shrunk."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tencentpretrain.compose import compose
from tencentpretrain.config import ConfigError, decode
from tencentpretrain.data.objectives import OBJECTIVES
from tencentpretrain.model import ModelConfig, build_model, parameter_count
from tencentpretrain.model_files import families, find_model, model_names
from tencentpretrain.train.optim import OPTIMIZERS
from tencentpretrain.types import Batch
from tests.helpers.denoise import denoising
from tests.helpers.images import FakeImages, picture
from tests.helpers.models import MODELS, model_config, total_loss
from tests.helpers.objectives import objective
from tests.helpers.pictures import class_folders, media_shards
from tests.helpers.records import WORDS, record_objective, record_shards, some_pairs, vocabulary
from tests.helpers.shards import FakeTokenizer, random_shards
from tests.helpers.sounds import spoken_shards
from tests.helpers.zoo import PUBLISHED, count, shipped, shrunk

NAMES = model_names([MODELS])
ONE_OF_EACH = [f"{family}/{sizes[0]}" for family, sizes in families(NAMES).items()]
ONE_OF_EACH += ["megatron/gpt2_8.3b", "mistral/7b_v0.3", "t5/3b", "llama2/70b", "qwen2/7b"]
WORD, TARGET_WORD = "embedding.word.weight", "target_embedding.word.weight"
LM, MLM = "target.lm.output.weight", "target.mlm.output.weight"
UNTIED = {"beit", "mae", "vit", "vqvae", "clip", "elmo", "gated_cnn", "rnn", "sbert", "siamese"}
UNTIED |= {"llama", "llama2", "llama3", "llama3_1", "mistral", "qwen2/7b", "qwen3/8b"}
every_model = pytest.mark.parametrize("name", NAMES)
INHERITING = ["bert_wwm/base", "distilbert/base", "gpt2/tiny", "llama3_1/8b", "llama3_2/1b"]
INHERITING += ["megatron/gpt2_8.3b", "mistral/7b_v0.1", "t5_v1_1/small", "transformer/big"]
each_kind = pytest.mark.parametrize("name", ONE_OF_EACH)


@cache
def built(name: str) -> tuple[int, set[frozenset[str]]]:
    """Parameters of the model `name` with its published entries, and which names share one."""
    model = build_model(shipped(name), PUBLISHED[name].vocabulary, "meta")
    owners: dict[Tensor, set[str]] = {}
    for owner, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter, set()).add(owner)
    return parameter_count(model), {frozenset(names) for names in owners.values() if len(names) > 1}


def test_every_model_is_known_here_and_there_are_enough() -> None:
    assert set(NAMES) == set(PUBLISHED)
    fixed = {"bert": ["tiny", "mini", "small", "medium", "base", "large"]}
    fixed["gpt2"] = ["tiny", "small", "medium", "large", "xlarge"]
    fixed["t5"] = ["small", "base", "large", "3b", "11b"]
    fixed["t5_v1_1"] = ["small", "base", "large", "xlarge", "xxlarge"]
    fixed |= {"bart": ["base", "large"], "pegasus": ["base", "large"]}
    fixed |= {"transformer": ["base", "big"], "sbert": ["base", "large"]}
    fixed |= {"llama": ["7b", "13b", "33b", "65b"], "llama2": ["7b", "13b", "70b"]}
    fixed |= {"llama3": ["8b", "70b"], "llama3_2": ["1b", "3b"], "mistral": ["7b_v0.1"]}
    fixed |= {"bloom": ["1b1", "7b1", "176b"], "modernbert": ["base", "large"]}
    fixed |= {"qwen2": ["0.5b", "1.5b", "7b"], "qwen3": ["0.6b", "1.7b", "4b", "8b"]}
    fixed["vit"] = ["tiny", "small", "base_16", "base_32", "large_16", "large_32", "huge_14"]
    fixed |= {"beit": ["base", "large"], "mae": ["base_16", "large_16", "huge_14"]}
    fixed |= {"clip": ["base_16", "base_32", "large_14"], "vilt": ["base"], "dalle": ["base"]}
    fixed |= {"talk2face": ["base"], "s2t": ["small", "medium", "large"]}
    fixed["whisper"] = ["tiny", "base", "small", "medium", "large", "large_v3"]
    assert {f"{family}/{size}" for family in fixed for size in fixed[family]} <= set(NAMES)


@every_model
def test_sizes_and_parameter_counts_are_the_published_ones(name: str) -> None:
    published, config = PUBLISHED[name], shipped(name)
    below = published.decoder_layers or published.layers
    for stack, layers in ((config.encoder, published.layers), (config.decoder, below)):
        if stack is not None:
            keys: Any = stack
            sizes = (config.hidden, getattr(keys, "layers", 0), getattr(keys, "heads", 0))
            assert sizes == (published.hidden, layers, published.heads)
    parameters, _ = built(name)
    assert parameters == count(config, published.vocabulary)
    assert parameters / 1e6 == pytest.approx(published.millions, rel=published.tolerance)


@pytest.mark.parametrize(
    ("name", "vocabulary", "millions", "tolerance"),
    [
        ("pegasus/base", 32000, 223, 0.005),
        ("transformer/base", 37000, 65, 0.03),
        ("transformer/big", 37000, 213, 0.01),
        ("bloom/176b", 250880, 176247, 0.005),
        ("t5/base", 32128, 220, 0.02),
        ("t5/small", 32128, 60, 0.02),
        ("modernbert/base", 50368, 149, 0.005),
        ("modernbert/large", 50368, 395, 0.005),
    ],
)
def test_papers_count_the_same(
    name: str, vocabulary: int, millions: float, tolerance: float
) -> None:
    """The Transformer of the paper has one table for both languages."""
    ties = {TARGET_WORD: WORD} if name.startswith("transformer/") else {}
    config = model_config(name, {"ties": ties})
    assert count(config, vocabulary) / 1e6 == pytest.approx(millions, rel=tolerance)


@every_model
def test_the_first_line_says_what_it_is_with_count_and_source(name: str) -> None:
    line = find_model(name, [MODELS]).read_text(encoding="utf-8").splitlines()[0]
    found = re.fullmatch(
        r"# .+: ([\d.]+) ([MB]) parameters( with ([\d,]+) (entries.*|classes))? \(.*\d{4}.*\)\.",
        line,
    )
    assert found, line
    millions = float(found[1]) * (1000 if found[2] == "B" else 1)
    has_entries = found[3] is not None and found[5] != "classes"
    vocabulary = int(found[4].replace(",", "")) if has_entries else 1
    assert vocabulary == PUBLISHED[name].vocabulary
    assert millions == pytest.approx(count(shipped(name), vocabulary) / 1e6, rel=0.01)


@every_model
def test_a_config_is_rebuilt_from_its_plain_data(name: str) -> None:
    assert decode(ModelConfig, shipped(name).to_dict()) == shipped(name)


@every_model
def test_tables_of_words_are_shared_as_published(name: str) -> None:
    family = name.split("/")[0]
    expected = {frozenset({WORD, MLM if "mlm" in shipped(name).target else LM})}
    if {family, name} & UNTIED:
        expected = set()
    elif family in ("t5", "bart", "pegasus"):
        expected = {frozenset({WORD, TARGET_WORD, LM})}
    elif family == "t5_v1_1":
        expected = {frozenset({WORD, TARGET_WORD})}
    elif family in ("dalle", "talk2face"):
        expected = {frozenset({"target.text.output.weight", "target.image.output.weight"})}
    elif family == "vilt":
        expected = {frozenset({"embedding.concat.embeddings.text.word.weight", MLM})}
    elif family in ("transformer", "s2t", "whisper"):
        expected = {frozenset({TARGET_WORD, LM})}
    _, shared = built(name)
    assert shared == expected


@pytest.mark.parametrize("name", INHERITING)
def test_the_command_line_composes_the_same(name: str) -> None:
    composed = compose("pretrain", [f"model={name}"])
    assert not composed.problems
    assert decode(ModelConfig, composed.data["model"]) == shipped(name)


def own_batch(config: ModelConfig, folder: Path) -> tuple[Batch, int, int]:
    """A batch of the objective of `config`, and the entries of both its vocabularies."""
    assert config.objective is not None
    name, values = config.objective.name, config.objective.model_dump(exclude={"name"})
    if name == "image":
        shards = media_shards(folder / "shards", class_folders(folder / "pictures", 3))
        made = OBJECTIVES.build(config.objective, shards, None, 0)
        sizes = (1, 1)
    elif hasattr(config.objective, "transform"):
        captions = [[20 + number, 30, 31] for number in range(6)]
        images = FakeImages(captions, [picture(number) for number in range(6)])
        made = objective(name, images, FakeTokenizer(40), **values)
        sizes = (made.tokenizer.vocab_size,) * 2
    elif name == "s2t":
        shards = spoken_shards(folder, ["low", "a", "higher"])
        made = record_objective(name, shards, **values | {"overlong": "cut"})
        sizes = (shards.tokenizer().vocab_size,) * 2
    elif name not in ("translate", "pairs"):
        made = denoising(name, random_shards(8), **values)
        sizes = (made.tokenizer.vocab_size,) * 2
    else:
        other = {"name": "space", "vocab": str(vocabulary(folder, "other", WORDS))}
        keys = {"target_tokenizer": other} if name == "translate" else {}
        shards = record_shards(folder, "pair", some_pairs([(9, 5), (3, 7), (6, 2)]), **keys)
        made = record_objective(name, shards, **values)
        sizes = shards.tokenizer().vocab_size, shards.target_tokenizer().vocab_size
    return made.collate([made.make(0, index) for index in range(len(made))]), *sizes


@each_kind
def test_d52_shrunk_models_train_on_their_own_objective(name: str, tmp_path: Path) -> None:
    config = shrunk(name)
    batch, entries, target_entries = own_batch(config, tmp_path)
    model = build_model(config, entries, target_vocabulary=target_entries).train()
    optimizer = OPTIMIZERS.build(decode(OPTIMIZERS.config_class("adamw"), {"name": "adamw"}))(model)
    assert set(batch.labels) == set(config.target) - {"contrast", "reconstruct"}
    assert ("tgt" in batch.streams) == (config.decoder is not None)
    losses: list[Tensor] = []
    for _ in range(2):
        losses.append(total_loss(model(batch)).detach())
        total_loss(model(batch)).backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert float(losses[1]) != float(losses[0])


def test_translation_has_a_table_for_each_language() -> None:
    model = build_model(shipped("transformer/base"), 50, "meta", target_vocabulary=70)
    assert model.get_parameter(WORD).shape == (50, 512)
    assert model.get_parameter(LM).shape == (70, 512)


@pytest.mark.parametrize(
    ("name", "objective", "message"),
    [
        ("bart/base", {"target_length": 1025}, r"objective.target_length must be at most "
         r"target_embedding.parts.position.length=1024, but is 1025"),
        ("bart/base", {"length": 1025, "target_length": 1025}, r"objective.length must be at most "
         r"embedding.parts.position.length=1024, but is 1025"),
        ("gpt2/small", {"name": "t5"}, r"objective.name=t5 .* needs a decoder"),
        ("pegasus/base", {"name": "lm"}, r"objective.name=lm .* which the decoder reads"),
    ],
)  # fmt: skip
def test_objectives_that_do_not_fit_a_decoder_are_refused(
    name: str, objective: dict[str, Any], message: str
) -> None:
    data = model_config(name).to_dict()
    changed = objective if "name" in objective else data["objective"] | objective
    with pytest.raises(ConfigError, match=message):
        decode(ModelConfig, data | {"objective": changed})
