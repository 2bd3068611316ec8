"""A rehearsal: everything that a run does, once, elsewhere, and what the whole run will cost."""

from __future__ import annotations

import logging
import resource
import shutil
import tempfile
import time
from pathlib import Path

import torch

from tencentpretrain.errors import CheckpointError, before_start
from tencentpretrain.train.base import model_tensors
from tencentpretrain.train.callbacks.logging import duration
from tencentpretrain.train.callbacks.saving import Checkpointer
from tencentpretrain.train.load import state_tensors
from tencentpretrain.train.optimizer_state import optimizer_tensors
from tencentpretrain.train.session import Job, Session, describe
from tencentpretrain.train.trainer import Trainer

log = logging.getLogger("tencentpretrain")


def dry_run(session: Session, job: Job) -> int:
    """Take one step, save it, read it back and compare, in a temporary place; report the costs.

    Raises:
        CheckpointError: if what is read back differs from what was saved.
    """
    with tempfile.TemporaryDirectory(prefix="tencentpretrain-") as folder, before_start():
        directory = Path(folder)
        trainer = session.trainer(job, directory)
        saving = next(c for c in trainer.callbacks if isinstance(c, Checkpointer))
        batches = iter(trainer.loader)
        micros = next(batches)
        trainer.account(trainer.train_step(micros), micros)
        trainer.step += 1
        trainer.check_finite()
        path = saving.save(trainer)
        _compare(trainer, saving)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        start, tokens = time.perf_counter(), trainer.tokens
        micros = next(batches)
        stats = trainer.train_step(micros)
        stats.grad_norm.item()
        seconds = time.perf_counter() - start
        tokens += sum(batch.tokens for batch in micros)
        report(session, trainer, seconds, tokens / 2, size)
    return 0


def _compare(trainer: Trainer, saving: Checkpointer) -> None:
    """Read the checkpoint back and compare every tensor with the living one."""
    found = saving.store.latest()
    if found is None:
        raise CheckpointError("the checkpoint of the dry run cannot be found again")
    living = {
        "model": state_tensors(trainer.model),
        "optimizer": optimizer_tensors(trainer.optimizer, trainer.model),
    }
    for stem, tensors in living.items():
        stored = model_tensors(found) if stem == "model" else found.tensors(stem)
        for name, tensor in tensors.items():
            if not torch.equal(stored[name], tensor.cpu()):
                raise CheckpointError(f"`{name}` of the dry run was not read back as it was saved")


def report(session: Session, trainer: Trainer, seconds: float, tokens: float, size: int) -> None:
    """Tell what the whole run will cost, from one timed step of `seconds`."""
    config = session.config
    steps, batch = trainer.steps, config.trainer.batch_size
    kept = config.checkpoint.keep_last + config.checkpoint.save_best
    parent = next(p for p in (config.run_dir, *config.run_dir.absolute().parents) if p.exists())
    free = shutil.disk_usage(parent).free
    if trainer.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(trainer.device)
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    epochs = steps * batch / len(trainer.loader.examples)
    lines = [
        f"dry run passed: one step, saved and read back; {describe(trainer)}",
        f"{len(trainer.loader.examples):,} examples; {steps:,} steps of {batch} are "
        f"{epochs:.2f} epochs and about {steps * tokens / 1e6:,.1f} M tokens",
        f"{seconds:.2f} s a step, {tokens / seconds:,.0f} tokens/s: about "
        f"{duration(steps * seconds)} for the run, without evaluation and saving",
        f"peak memory {memory / 2**30:.2f} GiB",
        f"checkpoints {size / 2**20:.0f} MiB each, up to {kept}: {kept * size / 2**30:.2f} GiB of "
        f"{free / 2**30:.1f} GiB free",
    ]
    if kept * size > free:
        lines.append("WARNING: the disk is too small for the checkpoints of this run")
    for line in lines:
        log.info(line)
