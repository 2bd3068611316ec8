from itertools import chain

import numpy as np
import pytest

from tencentpretrain.data.packing import DocumentPieces, DocumentStream, split_documents
from tests.helpers.shards import FakeShards, numbered_shards

SIZES = [[3], [], [1], [2, 4], [5]]
"""Documents of 3, 0, 1, 6 and 5 tokens with ids 7, 8, ..."""


def plain_stream(shards: FakeShards, documents, prefix, suffix) -> list[int]:
    stream: list[int] = []
    for document in documents:
        if len(shards.texts[document]):
            stream += [*prefix, *shards.texts[document].tolist(), *suffix]
    return stream


@pytest.mark.parametrize("prefix", [(), (2,), (2, 5)])
@pytest.mark.parametrize("suffix", [(), (3,), (3, 4)])
@pytest.mark.parametrize("documents", [[0, 1, 2, 3, 4], [3, 0], [2]])
def test_any_part_of_the_stream_is_what_it_would_be_in_memory(prefix, suffix, documents):
    shards = numbered_shards(SIZES)
    stream = DocumentStream(shards, np.array(documents), prefix, suffix)
    plain = plain_stream(shards, documents, prefix, suffix)
    assert stream.total == len(plain)
    for start in range(2 * stream.total):
        for count in range(1, stream.total + 3):
            row = stream.read(stream.pieces(start, count))
            expected = [plain[(start + i) % len(plain)] for i in range(count)]
            assert row.ids.tolist() == expected
            assert row.ids.dtype == np.int64


def test_documents_and_positions_restart_at_each_document():
    stream = DocumentStream(numbered_shards(SIZES), np.arange(5), suffix=(3,))
    row = stream.read(stream.pieces(2, 9), before=(2,))
    assert row.ids.tolist() == [2, 9, 3, 10, 3, 11, 12, 13, 14, 15]
    assert row.documents.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2, 2]
    assert row.positions.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3, 4]


def test_the_stream_goes_round_even_with_one_document():
    stream = DocumentStream(numbered_shards([[2]]), np.arange(1), suffix=(3,))
    row = stream.read(stream.pieces(1, 5))
    assert row.ids.tolist() == [8, 3, 7, 8, 3]
    assert row.documents.tolist() == [0, 0, 1, 1, 1]


def test_word_starts_follow_the_tokens():
    words = [np.array([True, False, True]), np.array([True, False])]
    shards = FakeShards([[[7, 8, 9]], [[10, 11]]], words)
    stream = DocumentStream(shards, np.arange(2), prefix=(2,), suffix=(3,))
    pieces = stream.pieces(2, 6)
    assert stream.read(pieces).ids.tolist() == [8, 9, 3, 2, 10, 11]
    starts = stream.word_starts(pieces)
    assert starts is not None
    assert starts.tolist() == [False, True, True, True, True, False]
    plain = DocumentStream(numbered_shards(SIZES), np.arange(5), suffix=(3,))
    assert plain.word_starts(plain.pieces(0, 6)) is None


def test_no_documents_make_an_empty_stream():
    assert DocumentStream(numbered_shards([[], []]), np.arange(2), suffix=(3,)).total == 0
    assert len(DocumentPieces(numbered_shards([[], []]), np.arange(2), 4)) == 0
    assert len(DocumentPieces(numbered_shards([]), np.arange(0), 4)) == 0


@pytest.mark.parametrize("size", [1, 2, 3, 6, 100])
def test_pieces_partition_documents(size):
    shards = numbered_shards(SIZES)
    pieces = DocumentPieces(shards, np.array([3, 1, 4, 0]), size)
    read = [pieces.read(index)[0].tolist() for index in range(len(pieces))]
    assert all(1 <= len(piece) <= size for piece in read)
    texts = [shards.texts[document].tolist() for document in (3, 1, 4, 0)]
    assert [*chain(*read)] == [*chain(*texts)]


@pytest.mark.parametrize("count", [2, 3, 10, 5000])
@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.3, 0.99])
def test_split_is_a_partition_with_documents_on_both_sides(count, fraction):
    train, dev = split_documents(count, fraction)
    assert np.array_equal(np.sort(np.concatenate([train, dev])), np.arange(count))
    assert len(train) >= 1
    assert len(dev) >= 1
    if count == 5000:
        assert abs(len(dev) / count - fraction) < 0.03


def test_split_holds_nothing_out_where_it_cannot_or_should_not():
    assert [len(part) for part in split_documents(1, 0.5)] == [1, 0]
    assert [len(part) for part in split_documents(0, 0.5)] == [0, 0]
    assert [len(part) for part in split_documents(100, 0.0)] == [100, 0]


def test_a_longer_corpus_keeps_the_split_of_its_beginning():
    _, before = split_documents(1000, 0.05)
    _, after = split_documents(2000, 0.05)
    assert np.array_equal(before, after[after < 1000])
    assert not np.array_equal(before, split_documents(1000, 0.05, seed=1)[1])
