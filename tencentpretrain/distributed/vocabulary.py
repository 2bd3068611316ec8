"""Word tables and output layers cut by entries (Shoeybi et al., 2019, Megatron-LM, section 3).

No process computes or holds the logits of all entries: of the loss they exchange a few numbers for
each position.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from tencentpretrain.distributed.cut_parameters import Cutter, own_part
from tencentpretrain.embeddings.text import WordEmbedding
from tencentpretrain.targets.cross_entropy import VocabularyPart, vocabulary_loss
from tencentpretrain.targets.heads import VocabularyHead, VocabularyTarget
from tencentpretrain.types import Ratio

if TYPE_CHECKING:
    from tencentpretrain.model import Model


def cut_vocabulary(model: Model, mesh: DeviceMesh, cutter: Cutter) -> bool:
    """Cut the word tables and output layers of `model`; whether that could be.

    They stay whole where a target does more with its output layer than the plain loss, or where a
    vocabulary is so small that a process would have none of it. The last part may be shorter.
    """
    targets = [model.target[name] for name in model.target.names]
    plain = [t for t in targets if type(t).forward is VocabularyTarget.forward]
    heads = [m for t in plain for m in t.modules() if isinstance(m, VocabularyHead)]
    words = [module for module in model.modules() if type(module) is WordEmbedding]
    owners: list[nn.Module] = [*heads, *words]
    mine = {id(parameter) for module in owners for parameter in module.parameters()}
    others = [m for m in model.modules() if m not in owners]
    shared = {id(p) for m in others for p in m.parameters(recurse=False)}
    rows = [p.shape[0] for module in owners for p in module.parameters()]
    if mine & shared or any(_share(count, mesh) * (mesh.size() - 1) >= count for count in rows):
        return False
    for module in owners:
        cutter.cut(module, Shard(0))
    for head in heads:
        head.loss = partial(_loss, head, mesh)  # type: ignore[method-assign]
        head.forward = partial(_logits, head, mesh)  # type: ignore[method-assign]
    for table in words:
        table.look_up = partial(_rows, table, mesh)  # type: ignore[method-assign]
    return True


def _part(weight: Tensor, mesh: DeviceMesh) -> VocabularyPart:
    """Which entries this process has of a table [V, E]."""
    first = mesh.get_local_rank() * _share(weight.shape[0], mesh)
    return VocabularyPart(first, weight.shape[0], mesh.get_group())


def _share(entries: int, mesh: DeviceMesh) -> int:
    """Entries of each process but the last."""
    return -(-entries // mesh.size())


def _loss(
    head: VocabularyHead, mesh: DeviceMesh, states: Tensor, labels: Tensor, smoothing: float
) -> tuple[Ratio, Ratio]:
    bias = None if head.bias is None else own_part(head.bias)
    part = _part(head.weight, mesh)
    return vocabulary_loss(states, own_part(head.weight), bias, labels, smoothing, part)


def _logits(head: VocabularyHead, mesh: DeviceMesh, states: Tensor) -> Tensor:
    """Logits [..., V] of all entries, for evaluation."""
    bias = None if head.bias is None else own_part(head.bias)
    own = F.linear(states, own_part(head.weight), bias)
    shape = torch.Size([*own.shape[:-1], head.weight.shape[0]])
    stride = torch.empty(shape, device="meta").stride()
    options: dict[str, Any] = {"run_check": False, "shape": shape, "stride": stride}
    return _redistributed(DTensor.from_local(own, mesh, [Shard(own.dim() - 1)], **options))


def _rows(table: WordEmbedding, mesh: DeviceMesh, ids: Tensor) -> Tensor:
    """Rows [B, S, E] of `ids`, each from the process that has it."""
    part, own = _part(table.weight, mesh), own_part(table.weight)
    places = ids - part.first
    elsewhere = (places < 0) | (places >= len(own))
    rows = F.embedding(places.masked_fill(elsewhere, 0), own)
    rows = torch.where(elsewhere[..., None], rows.new_zeros(()), rows)
    return _redistributed(DTensor.from_local(rows, mesh, [Partial()], run_check=False))


def _redistributed(parts: DTensor) -> Tensor:
    whole: Tensor = parts.redistribute(placements=[Replicate()]).to_local()
    return whole
