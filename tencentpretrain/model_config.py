"""What a model is made of, and which parts fit together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated

from torch import nn

from tencentpretrain.config import (
    Choice,
    ComponentConfig,
    Config,
    ConfigError,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    check,
)
from tencentpretrain.data.objectives.base import OBJECTIVES
from tencentpretrain.data.objectives.seq2seq import Seq2SeqConfig
from tencentpretrain.decoders.base import DECODERS, DecoderConfig
from tencentpretrain.embeddings.base import EmbeddingConfig
from tencentpretrain.encoders.base import ENCODERS, EncoderConfig
from tencentpretrain.sizes import Patches, Sizes
from tencentpretrain.targets.base import TARGETS, TargetConfig, Targets
from tencentpretrain.towers import TowerConfig
from tencentpretrain.types import TGT


class InitConfig(Config):
    """How parameters start; norm gains are always 1 and biases 0."""

    std: PositiveFloat = 0.02
    """Standard deviation of the normal distribution that weights are drawn from."""
    fan_in: bool = False
    """Draw linear layers with the inverse root of their inputs instead; std is for tables (T5)."""
    scale_residual: bool = False
    """Divide the deviation of layers that write into the residual stream by sqrt(2 x layers)."""


class ModelConfig(Config):
    """Everything that makes a model, apart from its weights and its tokenizer."""

    hidden: PositiveInt
    """Width D of the model."""
    vocabulary: PositiveInt | None = None
    """Rows of the word table; null is the size of the tokenizer's vocabulary."""
    embedding: EmbeddingConfig
    """Embedding of the source stream."""
    encoder: Annotated[SerializeAsAny[ComponentConfig], Choice(ENCODERS, "transformer")]
    """Encoder of the source stream."""
    towers: dict[str, TowerConfig] = {}
    """Embeddings and encoders of streams that those above do not read, by the stream's name."""
    target_embedding: EmbeddingConfig | None = None
    """Embedding of the target stream of an encoder-decoder."""
    decoder: Annotated[SerializeAsAny[ComponentConfig] | None, Choice(DECODERS)] = None
    """Decoder; needs target_embedding."""
    target_hidden: PositiveInt | None = None
    """Width of the decoder and its embedding; null is the same as hidden."""
    target_vocabulary: PositiveInt | None = None
    """Rows of the decoder's word table; null is the size of the target texts' tokenizer."""
    target: dict[str, Annotated[SerializeAsAny[ComponentConfig], Choice(TARGETS)]] = {}
    """Targets by name; their weighted losses are added."""
    objective: Annotated[SerializeAsAny[ComponentConfig] | None, Choice(OBJECTIVES)] = None
    """How pre-training examples are made from documents."""
    ties: dict[str, str] = {}
    """Parameters that are one and the same: name of the replaced one to name of the kept one;
    null unties all."""
    init: InitConfig = InitConfig()
    """Initialisation."""

    @check("hidden", "encoder")
    def _encoder_fits(self) -> str | None:
        encoder = self.encoder
        return encoder.misfit(self.hidden) if isinstance(encoder, EncoderConfig) else None

    @check("hidden", "target_hidden", "decoder")
    def _decoder_fits(self) -> str | None:
        decoder = self.decoder
        width = self.target_hidden or self.hidden
        return decoder.misfit(width) if isinstance(decoder, DecoderConfig) else None

    @check("hidden", "towers")
    def _towers_fit(self) -> str | None:
        for name, tower in self.towers.items():
            if not name.isidentifier() or name == TGT or hasattr(nn.ModuleDict, name):
                return f"a tower must not be called `{name}`"
            misfit = tower.misfit(self.hidden)
            if misfit is not None:
                return f"towers.{name}: {misfit}"
        return None

    @check("towers", "objective")
    def _towers_are_fed(self) -> str | None:
        if self.objective is None:
            return None
        streams = OBJECTIVES.get(self.objective.name).streams
        for name in self.towers:
            if name not in streams:
                return (
                    f"towers.{name} reads a stream that objective.name={self.objective.name} does "
                    f"not make; it makes {', '.join(streams)}"
                )
        return None

    @check("embedding", "objective")
    def _frames_fit(self) -> str | None:
        frames = self.embedding.parts.get("frames")
        read = getattr(frames, "bands", None)
        made = getattr(getattr(self.objective, "bank", None), "bands", None)
        if read is None or made is None or read == made:
            return None
        return f"objective.bank.bands must be embedding.parts.frames.bands={read}, but is {made}"

    @check("embedding", "objective")
    def _rows_fit(self) -> str | None:
        return _too_long("embedding", self.embedding, "length", self.objective)

    @check("target_embedding", "objective")
    def _target_rows_fit(self) -> str | None:
        side = "target_embedding"
        return _too_long(side, self.target_embedding, "target_length", self.objective)

    @check("embedding", "encoder", "target", "objective")
    def _patches_fit(self) -> str | None:
        patches = self.embedding.patches
        if patches is not None:
            return _other_images(patches, self.objective)
        users = {"encoder.patch_scores": getattr(self.encoder, "patch_scores", None)}
        users |= {f"target.{n}": getattr(t, "needs_patches", None) for n, t in self.target.items()}
        name = next((name for name, uses in users.items() if uses), None)
        return name and f"{name} needs an embedding with a part `patch`, but it has none"

    @check("towers", "objective")
    def _tower_patches_fit(self) -> str | None:
        grids = (tower.embedding.patches for tower in self.towers.values())
        wrong = (_other_images(grid, self.objective) for grid in grids if grid is not None)
        return next(filter(None, wrong), None)

    @check("decoder", "objective")
    def _decoder_is_fed(self) -> str | None:
        if self.objective is None:
            return None
        has_target_rows = isinstance(self.objective, Seq2SeqConfig)
        if has_target_rows == (self.decoder is not None):
            return None
        makes = f"objective.name={self.objective.name} makes"
        if has_target_rows:
            return f"{makes} rows for a decoder, and so needs a decoder, but the model has none"
        return f"{makes} no target rows, which the decoder reads; choose one such as t5"

    @check("target", "objective")
    def _targets_fit(self) -> str | None:
        if self.objective is None or not self.target:
            return None
        supervised = OBJECTIVES.get(self.objective.name).supervises
        for name in self.target:
            if name not in supervised:
                return (
                    f"target.{name} gets no labels from objective.name={self.objective.name}, "
                    f"which supervises {', '.join(supervised)}"
                )
        return None

    @check("hidden", "towers", "target")
    def _targets_fit_towers(self) -> str | None:
        widths = {name: tower.hidden or self.hidden for name, tower in self.towers.items()}
        for name, target in self.target.items():
            if isinstance(target, TargetConfig):
                misfit = target.misfit(
                    lambda stream: widths.get(stream, self.hidden), is_alone=len(self.target) == 1
                )
                if misfit is not None:
                    return f"target.{name}.{misfit}"
        return None

    @check("target")
    def _target_names_are_free(self) -> str | None:
        for name in self.target:
            if not name.isidentifier() or hasattr(Targets, name) or name in ("names", "weights"):
                return f"a target must not be called `{name}`"
        return None

    @check("decoder", "target_embedding")
    def _decoder_has_input(self) -> str | None:
        if (self.decoder is None) == (self.target_embedding is None):
            return None
        return "decoder and target_embedding must be given together"

    @check("decoder", "target_hidden", "target_vocabulary")
    def _target_side_exists(self) -> str | None:
        for key in ("target_hidden", "target_vocabulary"):
            if self.decoder is None and getattr(self, key) is not None:
                return f"{key} is for models with a decoder; leave it out, or give a decoder"
        return None

    def sizes(self, vocabulary: int) -> Sizes:
        """Sizes of the source side for a tokenizer of `vocabulary` entries.

        Raises:
            ConfigError: if the word table would be smaller than the vocabulary.
        """
        rows = _rows("model.vocabulary", self.vocabulary, vocabulary)
        return Sizes(self.hidden, self.embedding.size or self.hidden, rows)

    def target_sizes(self, vocabulary: int) -> Sizes:
        """Sizes of the side that the targets read, for a tokenizer of `vocabulary` entries.

        Raises:
            ConfigError: as `sizes`.
        """
        towers = {name: tower.hidden or self.hidden for name, tower in self.towers.items()}
        if self.target_embedding is None:
            return replace(self.sizes(vocabulary), towers=towers, patches=self.embedding.patches)
        hidden = self.target_hidden or self.hidden
        # One table for both sides needs no second number of rows.
        given = self.target_vocabulary or self.vocabulary
        rows = _rows("model.target_vocabulary", given, vocabulary)
        return Sizes(hidden, self.target_embedding.size or hidden, rows, self.hidden, towers)


