"""Adapters of `peft` and ours compute the same, in both directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tencentpretrain.cli import main
from tencentpretrain.config import decode
from tencentpretrain.convert.weights import open_weights, read_json
from tencentpretrain.model import Model, ModelConfig, build_model
from tencentpretrain.tools.outputs import write_model
from tencentpretrain.train.base import BASE, Base, model_tensors, plain_tensors, saved_wrappers
from tencentpretrain.train.load import load_weights, state_tensors
from tencentpretrain.train.saved_checkpoint import open_checkpoint
from tencentpretrain.train.source import saved_config
from tencentpretrain.train.tensor_file import write_tensors
from tencentpretrain.wrappers.adapter import Adapter
from tests.helpers.adapters import wrapper
from tests.helpers.models import total_loss
from tests.helpers.reference import MODELS, inputs, reference, save

peft = pytest.importorskip("peft")
pytestmark = [  # of peft about itself and transformers
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]

CASES = {
    "bert classify": ["query", "value", "intermediate.dense", "word_embeddings"],
    "bert": ["query"],
    "roberta": ["key", "position_embeddings"],
    "distilbert": ["q_lin", "lin1"],
    "gpt2": ["c_attn", "mlp.c_proj"],
    "bloom": ["query_key_value"],
    "llama": ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"],
    "qwen3": ["o_proj", "gate_proj"],
    "t5": ["q", "wo"],
    "bart": ["q_proj", "fc1"],
}
"""Modules to adapt by case."""
QUERY = "bert.encoder.layer.0.attention.self.query"
OURS = {"bert classify": "encoder.*", "gpt2": "*.attention.value", "llama": "encoder.*"}


def load(path: Path) -> Model:
    """The model of a run of adapters as every command loads it."""
    checkpoint = open_checkpoint(path)
    model = build_model(decode(ModelConfig, saved_config(checkpoint)["model"]), 0)
    for one in saved_wrappers(checkpoint):
        one.apply(model)
    load_weights(model, model_tensors(checkpoint))
    return model.eval()


def fill(model: nn.Module, std: float = 0.1) -> None:
    """Factors that change something, of which none is as it started."""
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                noise = torch.randn(parameter.shape, generator=draw) * std
                parameter.copy_(parameter * (1 + noise) if "magnitude" in name else noise)


def assert_alike(ours: Model, theirs: Any, config: dict[str, Any]) -> Tensor:
    """Losses of both are equal, and so are the logits; returns the logits."""
    batch, arguments = inputs(ours, config)
    with torch.no_grad():
        loss, out = total_loss(ours(batch)), theirs(**arguments)
        torch.testing.assert_close(loss, out.loss, atol=1e-5, rtol=1e-5)
        name = next(iter(ours.target.weights))
        output = ours.encode(batch)
        logits = ours.target[name].logits(output, batch)
        if name == "span":
            found = torch.stack([out.start_logits, out.end_logits], 1)
            torch.testing.assert_close(logits, found.flatten(0, 1), atol=1e-5, rtol=1e-5)
            return found
        if name == "classify":
            torch.testing.assert_close(logits, out.logits, atol=1e-5, rtol=1e-5)
    found = getattr(out, "logits", None)
    return out.prediction_logits if found is None else found


def changed(case: str, theirs: Any, config: dict[str, Any], ours: Model) -> bool:
    """Whether an adapter does anything."""
    _, arguments = inputs(ours, config)
    with torch.no_grad():
        plain = reference(case)(**arguments)
        return not torch.allclose(theirs(**arguments).loss, plain.loss, atol=1e-3)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Folders of references and of ours, made when they are asked for."""
    folder = tmp_path_factory.mktemp("bases")

    class Made(dict[str, tuple[Path, Path]]):
        def __missing__(self, case: str) -> tuple[Path, Path]:
            torch.manual_seed(1)
            theirs, ours = folder / case / "theirs", folder / case / "ours"
            save(reference(case), theirs)
            assert main("convert", [f"from={theirs}", f"to={ours}"]) == 0
            self[case] = theirs, ours
            return self[case]

    return Made()


