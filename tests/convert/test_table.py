"""Reading a table of names in either direction."""

import pytest
import torch
from torch import Tensor

from tencentpretrain.convert.families import FAMILIES
from tencentpretrain.convert.table import Rule, Table, convert, modules
from tencentpretrain.convert.transforms import Fused
from tencentpretrain.errors import CheckpointError
from tencentpretrain.train.tensor_file import LazyTensors

RULES = (
    *modules({"norm": "ln"}, "layers.{n}.", "h.{n}."),
    Rule(("layers.{n}.query.{p}", "layers.{n}.key.{p}"), ("h.{n}.qk.{p}",), Fused(2)),
    Rule(("later.{n}.weight",), ("after.{n-1}.weight",)),
    Rule(("up.weight",), ("wi.weight",), only=("gated", 0)),
    Rule(("up.weight",), ("wi_1.weight",), only=("gated", 1)),
)
NUMBERS = {"gated": 1}


def lazy(**tensors: Tensor) -> LazyTensors:
    return LazyTensors.of({name.replace("__", "."): tensor for name, tensor in tensors.items()})


def test_names_and_numbers_are_carried_over() -> None:
    theirs = lazy(h__10__ln__weight=torch.ones(2), h__0__ln__bias=torch.zeros(2))
    found = convert(RULES, "ours", theirs, NUMBERS)
    assert sorted(found.tensors) == ["layers.0.norm.bias", "layers.10.norm.weight"]
    assert not found.unexpected
    back = convert(RULES, "theirs", found.tensors, NUMBERS)
    assert sorted(back.tensors) == sorted(theirs)


def test_one_tensor_becomes_several_and_back() -> None:
    fused = torch.arange(8.0).view(4, 2)
    found = convert(RULES, "ours", lazy(h__3__qk__weight=fused), NUMBERS)
    assert found.tensors["layers.3.key.weight"].tolist() == [[4, 5], [6, 7]]
    assert found.tensors.described["layers.3.key.weight"].is_meta
    back = convert(RULES, "theirs", found.tensors, NUMBERS)
    assert torch.equal(back.tensors["h.3.qk.weight"], fused)


def test_nothing_is_read_before_it_is_looked_up() -> None:
    read: list[str] = []
    described = {"h.0.ln.weight": torch.empty(2, device="meta")}

    def open_one(name: str) -> Tensor:
        read.append(name)
        return torch.ones(2)

    found = convert(RULES, "ours", LazyTensors(described, open_one), NUMBERS)
    assert read == []
    assert found.tensors["layers.0.norm.weight"].tolist() == [1, 1]
    assert read == ["h.0.ln.weight"]


def test_the_layer_before_has_a_name_too() -> None:
    found = convert(RULES, "ours", lazy(after__9__weight=torch.ones(1)), NUMBERS)
    assert list(found.tensors) == ["later.10.weight"]
    assert list(convert(RULES, "theirs", found.tensors, NUMBERS).tensors) == ["after.9.weight"]


@pytest.mark.parametrize(("gated", "name"), [(0, "wi.weight"), (1, "wi_1.weight")])
def test_some_rules_are_for_some_models(gated: int, name: str) -> None:
    found = convert(RULES, "theirs", lazy(up__weight=torch.ones(1)), {"gated": gated})
    assert list(found.tensors) == [name]


def test_what_is_unknown_or_alone_is_told() -> None:
    ours = lazy(strange=torch.ones(1), layers__0__query__weight=torch.ones(2, 2))
    found = convert(RULES, "theirs", ours, NUMBERS)
    assert found.unexpected == ["strange"]
    assert found.incomplete == {"layers.0.query.weight": ["layers.0.key.weight"]}
    assert len(found.tensors) == 0


def test_shapes_that_a_rule_cannot_take_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"`h\.0\.qk\.weight` \[\] cannot become"):
        convert(RULES, "ours", lazy(h__0__qk__weight=torch.tensor(1.0)), NUMBERS)


def test_older_spellings_are_replaced_in_turn() -> None:
    table = Table(RULES, spellings=((r"\.gamma$", ".weight"), (r"^(?=ln\.)", "h.0.")))
    assert table.spelled("ln.gamma") == "h.0.ln.weight"


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_no_two_rules_of_a_family_make_one_tensor(family: object) -> None:
    """Rules for other models of the family, and second names of heads, do not count."""
    rules = FAMILIES[family.name].table.rules  # type: ignore[attr-defined]
    for gated in (0, 1):
        valid = [rule for rule in rules if rule.only in (None, ("is_gated", gated))]
        for side in ("ours", "theirs"):
            names = [name for rule in valid for name in getattr(rule, side)]
            assert len(names) == len(set(names))
