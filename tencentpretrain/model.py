"""The model: embedding → encoder → [target embedding → decoder] → target, each chosen by config."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from tencentpretrain.config import ConfigError, nearest
from tencentpretrain.decoders.base import DECODERS, Decoder
from tencentpretrain.embeddings.base import Embedding
from tencentpretrain.encoders.base import ENCODERS
from tencentpretrain.layers.attention import Attention
from tencentpretrain.layers.cache import Cache
from tencentpretrain.model_config import InitConfig
from tencentpretrain.model_config import ModelConfig as ModelConfig
from tencentpretrain.sizes import Sizes
from tencentpretrain.targets.base import Targets
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
