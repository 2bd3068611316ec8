"""Which modules are adapted, what trains, and what cannot be adapted."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.model import Model, build_model, init_weights
from tencentpretrain.train.load import load_weights, state_tensors
from tencentpretrain.train.optim import OPTIMIZERS
from tencentpretrain.wrappers import WRAPPERS, apply_wrappers
from tencentpretrain.wrappers.adapter import AdaptedLinear, AdaptedTable, Adapter, merge
from tests.helpers.adapters import wrapper
from tests.helpers.models import (
    TINY,
    VOCABULARY,
    model_config,
    randomise,
    text_batch,
    tiny_model,
    total_loss,
)

EVERYTHING = ["embedding.*", "encoder.*"]


def untied(**keys: Any) -> Model:
    """A model whose word table is its own."""
    data = model_config("bert/tiny", TINY, keys).to_dict()
    data |= {"ties": {}, "target": {"tag": {"classes": VOCABULARY}}, "objective": None}
    model = build_model(decode(type(model_config("bert/tiny")), data), VOCABULARY)
    randomise(model)
    return model


def adapters(model: torch.nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Adapter)]


def learned(model: Model) -> Model:
    """`model` with factors that change something."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b"):
                parameter.normal_(std=0.3)
    return model


def test_defaults_are_the_published_ones() -> None:
    model = tiny_model("bert/tiny")
    wrapper("moslora").apply(model)
    parts = ("attention.query", "attention.key", "attention.value")
    names = [f"encoder.layers.{n}.{p}" for n in range(2) for p in (*parts, "feed_forward.up")]
    names += [f"encoder.layers.{n}.feed_forward.down" for n in range(2)]
    assert sorted(adapters(model)) == sorted(names)
    update = model.encoder.layers[0].attention.query.update
    assert (update.rank, update.scale, update.dropout) == (16, 2.0, 0.05)
    assert (update.down, update.mixer, update.is_mixer_trained) == ("kaiming", "kaiming", True)
    assert wrapper("lora", rank=4, alpha=6, rank_stabilised=True).config.update().scale == 3.0


def test_base_names_stay_and_only_adapters_and_heads_train() -> None:
    model, plain = tiny_model("bert/tiny"), tiny_model("bert/tiny")
    wrapper("lora", rank=2).apply(model)
    names = [name for name in state_tensors(model) if "lora_" not in name]
    assert names == list(state_tensors(plain))
    load_weights(model, state_tensors(plain), allow_missing=["*.lora_*"])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    heads = {n for n, _ in plain.named_parameters() if n.startswith("target.")}
    factors = {f"{name}.{f}" for name in adapters(model) for f in ("lora_a", "lora_b")}
    assert trained == heads | factors
    # The output layer of the head is the word table, which is no head.
    assert model.target.mlm.output.weight is model.embedding.word.weight
    assert not model.embedding.word.weight.requires_grad


def test_only_what_trains_has_gradients_and_optimiser_state() -> None:
    model = tiny_model("bert/tiny")
    wrapper("moslora", rank=2, trained=["encoder.*norm.*"]).apply(model)
    choice = decode(OPTIMIZERS.config_class("adamw"), {"name": "adamw", "lr": 0.1})
    optimizer = OPTIMIZERS.build(choice)(model)
    total_loss(model(text_batch((6, 4)))).backward()
    optimizer.step()
    names = {id(p): name for name, p in model.named_parameters()}
    stated = {names[id(p)] for p in optimizer.state}
    assert stated == {name for name, p in model.named_parameters() if p.grad is not None}
    assert all("lora_" in name or "norm" in name for name in stated)
    assert any("attention_norm" in name for name in stated)
    assert not any(name.startswith("target.") for name in stated)


def test_what_matched_and_how_much_trains_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("bert/tiny")
    with caplog.at_level(logging.INFO):
        wrapper("lora", rank=2, modules=["encoder.*.query"], trained=[]).apply(model)
    total = sum(p.numel() for p in model.parameters())
    assert "lora: 2 modules with updates of rank 2 (encoder.layers.*.attention.query)" in (
        caplog.text
    )
    assert f"128 of {total:,} parameters train" in caplog.text


