"""A trained model as a tool gets it: config, weights and tokenizer out of one checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

import torch

from tencentpretrain.config import (
    Choice,
    ComponentConfig,
    Config,
    ConfigError,
    PathLike,
    PositiveInt,
    SerializeAsAny,
    decode,
)
from tencentpretrain.data.shard_format import TARGET_TOKENIZER
from tencentpretrain.distributed.parallel import SingleProcess
from tencentpretrain.errors import CheckpointError
from tencentpretrain.host_memory import tune_host_memory
from tencentpretrain.model import Model, ModelConfig, build_model
from tencentpretrain.targets.base import Target
from tencentpretrain.tasks.inference import Machine
from tencentpretrain.tokenizers.base import Tokenizer, load_tokenizer
from tencentpretrain.train.base import model_tensors
from tencentpretrain.train.load import load_weights
from tencentpretrain.train.precision import PrecisionName, resolve_precision
from tencentpretrain.train.saved_checkpoint import Checkpoint, open_checkpoint
from tencentpretrain.train.source import saved_config, saved_tokenizer
from tencentpretrain.wrappers.base import WRAPPERS, apply_wrappers

log = logging.getLogger("tencentpretrain")

T = TypeVar("T", bound=Target)

LENGTH: Final = 512
"""Of rows, where neither training nor a table of positions bounds them."""


class ToolConfig(Config):
    """Keys of every tool that runs a model."""

    checkpoint: PathLike
    """Run directory, of which the best checkpoint is taken, or one of its checkpoints."""
    batch_size: PositiveInt = 32
    """Rows computed at once; the results do not depend on it."""
    precision: PrecisionName = "auto"
    """Type of matrix products: auto (bf16 where the hardware is fast at it), fp32 or bf16."""
    device: str | None = None
    """Device name such as cpu or cuda:1; null takes the GPU where there is one."""
    plugins: list[str] = []
    """Packages to import that register components of your own."""

    def machine(self) -> Machine:
        """How the model is run.

        Raises:
            ConfigError: if there is no such device.
        """
        chosen = decode(SingleProcess.Config, {"name": "none", "device": self.device})
        device = SingleProcess(chosen).device
        return Machine(device, resolve_precision(self.precision, device), self.batch_size)


class SavedParts(Config):
    """What the config of a run says about its model."""

    model: ModelConfig
    """The model."""
    wrappers: dict[str, Annotated[SerializeAsAny[ComponentConfig], Choice(WRAPPERS)]] = {}
    """Changes to the built model, by name."""


@dataclass(frozen=True)
class SavedModel:
    """A trained model, ready to run.

    Args:
        checkpoint: Where it was saved.
        config: Of the model.
        model: On its device, without dropout.
        tokenizer: None where the model reads no text.
        target_tokenizer: Of what a decoder writes, where it is another one.
    """

    checkpoint: Checkpoint
    config: ModelConfig
    model: Model
    tokenizer: Tokenizer | None
    target_tokenizer: Tokenizer | None = None

    def text_tokenizer(self) -> Tokenizer:
        """The tokenizer, for tools that read text.

        Raises:
            CheckpointError: if the model reads none.
        """
        if self.tokenizer is None:
            raise CheckpointError(
                f"`{self.checkpoint.path}` has no tokenizer, so its model reads no text; give the "
                "run of a model that does"
            )
        return self.tokenizer

    def target(self, kind: type[T], what: str) -> tuple[str, T]:
        """Name and module of the first target of a kind.

        Raises:
            CheckpointError: if the model has none; `what` says what it would have learned.
        """
        for name in self.config.target:
            target = self.model.target[name]
            if isinstance(target, kind):
                return name, target
        found = ", ".join(self.config.target) or "none"
        raise CheckpointError(
            f"`{self.checkpoint.path}` has not learned to {what}: its targets are {found}; give "
            "the run of a model that was trained for it"
        )

    def length(self, given: int | None = None) -> int:
        """Greatest length of a row: `given`, else that of training, else what the tables allow.

        Raises:
            ConfigError: if a table of positions is shorter than `given`.
        """
        tables = dict(self._tables())
        shortest = min(tables, key=lambda name: tables[name], default=None)
        if given is not None:
            if shortest is not None and given > tables[shortest]:
                raise ConfigError.at(
                    "length",
                    f"must be at most {tables[shortest]}, the positions in "
                    f"model.embedding.parts.{shortest}, but is {given}",
                )
            return given
        task = saved_config(self.checkpoint).get("task")
        trained = task.get("length") if isinstance(task, dict) else None
        trained = trained or getattr(self.config.objective, "length", None)
        return int(trained or (LENGTH if shortest is None else tables[shortest]))

    def _tables(self) -> Iterator[tuple[str, int]]:
        """Rows of the tables of positions by the name of the part."""
        for name, part in self.config.embedding.parts.items():
            rows = getattr(part, "length", None)
            if isinstance(rows, int):
                yield name, rows


def load_model(config: ToolConfig, machine: Machine) -> SavedModel:
    """The model in the checkpoint that `config` names.

    Raises:
        CheckpointError: if there is none, or its weights do not fit its config.
        ConfigError: if its config names code that is not trusted.
    """
    saved = read_model(open_checkpoint(config.checkpoint), machine.device)
    log.info(f"the model is that of checkpoint {saved.checkpoint.path}")
    return saved


def read_model(checkpoint: Checkpoint, device: torch.device) -> SavedModel:
    """The model in `checkpoint`, on `device`.

    Raises:
        CheckpointError: if its weights do not fit its config.
        ConfigError: if its config names code that is not trusted.
    """
    parts = saved_parts(checkpoint)
    tokenizer = saved_tokenizer(checkpoint)
    vocabulary = 0 if tokenizer is None else tokenizer.vocab_size
    target: Tokenizer | None = None
    if (checkpoint.path / TARGET_TOKENIZER).exists():
        target = load_tokenizer(checkpoint.file(TARGET_TOKENIZER))
    target_vocabulary = None if target is None else target.vocab_size
    tune_host_memory(device)
    model = build_model(parts.model, vocabulary, device, target_vocabulary=target_vocabulary)
    apply_wrappers(parts.wrappers, model)
    load_weights(model, model_tensors(checkpoint))
    return SavedModel(checkpoint, parts.model, model.eval(), tokenizer, target)


def saved_parts(checkpoint: Checkpoint) -> SavedParts:
    """What the config in `checkpoint` says about its model.

    Raises:
        CheckpointError: if it says nothing about a model.
        ConfigError: if it names code that is not trusted.
    """
    data: dict[str, Any] = saved_config(checkpoint)
    if not isinstance(data.get("model"), dict):
        raise CheckpointError(f"`{checkpoint.path}` is not of a model: its config has none")
    return decode(SavedParts, {key: data[key] for key in SavedParts.model_fields if key in data})
