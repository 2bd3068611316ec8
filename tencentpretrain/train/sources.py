"""Sources of pre-training examples: one, or several that are mixed by weights."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from pydantic import Field

from tencentpretrain.config import (
    ComponentConfig,
    Config,
    NonNegativeFloat,
    NonNegativeInt,
    PathLike,
    PositiveFloat,
    PositiveInt,
    check,
    nearest,
)
from tencentpretrain.data.loader import Examples, Order, Shared, shared_batches
from tencentpretrain.data.mixing import Mixture, source_key
from tencentpretrain.data.objectives.base import OBJECTIVES, NoVocabulary, Objective
from tencentpretrain.data.order import hash_int
from tencentpretrain.data.packing import Integers, split_documents
from tencentpretrain.data.shard_format import kind_of
from tencentpretrain.data.shards import ShardSet, open_shards
from tencentpretrain.errors import DataError
from tencentpretrain.tasks.table import shorten
from tencentpretrain.train.callbacks.evaluation import evaluate_loss, evaluate_mixture
from tencentpretrain.train.trainer import Trainer

log = logging.getLogger("tencentpretrain")


class SourceConfig(Config):
    """One of several sources of examples."""

    path: PathLike | list[PathLike]
    """Directory that preprocess.py wrote, or several; all sources are made with one tokenizer."""
    dev: PathLike | None = None
    """Preprocessed documents to evaluate this source on; null holds out a share of its own."""
    weight: PositiveFloat | None = None
    """Examples drawn from this source, in proportion to the weights of the others."""


class PretrainData(Config):
    """Where examples come from."""

    path: PathLike | list[PathLike] | None = None
    """Directory that preprocess.py wrote, or several made with one tokenizer."""
    mix: dict[str, SourceConfig] = {}
    """Instead of data.path: sources by names of your own, drawn from by weight; their losses are
    told apart in training, too."""
    mix_power: NonNegativeFloat = 1.0
    """Weight of sources without one: their number of examples to this power; 0 is all alike."""
    dev: PathLike | None = None
    """Preprocessed documents to evaluate on; null holds out a share of data.path."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of the documents of data.path, or of each source, that is held out for evaluation."""
    dev_examples: PositiveInt = 2000
    """Greatest number of examples of one evaluation, in a mixture of each source."""
    workers: NonNegativeInt = 0
    """Processes that make examples; 0 makes them in the training process."""
    bucket: PositiveInt | None = None
    """Steps whose examples are sorted by length together, so that each step has similar ones and
    little padding; null leaves them as they are drawn."""
    verify: bool = True
    """Whether to compare all bytes of the shards with their checksums at the start, and to look
    whether all files of corpus.store=path are there with their sizes."""

    @check("path", "mix", "dev")
    def _one_kind(self) -> str | None:
        if self.path is None and not self.mix:
            return "data.path (or data.mix) is required: documents that preprocess.py wrote"
        if self.path is not None and self.mix:
            return "give data.path or data.mix, not both"
        if self.mix and self.dev is not None:
            return "data.dev belongs to data.path; give a source of data.mix its own dev"
        return None

    @check("mix", "mix_power")
    def _weights(self) -> str | None:
        given = [source.weight is not None for source in self.mix.values()]
        if any(given) and not all(given):
            return "give each source of data.mix a weight, or none of them"
        if self.mix_power != 1 and (any(given) or not given):
            return "mix_power is for sources of data.mix without weights; leave it out"
        return None

    @check("mix")
    def _names(self) -> str | None:
        wrong = [name for name in self.mix if not re.fullmatch(r"[\w-]+", name)]
        if not wrong:
            return None
        return f"names in data.mix must be of letters, digits, _ and -, but one is `{wrong[0]}`"

    @property
    def sources(self) -> dict[str, SourceConfig]:
        """What `mix` has, or `path` as the only source, without a name."""
        if self.mix:
            return self.mix
        assert self.path is not None
        return {"": SourceConfig(path=self.path, dev=self.dev)}


@dataclass
class Source:
    """Documents of one source and the examples made of them.

    Args:
        shards: The documents.
        dev_shards: Those to evaluate on; None where they are a part of `shards`.
        train: Examples to train on.
        dev: Examples to evaluate on; None where there are none.
        weight: How often it is drawn from, in proportion to others.
    """

    shards: ShardSet
    dev_shards: ShardSet | None
    train: Objective
    dev: Objective | None
    weight: float


