"""A training run in its directory: what pre-training and fine-tuning have in common."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tencentpretrain.config import ConfigError
from tencentpretrain.data.loader import Examples, Loader, Order, require_equal_shares
from tencentpretrain.distributed.parallel import Parallel
from tencentpretrain.distributed.processes import first_line, is_loss
from tencentpretrain.errors import CheckpointError, TrainingError, before_start
from tencentpretrain.host_memory import tune_host_memory
from tencentpretrain.model import Model, parameter_count
from tencentpretrain.model_config import ModelConfig
from tencentpretrain.tokenizers.base import Tokenizer
from tencentpretrain.train.accompany import accompany
from tencentpretrain.train.base import BASE
from tencentpretrain.train.beginning import Beginning
from tencentpretrain.train.callbacks.base import CALLBACKS, Callback
from tencentpretrain.train.callbacks.evaluation import Evaluate, Evaluator
from tencentpretrain.train.callbacks.logging import Console, JsonLines, TensorBoard
from tencentpretrain.train.callbacks.saving import Checkpointer
from tencentpretrain.train.checkpoint import Checkpoint, CheckpointStore, RunLock
from tencentpretrain.train.optim import OPTIMIZERS
from tencentpretrain.train.run_config import RunConfig
from tencentpretrain.train.same_run import require_same_run
from tencentpretrain.train.saved_checkpoint import find_latest
from tencentpretrain.train.schedule import SCHEDULES, ScheduleConfig
from tencentpretrain.train.trainer import Annotator, Trainer
from tencentpretrain.yaml_text import dump_yaml, load_yaml

log = logging.getLogger("tencentpretrain")

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}


@dataclass
class Job:
    """What a kind of run gives to the session.

    Args:
        model: Built and initialised, on its device.
        examples: To train on.
        evaluate: Results of an evaluation by name.
        score: Name of the result that decides which checkpoint is the best.
        mode: Whether small or great scores are good.
        tokenizer: Saved with every checkpoint; None where there is none.
        target_tokenizer: The same of what a decoder writes, where that is another one.
        files: Further files of every checkpoint, by name.
        fingerprints: Of the data; a resumed run must have the same.
        workers: Processes that make examples.
        order: Of the samples; None shuffles the examples in every epoch.
        annotators: What adds to each batch before the forward pass.
        callbacks: Beside those of the config.
    """

    model: Model
    examples: Examples
    evaluate: Evaluate
    score: str = "eval/loss"
    mode: Literal["min", "max"] = "min"
    tokenizer: Tokenizer | None = None
    target_tokenizer: Tokenizer | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    workers: int = 0
    order: Order | None = None
    annotators: Sequence[Annotator] = ()
    callbacks: Sequence[Callback] = ()


class Session:
    """Opens a run directory, and trains a `Job` in it from wherever it was left.

    Args:
        config: The run.
        parallel: The processes that share it.

    Raises:
        UserError: if the directory is not what `config.resume` says, or belongs to another run.
    """

    def __init__(self, config: RunConfig, parallel: Parallel) -> None:
        self.config, self.parallel = config, parallel
        require_equal_shares(config.trainer.batch_size, self.parallel.world)
        self.store = self._open_store(config.run_dir)
        self.found = self._find()
        self.beginning = Beginning(config, self.parallel, self.found)

    def _open_store(self, run_dir: Path) -> CheckpointStore:
        rhythm = self.config.checkpoint
        return CheckpointStore(
            run_dir,
            rhythm.keep_last,
            rhythm.save_best,
            rhythm.keep_every,
            parallel=self.parallel,
        )

    def _find(self) -> Checkpoint | None:
        """What the run continues from, on all processes the same."""
        config, directory = self.config, self.config.run_dir
        if directory.exists() and not directory.is_dir():
            raise ConfigError.at("run_dir", f"must be a directory, but `{directory}` is a file")
        self.parallel.begin("opening the checkpoint")
        found = self.store.latest()
        if found is None and config.resume == "must":
            raise CheckpointError(
                f"there is nothing to resume in `{directory}`; correct run_dir, or let "
                "resume=auto start a new run"
            )
        if found is not None and config.resume == "never":
            raise CheckpointError(
                f"`{directory}` holds a run at step {found.step}; choose another run_dir, or let "
                "resume=auto continue it"
            )
        if found is not None and not config.dry_run and self.parallel.is_main:
            require_same_run(load_yaml(found.file("config.yaml")), config)
        return found

    def config_bytes(self) -> bytes:
        """The whole config, defaults included, as YAML."""
        return dump_yaml(self.config.to_dict()).encode()

    def steps(self, examples: Examples) -> int:
        """Length of the run in updates.

        Raises:
            ConfigError: if neither steps nor epochs are given, or the warm-up is longer.
        """
        trainer = self.config.trainer
        if trainer.steps is not None:
            return trainer.steps
        if not trainer.epochs:
            raise ConfigError.at("trainer.steps", "is required (or trainer.epochs)")
        steps = max(1, round(trainer.epochs * len(examples) / trainer.batch_size))
        warmup = getattr(self.config.schedule, "warmup_steps", None)
        if warmup is not None and warmup > steps:
            message = f"must be at most the {steps} steps of the run, but is {warmup}"
            raise ConfigError.at("schedule.warmup_steps", message)
        return steps

    def prepare(
        self,
        model: Model,
        made_of: ModelConfig,
        tokenizer: str | None,
        allow: tuple[str, ...] = (),
        target_tokenizer: str | None = None,
    ) -> None:
        """Fill and distribute the model of the run; see `Beginning.prepare`."""
        tune_host_memory(self.parallel.device)
        self.beginning = Beginning(self.config, self.parallel, self.found)
        self.beginning.prepare(model, made_of, tokenizer, allow, target_tokenizer)

    def accompany(self, job: Job) -> Job:
        """`job` with what the targets of its model bring along, such as a teacher.

        Raises:
            UserError: if that cannot be had, or does not fit.
        """
        return accompany(job, self.config, self.parallel, self.steps(job.examples))

    def trainer(self, job: Job, run_dir: Path) -> Trainer:
        """Put together a trainer that writes to `run_dir`, at the state that it was left in."""
        config, steps = self.config, self.steps(job.examples)
        store = self.store if run_dir == config.run_dir else self._open_store(run_dir)
        store.mode = job.mode
        base = self.beginning.base(job.model, store.directory)
        files: dict[str, bytes | Path] = {"config.yaml": self.config_bytes(), **job.files}
        tokenizers = {"tokenizer": job.tokenizer, "target_tokenizer": job.target_tokenizer}
        saved = {name: found for name, found in tokenizers.items() if found is not None}
        files |= {name: run_dir / name for name in saved}
        if base is not None:
            files[BASE] = base.to_bytes()
        left_out = base.names if base else ()
        saving = Checkpointer(
            store, config.checkpoint, files, job.score, job.fingerprints, left_out
        )
        every = config.trainer.eval_every or max(1, steps // 10)
        writers: list[Callback] = [
            Console(),
            JsonLines(run_dir / "metrics.jsonl"),
            TensorBoard(run_dir / "tensorboard"),
        ]
        callbacks: list[Callback] = [
            *(writers if self.parallel.is_main else []),
            Evaluator(job.evaluate, every),
            saving,
            *job.callbacks,
            *self._added_callbacks(),
        ]
        schedule_config = config.schedule
        assert isinstance(schedule_config, ScheduleConfig)
        trainer = Trainer(
            job.model,
            OPTIMIZERS.build(config.optim)(job.model),
            SCHEDULES.build(schedule_config, steps),
            Loader(
                job.examples,
                config.trainer.batch_size,
                config.trainer.micro_batch_size or config.trainer.batch_size,
                config.seed,
                workers=job.workers,
                rank=self.parallel.rank,
                world=self.parallel.world,
                order=job.order,
            ),
            config.trainer,
            steps=steps,
            seed=config.seed,
            parallel=self.parallel,
            callbacks=callbacks,
            annotators=job.annotators,
        )
        trainer.restore = saving.restore
        if self.found is not None and run_dir == config.run_dir:
            self._check_fingerprints(self.found, job)
            saving.restore(trainer, self.found)
        for name, tokenizer in saved.items() if self.parallel.is_main else ():
            tokenizer.save(run_dir / name)
        return trainer

    def _added_callbacks(self) -> list[Callback]:
        added: list[Callback] = []
        for name, config in self.config.callbacks.items():
            callback = CALLBACKS.build(config)
            callback.key = f"callbacks.{name}"
            added.append(callback)
        return added

    def run(self, job: Job) -> int:
        """Train to the end or an interruption; returns the exit code."""
        config = self.config
        with before_start():
            self.steps(job.examples)
            if self.found is not None:
                self._check_fingerprints(self.found, job)
        with self._locked():
            self._look_again()
            trainer = self.trainer(job, config.run_dir)
            if self.parallel.is_main:
                replace_file(config.run_dir / "config.yaml", self.config_bytes())
            if trainer.step >= trainer.steps:
                log.info(f"the run in {config.run_dir} is finished, at step {trainer.step}")
                return 0
            if trainer.step:
                log.info(f"continuing {config.run_dir} from step {trainer.step}")
            log.info(f"{describe(trainer)}; training to step {trainer.steps}")
            with self._named_losses(trainer):
                trainer.fit()
        if trainer.stop_reason is None:
            log.info(f"finished at step {trainer.step}; the run is in {config.run_dir}")
            return 0
        log.info(
            f"stopped by {trainer.stop_reason} at step {trainer.step}, saved in {config.run_dir}; "
            "the same command continues"
        )
        return EXIT_CODES.get(trainer.stop_reason, 0)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let the first process hold the lock of the run directory; all fail where it is held."""
        with RunLock(self.config.run_dir) if self.parallel.is_main else nullcontext():
            self.parallel.begin("preparing to train")
            yield

    @contextmanager
    def _named_losses(self, trainer: Trainer) -> Iterator[None]:
        """Say which process lost the others, and where: torch's own message tells neither."""
        self.parallel.begin("training", is_training=True)
        try:
            yield
        except RuntimeError as error:
            circle = self.parallel.circle
            if circle.world == 1 or not is_loss(error):
                raise
            raise TrainingError(
                f"rank {circle.rank} of {circle.world} lost another one while {trainer.phase} at "
                f"step {trainer.step}: {first_line(error)}; see the messages of the other ranks. "
                "The same command continues from the last checkpoint"
            ) from error
        self.parallel.begin("ending")

    def _look_again(self) -> None:
        """Another process may have trained between our first look and our lock."""
        newest = find_latest(self.store.directory, False, self.parallel.circle)
        if (newest and newest.path) != (self.found and self.found.path):
            self.found = self._find()

    def _check_fingerprints(self, found: Checkpoint, job: Job) -> None:
        for name, value in found.manifest.fingerprints.items():
            if job.fingerprints.get(name, value) != value:
                raise CheckpointError(
                    f"the run in `{self.config.run_dir}` was trained on other {name} (fingerprint "
                    f"{value[:12]}, now {job.fingerprints[name][:12]}); use the same {name}, or "
                    f"start another run with init={self.config.run_dir}"
                )


def replace_file(path: Path, data: bytes) -> None:
    """Replace the content of `path` in one step."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def describe(trainer: Trainer) -> str:
    """Size of the model, device and precision, for people."""
    count = parameter_count(trainer.model)
    dtype = str(trainer.dtype).removeprefix("torch.")
    return f"{count / 1e6:.1f} M parameters on {trainer.device} in {dtype}"
