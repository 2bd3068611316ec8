"""What examples and the targets of a model bring to the run that trains it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from tencentpretrain.distributed.parallel import Parallel
from tencentpretrain.model import Model
from tencentpretrain.targets.companion import Accompanied, Setting
from tencentpretrain.targets.heads import VocabularyTarget
from tencentpretrain.train.callbacks.base import Callback
from tencentpretrain.train.precision import resolve_precision
from tencentpretrain.train.run_config import RunConfig
from tencentpretrain.train.trainer import Annotator

if TYPE_CHECKING:
    from tencentpretrain.train.session import Job


def accompany(job: Job, config: RunConfig, parallel: Parallel, steps: int) -> Job:
    """`job` with the companions of its examples and of the targets of its model, each once.

    Args:
        job: Without them.
        config: The run.
        parallel: The other processes.
        steps: Length of the run in updates.

    Raises:
        UserError: if a companion cannot be had, or does not fit.
    """
    setting = Setting(
        parallel.device,
        resolve_precision(config.trainer.precision, parallel.device),
        job.examples,
        steps * config.trainer.batch_size,
        is_mixed=job.order is not None,
        tokenizer=job.tokenizer,
        target_tokenizer=job.target_tokenizer,
        files=job.files,
        outputs=output_rows(job.model),
        patches=getattr(job.model.embedding.content(), "patches", None),
    )
    annotators: dict[Annotator, None] = {}
    callbacks: list[Callback] = []
    fingerprints: dict[str, str] = {}
    # What completes the batches comes first: a teacher reads them, too.
    bringing: list[Accompanied] = [job.model.target[name] for name in job.model.target.names]
    if isinstance(job.examples, Accompanied):
        bringing = [job.examples, *bringing]
    for accompanied in bringing:
        companion = accompanied.companion(setting)
        if companion is None:
            continue
        setting = replace(setting, examples=companion.examples or setting.examples)
        if companion.annotate is not None:
            annotators[companion.annotate] = None
        if companion.callback is not None:
            callbacks.append(companion.callback)
        for key, value in companion.fingerprints.items():
            # Two targets may have different ones under one name.
            known = fingerprints.get(key)
            fingerprints[key] = value if known in (None, value) else f"{known} {value}"
    if not annotators and not callbacks and setting.examples is job.examples:
        return job
    job = replace(
        job,
        examples=setting.examples,
        annotators=[*annotators],
        callbacks=callbacks,
        fingerprints=job.fingerprints | fingerprints,
    )
    parallel.begin("rehearsing an example")  # in which parameters may be gathered
    rehearse(job, parallel.device)
    return job


def output_rows(model: Model) -> dict[str, int]:
    """Rows of the output layers over vocabularies, by the name of the target."""
    targets = {name: model.target[name] for name in model.target.names}
    return {
        name: len(target.output.weight)
        for name, target in targets.items()
        if isinstance(target, VocabularyTarget)
    }


def rehearse(job: Job, device: torch.device) -> None:
    """Read one example from end to end: what does not fit is better found before the start.

    Raises:
        UserError: as an annotator or a target does.
    """
    batch = job.examples.collate([job.examples.make(0, 0)]).to(device)
    for annotate in job.annotators:
        batch = annotate(batch)
    job.model.eval()
    with torch.no_grad():
        job.model(batch)
