"""A frozen model that adds what it says to each batch; no part of the model that learns from it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from tencentpretrain.data.checksum import file_checksum
from tencentpretrain.distill.answers import Answer, StatesAnswer, Teaching, add_teaching
from tencentpretrain.errors import CheckpointError
from tencentpretrain.targets.companion import Setting
from tencentpretrain.targets.heads import VocabularyTarget
from tencentpretrain.tokenizers.base import Tokenizer
from tencentpretrain.tools.saved_model import SavedModel, read_model
from tencentpretrain.train.manifest import MANIFEST
from tencentpretrain.train.saved_checkpoint import open_checkpoint
from tencentpretrain.types import NOTHING, TGT, Batch, ModelOutput, Want

log = logging.getLogger("tencentpretrain")

CLASSES: Final = ("labels", "tags")
"""What classes are called in the files of tasks."""


class Teacher:
    """An annotator: reads each batch before the student does.

    Args:
        saved: The model; it is frozen here.
        dtype: Of its weights and matrix products.
    """

    def __init__(self, saved: SavedModel, dtype: torch.dtype) -> None:
        self.saved = saved
        self.dtype = dtype
        self.model = saved.model.eval().requires_grad_(False).to(dtype)
        self.want = NOTHING
        self.wishes: dict[str, Want] = {}

    @classmethod
    def of(cls, path: Path, dtype: torch.dtype, setting: Setting) -> Teacher:
        """The teacher at `path`; the targets of one model have it in common.

        Raises:
            UserError: if there is none, or its vocabulary is not that of the setting.
        """
        key = "teacher", path, dtype
        if key not in setting.shared:
            teacher = cls(read_model(open_checkpoint(path), setting.device), dtype)
            check_vocabularies(teacher.saved, setting)
            check_classes(teacher.saved, setting.files)
            log.info(f"the teacher is that of checkpoint {teacher.saved.checkpoint.path}")
            setting.shared[key] = teacher
        found: Teacher = setting.shared[key]
        return found

    @property
    def fingerprint(self) -> str:
        """Checksum of the manifest, which covers all weights."""
        return file_checksum(self.saved.checkpoint.path / MANIFEST)

    def teach(self, label: str, want: Want = NOTHING) -> None:
        """Answer target `label` from now on, and show it the layers that it wants.

        Raises:
            CheckpointError: if the teacher has no such target, or one that rules entries out.
        """
        names = self.model.target.names
        if label not in names:
            raise CheckpointError(
                f"the teacher `{self.saved.checkpoint.path}` has not learned `{label}`: its "
                f"targets are {', '.join(names) or 'none'}; give one that was trained for it"
            )
        target = self.model.target[label]
        bias = target.output.bias if isinstance(target, VocabularyTarget) else None
        if bias is not None and not bool(bias.isfinite().all()):
            raise CheckpointError(
                f"the teacher `{self.saved.checkpoint.path}` rules entries out by an infinite bias "
                f"of `{label}`, from which no divergence is finite; make such biases -30"
            )
        self.wishes[label] = want
        self.want |= want

    def __call__(self, batch: Batch) -> Batch:
        """Add a `Teaching` for each target; nothing of it has a gradient.

        Raises:
            CheckpointError: if the teacher cannot read such a batch.
        """
        self._check_batch(batch)
        device = next(iter(batch.streams.values())).layout.valid.device
        is_low = self.dtype != torch.float32
        # Not inference mode: what comes of it is used in computing gradients.
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=is_low):
            out = self.model.encode(batch, self.want)
            found = {
                label: Teaching(self._answer(label, out, batch), out if want != NOTHING else None)
                for label, want in self.wishes.items()
            }
        return add_teaching(batch, found)

    def _answer(self, label: str, out: ModelOutput, batch: Batch) -> Answer:
        target = self.model.target[label]
        if not isinstance(target, VocabularyTarget):
            return StatesAnswer(target.logits(out, batch))
        head, written = target.output, self.saved.target_tokenizer or self.saved.tokenizer
        entries = None if written is None else written.vocab_size
        return StatesAnswer(target.transform(out, batch), head.weight, head.bias, entries)

    def _check_batch(self, batch: Batch) -> None:
        path, config = self.saved.checkpoint.path, self.saved.config
        if (TGT in batch.streams) != (self.model.decoder is not None):
            has, reads = ("no", "a") if self.model.decoder is None else ("a", "no")
            raise CheckpointError(
                f"the teacher `{path}` has {has} decoder, but the student reads {reads} target row"
            )
        for name, stream in batch.streams.items():
            side = config.target_embedding if name == TGT else config.embedding
            position = None if side is None else side.parts.get("position")
            length, limit = stream.layout.valid.shape[1], getattr(position, "length", None)
            if limit is not None and length > limit:
                raise CheckpointError(
                    f"the teacher `{path}` reads rows of at most {limit} tokens, but one has "
                    f"{length}; shorten the rows"
                )


def check_vocabularies(teacher: SavedModel, setting: Setting) -> None:
    """Ids must mean one thing to teacher and student.

    Raises:
        CheckpointError: naming the first entry that differs.
    """
    pairs = [("", teacher.tokenizer, setting.tokenizer)]
    written = setting.target_tokenizer or setting.tokenizer
    pairs.append(("target ", teacher.target_tokenizer or teacher.tokenizer, written))
    for kind, theirs, ours in pairs:
        difference = _difference(theirs, ours)
        if difference:
            raise CheckpointError(
                f"the teacher `{teacher.checkpoint.path}` has another {kind}vocabulary than the "
                f"data: {difference}; preprocess with its tokenizer, or train a teacher on this"
            )


def _difference(theirs: Tokenizer | None, ours: Tokenizer | None) -> str | None:
    if theirs is None or ours is None:
        which = "the teacher" if theirs is None else "the data"
        return None if theirs is ours else f"{which} has no tokenizer"
    if theirs.fingerprint == ours.fingerprint:
        return None
    if theirs.vocab_size != ours.vocab_size:
        return f"{theirs.vocab_size} entries, not {ours.vocab_size}"
    numbers = range(ours.vocab_size)
    other = next((n for n in numbers if theirs.token(n) != ours.token(n)), None)
    if other is None:
        return None
    return f"entry {other} is `{theirs.token(other)}`, not `{ours.token(other)}`"


def check_classes(teacher: SavedModel, files: Mapping[str, bytes]) -> None:
    """Numbers of classes must mean one thing to teacher and student.

    Args:
        teacher: Whose files are compared.
        files: Those of the student.

    Raises:
        CheckpointError: if what a task learned differs.
    """
    for name in teacher.checkpoint.manifest.files.keys() & files.keys():
        ours = _classes(files[name])
        theirs = _classes(teacher.checkpoint.file(name).read_bytes())
        if ours != theirs:
            raise CheckpointError(
                f"the teacher `{teacher.checkpoint.path}` knows the classes {theirs}, but the data "
                f"has {ours}; give a teacher of the same task"
            )


def _classes(content: bytes) -> list[Any]:
    task = json.loads(content)
    return [task[key] for key in CLASSES if key in task]
