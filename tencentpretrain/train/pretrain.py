"""Pre-training: shards and a model config in, a run directory out."""

from __future__ import annotations

import logging

from tencentpretrain.config import ConfigError, check
from tencentpretrain.data.buckets import SimilarLengths
from tencentpretrain.data.loader import Order, ShuffledEpochs
from tencentpretrain.data.mixing import Mixture
from tencentpretrain.data.objectives.base import Objective
from tencentpretrain.distributed.parallel import PARALLELS
from tencentpretrain.errors import before_start
from tencentpretrain.model import ModelConfig, build_model
from tencentpretrain.train.dry_run import dry_run
from tencentpretrain.train.run_config import RunConfig
from tencentpretrain.train.session import Job, Session
from tencentpretrain.train.sources import PretrainData, Sources

log = logging.getLogger("tencentpretrain")


class PretrainConfig(RunConfig):
    """Pre-train a model on preprocessed documents."""

    model: ModelConfig
    """The model; choose a file of models/ such as model=bert/base, then change single keys."""
    data: PretrainData
    """Where examples come from."""

    @check("trainer")
    def _has_length(self) -> str | None:
        if self.trainer.steps is None and not self.trainer.epochs:
            return "trainer.steps (or trainer.epochs) is required, but was not given"
        return None

    @check("data", "model")
    def _source_names_are_free(self) -> str | None:
        taken = [name for name in self.data.mix if name in self.model.target]
        if not taken:
            return None
        return f"data.mix must not name a source `{taken[0]}`: that is a target of the model"

    @check("model")
    def _has_objective(self) -> str | None:
        if self.model.objective is None:
            return "model.objective is required to pre-train; see the objectives in --help"
        if not self.model.target:
            return "model.target is required: at least one target that the objective supervises"
        # How many those of "classify" must be, the labels of the data tell.
        others = {name: t for name, t in self.model.target.items() if name != "classify"}
        alone = [name for name, target in others.items() if getattr(target, "classes", 2) < 2]
        if alone:
            return f"model.target.{alone[0]}.classes must be at least 2 to be trained, but is 1"
        return None


def run_pretrain(config: PretrainConfig) -> int:
    """Pre-train as `config` says; returns the exit code."""
    assert config.model.objective is not None
    with before_start():
        parallel = PARALLELS.build(config.parallel)
        session = Session(config, parallel)
        parallel.begin("opening the data")
        sources = Sources(config.data, config.model.objective, config.seed)
        shards = sources.shards
        target = sources.target_tokenizer
        parallel.begin("building the model")
        check_classes(config.model, sources)
        model = build_model(
            config.model,
            shards.vocab_size,
            "meta",
            target_vocabulary=None if target is None else target.vocab_size,
        )
        written = None if config.model.decoder is None else (target or sources.tokenizer)
        session.prepare(
            model,
            config.model,
            None if sources.tokenizer is None else sources.tokenizer.fingerprint,
            target_tokenizer=None if written is None else written.fingerprint,
        )
        micro = config.trainer.micro_batch_size or config.trainer.batch_size
        job = Job(
            model,
            sources.examples,
            lambda trainer: sources.evaluate(trainer, micro),
            tokenizer=sources.tokenizer,
            target_tokenizer=target,
            fingerprints=sources.fingerprints(),
            workers=config.data.workers,
            order=bucketed(config, sources),
        )
        job = session.accompany(job)
    code = dry_run(session, job) if config.dry_run else session.run(job)
    parallel.close()
    return code


def bucketed(config: PretrainConfig, sources: Sources) -> Order | None:
    """The order of samples, with similar lengths together where `data.bucket` says so.

    Raises:
        ConfigError: if the objective's examples have no lengths of their own.
    """
    steps, examples = config.data.bucket, sources.examples
    if steps is None:
        return sources.order
    order = sources.order or ShuffledEpochs(len(examples), config.seed)
    sizes = examples.sizes() if isinstance(examples, Mixture | Objective) else None
    if sizes is None:
        message = "is for examples of different lengths, but those of the objective have one"
        raise ConfigError.at("data.bucket", message)
    return SimilarLengths(order, sizes, config.trainer.batch_size, steps, config.seed)


def check_classes(model: ModelConfig, sources: Sources) -> None:
    """Compare the classes of the target "classify" with the labels of the data.

    Raises:
        ConfigError: if a label has no class.
        DataError: if a label cannot be learned, as only documents to evaluate on have it.
    """
    classes: int | None = getattr(model.target.get("classify"), "classes", None)
    if classes is None:
        return
    sources.require_trained_labels()
    labels = sources.labels
    if not labels or classes == len(labels):
        return
    shown = ", ".join(labels[:20]) + ", ..." * (len(labels) > 20)
    if classes < len(labels):
        message = f"must be {len(labels)}, the labels of the data ({shown}), but is {classes}"
        raise ConfigError.at("model.target.classify.classes", message)
    log.warning(
        f"model.target.classify.classes={classes}, but the data has only {len(labels)} labels "
        f"({shown})"
    )