def test_patterns_that_match_nothing_are_named_together() -> None:
    with pytest.raises(ConfigError) as caught:
        wrapper("lora", modules=["encoder.layers.*.attention.qeury", "*.value", "up"]).apply(
            tiny_model("bert/tiny")
        )
    first, second = caught.value.problems
    assert first.path == second.path == "wrappers.lora.modules"
    assert "did you mean `encoder.layers.*.attention.query`?" in first.message
    assert "`up` matches no linear layer or embedding part" in second.message
    with pytest.raises(ConfigError, match=r"trained: `embedding\.nrm\.\*` matches no parameter"):
        wrapper("lora", trained=["embedding.nrm.*"]).apply(tiny_model("bert/tiny"))
    # A frozen weight beside an update is not a further parameter, but its bias is.
    with pytest.raises(ConfigError, match="trained"):
        wrapper("lora", trained=["*.query.weight"]).apply(tiny_model("bert/tiny"))
    model = tiny_model("bert/tiny")
    wrapper("lora", trained=["*.query.bias"]).apply(model)
    assert model.encoder.layers[0].attention.query.bias.requires_grad


@pytest.mark.parametrize("modules", [["target.nsp.dense"], ["*.output"]])
def test_heads_are_not_adapted(modules: list[str]) -> None:
    model = tiny_model("bert/tiny")
    if modules == ["*.output"]:
        wrapper("lora", modules=modules).apply(model)
        assert all(name.startswith("encoder.") for name in adapters(model))
        return
    with pytest.raises(ConfigError, match=r"matches no linear layer"):
        wrapper("lora", modules=modules).apply(model)


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("dora", {"mixer": "kaiming"}, "mixer: is not a known key"),
        ("lora", {"mixer": "kaiming"}, "mixer: is not a known key"),
        ("moslora", {"mixer": "zeros"}, "allow_dead_init=true"),
        ("moslora", {"mixer": "butterfly", "rank": 5}, "rank must be even"),
        ("moslora", {"mixer": "ortogonal"}, "did you mean `orthogonal`"),
        ("lora", {"modules": []}, "at least one pattern"),
        ("lora", {"rank": 0}, "rank: must be > 0"),
        ("lora", {"dropout": 1.0}, "dropout: must be < 1"),
    ],
)
def test_wrong_keys_are_refused(name: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        decode(WRAPPERS.config_class(name), {"name": name, **keys})


@pytest.mark.parametrize("name", ["moslora", "dora"])
def test_tables_learn_plain_updates_only(name: str) -> None:
    with pytest.raises(ConfigError, match="tables can be adapted by name=lora only"):
        wrapper(name, modules=["embedding.position"]).apply(tiny_model("bert/tiny"))


def test_a_tied_weight_is_not_adapted() -> None:
    message = r"`embedding\.word` is that of `target\.mlm\.output\.weight`, too"
    with pytest.raises(ConfigError, match=message):
        wrapper("lora", modules=["embedding.word"]).apply(tiny_model("bert/tiny"))


@pytest.mark.parametrize("name", ["lora", "moslora", "dora"])
def test_a_model_merges_and_folds(name: str) -> None:
    model = untied().eval()
    chosen = wrapper(name, rank=3, modules=EVERYTHING if name == "lora" else ["encoder.*"])
    start = model(text_batch((6, 4), ("tag",))).losses["tag"].total
    chosen.apply(model)
    assert torch.equal(model(text_batch((6, 4), ("tag",))).losses["tag"].total, start)
    learned(model)
    batch = text_batch((6, 4), ("tag",))
    before = model.encode(batch).hidden.states
    plain = untied().eval()
    load_weights(plain, chosen.fold(state_tensors(model)))
    torch.testing.assert_close(plain.encode(batch).hidden.states, before, atol=1e-5, rtol=0)
    merge(model)
    torch.testing.assert_close(model.encode(batch).hidden.states, before, atol=1e-5, rtol=0)
    assert not torch.allclose(before, untied().eval().encode(batch).hidden.states, atol=1e-2)


def test_d46_tables_are_adapted_and_merge_in_the_right_orientation() -> None:
    model = untied().eval()
    wrapper("lora", rank=2, modules=["embedding.*"]).apply(learned(model))
    learned(model)
    table = model.embedding.word
    assert isinstance(table, AdaptedTable)
    batch = text_batch((5,), ("tag",))
    ids = batch.streams["src"].inputs["ids"]
    weight = table.weight + table.update.scale * table.lora_b @ table.lora_a
    found = table(batch.streams["src"], batch.streams["src"].layout)
    torch.testing.assert_close(found, weight[ids])
    assert adapters(model) == ["embedding.word", "embedding.position", "embedding.segment"]
    assert copy.deepcopy(model).train() is not None  # `train` of the original returned nothing
    model(batch).losses["tag"].total.backward()
    for name in adapters(model):
        assert bool(model.get_submodule(name).lora_b.grad.any())
        assert model.get_submodule(name).weight.grad is None


def test_every_adapter_of_a_stack_is_used() -> None:
    model = untied(encoder={"gated": True, "layers": 2})
    wrapper("lora", rank=2, modules=["encoder.*"], dropout=0.0).apply(model)
    learned(model)
    model(text_batch((6, 4), ("tag",))).losses["tag"].total.backward()
    assert len(adapters(model)) == 2 * 7
    for name in adapters(model):
        assert bool(model.get_submodule(name).lora_a.grad.any()), name


def test_d44_keys_and_values_of_fewer_heads_are_adapted() -> None:
    model = untied(encoder={"heads": 4, "kv_heads": 2, "layers": 1})
    wrapper("lora", rank=2).apply(model)
    key = model.encoder.layers[0].attention.key
    assert isinstance(key, AdaptedLinear)
    assert key.lora_b.shape == (8, 2)
    learned(model)
    model(text_batch((6, 4), ("tag",))).losses["tag"].total.backward()
    assert bool(key.lora_a.grad.any())


def test_a_shared_block_is_adapted_once() -> None:
    model = tiny_model("albert/base", {"embedding": {"size": 8}})
    wrapper("lora", rank=2, modules=["encoder.*", "embedding.projection"]).apply(model)
    assert len(adapters(model)) == 7
    assert "embedding.projection" in adapters(model)


def test_two_wrappers_share_a_model() -> None:
    model = tiny_model("bert/tiny")
    configs = {
        "attention": wrapper("lora", rank=4, modules=["*.query"], trained=["*.norm.*"]).config,
        "feed_forward": wrapper("dora", rank=2, modules=["*.up"], trained=["target.*"]).config,
    }
    both = apply_wrappers(configs, learned(model), seed=3)
    learned(model).eval()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {"encoder.layers.0.attention.query.lora_a", "embedding.norm.weight"} < trained
    assert {"encoder.layers.1.feed_forward.up.lora_magnitude", "target.nsp.dense.bias"} < trained
    assert "encoder.layers.0.feed_forward.up.weight" not in trained
    tensors = state_tensors(model)
    for one in reversed(both):
        tensors = one.fold(tensors)
    plain = tiny_model("bert/tiny").eval()
    load_weights(plain, tensors)
    batch = text_batch((6, 4))
    torch.testing.assert_close(plain.encode(batch).hidden.states, model.encode(batch).hidden.states)
    with pytest.raises(ConfigError, match="has an update of another wrapper already"):
        wrapper("lora", modules=["*.query"]).apply(model)


def test_d5_a_build_without_values_is_filled() -> None:
    config = model_config("bert/tiny", TINY)
    model = build_model(config, VOCABULARY, "meta")
    wrapper("moslora", rank=4).apply(model)
    assert all(p.is_meta for p in model.parameters())
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    init_weights(model, config.init)
    direct = build_model(config, VOCABULARY)
    wrapper("moslora", rank=4).apply(direct)
    for name, parameter in model.named_parameters():
        assert bool(parameter.isfinite().all())
        if "lora_" in name:
            assert torch.equal(parameter, direct.get_parameter(name))
    assert not model.encoder.layers[0].attention.query.lora_b.any()
    assert not model.encoder.layers[0].attention.query.weight.requires_grad


@pytest.mark.parametrize("name", ["lora", "moslora", "dora"])
def test_lower_precision_changes_little(name: str) -> None:
    model = untied().eval()
    wrapper(name, rank=4).apply(model)
    learned(model)
    batch = text_batch((6, 4), ("tag",))
    exact = model(batch).losses["tag"].total
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(batch).losses["tag"].total
    assert abs(rough.item() / exact.item() - 1) < 0.05
    rough.backward()
    assert all(p.grad.dtype == torch.float32 for n, p in model.named_parameters() if "lora_" in n)
