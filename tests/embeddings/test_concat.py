"""Several embeddings of one stream behind one another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.embeddings.base import Embedding, EmbeddingConfig
from tencentpretrain.embeddings.concat import join_layouts
from tencentpretrain.errors import DataError
from tencentpretrain.sizes import Sizes
from tencentpretrain.types import Layout, Stream
from tests.helpers.models import layout_of, randomise

WORDS: dict[str, Any] = {"parts": {"word": {}, "position": {"length": 9}}, "dropout": 0.0}
OTHERS = WORDS | {"norm": "none", "size": 4}


def embedding_of(**keys: Any) -> Embedding:
    inner = {"embeddings": {"text": WORDS, "other": OTHERS}} | keys
    data = {"parts": {"concat": inner}, "norm": "none", "dropout": 0.0}
    embedding = Embedding(decode(EmbeddingConfig, data), Sizes(6, 6, 20))
    randomise(embedding)
    return embedding


def stream_of(*lengths: int) -> Stream:
    layout = layout_of(lengths)
    return Stream({"ids": torch.arange(layout.valid.numel()).view(layout.valid.shape)}, layout)


@pytest.mark.parametrize("kinds", [True, False])
def test_it_is_what_the_embeddings_say_alone(kinds: bool) -> None:
    embedding, stream = embedding_of(kinds=kinds), stream_of(4, 2)
    whole = embedding(stream)
    part = embedding.concat
    alone = [inner(stream).states for inner in part.embeddings.values()]
    if kinds:
        alone = [states + part.kinds[number] for number, states in enumerate(alone)]
    assert torch.equal(whole.states, torch.cat(alone, 1))
    assert torch.equal(whole.layout.valid, stream.layout.valid.repeat(1, 2))
    assert (part.kinds is not None) == kinds


@pytest.mark.parametrize(
    "lengths", [[(3, 1, 2), (2, 2, 2)], [(2, 2, 2), (4, 1, 3)], [(1, 3, 2)] * 3]
)
def test_valid_positions_are_those_that_a_look_would_find(lengths: list[tuple[int, ...]]) -> None:
    joined = join_layouts([layout_of(part) for part in lengths])
    found = Layout.of(torch.cat([layout_of(part).valid for part in lengths], 1))
    assert torch.equal(joined.valid, found.valid)
    assert joined.tokens is not None
    assert found.tokens is not None
    assert torch.equal(joined.tokens, found.tokens)


def test_without_padding_there_is_nothing_to_list() -> None:
    assert join_layouts([layout_of((2, 2)), layout_of((5, 5))]).is_full


def test_packed_documents_are_refused() -> None:
    documents: Tensor = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(DataError, match="isolate_documents=false"):
        join_layouts([layout_of((3, 3), documents=documents), layout_of((2, 2))])


@pytest.mark.parametrize(
    ("names", "message"),
    [(["text"], "must be two or more, but there is 1"), (["keys", "text"], "not be called keys")],
)
def test_wrong_names_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        embedding_of(embeddings=dict.fromkeys(names, WORDS))
