"""Every model that is shipped: it is valid, has its published size, and trains when shrunk."""

import re
from typing import Any, NamedTuple

import pytest
from torch import Tensor

from tencentpretrain.compose import compose
from tencentpretrain.config import decode
from tencentpretrain.model import ModelConfig, build_model, parameter_count
from tencentpretrain.model_files import families, find_model, model_names
from tencentpretrain.train.optim import OPTIMIZERS
from tests.helpers.models import MODELS, TINY, model_config, total_loss
from tests.helpers.objectives import objective
from tests.helpers.shards import SPECIALS, random_shards


class Published(NamedTuple):
    """What the sources say: entries, parameters in millions, width, layers, heads."""

    vocabulary: int
    millions: float
    hidden: int
    layers: int
    heads: int
    tolerance: float = 0.005


PUBLISHED = {
    "albert/base": Published(30000, 12, 768, 12, 12, 0.02),
    "albert/large": Published(30000, 18, 1024, 24, 16, 0.01),
    "albert/xlarge": Published(30000, 60, 2048, 24, 16, 0.02),
    # The paper counts 235; its released weights hold 223.
    "albert/xxlarge": Published(30000, 223, 4096, 12, 64),
    "bert/tiny": Published(30522, 4.4, 128, 2, 2, 0.01),
    "bert/mini": Published(30522, 11.3, 256, 4, 4),
    "bert/small": Published(30522, 29.1, 512, 4, 8),
    "bert/medium": Published(30522, 41.7, 512, 8, 8),
    "bert/base": Published(30522, 110.106428, 768, 12, 12, 1e-9),
    "bert/large": Published(30522, 336.226108, 1024, 24, 16, 1e-9),
    "bert/xlarge": Published(21128, 1057.9, 1536, 36, 24),
    "bert_wwm/base": Published(21128, 102.882442, 768, 12, 12, 1e-9),
    "bert_wwm/large": Published(21128, 326, 1024, 24, 16),
    "distilbert/base": Published(30522, 66.985530, 768, 6, 12, 1e-9),
    "gpt2/tiny": Published(50257, 6.86, 128, 2, 2),
    "gpt2/mini": Published(50257, 30.04, 384, 6, 6),
    "gpt2/distil": Published(50257, 81.912576, 768, 6, 12, 1e-9),
    "gpt2/small": Published(50257, 124.439808, 768, 12, 12, 1e-9),
    "gpt2/medium": Published(50257, 354.823168, 1024, 24, 16, 1e-9),
    "gpt2/large": Published(50257, 774.030080, 1280, 36, 20, 1e-9),
    "gpt2/xlarge": Published(50257, 1557.611200, 1600, 48, 25, 1e-9),
    "megatron/bert_3.9b": Published(30522, 3900, 2560, 48, 40, 0.01),
    "megatron/gpt2_8.3b": Published(50257, 8300, 3072, 72, 24),
    "minilm/l6-h384": Published(30522, 22.7, 384, 6, 12),
    "minilm/l12-h384": Published(30522, 33.4, 384, 12, 12),
    "roberta/tiny": Published(50265, 6.96, 128, 2, 2),
    "roberta/mini": Published(50265, 16.3, 256, 4, 4),
    "roberta/distil": Published(50265, 82, 768, 6, 12),
    # The released tables hold three more rows: two unused positions and the only segment.
    "roberta/base": Published(50265, 124.697433 - 3 * 768e-6, 768, 12, 12, 1e-9),
    "roberta/large": Published(50265, 355.412057 - 3 * 1024e-6, 1024, 24, 16, 1e-9),
    "xlm_r/base": Published(250002, 278.295186 - 3 * 768e-6, 768, 12, 12, 1e-9),
    "xlm_r/large": Published(250002, 560.142482 - 3 * 1024e-6, 1024, 24, 16, 1e-9),
}
NAMES = model_names([MODELS])
ONE_OF_EACH = [f"{family}/{sizes[0]}" for family, sizes in families(NAMES).items()]
ONE_OF_EACH += ["megatron/gpt2_8.3b"]


def every_model(function: Any) -> Any:
    return pytest.mark.parametrize("name", NAMES)(function)


def count(config: ModelConfig, vocabulary: int) -> int:
    """Parameters by arithmetic, from the sizes alone."""
    encoder: Any = config.encoder
    d, f = config.hidden, encoder.ffn or 4 * config.hidden
    e = config.embedding.size or d
    parts: Any = config.embedding.parts
    rows = vocabulary + parts["position"].length + (2 if "segment" in parts else 0)
    total = rows * e + (2 * e if config.embedding.norm == "layer" else 0)
    total += e * d + d if e != d else 0
    block = 4 * (d * d + d) + (d * f + f) + (f * d + d) + 2 * 2 * d
    total += block * (1 if encoder.share_blocks else encoder.layers)
    total += 2 * d if encoder.norm_order == "pre" else 0
    for name in config.target:
        if name == "mlm":
            total += d * e + e + 2 * e + vocabulary
        elif name in ("nsp", "sop"):
            total += d * d + d + 2 * d + 2
    return total


