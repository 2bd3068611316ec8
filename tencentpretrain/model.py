"""The model: embedding → encoder → [target embedding → decoder] → target, each chosen by config."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor, nn

from tencentpretrain.config import (
    Choice,
    ComponentConfig,
    Config,
    ConfigError,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    check,
    nearest,
)
from tencentpretrain.data.objectives.base import OBJECTIVES
from tencentpretrain.data.objectives.seq2seq import Seq2SeqConfig
from tencentpretrain.decoders.base import DECODERS, Decoder, DecoderConfig
from tencentpretrain.embeddings.base import Embedding, EmbeddingConfig
from tencentpretrain.encoders.base import ENCODERS, EncoderConfig
from tencentpretrain.layers.attention import Attention
from tencentpretrain.layers.cache import Cache
from tencentpretrain.sizes import Sizes
from tencentpretrain.targets.base import TARGETS, Targets
from tencentpretrain.targets.heads import VocabularyHead
from tencentpretrain.types import (
    NOTHING,
    SRC,
    TGT,
    Batch,
    Hidden,
    ModelOutput,
    Stream,
    TargetOutput,
    Want,
)


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

    @check("embedding", "objective")
    def _rows_fit(self) -> str | None:
        return _too_long("embedding", self.embedding, "length", self.objective)

    @check("target_embedding", "objective")
    def _target_rows_fit(self) -> str | None:
        side = "target_embedding"
        return _too_long(side, self.target_embedding, "target_length", self.objective)

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
        if self.target_embedding is None:
            return self.sizes(vocabulary)
        hidden = self.target_hidden or self.hidden
        # One table for both sides needs no second number of rows.
        given = self.target_vocabulary or self.vocabulary
        rows = _rows("model.target_vocabulary", given, vocabulary)
        return Sizes(hidden, self.target_embedding.size or hidden, rows, self.hidden)


def _too_long(
    side: str, embedding: EmbeddingConfig | None, key: str, objective: ComponentConfig | None
) -> str | None:
    """What is wrong where the rows of an objective are longer than a table of positions."""
    position = None if embedding is None else embedding.parts.get("position")
    table, length = getattr(position, "length", None), getattr(objective, key, None)
    if table is None or length is None or length <= table:
        return None
    at_most = f"at most {side}.parts.position.length={table}"
    return f"objective.{key} must be {at_most}, but is {length}"


def _rows(key: str, given: int | None, vocabulary: int) -> int:
    """Rows of a word table for a tokenizer of `vocabulary` entries."""
    if given is not None and given < vocabulary:
        message = f"must be at least the tokenizer's size {vocabulary}, but is {given}"
        raise ConfigError.at(key, message)
    return given or vocabulary


class Model(nn.Module):
    """Five parts. Each reads only its own config and the `Sizes` of its side.

    Args:
        config: What it is made of.
        sizes: Of embedding and encoder.
        target_sizes: Of target embedding, decoder and targets.
    """

    def __init__(self, config: ModelConfig, sizes: Sizes, target_sizes: Sizes) -> None:
        super().__init__()
        is_direct = ENCODERS.get(config.encoder.name).reads_embedding
        width = sizes.embedding if is_direct else sizes.hidden
        self.embedding = Embedding(config.embedding, replace(sizes, hidden=width))
        self.encoder = ENCODERS.build(config.encoder, sizes)
        self.target_embedding: Embedding | None = None
        self.decoder: Decoder | None = None
        if config.decoder is not None and config.target_embedding is not None:
            self.target_embedding = Embedding(config.target_embedding, target_sizes)
            self.decoder = DECODERS.build(config.decoder, target_sizes)
        self.target = Targets(config.target, target_sizes)

    def encode(self, batch: Batch, want: Want = NOTHING) -> ModelOutput:
        """Everything before the target; streams other than "tgt" share embedding and encoder.

        Args:
            batch: What is read.
            want: What is asked for beside what the targets ask for.
        """
        want |= self.target.want
        encoded = {
            name: self.read(stream, want) for name, stream in batch.streams.items() if name != TGT
        }
        if self.decoder is None:
            return ModelOutput(next(iter(encoded.values())), encoded, want)
        return ModelOutput(self.decode(batch.streams[TGT], encoded[SRC], want), encoded, want)

    def read(self, stream: Stream, want: Want = NOTHING, cache: Cache | None = None) -> Hidden:
        """Embed and encode one stream, or what follows on that which `cache` has read."""
        embedded = self.embedding(stream)
        caches = () if cache is None else (cache,)
        hidden: Hidden = self.encoder(embedded.states, embedded.layout, want, *caches)
        return hidden

    def decode(
        self, stream: Stream, memory: Hidden, want: Want = NOTHING, cache: Cache | None = None
    ) -> Hidden:
        """Embed and decode a target stream, or what follows on that which `cache` has read."""
        assert self.target_embedding is not None
        assert self.decoder is not None
        embedded = self.target_embedding(stream)
        caches = () if cache is None else (cache,)
        hidden: Hidden = self.decoder(embedded.states, embedded.layout, memory, want, *caches)
        return hidden

    def forward(self, batch: Batch) -> TargetOutput:
        """Losses and metrics of `batch` as sums and counts."""
        output: TargetOutput = self.target(self.encode(batch), batch)
        return output

    def flops(self, batch: Batch) -> float:
        """Multiply-adds (as 2) of one training step on `batch`, backward included."""
        units = sum(labels.values.numel() for labels in batch.labels.values())
        total = 2.0 * units * sum(p.numel() for p in self.target.parameters())
        for name, stream in batch.streams.items():
            layout = stream.layout
            part = self.decoder if name == TGT and self.decoder is not None else self.encoder
            total += layout.count * part.flops(layout.valid.shape[-1])
        return 3.0 * total


def tie(model: nn.Module, ties: dict[str, str]) -> None:
    """Make parameters one: the module that owns each key gets the parameter of its value.

    Raises:
        ConfigError: if a name is not a parameter or the shapes differ.
    """
    for replaced, kept in ties.items():
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name in (replaced, kept):
            if name not in parameters:
                message = f"`{name}` is not a parameter of the model; {nearest(name, parameters)}"
                raise ConfigError.at("model.ties", message)
        if parameters[replaced].shape != parameters[kept].shape:
            shapes = f"{tuple(parameters[replaced].shape)} and {tuple(parameters[kept].shape)}"
            message = f"`{replaced}` and `{kept}` must have one shape, but have {shapes}"
            raise ConfigError.at("model.ties", message)
        owner, _, attribute = replaced.rpartition(".")
        setattr(model.get_submodule(owner), attribute, parameters[kept])


def init_weights(model: Model, config: InitConfig) -> None:
    """Fill every parameter: N(0, std) for weights, 1 for norm gains, 0 for biases.

    Modules with a scheme of their own have a method `init_weights(std)`; other modules of torch
    keep torch's. With `scale_residual` the layers that write into the residual stream start with
    std / sqrt(2 L) (GPT-2).

    Raises:
        TypeError: if a module has parameters or buffers and no way to fill them.
    """
    embeddings = (model.embedding, model.target_embedding)
    tables = {id(p) for part in embeddings if part is not None for p in part.parameters()}
    for module in model.modules():
        own = getattr(module, "init_weights", None)
        usual = getattr(module, "reset_parameters", None)
        std = config.std
        if config.fan_in and isinstance(module, nn.Linear | VocabularyHead):
            # An output layer that is tied to a table starts as the table does.
            std = std if id(module.weight) in tables else module.weight.shape[1] ** -0.5
        if own is not None:
            own(std)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif usual is not None:
            usual()
        elif [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            raise TypeError(
                f"{type(module).__name__} has parameters or buffers, but neither "
                "init_weights(std) nor reset_parameters() to fill them"
            )
    if config.fan_in:
        _damp_unscaled(model)
    if config.scale_residual:
        for stack in (model.encoder, model.decoder):
            outputs = [] if stack is None else stack.residual_outputs()
            for linear in outputs:
                nn.init.normal_(linear.weight, std=config.std / math.sqrt(len(outputs)))


def _damp_unscaled(model: Model) -> None:
    """Queries start as much smaller as their scores are not divided (Raffel et al., 2020)."""
    for module in model.modules():
        if isinstance(module, Attention) and module.scale == 1.0:
            with torch.no_grad():
                module.query.weight.mul_(module.shape.size**-0.5)


def build_model(
    config: ModelConfig,
    vocabulary: int,
    device: torch.device | str = "cpu",
    seed: int = 0,
    target_vocabulary: int | None = None,
) -> Model:
    """Build an initialised model for a tokenizer of `vocabulary` entries, in fp32 on `device`.

    Args:
        config: What it is made of.
        vocabulary: Entries of the tokenizer.
        device: Where its parameters lie.
        seed: Of the initial weights.
        target_vocabulary: Entries of the tokenizer of target texts; None is the same one.

    Raises:
        ConfigError: if the parts do not fit together.
    """
    sizes = config.sizes(vocabulary)
    target_sizes = config.target_sizes(target_vocabulary or vocabulary)
    with torch.device("meta"):
        model = Model(config, sizes, target_sizes)
    tie(model, config.ties)
    if torch.device(device).type == "meta":
        return model
    model = model.to_empty(device=device)
    tie(model, config.ties)
    with torch.random.fork_rng(devices=[] if torch.device(device).type == "cpu" else None):
        torch.manual_seed(seed)
        init_weights(model, config.init)
    return model


def parameter_count(model: nn.Module) -> int:
    """Number of different parameters; tied ones count once."""
    counted: list[Tensor] = list(model.parameters())
    return sum(parameter.numel() for parameter in counted)
