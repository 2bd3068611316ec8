import numpy as np
import pytest

from tencentpretrain.data.objectives.pairs import SHORT, Chunks, cut_chunks
from tencentpretrain.data.order import hash_uniform


def plain_chunks(
    documents: list[list[int]], used: np.ndarray, limit: int, short_rate: float, seed: int
) -> list[tuple[int, int, int]]:
    """The same chunks made one after another, as the definition says."""
    chunks, start = [], 0
    for document, sentences in enumerate(documents):
        units = [min(limit, size - cut) for size in sentences for cut in range(0, size, limit)]
        if not used[document]:
            start += sum(units)
            continue
        while units:
            chance = float(hash_uniform(np.array([start]), seed, SHORT)[0])
            target = limit
            if chance < short_rate:
                target = 2 + int(chance / short_rate * (limit - 1))
            size = units.pop(0)
            while units and size + units[0] <= target:
                size += units.pop(0)
            chunks.append((start, start + size, document))
            start += size
    return chunks


def boundaries(documents: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    sentences = np.array([size for document in documents for size in document], np.int64)
    return sentences.cumsum(), np.array([sum(d) for d in documents], np.int64).cumsum()


def as_list(chunks: Chunks) -> list[tuple[int, int, int]]:
    return [tuple(row) for row in np.stack(chunks, axis=1).tolist()]


@pytest.mark.parametrize("short_rate", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("limit", [5, 17, 125])
@pytest.mark.parametrize("seed", range(4))
def test_chunks_equal_those_made_one_after_another(short_rate, limit, seed):
    random = np.random.default_rng(seed)
    documents = [
        random.choice([0, 1, 2, 5, 9, 40, 300], random.integers(0, 20)).tolist() for _ in range(60)
    ]
    used = random.random(60) < (1.0 if seed == 0 else 0.7)
    chunks = cut_chunks(*boundaries(documents), used, limit, short_rate, seed)
    assert as_list(chunks) == plain_chunks(documents, used, limit, short_rate, seed)


def test_chunks_partition_the_documents():
    documents = [[4, 9, 200, 3], [1], [], [30] * 50, [1000]]
    chunks = cut_chunks(*boundaries(documents), np.ones(5, bool), 61, 0.3, 0)
    sizes = chunks.stops - chunks.starts
    assert sizes.min() >= 1
    assert sizes.max() <= 61
    assert chunks.starts[0] == 0
    assert np.array_equal(chunks.starts[1:], chunks.stops[:-1])
    assert chunks.stops[-1] == sum(map(sum, documents))


def test_short_chunks_are_as_frequent_as_asked():
    documents = [[1] * 50_000]
    chunks = cut_chunks(*boundaries(documents), np.ones(1, bool), 50, 0.1, 0)
    sizes = (chunks.stops - chunks.starts)[:-1]
    # Short targets are uniform in 2 to 50.
    assert 0.07 < (sizes < 50).mean() < 0.13
    assert sizes.min() < 8
    whole = cut_chunks(*boundaries(documents), np.ones(1, bool), 50, 0.0, 0)
    assert ((whole.stops - whole.starts) == 50).all()


@pytest.mark.parametrize("documents", [[], [[]], [[0, 0], []]])
def test_nothing_makes_no_chunk(documents):
    chunks = cut_chunks(*boundaries(documents), np.ones(len(documents), bool), 50, 0.1, 0)
    assert [len(part) for part in chunks] == [0, 0, 0]


def test_unused_documents_make_no_chunk():
    used = np.array([False, True, False])
    chunks = cut_chunks(*boundaries([[3, 4], [5, 6], [7]]), used, 8, 0.0, 0)
    assert as_list(chunks) == [(7, 12, 1), (12, 18, 1)]
