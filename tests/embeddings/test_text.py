from typing import Any

import pytest
import torch

from tencentpretrain.config import ComponentConfig, ConfigError, decode
from tencentpretrain.embeddings.base import PARTS, Embedding, EmbeddingConfig, EmbeddingPart
from tencentpretrain.sizes import Sizes
from tencentpretrain.types import Layout, Stream
from tests.helpers.models import layout_of, randomise

TEXT = {"word": {}, "position": {"length": 8}, "segment": {}}


PLAIN = Sizes(6, 6, 20)


def embedding_of(sizes: Sizes = PLAIN, **keys: Any) -> Embedding:
    embedding = Embedding(decode(EmbeddingConfig, {"parts": TEXT, "dropout": 0} | keys), sizes)
    randomise(embedding)
    return embedding


def stream_of(**inputs: torch.Tensor) -> Stream:
    return Stream({"ids": torch.randint(20, (2, 5)), **inputs}, layout_of((5, 3)))


def test_parts_are_summed_and_normalised() -> None:
    embedding = embedding_of(norm_eps=0.1)
    segments = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 1, 0, 0]])
    stream = stream_of(segments=segments)
    word, position, segment = embedding.parts()
    total = word.weight[stream.inputs["ids"]] + position.weight[:5] + segment.weight[segments]
    hidden = embedding(stream)
    expected = torch.nn.functional.layer_norm(
        total, (6,), embedding.norm.weight, embedding.norm.bias, 0.1
    )
    torch.testing.assert_close(hidden.states, expected)
    assert hidden.layout is stream.layout


def test_without_segments_or_positions_they_are_the_first_and_the_plain_ones() -> None:
    embedding = embedding_of()
    bare = stream_of()
    full = Stream(
        bare.inputs
        | {
            "segments": torch.zeros(2, 5, dtype=torch.int64),
            "positions": torch.arange(5).expand(2, -1),
        },
        bare.layout,
    )
    torch.testing.assert_close(embedding(bare).states, embedding(full).states)


def test_positions_may_start_again() -> None:
    embedding = embedding_of(norm="none")
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]])
    stream = stream_of(positions=positions)
    word, position, segment = embedding.parts()
    expected = word.weight[stream.inputs["ids"]] + position.weight[positions] + segment.weight[0]
    torch.testing.assert_close(embedding(stream).states, expected)


def test_a_row_longer_than_the_table_is_refused() -> None:
    stream = Stream({"ids": torch.zeros(1, 9, dtype=torch.int64)}, layout_of((9,)))
    with pytest.raises(ValueError, match=r"at most 8 positions .*length.* but have 9"):
        embedding_of()(stream)


def test_a_narrow_embedding_is_projected() -> None:
    embedding = embedding_of(Sizes(hidden=6, embedding=3, vocabulary=20))
    assert embedding(stream_of()).states.shape == (2, 5, 6)
    assert embedding.projection.weight.shape == (6, 3)
    assert "projection.weight" not in dict(embedding_of().named_parameters())


def test_dropout_follows_the_norm() -> None:
    embedding = embedding_of(dropout=0.5)
    stream = stream_of()
    dropped = embedding.train()(stream).states
    whole = embedding.eval()(stream).states
    kept = dropped != 0
    assert 0.2 < float(kept.double().mean()) < 0.8
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])


def test_parts_are_called_by_their_own_names() -> None:
    names = set(dict(embedding_of().named_parameters()))
    assert names == {f"{part}.weight" for part in ("word", "position", "segment", "norm")} | {
        "norm.bias"
    }


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"position": {}}, "exactly one with content"),
        ({"word": {}, "words": {"name": "word"}}, "exactly one with content"),
        ({"word": {}, "norm": {"name": "segment"}}, "must not be called norm"),
        ({"wrod": {}}, "did you mean `word`"),
        ({"word": {}, "position": {"length": 0}}, "must be > 0"),
    ],
)
def test_parts_that_make_no_embedding_are_refused(parts: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decode(EmbeddingConfig, {"parts": parts})


def test_a_part_with_content_may_change_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PARTS, "_classes", dict(PARTS._classes))

    @PARTS.register("doubled")
    class Doubled(EmbeddingPart):
        has_content = True

        class Config(ComponentConfig):
            pass

        def __init__(self, config: ComponentConfig, sizes: Sizes) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(sizes.vocabulary, sizes.embedding)

        def forward(self, stream: Stream, layout: Layout) -> torch.Tensor:
            states: torch.Tensor = self.table(stream.inputs["ids"]).repeat_interleave(2, 1)
            return states

        def layout(self, stream: Stream) -> Layout:
            return Layout.of(stream.layout.valid.repeat_interleave(2, 1))

    embedding = embedding_of(parts={"doubled": {}, "position": {"length": 12}})
    hidden = embedding(stream_of())
    assert hidden.states.shape == (2, 10, 6)
    assert hidden.layout.valid.sum(1).tolist() == [10, 6]


def test_words_are_scaled_by_the_root_of_their_width() -> None:
    plain, scaled = (
        embedding_of(parts={"word": {"scale": scale}}, norm="none") for scale in (False, True)
    )
    scaled.load_state_dict(plain.state_dict())
    stream = stream_of()
    torch.testing.assert_close(scaled(stream).states, plain(stream).states * 6**0.5)


@pytest.mark.parametrize("layout", ["interleaved", "halves"])
@pytest.mark.parametrize("inclusive", [False, True])
def test_sinusoids_are_the_published_waves(layout: str, inclusive: bool) -> None:
    """D40: which layout, frequencies and offset a family has is its own choice."""
    keys = {"layout": layout, "offset": 2, "inclusive": inclusive}
    embedding = embedding_of(parts={"word": {}, "sinusoidal": keys}, norm="none")
    stream = stream_of()
    words = embedding.get_parameter("word.weight")[stream.inputs["ids"]]
    waves = (embedding(stream).states - words)[0]
    for position in range(5):
        for wave in range(3):
            exponent = wave / 2 if inclusive else 2 * wave / 6
            angle = torch.tensor((position + 2) / 10000**exponent)
            sine, cosine = (2 * wave, 2 * wave + 1) if layout == "interleaved" else (wave, wave + 3)
            torch.testing.assert_close(waves[position, sine], angle.sin(), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(waves[position, cosine], angle.cos(), atol=1e-5, rtol=1e-4)


def test_d41_given_positions_are_embedded_and_none_is_zeroed() -> None:
    embedding = embedding_of(parts={"word": {}, "sinusoidal": {}}, norm="none")
    stream = stream_of(positions=torch.tensor([[3, 4, 5, 6, 7], [0, 1, 2, 9, 9]]))
    ids = stream.inputs["ids"]
    waves = embedding(stream).states - embedding.get_parameter("word.weight")[ids]
    longer = Stream({"ids": torch.zeros(1, 8, dtype=torch.long)}, layout_of((8,)))
    counted = embedding(longer).states[0] - embedding.get_parameter("word.weight")[0]
    torch.testing.assert_close(waves[0], counted[3:8])
    torch.testing.assert_close(waves[1, :3], counted[:3])
