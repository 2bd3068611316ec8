"""Models cut over two processes, against the same ones whole: gradients, memory, refusals."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.device_mesh import init_device_mesh

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.distributed.blocks import BlockOptions
from tencentpretrain.distributed.layout import is_shared
from tencentpretrain.distributed.mesh import AXES, CutConfig
from tencentpretrain.distributed.parallel import PARALLELS
from tencentpretrain.distributed.parallelize import parallelize
from tencentpretrain.distributed.regions import Axis
from tencentpretrain.distributed.tensor_parallel import cut_tensors, tensor_misfits
from tencentpretrain.layers import heads
from tencentpretrain.model import Model, build_model
from tencentpretrain.types import Batch, ModelOutput, Stream
from tests.helpers.models import (
    VOCABULARY,
    layout_of,
    model_config,
    randomise,
    text_batch,
    tiny_model,
    total_loss,
)
from tests.helpers.two_processes import WORLD, in_two_processes

NORMS = ("layer", "layer_gain", "rms", "t5", "legacy", "none")
ODD = ((4, 2, 3), (3, 2, 2))
"""Lengths of source and target whose sums two processes do not share equally."""
FULL = ((3, 3, 3), (5, 5, 5))
"""The same without padding."""


@pytest.fixture(autouse=True)
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are not filled, so that slices are uneven, unless a test asks for a multiple."""
    monkeypatch.setattr(heads, "ROW_MULTIPLE", getattr(request, "param", 1))


def restorer(**changes: Any) -> Model:
    """An encoder and a decoder of one block each."""
    stack = {"layers": 1, "heads": 2, "ffn": 32, "dropout": 0.0} | changes
    parts = {"encoder": stack, "decoder": stack}
    parts |= {name: {"dropout": 0.0} for name in ("embedding", "target_embedding")}
    # A number of entries that two processes do not share equally.
    model = tiny_model("bart/tiny", parts, {"vocabulary": VOCABULARY + 1})
    randomise(model)
    return model


def restoring(lengths: tuple[tuple[int, ...], tuple[int, ...]]) -> Batch:
    source, target = (text_batch(rows, ("lm",)) for rows in lengths)
    streams = {"src": source.streams["src"], "tgt": target.streams["src"]}
    return Batch(streams, target.labels)


def gradients(model: Model, batch: Batch) -> dict[str, Tensor]:
    """Of all parameters, whole, and the loss."""
    torch.manual_seed(1)
    loss = total_loss(model(batch))
    loss.backward()
    found = {"loss": loss.detach()}
    for name, parameter in model.named_parameters():
        # A bias of keys changes no probability: its gradient is nothing but rounding.
        if not name.endswith("key.bias"):
            grad = parameter.grad
            assert grad is not None, name
            found[name] = grad.full_tensor() if is_shared(grad) else grad
    return found


def axis_of(is_sequence: bool) -> Axis:
    return Axis(init_device_mesh("cpu", (WORLD,), mesh_dim_names=("tp",)), is_sequence)


def cut(model: Model, is_sequence: bool) -> Model:
    """A copy of `model`, cut."""
    model = copy.deepcopy(model)
    cut_tensors(model, axis_of(is_sequence))
    return model


def differences(rank: int, is_sequence: bool) -> dict[str, float]:
    """Greatest difference of gradients for each kind of stack."""
    found = {}
    orders = itertools.product(NORMS, ("pre", "post") if is_sequence else ("pre",))
    kinds: list[tuple[dict[str, Any], Any]] = [
        ({"norm": norm, "norm_order": order, "layer_scale": 0.5}, (ODD, FULL)[number % 3 == 0])
        for number, (norm, order) in enumerate(orders)
    ]
    kinds += [({"qk_norm": True, "gated": True, "kv_heads": 2, "heads": 4, "bias": False}, ODD)]
    # Rows that go without an update do so on all processes, in all of their positions.
    kinds += [({"layers": 2, "depth_dropout": 0.5}, lengths) for lengths in (ODD, FULL)]
    kinds += [({"layers": 3, "share_blocks": True, "residual_attention": True}, ODD)]
    for changes, lengths in kinds:
        model, batch = restorer(**changes), restoring(lengths)
        shared = gradients(cut(model.train(), is_sequence), batch)
        whole = gradients(model, batch)
        assert whole.keys() == shared.keys()
        worst = [float((whole[n] - shared[n]).abs().max() / whole[n].abs().max()) for n in whole]
        found[f"{changes} {lengths}"] = max(worst)
    return found


