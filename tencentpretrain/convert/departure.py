"""From a run or checkpoint of ours to a folder that `transformers` loads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tencentpretrain.config import decode
from tencentpretrain.convert.arrival import ASIDE, CONFIG, ORIGIN
from tencentpretrain.convert.departing import Departing
from tencentpretrain.convert.families import FAMILIES, find_family
from tencentpretrain.convert.families.speech import S2T
from tencentpretrain.convert.generation import OURS, THEIRS, Vocabulary, generation_file
from tencentpretrain.convert.outgoing import Outgoing, choose_family, export_model
from tencentpretrain.convert.preparation import preparation_file
from tencentpretrain.convert.report import Report
from tencentpretrain.convert.tokenizer_files import tokenizer_files
from tencentpretrain.convert.weights import in_type, read_json
from tencentpretrain.data.objectives.s2t import WritingConfig
from tencentpretrain.data.objectives.translate import STARTS
from tencentpretrain.errors import CheckpointError
from tencentpretrain.model import ModelConfig
from tencentpretrain.targets.companion import without_companions
from tencentpretrain.tokenizers.base import ROLES, Tokenizer
from tencentpretrain.tools.outputs import published_directory
from tencentpretrain.train.durable import write_bytes
from tencentpretrain.train.finetune import TASK_FILE
from tencentpretrain.train.saved_checkpoint import Checkpoint, open_checkpoint
from tencentpretrain.train.source import saved_config, saved_tokenizer
from tencentpretrain.train.tensor_file import SUFFIX, open_tensors, write_tensors

WEIGHTS: Final = f"model{SUFFIX}"
FIRST: Final = ("roberta", "xlm_r")
"""Families whose models look like others', tried first where texts begin with `<s>`."""


@dataclass(frozen=True)
class Departure:
    """A model of ours that is ready to be written for `transformers`.

    Args:
        outgoing: Config and weights.
        files: Further files by name.
    """

    outgoing: Outgoing
    files: Mapping[str, bytes]

    @property
    def report(self) -> Report:
        return self.outgoing.report

    @property
    def what(self) -> str:
        """What is written, for people."""
        return str(self.outgoing.config["architectures"][0])

    def write(self, directory: Path) -> None:
        """Write the directory; what was there is replaced when it is complete.

        Raises:
            CheckpointError: if it cannot be written.
        """
        config = json.dumps(self.outgoing.config, indent=2, ensure_ascii=False) + "\n"
        with published_directory(directory) as partial:
            for name, content in {CONFIG: config.encode(), **self.files}.items():
                write_bytes(partial / name, content)
            write_tensors(partial / WEIGHTS, self.outgoing.tensors, {"format": "pt"})


def depart(
    path: Path,
    family: str = "auto",
    dtype: str = "keep",
    allow_unexpected: Sequence[str] = (),
) -> Departure:
    """Read the run or checkpoint at `path`; see the keys of the command.

    Raises:
        UserError: if no class of `transformers` computes the same.
    """
    checkpoint = open_checkpoint(path)
    config = saved_config(checkpoint)
    if config.get("wrappers"):
        raise CheckpointError(
            f"`{checkpoint.path}` has wrappers ({', '.join(config['wrappers'])}) around its model; "
            "merge them first"
        )
    model = decode(ModelConfig, without_companions(config.get("model") or {}), "model")
    tokenizer = saved_tokenizer(checkpoint)
    origin = config.get(ORIGIN) or {}
    departing = _departing(checkpoint, model, tokenizer, origin.get("config") or {})
    if family == "auto":
        candidates = _candidates(origin.get("family"), tokenizer)
        outgoing = choose_family(departing, candidates, allow_unexpected)
    else:
        outgoing = export_model(find_family(family), departing, allow_unexpected)
    outgoing = replace(outgoing, tensors=in_type(outgoing.tensors, dtype))
    _name_type(outgoing)
    files = _tokenizer_files(outgoing, model, tokenizer)
    vocabulary = Vocabulary.of(outgoing.family, departing.tensors, tokenizer)
    files |= _generation(checkpoint, vocabulary, outgoing.report)
    preparation = outgoing.family.preparation
    if preparation is not None:
        # A fine-tuned run has no objective; its task knows what that would.
        task = {**(config.get("task") or {}), **(_task(checkpoint) or {})}
        told = model.to_dict()["objective"] or task
        bands = getattr(model.embedding.parts.get("frames"), "bands", None)
        if bands is not None:
            told = {**told, "bank": {"bands": bands, **(told.get("bank") or {})}}
        content = preparation.to_theirs(told)
        files |= preparation_file(content) if content else {}
    return Departure(outgoing, files)


