"""Encoder-decoders and wrappers can be added from outside: toy ones are, and they work."""

import pytest
from torch import Tensor, nn

from tencentpretrain.config import ComponentConfig, PositiveInt, decode
from tencentpretrain.decoders.base import DECODERS, Decoder
from tencentpretrain.model import Model, ModelConfig, build_model
from tencentpretrain.sizes import Sizes
from tencentpretrain.types import NOTHING, Batch, Hidden, Layout, Want
from tencentpretrain.wrappers.base import WRAPPERS, Wrapper
from tests.helpers.models import TINY, VOCABULARY, model_data, text_batch, tiny_model, total_loss


class ToyDecoder(Decoder):
    """Adds the mean of what the encoder said about the row to each position."""

    class Config(ComponentConfig):
        factor: PositiveInt = 2
        """Factor of the mean."""

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        self.factor = config.factor
        self.output = nn.Linear(sizes.hidden, sizes.hidden)

    def forward(
        self, hidden: Tensor, layout: Layout, memory: Hidden, want: Want = NOTHING
    ) -> Hidden:
        mean = memory.states.sum(1) / memory.layout.valid.sum(1, keepdim=True)
        return Hidden(hidden + self.factor * self.output(mean)[:, None], layout)

    def residual_outputs(self) -> list[nn.Linear]:
        return [self.output] * 200


class BiasWrapper(Wrapper):
    """Trains biases only (a toy BitFit)."""

    class Config(ComponentConfig):
        part: str = "query"
        """Linear layers to train."""

    config: Config

    def apply(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.endswith(f"{self.config.part}.bias")


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (DECODERS, WRAPPERS):
        list(registry)
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    DECODERS.register("toy")(ToyDecoder)
    WRAPPERS.register("biases")(BiasWrapper)


def encoder_decoder(**keys: object) -> Model:
    parts = {"word": {}, "position": {"length": 32}}
    overrides = {
        "target_embedding": {"parts": parts, "dropout": 0},
        "decoder": {"name": "toy"},
        "target": {"nsp": None, "mlm": None, "lm": {}},
        "ties": {"target_embedding.word.weight": "embedding.word.weight"},
    }
    data = model_data("bert/tiny", TINY, overrides, keys)
    del data["objective"], data["ties"]["target.mlm.output.weight"]
    return build_model(decode(ModelConfig, data), VOCABULARY).eval()


def batch_of() -> Batch:
    source, target = text_batch((9, 5), (), seed=1), text_batch((4, 6), ("lm",), seed=2)
    streams = {"src": source.streams["src"], "tgt": target.streams["src"]}
    return Batch(streams, target.labels, source.tokens + target.tokens)


def test_the_target_reads_the_decoder_which_reads_the_encoder() -> None:
    model, batch = encoder_decoder(), batch_of()
    out = model.encode(batch)
    assert out.encoded["src"].states.shape == (2, 9, 16)
    assert out.hidden.states.shape == (2, 6, 16)
    assert out.hidden.layout is batch.streams["tgt"].layout
    before = total_loss(model(batch))
    batch.streams["src"].inputs["ids"][0, 0] += 1
    assert float(total_loss(model(batch)).detach()) != float(before.detach())


def test_every_part_learns_and_tables_can_be_shared() -> None:
    model = encoder_decoder()
    assert model.target_embedding is not None
    assert model.target_embedding.word.weight is model.embedding.word.weight
    total_loss(model(batch_of())).backward()
    for part in (model.embedding, model.encoder, model.target_embedding, model.decoder):
        assert part is not None
        assert any(p.grad is not None and bool(p.grad.any()) for p in part.parameters())


def test_residual_layers_of_a_decoder_are_scaled_by_their_number() -> None:
    scaled = encoder_decoder(init={"std": 1.0, "scale_residual": True})
    assert isinstance(scaled.decoder, ToyDecoder)
    assert float(scaled.decoder.output.weight.detach().std()) < 0.2
    plain = encoder_decoder(init={"std": 1.0})
    assert isinstance(plain.decoder, ToyDecoder)
    assert float(plain.decoder.output.weight.detach().std()) > 0.8


def test_a_model_without_a_decoder_reads_no_target_stream() -> None:
    out = tiny_model("bert/tiny").encode(text_batch((4, 3)))
    assert out.hidden is out.encoded["src"]


def test_a_wrapper_decides_what_trains() -> None:
    model = tiny_model("bert/tiny").eval()
    config = decode(WRAPPERS.config_class("biases"), {"name": "biases", "part": "value"})
    WRAPPERS.build(config).apply(model)
    total_loss(model(text_batch((6, 4)))).backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {f"encoder.layers.{n}.attention.value.bias" for n in range(2)}