@pytest.mark.distributed
@pytest.mark.parametrize("rows", [1, 4], indirect=True)
@pytest.mark.parametrize("is_sequence", [False, True])
def test_gradients_are_those_of_the_whole_model(is_sequence: bool) -> None:
    for found in in_two_processes(differences, is_sequence):
        assert {name: worst for name, worst in found.items() if not worst < 1e-5} == {}


def written(rank: int, is_sequence: bool) -> list[Tensor]:
    """Logits of a whole target, and those of the model cut and of positions read one by one."""
    whole, batch = restorer().eval(), restoring(FULL)
    found = []
    with torch.no_grad():
        for model in (whole, cut(whole, is_sequence)):
            found.append(model.target["lm"].logits(model.encode(batch), batch))
        assert model.decoder is not None
        memory, cache = model.read(batch.streams["src"]), model.decoder.make_cache(5)
        ids, pieces = batch.streams["tgt"].inputs["ids"], []
        for place in range(5):
            inputs = {"ids": ids[:, place, None], "positions": torch.full((3, 1), place)}
            stream = Stream(inputs, layout_of((1, 1, 1)))
            hidden = model.decode(stream, memory, cache=cache)
            output = ModelOutput(hidden, {})
            pieces.append(model.target["lm"].logits(output, Batch({})).view(3, -1))
        index = batch.labels["lm"].index
        assert index is not None
        found.append(torch.stack(pieces, 1).flatten(0, 1)[index])
    return found


