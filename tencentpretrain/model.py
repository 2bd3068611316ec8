"""The model: embedding → encoder → [target embedding → decoder] → target, each chosen by config."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from tencentpretrain.config import ConfigError, nearest
from tencentpretrain.decoders.base import DECODERS, Decoder
from tencentpretrain.distributed.parallel import Fill, fill_whole
from tencentpretrain.embeddings.base import Embedding
from tencentpretrain.encoders.base import Encoder
from tencentpretrain.layers.attention import Attention
from tencentpretrain.layers.cache import Cache
from tencentpretrain.model_config import InitConfig
from tencentpretrain.model_config import ModelConfig as ModelConfig
from tencentpretrain.sizes import Sizes
from tencentpretrain.targets.base import Targets
from tencentpretrain.targets.heads import VocabularyHead
from tencentpretrain.towers import Tower, build_side, read_side
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
    """Five parts, and a tower for each stream that the first two do not read.

    Each reads only its own config and the `Sizes` of its side.

    Args:
        config: What it is made of.
        sizes: Of embedding and encoder.
        target_sizes: Of target embedding, decoder and targets.
    """

    def __init__(self, config: ModelConfig, sizes: Sizes, target_sizes: Sizes) -> None:
        super().__init__()
        self.embedding, self.encoder = build_side(config.embedding, config.encoder, sizes)
        self.towers = nn.ModuleDict(
            {name: Tower(tower, tower.sizes(sizes)) for name, tower in config.towers.items()}
        )
        self.target_embedding: Embedding | None = None
        self.decoder: Decoder | None = None
        if config.decoder is not None and config.target_embedding is not None:
            self.target_embedding = Embedding(config.target_embedding, target_sizes)
            self.decoder = DECODERS.build(config.decoder, target_sizes)
        self.target = Targets(config.target, target_sizes)

    def encode(self, batch: Batch, want: Want = NOTHING) -> ModelOutput:
        """Everything before the target.

        Streams without a tower of their name, other than "tgt", share embedding and encoder.

        Args:
            batch: What is read.
            want: What is asked for beside what the targets ask for.
        """
        want |= self.target.want
        encoded = {
            name: self.target.read(name, stream, partial(self.read_stream, name, want=want))
            for name, stream in batch.streams.items()
            if name != TGT
        }
        if self.decoder is None:
            return ModelOutput(next(iter(encoded.values())), encoded, want)
        return ModelOutput(self.decode(batch.streams[TGT], encoded[SRC], want), encoded, want)

    def read(self, stream: Stream, want: Want = NOTHING, cache: Cache | None = None) -> Hidden:
        """Embed and encode one stream, or what follows on that which `cache` has read."""
        return read_side(self.embedding, self.encoder, stream, want, cache)

    def read_stream(self, name: str, stream: Stream, want: Want = NOTHING) -> Hidden:
        """Embed and encode the stream `name` in its tower, or in the model's own parts."""
        if name not in self.towers:
            return self.read(stream, want)
        hidden: Hidden = self.towers[name](stream, want)
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
            embedding, stack = self._side(name)
            layout = embedding.layout(stream)
            total += layout.count * stack.flops(layout.valid.shape[-1])
        return 3.0 * total

    def stacks(self) -> list[Encoder | Decoder]:
        """Everything with blocks: the encoder, those of the towers, and the decoder."""
        stacks: list[Encoder | Decoder] = [self.encoder]
        stacks += [tower.encoder for tower in self._towers()]
        return stacks if self.decoder is None else [*stacks, self.decoder]

    def embeddings(self) -> list[Embedding]:
        """The embeddings, in the order of the stacks that read them."""
        embeddings = [self.embedding, *(tower.embedding for tower in self._towers())]
        return embeddings if self.target_embedding is None else [*embeddings, self.target_embedding]

    def _towers(self) -> list[Tower]:
        return [tower for tower in self.towers.values() if isinstance(tower, Tower)]

    def _side(self, name: str) -> tuple[Embedding, Encoder | Decoder]:
        """What reads the stream `name`."""
        if name == TGT and self.target_embedding is not None and self.decoder is not None:
            return self.target_embedding, self.decoder
        if name in self.towers:
            tower = self.towers[name]
            assert isinstance(tower, Tower)
            return tower.embedding, tower.encoder
        return self.embedding, self.encoder


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


def init_weights(model: Model, config: InitConfig, fill: Fill = fill_whole) -> None:
    """Fill every parameter: N(0, std) for weights, 1 for norm gains, 0 for biases.

    Modules with a scheme of their own have a method `init_weights(std)`; other modules of torch
    keep torch's. With `scale_residual` the layers that write into the residual stream start with
    std / sqrt(2 L) (GPT-2).

    Raises:
        TypeError: if a module has parameters or buffers and no way to fill them.
    """
    tables = {id(p) for part in model.embeddings() for p in part.parameters()}
    for module in model.modules():
        own = getattr(module, "init_weights", None)
        usual = getattr(module, "reset_parameters", None)
        std = config.std
        if config.fan_in and isinstance(module, nn.Linear | VocabularyHead):
            # An output layer that is tied to a table starts as the table does.
            std = std if id(module.weight) in tables else module.weight.shape[1] ** -0.5
        if own is not None:
            fill(module, partial(own, std))
        elif isinstance(module, nn.Linear):
            fill(module, partial(_init_linear, module, std))
        elif usual is not None:
            fill(module, usual)
        elif [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            raise TypeError(
                f"{type(module).__name__} has parameters or buffers, but neither "
                "init_weights(std) nor reset_parameters() to fill them"
            )
    if config.fan_in:
        _damp_unscaled(model)
    if config.scale_residual:
        for stack in model.stacks():
            outputs = stack.residual_outputs()
            for linear in outputs:
                std = config.std / math.sqrt(len(outputs))
                fill(linear, partial(_init_linear, linear, std))


def _init_linear(linear: nn.Linear, std: float) -> None:
    nn.init.normal_(linear.weight, std=std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


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
    if torch.device(device).type != "meta":
        fill_model(model, config, device, seed)
    return model


def fill_model(
    model: Model,
    config: ModelConfig,
    device: torch.device | str,
    seed: int,
    fill: Fill = fill_whole,
    home: Callable[[Tensor], torch.device] | None = None,
) -> None:
    """Give `model`, which is on the meta device, memory on `device` and its first weights.

    Args:
        model: As `build_model` made it there.
        config: What it is made of.
        device: Where its parameters lie.
        seed: Of the initial weights.
        fill: How a module's own parameters are filled; all processes draw the same numbers.
        home: Where each tensor lies, if not all of them on `device`.
    """
    model._apply(lambda t: torch.empty_like(t, device=device if home is None else home(t)))  # type: ignore[no-untyped-call]
    tie(model, config.ties)
    with torch.random.fork_rng(devices=[] if torch.device(device).type == "cpu" else None):
        torch.manual_seed(seed)
        init_weights(model, config.init, fill)


def parameter_count(model: nn.Module) -> int:
    """Number of different parameters; tied ones count once."""
    counted: list[Tensor] = list(model.parameters())
    return sum(parameter.numel() for parameter in counted)
