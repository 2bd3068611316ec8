"""The model: embedding → encoder → [target embedding → decoder] → target, each chosen by config."""

from __future__ import annotations

import math
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
from tencentpretrain.decoders.base import DECODERS, Decoder
from tencentpretrain.embeddings.base import Embedding, EmbeddingConfig
from tencentpretrain.encoders.base import ENCODERS, EncoderConfig
from tencentpretrain.sizes import Sizes
from tencentpretrain.targets.base import TARGETS, Targets
from tencentpretrain.types import Batch, ModelOutput, TargetOutput


class InitConfig(Config):
    """How parameters start; norm gains are always 1 and biases 0."""

    std: PositiveFloat = 0.02
    """Standard deviation of the normal distribution that weights are drawn from."""
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
    target: dict[str, Annotated[SerializeAsAny[ComponentConfig], Choice(TARGETS)]] = {}
    """Targets by name; their weighted losses are added."""
    objective: Annotated[SerializeAsAny[ComponentConfig] | None, Choice(OBJECTIVES)] = None
    """How pre-training examples are made from documents."""
    ties: dict[str, str] = {}
    """Parameters that are one and the same: name of the replaced one to name of the kept one."""
    init: InitConfig = InitConfig()
    """Initialisation."""

    @check("hidden", "encoder")
    def _encoder_fits(self) -> str | None:
        encoder = self.encoder
        return encoder.misfit(self.hidden) if isinstance(encoder, EncoderConfig) else None

    @check("embedding", "objective")
    def _rows_fit(self) -> str | None:
        position = self.embedding.parts.get("position")
        table, length = getattr(position, "length", None), getattr(self.objective, "length", None)
        if table is None or length is None or length <= table:
            return None
        return (
            f"objective.length must be at most embedding.parts.position.length={table}, "
            f"but is {length}"
        )

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
            if not name.isidentifier() or hasattr(Targets, name) or name == "weights":
                return f"a target must not be called `{name}`"
        return None

    @check("decoder", "target_embedding")
    def _decoder_has_input(self) -> str | None:
        if (self.decoder is None) == (self.target_embedding is None):
            return None
        return "decoder and target_embedding must be given together"

    def sizes(self, vocabulary: int) -> Sizes:
        """Sizes for a tokenizer of `vocabulary` entries.

        Raises:
            ConfigError: if the word table would be smaller than the vocabulary.
        """
        rows = self.vocabulary or vocabulary
        if rows < vocabulary:
            message = f"must be at least the tokenizer's size {vocabulary}, but is {rows}"
            raise ConfigError.at("model.vocabulary", message)
        return Sizes(self.hidden, self.embedding.size or self.hidden, rows)


class Model(nn.Module):
    """Five parts. Each reads only its own config and the `Sizes` that they share."""

    def __init__(self, config: ModelConfig, sizes: Sizes) -> None:
        super().__init__()
        self.embedding = Embedding(config.embedding, sizes)
        self.encoder = ENCODERS.build(config.encoder, sizes)
        self.target_embedding: Embedding | None = None
        self.decoder: Decoder | None = None
        if config.decoder is not None and config.target_embedding is not None:
            self.target_embedding = Embedding(config.target_embedding, sizes)
            self.decoder = DECODERS.build(config.decoder, sizes)
        self.target = Targets(config.target, sizes)

    def encode(self, batch: Batch) -> ModelOutput:
        """Everything before the target."""
        want = self.target.want
        embedded = self.embedding(batch.streams["src"])
        hidden = self.encoder(embedded.states, embedded.layout, want)
        encoded = {"src": hidden}
        if self.decoder is not None and self.target_embedding is not None:
            embedded = self.target_embedding(batch.streams["tgt"])
            hidden = self.decoder(embedded.states, embedded.layout, hidden, want)
        return ModelOutput(hidden, encoded)

    def forward(self, batch: Batch) -> TargetOutput:
        """Losses and metrics of `batch` as sums and counts."""
        output: TargetOutput = self.target(self.encode(batch), batch)
        return output

    def flops(self, tokens: int, length: int, units: int) -> float:
        """Multiply-adds (as 2) of one training step, backward included.

        Args:
            tokens: Valid positions.
            length: Positions in a row, for the attention scores.
            units: Supervised positions, where the target computes.
        """
        heads = sum(p.numel() for p in self.target.parameters())
        return 3.0 * (tokens * self.encoder.flops(length) + 2 * units * heads)


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
    for module in model.modules():
        own = getattr(module, "init_weights", None)
        usual = getattr(module, "reset_parameters", None)
        if own is not None:
            own(config.std)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=config.std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif usual is not None:
            usual()
        elif [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            raise TypeError(
                f"{type(module).__name__} has parameters or buffers, but neither "
                "init_weights(std) nor reset_parameters() to fill them"
            )
    if config.scale_residual:
        for stack in (model.encoder, model.decoder):
            outputs = [] if stack is None else stack.residual_outputs()
            for linear in outputs:
                nn.init.normal_(linear.weight, std=config.std / math.sqrt(len(outputs)))


def build_model(
    config: ModelConfig, vocabulary: int, device: torch.device | str = "cpu", seed: int = 0
) -> Model:
    """Build an initialised model for a tokenizer of `vocabulary` entries, in fp32 on `device`.

    Raises:
        ConfigError: if the parts do not fit together.
    """
    sizes = config.sizes(vocabulary)
    with torch.device("meta"):
        model = Model(config, sizes)
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