@pytest.mark.distributed
@pytest.mark.parametrize("rows", [1, 64], indirect=True)
@pytest.mark.parametrize("is_sequence", [False, True])
def test_a_cut_model_writes_what_the_whole_one_does(is_sequence: bool) -> None:
    for whole, shared, stepwise in in_two_processes(written, is_sequence):
        assert whole.shape[1] == VOCABULARY + 1
        torch.testing.assert_close(shared, whole, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(stepwise, whole, rtol=1e-5, atol=1e-5)


def half_precise(rank: int) -> dict[str, float]:
    """How far gradients in bf16 are from those in fp32, against the greatest of all."""
    model, batch = restorer(norm_order="pre"), restoring(ODD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        shared = gradients(cut(model, True), batch)
    exact = gradients(model, batch)
    assert all(grad.dtype == torch.float32 for grad in shared.values())
    most = max(float(grad.norm()) for name, grad in exact.items() if name != "loss")
    return {name: float((shared[name] - exact[name]).norm()) / most for name in exact}


@pytest.mark.distributed
def test_slices_are_sent_in_the_type_of_the_products() -> None:
    for found in in_two_processes(half_precise):
        assert 1e-5 < max(found.values()) < 0.02


def kept_bytes(block: nn.Module, model: Model, batch: Batch) -> int:
    """What autograd keeps of one pass of `block`, but for parameters."""
    known = {p.untyped_storage().data_ptr() for p in model.parameters() if not is_shared(p)}
    known |= {p.to_local().untyped_storage().data_ptr() for p in model.parameters() if is_shared(p)}
    kept: dict[int, int] = {}
    is_inside = False

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if is_inside and tensor.is_floating_point() and storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def inside(value: bool) -> None:
        nonlocal is_inside
        is_inside = value

    block.register_forward_pre_hook(lambda *_: inside(True))
    block.register_forward_hook(lambda *_: inside(False))
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model(batch)
    return sum(kept.values())


def measured(rank: int) -> tuple[list[int], list[list[int]]]:
    """Bytes kept by a block of a whole model, one that is cut and one in slices; its shapes."""
    changes: Mapping[str, Any] = {"encoder": {"layers": 2, "dropout": 0.1}}
    model, batch = tiny_model("gpt2/tiny", changes), text_batch((33, 32), ("lm",))
    found, shapes = [], []
    for one in (model, cut(model, False), cut(model, True)):
        block = one.encoder.blocks()[1]
        for name in ("feed_forward_norm", "attention_residual", "feed_forward_residual"):
            block.get_submodule(name).register_forward_pre_hook(
                lambda _, inputs: shapes.append([*inputs[0].shape])
            )
        found.append(kept_bytes(block, one.train(), batch))
    return found, shapes


@pytest.mark.distributed
def test_processes_keep_their_positions_alone() -> None:
    for (whole, parts, slices), shapes in in_two_processes(measured):
        assert shapes == 6 * [[65, 16]] + 3 * [[33, 16]]
        # Scores and the inside of layers are halved by heads, all else by positions.
        assert slices < 0.52 * whole
        assert parts > 0.6 * whole


def shaped(rank: int, is_sequence: bool) -> list[int]:
    """Shape of the states in a block, as configured."""
    mesh = init_device_mesh("cpu", (1, 1, WORLD), mesh_dim_names=AXES)
    data = {"name": "tp", "sequence": is_sequence}
    config = decode(PARALLELS.config_class("tp"), data)
    assert isinstance(config, CutConfig)
    model, shapes = tiny_model("bert/tiny"), []
    parallelize(model, mesh, config, BlockOptions())
    norm = model.encoder.blocks()[1].get_submodule("attention_norm")
    norm.register_forward_pre_hook(lambda _, inputs: shapes.append([*inputs[0].shape]))
    model(text_batch((5, 4)))
    return shapes[0]


@pytest.mark.distributed
@pytest.mark.parametrize(("is_sequence", "length"), [(False, 9), (True, 5)])
def test_slices_are_a_choice(is_sequence: bool, length: int) -> None:
    assert in_two_processes(shaped, is_sequence) == [[length, 16]] * WORLD


def recomputed(rank: int) -> list[bool]:
    """Whether gradients with dropout are the same when blocks are computed again."""
    equal = []
    for kind in ("full", "selective"):
        for is_sequence in (False, True):
            model = restorer(dropout=0.3, relative={"buckets": 8, "distance": 16}).train()
            once, again = (cut(model, is_sequence) for _ in range(2))
            BlockOptions(kind).apply(again)
            both = [gradients(one, restoring(ODD)) for one in (once, again)]
            equal.append(all(torch.equal(both[0][name], both[1][name]) for name in both[0]))
    return equal


@pytest.mark.distributed
def test_what_is_computed_again_has_the_same_dropout() -> None:
    for equal in in_two_processes(recomputed):
        assert equal == [True] * 4


def unknown(rank: int) -> str:
    model = tiny_model("bert/tiny")
    model.encoder.blocks()[0].register_parameter("extra", nn.Parameter(torch.zeros(2)))
    try:
        cut(model, True)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.distributed
def test_a_block_of_which_slices_are_not_known_is_refused() -> None:
    for said in in_two_processes(unknown):
        assert "parallel.sequence: `extra` of TransformerBlock is not known" in said


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("bert/tiny", {"encoder": {"heads": 4}}, "encoder.heads=4 must be a multiple of"),
        ("bert/tiny", {"encoder": {"ffn": 32}}, "encoder.ffn=32 must be a multiple of"),
        ("bart/tiny", {}, "decoder.heads=2 must be a multiple of parallel.tensor=3"),
        ("siamese/lstm", {}, "LstmEncoder has no blocks that tensor parallelism can cut"),
        ("siamese/lstm", {}, "the target `contrast` cannot be combined with tensor"),
    ],
)
def test_what_cannot_be_cut_is_named(name: str, changes: dict[str, Any], said: str) -> None:
    model = build_model(model_config(name, {"hidden": 16}, changes), VOCABULARY)
    problems = tensor_misfits(model, 3)
    assert any(said in problem for problem in problems), problems


def test_what_can_be_cut_is_not_refused() -> None:
    assert tensor_misfits(tiny_model("bert/tiny"), 2) == []
