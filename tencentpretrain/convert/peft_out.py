"""Our adapters in the format of the `peft` library; what mixes factors is folded in.

Stock `peft` leaves out what it does not know and would load a wrong model without failing, so an
adapter with a mixer is written as the plain LoRA that computes the same: A' = W A.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from tencentpretrain.config import decode
from tencentpretrain.convert.departing import Departing
from tencentpretrain.convert.departure import depart
from tencentpretrain.convert.families import find_family
from tencentpretrain.convert.outgoing import export_model
from tencentpretrain.convert.peft_places import Place, Places
from tencentpretrain.errors import CheckpointError
from tencentpretrain.model import ModelConfig
from tencentpretrain.train.base import Base, base_of, model_tensors, open_base, saved_wrappers
from tencentpretrain.train.load import listed
from tencentpretrain.train.saved_checkpoint import Checkpoint
from tencentpretrain.train.source import saved_config
from tencentpretrain.train.tensor_file import LazyTensors
from tencentpretrain.wrappers.factors import (
    DOWN,
    MAGNITUDE,
    MIXER,
    UP,
    is_factor,
    mixed_down,
    row_norms,
    updated,
)
from tencentpretrain.wrappers.lora import Lora

PREFIX: Final = "base_model.model."
TASK_TYPES: Final = {
    "classify": "SEQ_CLS",
    "tag": "TOKEN_CLS",
    "span": "QUESTION_ANS",
    "lm": "CAUSAL_LM",
}
"""What `peft` calls models with these targets."""
TABLE: Final = re.compile(r"(target_)?embedding\.(?!projection$)\w+")
"""Names of our modules that are tables of ids."""


@dataclass(frozen=True)
class Factors:
    """The update of one weight of ours, in fp32.

    Args:
        weight: [O, I], which it is added to.
        down: A [R, I], a mixer folded in.
        up: B [O, R].
        scale: Factor of the product.
        magnitude: Norms [O] of DoRA.
    """

    weight: Tensor
    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None

    def norms(self) -> Tensor:
        """Magnitudes [O]: those that are learned, else those with which DoRA is LoRA."""
        if self.magnitude is not None:
            return self.magnitude.float()
        return row_norms(updated(self.weight.float(), self.down, self.up, self.scale))


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter as `peft` stores it.

    Args:
        config: Content of adapter_config.json.
        tensors: Those of adapter_model.safetensors.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]


def export_adapter(checkpoint: Checkpoint, name: str = "", family: str = "auto") -> PeftAdapter:
    """The adapter in `checkpoint` for the class of `transformers` that its base becomes.

    Args:
        checkpoint: Of a run of adapters.
        name: What the base is called there, such as bert-base-uncased.
        family: Of the base, where its files do not tell it.

    Raises:
        CheckpointError: if it has no adapter, or no such class computes the same.
    """
    loras, base = _adapters(checkpoint)
    tensors = model_tensors(checkpoint)
    plain = LazyTensors.of({n: t for n, t in tensors.items() if not is_factor(n)})
    if family == "auto":
        family = depart(open_base(checkpoint, base).path).outgoing.family.name
    model = decode(ModelConfig, saved_config(checkpoint)["model"], "model")
    outgoing = export_model(find_family(family), Departing(model, plain), is_whole=True)
    places = Places(outgoing, model, plain)
    adapted = _factors(loras, tensors)
    heads = {n: plain[n] for n in plain if n not in base.names}
    _check(adapted, heads, places)
    written = _Writer(places, adapted)
    for path in sorted({places.by_ours[module].theirs for module in adapted}):
        written.add(places.by_theirs[path])
    whole = places.whole_to_theirs(heads)
    stored = written.tensors | {f"{PREFIX}{n}": t.contiguous() for n, t in whole.items()}
    config = {
        "peft_type": "LORA",
        "task_type": _task_type(model, whole),
        "base_model_name_or_path": name or None,
        "inference_mode": True,
        "bias": "none",
        "lora_dropout": loras[0].config.dropout,
        "fan_in_fan_out": written.is_transposed,
        "target_modules": _shortest(written.ranks, places.by_theirs),
        "modules_to_save": _modules(whole) or None,
        **written.sizes(loras[0].config.rank_stabilised),
    }
    return PeftAdapter(config, stored)


def _adapters(checkpoint: Checkpoint) -> tuple[list[Lora], Base]:
    wrappers = saved_wrappers(checkpoint)
    loras = [wrapper for wrapper in wrappers if isinstance(wrapper, Lora)]
    base = base_of(checkpoint)
    if len(loras) != len(wrappers) or not loras or base is None:
        raise CheckpointError(
            f"`{checkpoint.path}` must be of a run that adapts what init=... named, and does "
            "nothing else to the model"
        )
    return loras, base


def _factors(loras: Sequence[Lora], tensors: Mapping[str, Tensor]) -> dict[str, Factors]:
    """Updates by the module that they are of."""
    found: dict[str, Factors] = {}
    for name in tensors:
        module, _, factor = name.rpartition(".")
        if factor == DOWN:
            (scale,) = (lora.config.scale for lora in loras if lora.adapts(module))
            found[module] = Factors(
                tensors[f"{module}.weight"],
                mixed_down(tensors[name], tensors.get(f"{module}.{MIXER}")),
                tensors[f"{module}.{UP}"].float(),
                scale,
                tensors.get(f"{module}.{MAGNITUDE}"),
            )
    return found


def _check(adapted: Mapping[str, Factors], heads: Iterable[str], places: Places) -> None:
    """Refuse what `peft` cannot hold.

    Raises:
        CheckpointError: naming it.
    """
    both = [name for name in heads if name.rpartition(".")[0] in adapted]
    if both:
        raise CheckpointError(f"{listed(both)} train beside an update, which peft cannot store")
    unknown = [module for module in adapted if module not in places.by_ours]
    if unknown:
        raise CheckpointError(f"{listed(unknown)} are no modules in transformers")
    tables = [module for module in adapted if TABLE.fullmatch(module)]
    if tables and any(part.magnitude is not None for part in adapted.values()):
        raise CheckpointError(f"{listed(tables)} cannot be adapted beside DoRA in peft")


class _Writer:
    """Tensors as `peft` calls them, and the rank and scale of each module of theirs."""

    def __init__(self, places: Places, adapted: Mapping[str, Factors]) -> None:
        self._places, self._adapted = places, adapted
        self._has_norms = any(part.magnitude is not None for part in adapted.values())
        self.tensors: dict[str, Tensor] = {}
        self.ranks: dict[str, int] = {}
        self.scales: dict[str, float] = {}
        self.is_transposed = False

    def add(self, place: Place) -> None:
        """Write the update of one module of theirs.

        Several of ours in one of theirs become blocks of its B, and their A lie one below the
        other, so that none reads another's.
        """
        parts = {name: self._adapted[name] for name in place.ours if name in self._adapted}
        downs = [part.down for part in parts.values()]
        dtype, scale = next(iter(parts.values())).weight.dtype, next(iter(parts.values())).scale
        rank, start, blocks = sum(map(len, downs)), 0, []
        for name, size in zip(place.ours, place.sizes, strict=True):
            block = torch.zeros(size, rank)
            if name in parts:
                part = parts[name]
                block[:, start : start + len(part.down)] = part.up * (part.scale / scale)
                start += len(part.down)
            blocks.append(block)
        down, up = torch.cat(downs).to(dtype), self._places.to_theirs(place, blocks).to(dtype)
        path = f"{PREFIX}{place.theirs}"
        if TABLE.fullmatch(place.ours[0]):
            self.tensors[f"{path}.lora_embedding_A"] = up.t().contiguous()
            self.tensors[f"{path}.lora_embedding_B"] = down.t().contiguous()
        else:
            self.tensors |= {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}
        if self._has_norms:
            self.tensors[f"{path}.lora_magnitude_vector"] = self._norms(place).to(dtype)
        self.ranks[place.theirs], self.scales[place.theirs] = rank, scale
        self.is_transposed |= place.is_transposed

    def _norms(self, place: Place) -> Tensor:
        columns = []
        for name in place.ours:
            part = self._adapted.get(name)
            norms = row_norms(self._places.weight(name).float()) if part is None else part.norms()
            columns.append(norms[:, None])
        return self._places.to_theirs(place, columns)[:, 0].contiguous()

    def sizes(self, is_stabilised: bool) -> dict[str, Any]:
        """Keys of the config that say ranks and scales: the first ones, and what differs."""
        first = next(iter(self.ranks))
        alphas = {
            path: _number(scale * (self.ranks[path] ** 0.5 if is_stabilised else self.ranks[path]))
            for path, scale in self.scales.items()
        }
        rank, alpha = self.ranks[first], alphas[first]
        return {
            "r": rank,
            "lora_alpha": alpha,
            "use_rslora": is_stabilised,
            "use_dora": self._has_norms,
            "rank_pattern": {path: r for path, r in self.ranks.items() if r != rank},
            "alpha_pattern": {path: a for path, a in alphas.items() if a != alpha},
        }


def _number(value: float) -> float:
    rounded = round(value)
    return rounded if abs(rounded - value) < 1e-9 * value else value


def _task_type(model: ModelConfig, whole: Collection[str]) -> str | None:
    """What `peft` calls the task; of classifiers it expects a head then."""
    known = [name for name in model.target if name in TASK_TYPES]
    if len(known) != 1 or (known != ["lm"] and not whole):
        return None
    return TASK_TYPES[known[0]] if model.decoder is None else "SEQ_2_SEQ_LM"


def _modules(names: Iterable[str]) -> list[str]:
    """Modules that hold whole tensors, none of them inside another one."""
    parents = {name.rpartition(".")[0] for name in names}
    return sorted(p for p in parents if not any(p.startswith(f"{other}.") for other in parents))


def _shortest(adapted: Iterable[str], known: Iterable[str]) -> list[str]:
    """Ends of paths that say which of the `known` modules are adapted, as short as may be."""
    chosen, others = set(adapted), set(known) - set(adapted)
    found = set()
    for path in chosen:
        parts = path.split(".")
        ends = (".".join(parts[start:]) for start in reversed(range(len(parts))))
        found.add(next(e for e in ends if not any(f".{o}".endswith(f".{e}") for o in others)))
    return sorted(found)
