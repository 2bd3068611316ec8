"""Small checkpoints whose parts tell which step they are of."""

from pathlib import Path

import torch

from tencentpretrain.train.checkpoint import Checkpoint, CheckpointStore


def save(store: CheckpointStore, step: int, size: int = 64) -> Path:
    value = torch.full((size,), float(step))
    tensors = {"model": {"w": value}, "optimizer": {"w/exp_avg": value, "w/step": value[0]}}
    path = store.save(step, tensors, {"step": step}, {"config.yaml": b"x: 1\n"}, score=-step)
    store.wait()
    return path


def is_consistent(checkpoint: Checkpoint) -> bool:
    """Whether all parts are of the step that the checkpoint says."""
    values = [*checkpoint.tensors("model").values(), *checkpoint.tensors("optimizer").values()]
    same = all(bool((value == checkpoint.step).all()) for value in values)
    return same and checkpoint.state() == {"step": checkpoint.step}


def two_checkpoints(run_dir: Path) -> tuple[CheckpointStore, Path]:
    store = CheckpointStore(run_dir, keep_best=False)
    save(store, 1)
    return store, save(store, 2)