def _too_long(
    side: str, embedding: EmbeddingConfig | None, key: str, objective: ComponentConfig | None
) -> str | None:
    """What is wrong where the rows of an objective are longer than a table of positions."""
    length = getattr(objective, key, None)
    for path, part in () if embedding is None else parts_of(side, embedding):
        table = getattr(part, "length", None)
        if not path.endswith(".position") or table is None or length is None or length <= table:
            continue
        return f"objective.{key} must be at most {path}.length={table}, but is {length}"
    return None


def parts_of(side: str, embedding: EmbeddingConfig) -> Iterator[tuple[str, ComponentConfig]]:
    """Parts of an embedding with their dotted places, those that it nests included."""
    for name, part in embedding.parts.items():
        path = f"{side}.parts.{name}"
        yield path, part
        for inner, nested in getattr(part, "embeddings", {}).items():
            yield from parts_of(f"{path}.embeddings.{inner}", nested)


def _other_images(patches: Patches, objective: ComponentConfig | None) -> str | None:
    """What is wrong where an objective makes images of another size than are cut into `patches`."""
    size = getattr(getattr(objective, "transform", None), "size", None)
    wanted = patches.rows * patches.size[0], patches.columns * patches.size[1]
    if size is not None and (size, size) != wanted:
        return (
            f"objective.transform.size must be the image_size {wanted[0]} x {wanted[1]} of the "
            f"embedding, but is {size} x {size}"
        )
    side = getattr(objective, "patch_size", None)
    if side is None or (side, side) == patches.size:
        return None
    wanted = patches.size
    return (
        f"objective.patch_size must be the patch_size {wanted[0]} x {wanted[1]} of the embedding, "
        f"but is {side} x {side}"
    )


def _rows(key: str, given: int | None, vocabulary: int) -> int:
    """Rows of a word table for a tokenizer of `vocabulary` entries."""
    if given is not None and given < vocabulary:
        message = f"must be at least the tokenizer's size {vocabulary}, but is {given}"
        raise ConfigError.at(key, message)
    return given or vocabulary
