"""From the files of others to a directory that `init` and `checkpoint` accept."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Final

from tencentpretrain.config import ComponentConfig
from tencentpretrain.convert.families import family_of, find_family
from tencentpretrain.convert.generation import Vocabulary, kept_generation
from tencentpretrain.convert.huggingface import import_model
from tencentpretrain.convert.incoming import Incoming
from tencentpretrain.convert.original import import_original
from tencentpretrain.convert.preparation import read_preparation
from tencentpretrain.convert.report import Report
from tencentpretrain.convert.tokenizer_files import read_tokenizer
from tencentpretrain.convert.weights import in_type, open_weights, read_json
from tencentpretrain.data.shard_format import TARGET_TOKENIZER
from tencentpretrain.errors import CheckpointError
from tencentpretrain.tasks.ner import TAG
from tencentpretrain.tokenizers.base import Tokenizer, build_tokenizer
from tencentpretrain.tools.outputs import saved_beside, write_model
from tencentpretrain.train.checkpoint_files import Source
from tencentpretrain.train.finetune import TASK_FILE
from tencentpretrain.train.source import TOKENIZER
from tencentpretrain.train.tensor_file import SUFFIX, write_tensors
from tencentpretrain.yaml_text import dump_yaml

CONFIG: Final = "config.json"
ASIDE: Final = f"aside{SUFFIX}"
"""File of a converted checkpoint with their tensors that have no place in the model."""
MODEL: Final = "model.yaml"
"""File of a converted checkpoint for `model=` where pre-training goes on."""
ORIGIN: Final = "origin"
"""Section of the config of a converted checkpoint that says what it was."""
POOLING: Final = "1_Pooling/config.json"
"""File of sentence-transformers that says what the vector of a text is."""
NOT_KEPT: Final = ("_name_or_path", "auto_map", "transformers_version", "torch_dtype", "dtype")
"""Keys of a config.json that are not true of what is written, or that name code."""


@dataclass(frozen=True)
class Arrival:
    """A model of others that is ready to be written as one of ours.

    Args:
        incoming: Config and weights.
        tokenizer: None where there is none.
        sections: Of the config beside that of the model.
        task: What a task has to know; None where the model has not learned one.
        target_tokenizer: Of what a decoder writes, where that is another one.
        kept: Further files by name, for the way back.
    """

    incoming: Incoming
    tokenizer: Tokenizer | None
    sections: Mapping[str, Any]
    task: bytes | None = None
    target_tokenizer: Tokenizer | None = None
    kept: Mapping[str, bytes] = field(default_factory=dict)
    what: ClassVar[str] = "checkpoint"

    @property
    def report(self) -> Report:
        return self.incoming.report

    def write(self, directory: Path) -> None:
        """Write the directory; what was there is replaced when it is complete."""
        model = self.incoming.model.to_dict()
        files: dict[str, Source] = {MODEL: dump_yaml(model).encode(), **self.kept}
        tokenizers = {TOKENIZER: self.tokenizer, TARGET_TOKENIZER: self.target_tokenizer}
        with ExitStack() as stack:
            for name, tokenizer in tokenizers.items():
                if tokenizer is not None:
                    files[name] = stack.enter_context(saved_beside(tokenizer))[TOKENIZER]
            if self.task is not None:
                files[TASK_FILE] = self.task
            if len(self.incoming.aside):
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                write_tensors(folder / ASIDE, self.incoming.aside)
                files[ASIDE] = folder / ASIDE
            write_model(
                directory,
                self.incoming.tensors,
                {"model": model, **self.sections},
                files,
                fingerprints={
                    name.replace("_", " "): tokenizer.fingerprint
                    for name, tokenizer in tokenizers.items()
                    if tokenizer is not None
                },
            )


@dataclass(frozen=True)
class Request:
    """What a user says beside the place of a model; see the keys of the command.

    Args:
        family: Name of its family, or auto.
        original: JSON config of a model of TencentPretrain or UER-py.
        tokenizer: Where none lies beside it.
        target_tokenizer: Of what a decoder writes, where that is another one.
        overrides: Plain data of the model that differs from what its config says.
        is_pair: Whether a classifier reads pairs.
        allow_unexpected: Patterns of names of tensors that may be left.
    """

    family: str = "auto"
    original: Path | None = None
    tokenizer: ComponentConfig | None = None
    target_tokenizer: ComponentConfig | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    is_pair: bool = False
    allow_unexpected: Sequence[str] = ()


def arrive(path: Path, request: Request, dtype: str = "keep") -> Arrival:
    """Read what lies at `path`, with weights in the type `dtype`.

    Raises:
        UserError: if it cannot be converted.
        ConfigError: if `request.overrides` do not fit.
    """
    if request.original is not None:
        arrival = _arrive_original(path, request, request.original)
    elif (path / CONFIG).is_file():
        arrival = _arrive_folder(path, request)
    else:
        raise CheckpointError(
            f"`{path}` has no {CONFIG}, so it is no folder of transformers; for a file of "
            "TencentPretrain or UER-py give its JSON config as config=FILE"
        )
    incoming = arrival.incoming
    if arrival.tokenizer is None and incoming.reads_words:
        incoming.report.remarks.append(
            "there is no tokenizer; give one with tokenizer=KIND tokenizer.vocab=FILE"
        )
    return replace(arrival, incoming=replace(incoming, tensors=in_type(incoming.tensors, dtype)))


def _arrive_folder(path: Path, request: Request) -> Arrival:
    """A folder of `transformers`."""
    config = read_json(path / CONFIG)
    if request.family == "auto":
        family = family_of(config.get("model_type"))
    else:
        family = find_family(request.family)
    tokenizer = _built(request.tokenizer) or read_tokenizer(path, family.model_type)
    incoming = import_model(
        family,
        config,
        open_weights(path),
        None if tokenizer is None else tokenizer.vocab_size,
        request.overrides,
        request.allow_unexpected,
        read_preparation(path),
    )
    if (path / POOLING).is_file():
        incoming.report.remarks.append(_pooling(read_json(path / POOLING)))
    kept = {name: value for name, value in config.items() if name not in NOT_KEPT}
    sections: dict[str, Any] = {ORIGIN: {"family": family.name, "config": kept}}
    learned = _task(incoming, config, request.is_pair)
    if learned is not None:
        sections["task"] = {"name": learned["name"], **_task_keys(incoming)}
    task = None if learned is None else (json.dumps(learned, indent=2) + "\n").encode()
    vocabulary = Vocabulary.of(family, incoming.tensors, tokenizer)
    kept = kept_generation(path, vocabulary)
    return Arrival(incoming, tokenizer, sections, task, kept=kept)


def _arrive_original(path: Path, request: Request, config: Path) -> Arrival:
    """A file, or folder with pieces, of TencentPretrain or UER-py."""
    tokenizer, target = _built(request.tokenizer), _built(request.target_tokenizer)
    incoming = import_original(
        read_json(config),
        open_weights(path),
        None if tokenizer is None else tokenizer.vocab_size,
        None if target is None else target.vocab_size,
        request.overrides,
        request.allow_unexpected,
    )
    return Arrival(incoming, tokenizer, {}, target_tokenizer=target)


def _built(config: ComponentConfig | None) -> Tokenizer | None:
    return None if config is None else build_tokenizer(config)


def _task_keys(incoming: Incoming) -> dict[str, Any]:
    """Keys of the task that prepare inputs as the objective does."""
    transform = getattr(incoming.model.objective, "transform", None)
    return {} if transform is None else {"transform": transform.to_dict()}


def _pooling(config: Mapping[str, Any]) -> str:
    """How vectors of texts are made, which is no part of a model here."""
    names = {
        "pooling_mode_cls_token": "first",
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_max_tokens": "max",
    }
    found = [name for key, name in names.items() if config.get(key)]
    if len(found) != 1:
        return "sentence-transformers pools states in a way that scripts/extract.py has not"
    return f"for sentence vectors give pooling={found[0]} to scripts/extract.py"


def _task(incoming: Incoming, config: Mapping[str, Any], is_pair: bool) -> dict[str, Any] | None:
    """What `predict.py` has to know of a classifier."""
    names = config.get("id2label")
    target = next((t for t in incoming.model.target.values() if hasattr(t, "classes")), None)
    if not isinstance(names, Mapping) or target is None:
        return None
    labels = [str(names.get(str(number), "")) for number in range(target.classes)]
    if "" in labels or len(names) != len(labels):
        return None
    if target.name == "classify" and incoming.model.embedding.patches is not None:
        return {"name": "image_classify", "labels": labels}
    if target.name == "classify":
        return {"name": "classify", "labels": labels, "is_pair": is_pair}
    if target.name == "tag" and all(TAG.fullmatch(label) for label in labels):
        return {"name": "ner", "tags": labels}
    return None