def open_reference(case: str, folder: Path) -> Any:
    import transformers

    cls = getattr(transformers, MODELS[case][0])
    return cls.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.mark.parametrize("case", CASES)
def test_adapters_of_peft_compute_the_same_here(
    case: str, bases: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    theirs, ours = bases[case]
    keys: dict[str, Any] = {"r": 3, "lora_alpha": 5, "target_modules": CASES[case]}
    if case == "bert":
        keys |= {"use_dora": True, "use_rslora": True}
    if case == "llama":
        keys |= {"rank_pattern": {"up_proj": 2}, "alpha_pattern": {"up_proj": 7}}
    if case == "bert classify":
        keys |= {"task_type": "SEQ_CLS"}
    if case == "distilbert":
        keys |= {"modules_to_save": ["sa_layer_norm", "vocab_transform"]}
    model = peft.get_peft_model(open_reference(case, theirs), peft.LoraConfig(**keys)).eval()
    fill(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "adapter")
    words = [f"adapter={tmp_path / 'adapter'}", f"base={ours}", f"output={tmp_path / 'run'}"]
    assert main("convert_adapter", words) == 0
    loaded = load(tmp_path / "run")
    assert_alike(loaded, model, read_json(theirs / "config.json"))
    whole = set(state_tensors(loaded)) - set(open_checkpoint(tmp_path / "run").tensors("model"))
    assert len(whole) > 5
    if case == "llama":
        wrappers = saved_config(open_checkpoint(tmp_path / "run"))["wrappers"]
        found = {(w["rank"], w["alpha"], *w["modules"]) for w in wrappers.values()}
        assert (2, 7.0, "encoder.layers.*.feed_forward.up") in found


def adapter_run(base: Path, output: Path, name: str, **keys: Any) -> Model:
    """What a run that adapts `base` would leave in `output`; returns its model."""
    checkpoint = open_checkpoint(base)
    data = saved_config(checkpoint)["model"]
    model = build_model(decode(ModelConfig, data), 0)
    load_weights(model, plain_tensors(checkpoint))
    chosen = wrapper(name, seed=5, **keys)
    chosen.apply(model)
    fill(model)
    if not keys.get("trained"):
        model.requires_grad_(False)
    with torch.no_grad():
        for parameter in model.target.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    own = {n: t for n, t in state_tensors(model).items() if ".lora_" in n}
    own |= {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    names = set(state_tensors(model)) - set(own)
    reference = Base.of(checkpoint, names, output.parent)
    config = {"model": data, "wrappers": {name: chosen.config.to_dict()}}
    write_model(output, own, config, {BASE: reference.to_bytes()})
    return model.eval()


KINDS: list[tuple[str, str, dict[str, Any]]] = [
    ("bert classify", "lora", {}),
    ("bert classify", "dora", {"rank_stabilised": True}),
    ("gpt2", "moslora", {"mixer": "kaiming"}),
    ("gpt2", "dora", {"rank_stabilised": True}),
    ("llama", "moslora", {"mixer": "orthogonal"}),
]


@pytest.mark.parametrize(("case", "name", "keys"), KINDS, ids=str)
def test_our_adapters_compute_the_same_in_peft(
    case: str, name: str, keys: dict[str, Any], bases: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    theirs, ours = bases[case]
    trained = ["target.*"] if case == "bert classify" else []
    model = adapter_run(
        *(ours, tmp_path / "run", name), rank=4, modules=[OURS[case]], trained=trained, **keys
    )
    words = [f"checkpoint={tmp_path / 'run'}", f"output={tmp_path / 'adapter'}"]
    assert main("convert_adapter", [*words, "base_name=theirs"]) == 0
    config = read_json(tmp_path / "adapter" / "adapter_config.json")
    assert config["base_model_name_or_path"] == "theirs"
    assert config["use_dora"] == config["use_rslora"] == (name == "dora")
    loaded = peft.PeftModel.from_pretrained(
        open_reference(case, theirs), tmp_path / "adapter"
    ).eval()
    settings = read_json(theirs / "config.json")
    assert_alike(model, loaded, settings)
    assert changed(case, loaded, settings, model)
    # What peft writes again is what it was given, so nothing was left out.
    loaded.save_pretrained(tmp_path / "again")
    words = [f"adapter={tmp_path / 'again'}", f"base={ours}", f"output={tmp_path / 'back'}"]
    assert main("convert_adapter", words) == 0
    assert_alike(load(tmp_path / "back"), loaded, settings)
    assert main("convert_adapter", [*words[:2], words[2]]) == 2


def test_tables_become_those_of_peft(bases: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    theirs, ours = bases["bert classify"]
    keys: dict[str, Any] = {"rank": 2, "modules": ["embedding.word", "embedding.position"]}
    model = adapter_run(ours, tmp_path / "run", "lora", trained=[], **keys)
    words = [f"checkpoint={tmp_path / 'run'}", f"output={tmp_path / 'adapter'}"]
    assert main("convert_adapter", words) == 0
    loaded = peft.PeftModel.from_pretrained(
        open_reference("bert classify", theirs), tmp_path / "adapter"
    ).eval()
    assert_alike(model, loaded, read_json(theirs / "config.json"))


@pytest.mark.parametrize(
    ("name", "task", "target", "classes"),
    [
        ("BertForSequenceClassification", "SEQ_CLS", "classify", 3),
        ("BertForTokenClassification", "TOKEN_CLS", "tag", 3),
        ("BertForQuestionAnswering", "QUESTION_ANS", "span", 2),
    ],
)
def test_an_adapter_for_a_task_brings_its_head(
    bases: dict[str, tuple[Path, Path]],
    tmp_path: Path,
    name: str,
    task: str,
    target: str,
    classes: int,
) -> None:
    import transformers

    theirs, ours = bases["bert"]
    base = getattr(transformers, name).from_pretrained(
        theirs, num_labels=classes, attn_implementation="eager"
    )
    choice = peft.LoraConfig(r=2, target_modules=["query"], task_type=task)
    model = peft.get_peft_model(base, choice).eval()
    fill(model)
    model.save_pretrained(tmp_path / "adapter")
    words = [f"adapter={tmp_path / 'adapter'}", f"base={ours}", f"output={tmp_path / 'run'}"]
    assert main("convert_adapter", words) == 0
    loaded = load(tmp_path / "run")
    assert list(loaded.target.weights) == [target]
    settings = read_json(theirs / "config.json") | {"num_labels": classes}
    # Around questions peft's own class forgets to pass the token types on.
    assert_alike(loaded, model.base_model, settings)


def test_mixers_of_the_fork_are_read(bases: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    theirs, ours = bases["gpt2"]
    choice = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["c_attn"], fan_in_fan_out=True)
    model = peft.get_peft_model(open_reference("gpt2", theirs), choice).eval()
    fill(model)
    model.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in open_weights(file).items()}
    for name in [name for name in tensors if name.endswith("lora_A.weight")]:
        mixer = torch.randn(3, 3, generator=torch.Generator().manual_seed(2))
        tensors[name.replace("lora_A", "lora_AB")] = mixer
        # What the mixed factors come to, for stock peft.
        model.get_parameter(name.replace("lora_A", "lora_A.default")).data = mixer @ tensors[name]
    file.unlink()
    write_tensors(file, tensors)
    words = [f"adapter={tmp_path / 'adapter'}", f"base={ours}", f"output={tmp_path / 'run'}"]
    assert main("convert_adapter", words) == 0
    wrappers = saved_config(open_checkpoint(tmp_path / "run"))["wrappers"]
    assert [w["name"] for w in wrappers.values()] == ["moslora"]
    assert_alike(load(tmp_path / "run"), model, read_json(theirs / "config.json"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("peft_type", "LOHA", "peft_type must be LORA, but is LOHA"),
        ("bias", "all", "`bias` must not be set"),
        ("layer_replication", [[0, 2]], "`layer_replication` must not be set"),
    ],
)
def test_other_adapters_are_refused(
    bases: dict[str, tuple[Path, Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    key: str,
    value: Any,
    message: str,
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", key: value}))
    words = [f"adapter={tmp_path}", f"base={bases['bert'][1]}", f"output={tmp_path / 'run'}"]
    assert main("convert_adapter", words) == 2
    assert message in capsys.readouterr().err


def write_update(folder: Path, factors: dict[str, Tensor]) -> None:
    """An adapter of `QUERY` of a model that it calls bert-mine."""
    config = {"peft_type": "LORA", "base_model_name_or_path": "bert-mine"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {f"base_model.model.{QUERY}.{n}.weight": tensor for n, tensor in factors.items()}
    write_tensors(folder / "adapter_model.safetensors", tensors)


@pytest.mark.parametrize(
    ("case", "width", "message"),
    [
        ("gpt2", 32, f"that has a layer `{QUERY}` [32, 32], and this one has none"),
        ("bert", 64, f"`{QUERY}` is [64, 64] there, but [32, 32] here"),
    ],
)
def test_another_base_is_refused_by_what_the_adapter_wants(
    bases: dict[str, tuple[Path, Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    case: str,
    width: int,
    message: str,
) -> None:
    write_update(tmp_path, {"lora_A": torch.ones(2, width), "lora_B": torch.ones(width, 2)})
    words = [f"adapter={tmp_path}", f"base={bases[case][1]}", f"output={tmp_path / 'run'}"]
    assert main("convert_adapter", words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert f"{bases[case][1]}" in error
    assert "is not the base of the adapter, which was trained on bert-mine" in error
    assert not (tmp_path / "run").exists()


def test_half_an_update_is_refused(
    bases: dict[str, tuple[Path, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_update(tmp_path, {"lora_B": torch.ones(32, 2)})
    words = [f"adapter={tmp_path}", f"base={bases['bert'][1]}", f"output={tmp_path / 'run'}"]
    assert main("convert_adapter", words) == 2
    assert f"holds only a part of the update of `{QUERY}`" in capsys.readouterr().err


def test_runs_without_an_adapter_are_refused(
    bases: dict[str, tuple[Path, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"checkpoint={bases['bert'][1]}", f"output={tmp_path / 'adapter'}"]
    assert main("convert_adapter", words) == 2
    assert "must be of a run that adapts what init=... named" in capsys.readouterr().err
    assert main("convert_adapter", [*words, f"adapter={tmp_path}"]) == 2
    assert "either checkpoint (to peft) or adapter" in capsys.readouterr().err


def test_a_layer_equals_that_of_peft() -> None:
    for name in ("lora", "dora"):
        linear = nn.Linear(6, 5)
        choice = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["0"], use_dora=name == "dora")
        theirs = peft.get_peft_model(nn.Sequential(nn.Linear(6, 5)), choice)
        layer = theirs.base_model.model[0]
        layer.base_layer.load_state_dict(linear.state_dict())
        model = nn.ModuleDict({"0": linear})
        wrapper(name, rank=2, alpha=3, modules=["0"], trained=[], dropout=0.0).apply(model)
        ours = model["0"]
        assert isinstance(ours, Adapter)
        with torch.no_grad():
            layer.lora_A["default"].weight.copy_(ours.lora_a)
            ours.lora_b.normal_()
            layer.lora_B["default"].weight.copy_(ours.lora_b)
            if ours.lora_magnitude is not None:
                ours.lora_magnitude.mul_(1.3)
                layer.lora_magnitude_vector["default"].weight.copy_(ours.lora_magnitude)
        states, gradient = torch.randn(4, 3, 6), torch.randn(4, 3, 5)
        mine, other = ours(states), layer(states)
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-6)
        mine.backward(gradient)
        other.backward(gradient)
        for own, their in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
            expected = getattr(layer, their)["default"].weight.grad
            torch.testing.assert_close(getattr(ours, own).grad, expected, atol=1e-5, rtol=1e-5)
