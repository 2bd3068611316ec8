"""How the model of a run gets its first weights: drawn, loaded, adapted, distributed."""

from __future__ import annotations

import logging
from pathlib import Path

from tencentpretrain.config import ConfigError, Problem
from tencentpretrain.distributed.blocks import BlockOptions
from tencentpretrain.distributed.parallel import Parallel
from tencentpretrain.errors import CheckpointError
from tencentpretrain.model import Model, fill_model
from tencentpretrain.model_config import ModelConfig
from tencentpretrain.targets.companion import HELPERS
from tencentpretrain.train.base import Base, base_of, open_base, plain_tensors
from tencentpretrain.train.counts import keep_counts_once
from tencentpretrain.train.layers import choose_layers
from tencentpretrain.train.load import load_weights
from tencentpretrain.train.precision import resolve_precision
from tencentpretrain.train.run_config import RunConfig
from tencentpretrain.train.saved_checkpoint import Checkpoint, open_checkpoint
from tencentpretrain.wrappers.base import Wrapper, apply_wrappers

log = logging.getLogger("tencentpretrain")


class Beginning:
    """Fills and distributes the model of a run, once.

    Args:
        config: The run.
        parallel: The processes that share it.
        found: Checkpoint that it is continued from; then weights are only made room for.
    """

    def __init__(self, config: RunConfig, parallel: Parallel, found: Checkpoint | None) -> None:
        self.config, self.parallel, self.found = config, parallel, found
        self.wrappers: list[Wrapper] = []
        self._loaded: tuple[Checkpoint, frozenset[str]] | None = None

    def prepare(
        self,
        model: Model,
        made_of: ModelConfig,
        tokenizer: str | None,
        allow: tuple[str, ...] = (),
        target_tokenizer: str | None = None,
    ) -> None:
        """Give `model` memory, weights, wrappers and its place on all processes.

        Where processes cut parameters, each makes only its own part, unless wrappers need the
        whole model before.

        Args:
            model: On the meta device.
            made_of: Its config.
            tokenizer: Fingerprint of the one that makes its ids.
            allow: Patterns that `config.init` may lack or have left over, beside the user's.
            target_tokenizer: Fingerprint of the one of what a decoder writes, if there is any.

        Raises:
            CheckpointError: if names or shapes of `config.init` do not fit, or ids mean other
                tokens.
            ConfigError: if a wrapper does not fit the model, or the processes cannot share it.
        """
        config, parallel = self.config, self.parallel
        trainer = config.trainer
        blocks = BlockOptions(
            trainer.recompute,
            trainer.recompute_every,
            trainer.compile,
            resolve_precision(trainer.precision, parallel.device),
        )
        is_cut_first = parallel.is_sharded and not config.wrappers
        self._check_fit(model)
        if is_cut_first:
            parallel.shape(model, blocks)
        fill_model(model, made_of, parallel.device, config.seed, parallel.fill, parallel.home)
        if config.init != "none" and self.found is None:
            parallel.begin("loading weights")
            self._load_init(model, tokenizer, allow, target_tokenizer)
        self._given()  # a base that is gone is better found now than after the start
        self.wrappers = apply_wrappers(config.wrappers, model, config.seed)
        if not is_cut_first:
            self._check_fit(model)
            parallel.shape(model, blocks)
        parallel.begin("preparing examples and targets")

    def _check_fit(self, model: Model) -> None:
        problems = self.parallel.misfits(model)
        if self.parallel.is_sharded and self.config.optim.name == "adafactor":
            problems.append("optim.name=adafactor keeps sums over rows that lie on several; adamw")
        if problems:
            raise ConfigError(Problem("parallel", problem) for problem in problems)

    def _load_init(
        self,
        model: Model,
        tokenizer: str | None,
        allow: tuple[str, ...],
        target_tokenizer: str | None,
    ) -> None:
        source = open_checkpoint(Path(self.config.init), circle=self.parallel.circle)
        fingerprints = source.manifest.fingerprints
        theirs = fingerprints.get("tokenizer")
        written = fingerprints.get("target tokenizer", theirs)
        is_other = theirs not in (None, tokenizer)
        is_other |= target_tokenizer is not None and written not in (None, target_tokenizer)
        if is_other and not self.config.allow_other_tokenizer:
            raise CheckpointError(
                f"`{source.path}` was trained with another tokenizer than the data: the same ids "
                "would mean other tokens; preprocess with its tokenizer, or accept that with "
                "allow_other_tokenizer=true"
            )
        tensors, layers = plain_tensors(source), self.config.init_layers
        report = load_weights(
            model,
            choose_layers(tensors, layers) if layers else tensors,
            allow_missing=[*allow, HELPERS, *self.config.allow_missing],
            allow_unexpected=[*allow, HELPERS, *self.config.allow_unexpected],
            allow_mismatched=self.config.allow_mismatched,
        )
        keep_counts_once(model, self.parallel)
        # What lies under other names there cannot be referred to.
        self._loaded = None if layers else (source, frozenset(report.matched))
        log.info(f"init from {source.path}: {report}")

    def _given(self) -> tuple[Checkpoint, frozenset[str]] | None:
        """The checkpoint that the run started from, and the names of what it gave; None without.

        A continued run knows it only where it depends on it.
        """
        if self.found is None:
            return self._loaded
        base = base_of(self.found)
        return None if base is None else (open_base(self.found, base), frozenset(base.names))

    def base(self, model: Model, folder: Path) -> Base | None:
        """What the checkpoints in `folder` refer to; None where they hold the whole model."""
        given = self._given()
        keeps = bool(self.wrappers) and all(wrapper.keeps_base for wrapper in self.wrappers)
        if given is None or not keeps:
            return None
        source, names = given
        kept = {name for name, p in model.named_parameters() if not p.requires_grad}
        return Base.of(source, kept & names, folder)
