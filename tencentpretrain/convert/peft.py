"""Adapters from and to the files of the `peft` library: what `scripts/convert_adapter.py` does."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from tencentpretrain.config import Config, PathLike, check
from tencentpretrain.convert.peft_in import CONFIG, WEIGHTS, import_adapter
from tencentpretrain.convert.peft_out import PeftAdapter, export_adapter
from tencentpretrain.errors import before_start
from tencentpretrain.model import build_model
from tencentpretrain.tools.outputs import (
    check_directory,
    model_files,
    published_directory,
    require_replaceable,
    write_model,
)
from tencentpretrain.train.base import BASE, Base
from tencentpretrain.train.durable import write_bytes
from tencentpretrain.train.load import state_tensors
from tencentpretrain.train.saved_checkpoint import open_checkpoint
from tencentpretrain.train.source import saved_tokenizer
from tencentpretrain.train.tensor_file import write_tensors

log = logging.getLogger("tencentpretrain")


class ConvertAdapterConfig(Config):
    """Convert an adapter of ours for peft, or one of peft for us."""

    checkpoint: PathLike | None = None
    """Run of an adapter to write for peft: of its checkpoints the best is taken, or the one."""
    adapter: PathLike | None = None
    """Folder of peft to read instead, with adapter_config.json and adapter_model.safetensors."""
    base: PathLike | None = None
    """The model that `adapter` was trained on, as scripts/convert.py has converted it."""
    output: PathLike
    """Directory to make: a folder that peft loads, or one that init and checkpoint accept."""
    base_name: str = ""
    """What peft is told that the base is called, such as bert-base-uncased."""
    family: str = "auto"
    """Family of the base, where its files do not tell the right one."""
    overwrite: bool = False
    """Whether an adapter at output may be replaced."""
    plugins: list[str] = []
    """Packages to import that register components of your own."""

    @check("checkpoint", "adapter", "base")
    def _one_direction(self) -> str | None:
        if (self.checkpoint is None) == (self.adapter is None):
            return "either checkpoint (to peft) or adapter (from peft) must be given"
        if (self.adapter is None) != (self.base is None):
            return "base must be given with adapter, and not with checkpoint, which knows its base"
        return None


def run_convert_adapter(config: ConvertAdapterConfig) -> int:
    """Convert as `config` says; returns the exit code."""
    if config.checkpoint is not None:
        with before_start():
            require_replaceable("output", config.output, config.overwrite, "adapter", [CONFIG])
            made = export_adapter(
                open_checkpoint(config.checkpoint), config.base_name, config.family
            )
        write_adapter(config.output, made)
    else:
        _import(config)
    log.info(f"the adapter is in {config.output}")
    return 0


def _import(config: ConvertAdapterConfig) -> None:
    assert config.adapter is not None
    assert config.base is not None
    with before_start():
        check_directory(config.output, config.overwrite, [config.adapter, config.base])
        base = open_checkpoint(config.base)
        found = import_adapter(config.adapter, base, config.family)
        tokenizer = saved_tokenizer(base)
        vocabulary = found.model.vocabulary or (0 if tokenizer is None else tokenizer.vocab_size)
        names = set(state_tensors(build_model(found.model, vocabulary, "meta")))
        reference = Base.of(base, names - set(found.tensors), config.output.absolute().parent)
        kept = {n: f for n, f in model_files(base).items() if n.startswith("tokenizer")}
    fingerprints = base.manifest.fingerprints
    write_model(
        config.output,
        found.tensors,
        {"model": found.model.to_dict(), "wrappers": found.wrappers},
        {**kept, BASE: reference.to_bytes()},
        fingerprints={n: value for n, value in fingerprints.items() if n == "tokenizer"},
    )


def write_adapter(output: Path, adapter: PeftAdapter) -> None:
    """Write a folder that `peft` loads; what was there is replaced when it is complete.

    Raises:
        CheckpointError: if it cannot be written.
    """
    config = json.dumps(adapter.config, indent=2, ensure_ascii=False) + "\n"
    with published_directory(output) as partial:
        write_bytes(partial / CONFIG, config.encode())
        write_tensors(partial / WEIGHTS, adapter.tensors, {"format": "pt"})
