"""A rehearsal: everything that a run does, once, elsewhere, and what the whole run will cost."""

from __future__ import annotations

import logging
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from tencentpretrain.distributed.layout import local_box, local_part
from tencentpretrain.distributed.processes import Circle
from tencentpretrain.errors import CheckpointError, before_start
from tencentpretrain.train.base import model_tensors
from tencentpretrain.train.callbacks.logging import duration
from tencentpretrain.train.callbacks.saving import Checkpointer
from tencentpretrain.train.load import state_tensors
from tencentpretrain.train.optimizer_state import optimizer_tensors
from tencentpretrain.train.session import Job, Session, describe
from tencentpretrain.train.tensor_file import part_of
from tencentpretrain.train.trainer import Trainer

log = logging.getLogger("tencentpretrain")


def dry_run(session: Session, job: Job) -> int:
    """Take one step, save it, read it back and compare, in a temporary place; report the costs.

    Raises:
        CheckpointError: if what is read back differs from what was saved.
    """
    with _temporary_directory(session.parallel.circle) as directory, before_start():
        trainer = session.trainer(job, directory)
        saving = next(c for c in trainer.callbacks if isinstance(c, Checkpointer))
        batches = iter(trainer.loader)
        micros = next(batches)
        trainer.account(trainer.train_step(micros), micros)
        trainer.step += 1
        trainer.check_finite()
        saving.save(trainer)
        saving.finish(trainer)
        path = _compare(trainer, saving)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        start = time.perf_counter()
        micros = next(batches)
        stats = trainer.train_step(micros)
        stats.grad_norm.item()
        seconds = time.perf_counter() - start
        trainer.account(stats, micros)
        report(session, trainer, seconds, trainer.all_tokens() / 2, size)
    return 0


@contextmanager
def _temporary_directory(circle: Circle) -> Iterator[Path]:
    """A directory of all processes, which the first of them removes in the end."""
    with ExitStack() as stack:
        made = None
        if circle.rank == 0:
            made = stack.enter_context(tempfile.TemporaryDirectory(prefix="tencentpretrain-"))
        yield Path(circle.first(made))
        circle.gather(None)  # that nobody is in it any more


def _compare(trainer: Trainer, saving: Checkpointer) -> Path:
    """Read back what this process has written and compare it with what lives; where it lies."""
    found = saving.store.latest()
    if found is None:
        raise CheckpointError("the checkpoint of the dry run cannot be found again")
    living = {
        "model": state_tensors(trainer.model),
        "optimizer": optimizer_tensors(trainer.optimizer, trainer.model),
    }
    for stem, tensors in living.items():
        stored = model_tensors(found) if stem == "model" else found.lazy_tensors(stem)
        for name, tensor in tensors.items():
            if not trainer.parallel.is_keeper(tensor):
                continue
            if not torch.equal(part_of(stored, name, local_box(tensor)), local_part(tensor).cpu()):
                raise CheckpointError(f"`{name}` of the dry run was not read back as it was saved")
    return found.path


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
