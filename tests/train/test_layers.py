import pytest
import torch
from torch import Tensor

from tencentpretrain.errors import CheckpointError
from tencentpretrain.train.layers import choose_layers
from tencentpretrain.train.load import load_weights, state_tensors
from tests.helpers.models import tiny_model


def deep() -> dict[str, Tensor]:
    return state_tensors(tiny_model("bert/tiny", {"encoder": {"layers": 6}}))


def test_layers_are_taken_in_the_order_given_and_the_rest_stays() -> None:
    student = tiny_model("bert/tiny", {"encoder": {"layers": 3}}, seed=5)
    teacher = deep()
    report = load_weights(student, choose_layers(teacher, {"encoder": [2, 6, 1]}))
    assert not report.missing
    assert not report.unexpected
    for name, tensor in student.state_dict().items():
        for place, number in enumerate((2, 6, 1)):
            name = name.replace(f"encoder.layers.{place}.", f"encoder.layer.{number - 1}.")
        name = name.replace("encoder.layer.", "encoder.layers.")
        if name in teacher:
            assert torch.equal(tensor, teacher[name])


def test_a_stack_that_is_not_named_stays_as_it_is() -> None:
    tensors = {
        "encoder.layers.0.a": torch.zeros(1),
        "encoder.layers.1.a": torch.ones(1),
        "decoder.layers.0.a": torch.ones(2),
        "decoder.layers.0.cross.a": torch.ones(3),
        "encoder.norm.weight": torch.ones(4),
    }
    chosen = choose_layers(tensors, {"encoder": [2]})
    assert {name: len(tensor) for name, tensor in chosen.items()} == {
        "decoder.layers.0.a": 2,
        "decoder.layers.0.cross.a": 3,
        "encoder.norm.weight": 4,
        "encoder.layers.0.a": 1,
    }
    assert float(chosen["encoder.layers.0.a"]) == 1


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"init_layers\.encoder asks for layer 7.* has 6"):
        choose_layers(deep(), {"encoder": [1, 7]})
    with pytest.raises(CheckpointError, match=r"init_layers\.decoder asks for layer 1.* has 0"):
        choose_layers(deep(), {"decoder": [1]})
