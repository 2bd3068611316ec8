import pytest
import torch

from tencentpretrain.layers import codebook as module
from tencentpretrain.layers.codebook import (
    Codebook,
    perplexity,
    split_busiest,
    straight_through,
)


def codebook_of(codes: int = 7, size: int = 3, seed: int = 0) -> Codebook:
    book = Codebook(codes, size)
    book.init_weights(0.02)
    with torch.no_grad():
        book.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return book


@pytest.mark.parametrize("chunk", [1, 64, 1 << 26])
def test_the_nearest_code_is_that_of_all_distances(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
    book, vectors = codebook_of(), torch.randn(4, 5, 3)
    distances = (vectors[:, :, None] - book.weight).square().sum(-1)
    codes = book.nearest(vectors)
    assert codes.shape == (4, 5)
    assert torch.equal(codes, distances.argmin(-1))
    # A code is its own nearest, and scores order codes as distances do.
    assert book.nearest(book(torch.arange(7))).tolist() == [*range(7)]
    scores = book.scores(vectors.flatten(0, 1))
    assert torch.equal(scores.argsort(1), (-distances.flatten(0, 1)).argsort(1))


def test_the_gradient_goes_straight_through_and_the_value_is_the_code() -> None:
    """The numeric gradient of the loss in the chosen vectors is that of the inputs."""
    book = codebook_of().double()
    vectors = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    chosen = book(book.nearest(vectors))
    given = straight_through(vectors, chosen)
    assert torch.equal(given, chosen)
    factor = torch.randn(3, dtype=torch.float64)

    def loss(quantised: torch.Tensor) -> torch.Tensor:
        return ((quantised @ factor).sin() * quantised.square().sum(-1)).sum()

    loss(given).backward()
    assert vectors.grad is not None
    assert book.weight.grad is None
    step, point = 1e-6, chosen.detach()
    for place in range(point.numel()):
        moved = torch.zeros(point.numel(), dtype=torch.float64)
        moved[place] = step
        change = loss(point + moved.view_as(point)) - loss(point - moved.view_as(point))
        numeric = float(change) / (2 * step)
        assert vectors.grad.flatten()[place].item() == pytest.approx(numeric, abs=1e-6)


def test_averages_are_those_of_the_paper() -> None:
    """Its sums and counts, kept apart, over steps in which some codes are not taken."""
    draw, decay = torch.Generator().manual_seed(3), 0.8
    book = Codebook(5, 3, decay=decay)
    book.init_weights(0.02)
    averages = book.averages
    assert averages is not None
    averages.init_weights(0.02)
    assert not book.weight.requires_grad
    total, often = book.weight.double().clone(), torch.ones(5, dtype=torch.float64)
    weight, yes = book.weight, torch.tensor(True)
    for _ in range(6):
        vectors = torch.randn(2, 4, 3, generator=draw)
        codes = torch.randint(0, 4, (2, 4), generator=draw)
        averages.clear()
        for row, taken in zip(vectors, codes, strict=True):
            averages.add(taken, row)
        for code in range(5):
            own = vectors[codes == code].double()
            often[code] = decay * often[code] + (1 - decay) * len(own)
            total[code] = decay * total[code] + (1 - decay) * own.sum(0)
        before = weight
        weight = averages.move(before, averages.taken, yes)
        torch.testing.assert_close(weight.double(), total / often[:, None])
        assert torch.equal(weight[4], before[4])
    torch.testing.assert_close(averages.frequency.double(), often)
    kept = averages.frequency.clone()
    lost = averages.move(weight, averages.taken * float("nan"), ~yes)
    assert torch.equal(lost, weight)
    assert torch.equal(averages.frequency, kept)


def test_codes_taken_are_counted() -> None:
    book = codebook_of()
    book.count(torch.tensor([[1, 1], [6, 0]]))
    book.count(torch.tensor([1]))
    assert book.usage.tolist() == [1, 3, 0, 0, 0, 0, 1]


@pytest.mark.parametrize(("codes", "expected"), [([0, 1, 2, 3], 4), ([2, 2, 2], 1), ([0, 1], 2)])
def test_perplexity_is_the_number_of_codes_in_equal_use(codes: list[int], expected: float) -> None:
    assert perplexity(torch.tensor(codes), 9).item() == pytest.approx(expected, rel=1e-6)


def test_dead_codes_start_again_beside_the_busiest() -> None:
    book = codebook_of()
    weight, before = book.weight.data, book.weight.data.clone()
    usage = torch.tensor([50, 0, 7, 0, 90, 0, 8])
    noise = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    assert split_busiest(weight, usage, 0.03, noise) == 3
    alive = [0, 2, 4, 6]
    assert torch.equal(weight[alive], before[alive])
    for dead, donor in ((1, 4), (3, 0), (5, 6)):
        distance = (weight[dead] - before[donor]).norm()
        assert 0 < float(distance) < 0.1
    assert not torch.equal(weight[1], weight[3])


@pytest.mark.parametrize("usage", [[5, 5, 5, 5, 5, 5, 5], [0, 0, 0, 0, 0, 0, 0]])
def test_codes_stay_where_all_or_none_are_taken(usage: list[int]) -> None:
    book = codebook_of()
    before = book.weight.data.clone()
    assert split_busiest(book.weight.data, torch.tensor(usage), 0.03, torch.ones(7, 3)) == 0
    assert torch.equal(book.weight.data, before)


def test_more_codes_than_live_ones_share_them() -> None:
    book = codebook_of()
    usage = torch.tensor([0, 0, 4, 0, 0, 0, 9])
    noise = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    assert split_busiest(book.weight.data, usage, 0.03, noise) == 5
    assert len(book.weight.data.unique(dim=0)) == 7


def test_normalised_codes_are_chosen_by_direction() -> None:
    book = Codebook(7, 3, is_normalised=True)
    with torch.no_grad():
        book.weight.normal_(generator=torch.Generator().manual_seed(0))
    vectors = torch.randn(5, 4, 3)
    cosines = torch.nn.functional.cosine_similarity(vectors[:, :, None], book.weight, dim=-1)
    scaled = book.scaled(vectors)
    assert torch.equal(book.nearest(scaled), cosines.argmax(-1))
    torch.testing.assert_close(book(book.nearest(scaled)).norm(dim=-1), torch.ones(5, 4))
    torch.testing.assert_close(scaled.norm(dim=-1), torch.ones(5, 4))