def _departing(
    checkpoint: Checkpoint,
    model: ModelConfig,
    tokenizer: Tokenizer | None,
    origin: Mapping[str, Any],
) -> Departing:
    tensors = open_tensors(checkpoint.file(WEIGHTS))
    departing = Departing(
        model,
        tensors,
        specials={} if tokenizer is None else {r: getattr(tokenizer, r) for r in ROLES},
        labels=_labels(checkpoint),
        origin=origin,
        start=_start(model, _task(checkpoint) or {}, tokenizer),
    )
    # Without its origin it cannot be told what the tensors belong to.
    if not origin or ASIDE not in checkpoint.manifest.files:
        return departing
    return replace(departing, aside=open_tensors(checkpoint.file(ASIDE)))


def _generation(checkpoint: Checkpoint, vocabulary: Vocabulary, report: Report) -> dict[str, bytes]:
    """What was kept about generating texts, unless its ids mean something else by now."""
    if OURS not in checkpoint.manifest.files:
        return {}
    files = generation_file(checkpoint.file(OURS), vocabulary)
    if not files:
        report.remarks.append(
            f"{THEIRS} is left out: its ids are of the vocabulary that the model came with, but "
            "it has another one now"
        )
    return files


def _start(model: ModelConfig, task: Mapping[str, Any], tokenizer: Tokenizer | None) -> int | None:
    """Id of the token from which a decoder learned to write what it hears, if it did."""
    objective = model.objective
    told = objective if isinstance(objective, WritingConfig) else None
    if told is None and "writing" in task:
        # A fine-tuned run has no objective; its task knows what that would.
        told = decode(WritingConfig, task["writing"], "writing")
    if told is None or tokenizer is None:
        return None
    if told.prompt:
        return tokenizer.id(told.prompt[0])
    roles = STARTS if told.start == "auto" else (told.start,)
    found = (getattr(tokenizer, role) for role in roles)
    return next((number for number in found if number is not None), None)


def _labels(checkpoint: Checkpoint) -> list[str] | None:
    task = _task(checkpoint) or {}
    labels: list[str] | None = task.get("labels") or task.get("tags")
    return labels


def _task(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """What was learned for a task; None where there is none."""
    if TASK_FILE not in checkpoint.manifest.files:
        return None
    return read_json(checkpoint.file(TASK_FILE))


def _candidates(origin: str | None, tokenizer: Tokenizer | None) -> list[str]:
    """Names of families, the likeliest one first."""
    if origin in FAMILIES:
        return [origin]
    first: list[str] = []
    if tokenizer is not None and tokenizer.specials["cls"] == "<s>":
        first = [*reversed(FIRST)] if tokenizer.kind == "sentencepiece" else [*FIRST]
    return list(dict.fromkeys([*first, *FAMILIES]))


def _name_type(outgoing: Outgoing) -> None:
    """Tell the type of most weights, as `transformers` loads all of them in it."""
    described = outgoing.tensors.described.values()
    sizes: dict[str, int] = {}
    for tensor in described:
        name = str(tensor.dtype).removeprefix("torch.")
        sizes[name] = sizes.get(name, 0) + tensor.numel()
    outgoing.config["torch_dtype"] = max(sizes, key=lambda name: sizes[name])


def _tokenizer_files(
    outgoing: Outgoing, model: ModelConfig, tokenizer: Tokenizer | None
) -> dict[str, bytes]:
    if tokenizer is None:
        outgoing.report.remarks.append("the model has no tokenizer, so none is written")
        return {}
    parts = model.embedding.parts.values()
    tables = [rows for part in parts if (rows := getattr(part, "length", None)) is not None]
    files = tokenizer_files(
        tokenizer,
        is_framed=getattr(model.encoder, "mask", "full") == "full",
        has_segments=any(getattr(part, "types", 1) > 1 for part in parts),
        length=min(tables, default=None),
        hears=outgoing.family.name == S2T.name,
    )
    if files is None:
        outgoing.report.remarks.append(
            "the tokenizer is not written: transformers has none that reads its model"
        )
    return files or {}
