"""State of optimisers by names of parameters, so that it does not hang on their order."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tencentpretrain.distributed.layout import is_shared, local_box, local_part
from tencentpretrain.errors import CheckpointError
from tencentpretrain.train.load import LoadReport
from tencentpretrain.train.tensor_file import LazyTensors, part_of


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """State of `optimizer` as "name of parameter/name of state", without copying.

    Raises:
        TypeError: if a state is not a tensor.
        ValueError: if the optimiser has a parameter that is none of `module`.
    """
    names = _parameter_names(module)
    tensors: dict[str, Tensor] = {}
    for parameter, state in optimizer.state.items():
        if id(parameter) not in names:
            raise ValueError("the optimiser has a parameter that is not in the model")
        name = names[id(parameter)][0]
        for key, value in state.items():
            if value is None:
                continue  # what SGD without momentum says instead of leaving it out
            if not isinstance(value, Tensor):
                raise TypeError(f"state `{key}` of `{name}` must be a tensor, but is {value!r}")
            tensors[f"{name}/{key}"] = value.detach()
    return tensors


def load_optimizer(
    optimizer: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]
) -> LoadReport:
    """Replace the state of `optimizer` by what `optimizer_tensors` returned, all of it or none.

    A parameter may have no state at all: optimisers make it when the first gradient comes. One
    that has any must have exactly the state that this optimiser keeps. Learning rates and other
    settings are not part of it: they come from the config.

    Raises:
        CheckpointError: if a state is missing, unexpected or mis-shaped: the state is of another
            optimiser or model.
    """
    report = LoadReport()
    expected = _expected_state(optimizer, module)
    incomplete = False
    given = _by_parameter(tensors, module)  # what a state is stored under, by its own name
    state: dict[Tensor, dict[str, Tensor]] = {}
    for name, (parameter, slots) in expected.items():
        stored = given.pop(name, {})
        absent = [f"{name}/{key}" for key in slots if key not in stored]
        report.missing += absent
        incomplete |= bool(stored and absent)
        state[parameter] = _fill(name, stored, slots, tensors, report)
    report.unexpected += [f"{name}/{key}" for name, stored in given.items() for key in stored]
    if report.unexpected or report.mismatched or incomplete:
        kind = type(optimizer).__name__
        raise CheckpointError(
            f"the saved optimiser state is not that of {kind} for this model: {report}; continue "
            "with the optimiser and model of the run, or take only its weights with `init`"
        )
    optimizer.state.clear()
    optimizer.state.update({parameter: values for parameter, values in state.items() if values})
    return report


def _by_parameter(names: Iterable[str], module: nn.Module) -> dict[str, dict[str, str]]:
    """States by the first name of their parameter, and the full names they are stored under."""
    first = {alias: names[0] for names in _parameter_names(module).values() for alias in names}
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for full in names:
        alias, _, key = full.rpartition("/")
        name = first.get(alias, alias)
        if key in found[name]:
            raise CheckpointError(f"state `{key}` of the tied parameter `{name}` is there twice")
        found[name][key] = full
    return found


@dataclass(frozen=True)
class _Slot:
    """Shape, type and device of one state of one parameter."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    like: Tensor | None = None
    """The parameter, where the state is cut among processes as it is."""

    def filled(self, tensors: Mapping[str, Tensor], name: str) -> Tensor:
        """A copy of what `tensors` has of the state `name` for this process."""
        if self.like is None:
            return tensors[name].to(self.device, self.dtype, copy=True)
        made = torch.zeros_like(self.like, dtype=self.dtype, requires_grad=False)
        local_part(made).copy_(part_of(tensors, name, local_box(made)))
        return made


def _fill(
    name: str,
    stored: Mapping[str, str],
    slots: Mapping[str, _Slot],
    tensors: Mapping[str, Tensor],
    report: LoadReport,
) -> dict[str, Tensor]:
    """Copies of what is `stored` for the `slots` of the parameter `name`."""
    filled: dict[str, Tensor] = {}
    kinds = tensors.described if isinstance(tensors, LazyTensors) else tensors
    for key, source in stored.items():
        full, kind = f"{name}/{key}", kinds[source]
        slot = slots.get(key)
        if slot is None:
            report.unexpected.append(full)
        elif tuple(kind.shape) != slot.shape:
            report.mismatched[full] = f"{list(kind.shape)} instead of {list(slot.shape)}"
        else:
            if kind.dtype != slot.dtype:
                report.converted[full] = f"{kind.dtype} to {slot.dtype}"
            report.matched.append(full)
            filled[key] = slot.filled(tensors, source)
    return filled


def _expected_state(
    optimizer: torch.optim.Optimizer, module: nn.Module
) -> dict[str, tuple[Tensor, dict[str, _Slot]]]:
    """Which state the optimiser keeps, by name of its parameters.

    Optimisers do not declare it, so a copy of this one takes a step on a few numbers: a parameter
    with n axes is stood for by one of shape (2, 3, ..., n + 1), whose sizes tell the axes apart.
    """
    names = _parameter_names(module)
    expected: dict[str, tuple[Tensor, dict[str, _Slot]]] = {}
    for group in optimizer.param_groups:
        on_device = bool(group.get("fused") or group.get("capturable"))
        probes: dict[tuple[int, torch.dtype], Mapping[str, Tensor]] = {}
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise ValueError("the optimiser has a parameter that is not in the model")
            kind = parameter.dim(), parameter.dtype
            if kind not in probes:
                probes[kind] = _probe(optimizer, group, *kind)
            sizes = dict(enumerate(parameter.shape, start=2))
            slots = {
                key: _Slot(
                    tuple(sizes.get(size, size) for size in value.shape),
                    value.dtype,
                    # torch counts steps on the host, unless a kernel reads them.
                    parameter.device if value.dim() or on_device else torch.device("cpu"),
                    parameter if value.dim() and is_shared(parameter) else None,
                )
                for key, value in probes[kind].items()
            }
            expected[names[id(parameter)][0]] = parameter, slots
    return expected


def _probe(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], dims: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    """State that a copy of `optimizer` makes for a parameter of shape (2, 3, ..., dims + 1)."""
    parameter = torch.zeros(tuple(range(2, dims + 2)), dtype=dtype, requires_grad=True)
    parameter.grad = torch.zeros_like(parameter)
    plain = {key: False for key in ("fused", "foreach", "capturable") if key in group}
    probe = copy.copy(optimizer)
    probe.param_groups = [{**group, **plain, "params": [parameter]}]
    probe.state = defaultdict(dict)
    probe.step()
    return {key: value for key, value in probe.state[parameter].items() if value is not None}


def _parameter_names(module: nn.Module) -> dict[int, list[str]]:
    """All names of each parameter, by its identity."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return names