def test_every_model_is_known_here_and_there_are_enough() -> None:
    assert set(NAMES) == set(PUBLISHED)
    assert len(NAMES) >= 24
    fixed = {"bert": ["tiny", "mini", "small", "medium", "base", "large"]}
    fixed["gpt2"] = ["tiny", "small", "medium", "large", "xlarge"]
    for family, sizes in fixed.items():
        assert {f"{family}/{size}" for size in sizes} <= set(NAMES)


@every_model
def test_sizes_and_parameter_counts_are_the_published_ones(name: str) -> None:
    published, config = PUBLISHED[name], model_config(name)
    encoder: Any = config.encoder
    sizes = (config.hidden, encoder.layers, encoder.heads)
    assert sizes == (published.hidden, published.layers, published.heads)
    parameters = parameter_count(build_model(config, published.vocabulary, "meta"))
    assert parameters == count(config, published.vocabulary)
    assert parameters / 1e6 == pytest.approx(published.millions, rel=published.tolerance)


@every_model
def test_the_first_line_says_what_it_is_with_count_and_source(name: str) -> None:
    line = find_model(name, [MODELS]).read_text(encoding="utf-8").splitlines()[0]
    found = re.fullmatch(
        r"# .+: ([\d.]+) ([MB]) parameters with ([\d,]+) entries.* \(.*\d{4}.*\)\.", line
    )
    assert found, line
    millions = float(found[1]) * (1000 if found[2] == "B" else 1)
    vocabulary = int(found[3].replace(",", ""))
    assert vocabulary == PUBLISHED[name].vocabulary
    assert millions == pytest.approx(count(model_config(name), vocabulary) / 1e6, rel=0.01)


@every_model
def test_a_config_is_rebuilt_from_its_plain_data(name: str) -> None:
    config = model_config(name)
    assert decode(ModelConfig, config.to_dict()) == config


@every_model
def test_output_layers_are_tied_to_the_word_table(name: str) -> None:
    model = build_model(model_config(name), 100, "meta")
    target = model.target["lm" if "lm" in model.target.weights else "mlm"]
    assert target.get_submodule("output").weight is model.embedding.get_parameter("word.weight")


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_command_line_composes_the_same(name: str) -> None:
    composed = compose("pretrain", [f"model={name}"])
    assert not composed.problems
    assert decode(ModelConfig, composed.data["model"]) == model_config(name)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_shrunk_models_train_on_their_own_objective(name: str) -> None:
    small = {"embedding": {"parts": {"position": {"length": 32}}}, "objective": {"length": 32}}
    narrow = {"embedding": {"size": 8}} if name.startswith("albert") else {}
    config = model_config(name, TINY, small, narrow)
    assert config.objective is not None
    shards = random_shards(8)
    values = config.objective.model_dump(exclude={"name"})
    made = objective(config.objective.name, shards, **values)
    model = build_model(config, shards.tokens + SPECIALS).train()
    optimizer = OPTIMIZERS.build(decode(OPTIMIZERS.config_class("adamw"), {"name": "adamw"}))(model)
    batch = made.collate([made.make(0, index) for index in range(len(made))])
    assert set(batch.labels) == set(config.target)
    losses: list[Tensor] = []
    for _ in range(2):
        losses.append(total_loss(model(batch)).detach())
        total_loss(model(batch)).backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert float(losses[1]) != float(losses[0])


KEYS: dict[str, dict[str, Any]] = {
    "bert": {"norm_order": "post", "norm_eps": 1e-12, "activation": "gelu", "dropout": 0.1},
    "roberta": {"norm_order": "post", "norm_eps": 1e-5, "activation": "gelu", "dropout": 0.1},
    "albert": {
        "norm_order": "post",
        "norm_eps": 1e-12,
        "activation": "gelu_tanh",
        "dropout": 0.0,
        "share_blocks": True,
    },
    "gpt2": {
        "norm_order": "pre",
        "norm_eps": 1e-5,
        "activation": "gelu_tanh",
        "dropout": 0.1,
        "mask": "causal",
    },
}


@pytest.mark.parametrize("family", KEYS)
def test_families_have_their_published_hyperparameters(family: str) -> None:
    for name in (name for name in NAMES if name.startswith(f"{family}/")):
        config = model_config(name)
        encoder = config.encoder.model_dump()
        assert {key: encoder[key] for key in KEYS[family]} == KEYS[family]
        assert config.embedding.dropout == encoder["dropout"]
        assert config.init.std == 0.02
        assert config.init.scale_residual == (family == "gpt2")
        if "mlm" in config.target:
            mlm = config.target["mlm"].model_dump()
            assert mlm["norm_eps"] == encoder["norm_eps"] == config.embedding.norm_eps
            assert mlm["activation"] == encoder["activation"]