class Sources:
    """All examples of a run.

    Args:
        data: Where they come from.
        objective: How they are made of documents.
        seed: Of all choices.

    Raises:
        DataError: if shards are unusable, or not made with one tokenizer for this objective.
    """

    def __init__(self, data: PretrainData, objective: ComponentConfig, seed: int) -> None:
        self.data = data
        self.labels: list[str] = []
        """What the numbers of labels stand for, in all sources."""
        opened = {name: self._open(config) for name, config in data.sources.items()}
        self.shards = next(iter(opened.values()))[0]
        """Documents of the first source; their tokenizers are those of all."""
        self.tokenizer = self.shards.tokenizer() if self.shards.has_tokenizer else None
        """That of all texts; None where there are none."""
        cls = OBJECTIVES.get(objective.name)
        has_two = self.shards.has_target_tokenizer and getattr(cls, "reads_targets", False)
        self.target_tokenizer = self.shards.target_tokenizer() if has_two else None
        """That of what a decoder writes; None where it is that of all other texts."""
        for shards, dev_shards in opened.values():
            # Sources opened earlier learn of the labels of those behind them.
            shards.labels = (dev_shards or shards).labels = self.labels
            self._require_one_tokenizer(shards)
            self._require_one_tokenizer(dev_shards or shards)
        # Keyed by the name: what is drawn for a source does not depend on the others.
        self.sources = {
            name: self._make(name, *opened[name], objective, hash_int(seed, source_key(name)))
            for name in data.mix
        } or {"": self._make("", *opened[""], objective, seed)}
        self.examples: Examples = next(iter(self.sources.values())).train
        self.order: Order | None = None
        """Which example each sample is, where that is not the order of a single source."""
        if data.mix:
            self.examples = mixture = self._mix(seed)
            self.order = mixture.order

    def _open(self, source: SourceConfig) -> tuple[ShardSet, ShardSet | None]:
        """Documents of a source, and those to evaluate it on."""
        shards = self._open_shards(source.path)
        return shards, None if source.dev is None else self._open_shards(source.dev)

    def _open_shards(self, path: Path | list[Path]) -> ShardSet:
        # Each is told the labels of all before it, so that a number means one thing everywhere.
        shards = open_shards(path, verify=self.data.verify, labels=self.labels)
        self.labels = shards.labels
        return shards

    def _require_one_tokenizer(self, shards: ShardSet) -> None:
        first = self.shards
        theirs = shards.tokenizer_fingerprint, shards.target_fingerprint
        kind, other = kind_of(shards.columns), kind_of(first.columns)
        if kind != other and shards.has_tokenizer != first.has_tokenizer:
            raise DataError(
                f"`{shards.directories[0]}` holds {kind}, but `{first.directories[0]}` {other}; "
                "give documents that all have texts, or all none"
            )
        if theirs != (first.tokenizer_fingerprint, first.target_fingerprint):
            raise DataError(
                f"`{shards.directories[0]}` was made with another tokenizer than "
                f"`{first.directories[0]}`; preprocess both with one"
            )

    def require_trained_labels(self) -> None:
        """Refuse labels that are only in what the run is evaluated on.

        Raises:
            DataError: naming one of them, and where it is.
        """
        sources = self.sources.values()
        trained = dict.fromkeys(label for s in sources for label in s.shards.own_labels)
        for shards in (source.dev_shards for source in sources if source.dev_shards):
            unseen = [label for label in shards.own_labels if label not in trained]
            if unseen:
                raise DataError(
                    f"{shards.directories[0]}: the label `{shorten(unseen[0])}` is not in the "
                    f"training data; {nearest(unseen[0], trained)}"
                )

    def _make(
        self,
        name: str,
        shards: ShardSet,
        dev_shards: ShardSet | None,
        objective: ComponentConfig,
        seed: int,
    ) -> Source:
        """The objectives over the documents of a source."""
        tokenizer = self.tokenizer or NoVocabulary()
        documents: Integers | None = None
        held_out: Integers | None = None
        if dev_shards is None:
            documents, held_out = split_documents(shards.documents, self.data.holdout)
        train = OBJECTIVES.build(objective, shards, tokenizer, seed, documents)
        weight = self.data.sources[name].weight or len(train) ** self.data.mix_power
        if held_out is not None and not len(held_out):
            it, of = ("it", f" of source {name}") if name else ("this run", "")
            log.warning(f"no documents{of} are held out: {it} is not evaluated")
            return Source(shards, dev_shards, train, None, weight)
        dev = OBJECTIVES.build(objective, dev_shards or shards, tokenizer, seed, held_out)
        dev.is_training = False
        return Source(shards, dev_shards, train, dev, weight)

    def _mix(self, seed: int) -> Mixture:
        total = sum(source.weight for source in self.sources.values())
        for name, source in self.sources.items():
            share = f"{source.weight / total:.2%} of the samples"
            log.info(f"source {name}: {share}, from {len(source.train):,} examples")
        examples = {name: source.train for name, source in self.sources.items()}
        return Mixture(examples, [source.weight for source in self.sources.values()], seed)

    def evaluate(self, trainer: Trainer, micro_batch_size: int) -> dict[str, float]:
        """Results over the examples to evaluate on; of a mixture also for each source apart.

        All together count as the mixture draws them, however many examples a source has to show.
        """
        parts: dict[str, tuple[Iterator[Shared], float]] = {}
        ranks = trainer.parallel.rank, trainer.parallel.world
        for name, source in self.sources.items():
            if source.dev is not None:
                count = min(self.data.dev_examples, len(source.dev))
                batches = shared_batches(
                    source.dev, micro_batch_size, count, *ranks, is_shuffled=True
                )
                parts[name] = batches, source.weight / count
        if not parts:
            return {}
        if not self.data.mix:
            return evaluate_loss(trainer.model, parts[""][0], trainer)
        # No count becomes smaller than it is: less than one of anything would be taken for one.
        least = min(factor for _, factor in parts.values())
        scaled = {name: (batches, factor / least) for name, (batches, factor) in parts.items()}
        return evaluate_mixture(trainer.model, scaled, trainer)

    def fingerprints(self) -> dict[str, str]:
        """What must stay for a run to be continued: tokenizer, documents, how they are mixed."""
        found = {"data": self.shards.fingerprint}
        if self.tokenizer is not None:
            found["tokenizer"] = self.shards.tokenizer_fingerprint
        if self.target_tokenizer is not None:
            found["target tokenizer"] = self.target_tokenizer.fingerprint
        if self.data.mix:
            found["data"] = _joined(
                f"{name} {self.data.mix[name].weight or self.data.mix_power} {s.shards.fingerprint}"
                for name, s in self.sources.items()
            )
        devs = [s.dev_shards.fingerprint for s in self.sources.values() if s.dev_shards]
        if devs:
            found["dev data"] = _joined(devs) if self.data.mix else devs[0]
        return found


def _joined(parts: Iterable[str]) -> str:
    return sha256("\n".join(parts).encode()).hexdigest()
