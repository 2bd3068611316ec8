import torch

from tencentpretrain.layers.mask import AttentionMask, build_mask
from tests.helpers.models import layout_of

LENGTHS = (5, 3)


def seen(mask: AttentionMask) -> torch.Tensor:
    """What positions see [2, 5, 5]."""
    grid = mask.grid(5, torch.device("cpu"))
    assert grid is not None
    return grid.expand(2, 1, 5, 5)[:, 0]


def test_full_grids_need_no_mask() -> None:
    full = layout_of((5, 5))
    assert build_mask("full", full).allowed is None
    assert build_mask("full", full).bias(2, 2, 5, torch.float32) is None
    causal = build_mask("causal", full)
    assert causal.allowed is None
    assert causal.is_causal
    assert torch.equal(seen(causal)[0], torch.ones(5, 5).tril().bool())


def test_padding_is_never_seen() -> None:
    for name in ("full", "causal", "prefix"):
        assert not seen(build_mask(name, layout_of(LENGTHS)))[1, :3, 3:].any()  # type: ignore[arg-type]


def test_causal_positions_see_themselves_and_the_past() -> None:
    grid = seen(build_mask("causal", layout_of(LENGTHS)))
    assert torch.equal(grid[0], torch.ones(5, 5).tril().bool())
    assert torch.equal(grid[1, :3, :3], torch.ones(3, 3).tril().bool())


def test_all_see_the_prefix_and_the_rest_sees_the_past() -> None:
    layout = layout_of(LENGTHS, prefix=torch.tensor([3, 1]))
    grid = seen(build_mask("prefix", layout))
    for row, prefix in enumerate((3, 1)):
        for query in range(LENGTHS[row]):
            for key in range(LENGTHS[row]):
                assert bool(grid[row, query, key]) == (key < prefix or key <= query)
    causal = build_mask("causal", layout_of(LENGTHS))
    assert torch.equal(seen(build_mask("prefix", layout_of(LENGTHS))), seen(causal))


def test_documents_see_only_themselves() -> None:
    documents = torch.tensor([[4, 4, 7, 7, 7], [0, 1, 1, -1, -1]])
    layout = layout_of(LENGTHS, documents=documents)
    full, causal = seen(build_mask("full", layout)), seen(build_mask("causal", layout))
    same = documents[:, :, None] == documents[:, None, :]
    assert torch.equal(full, same)
    assert torch.equal(causal, same & torch.ones(5, 5).tril().bool())


def test_padding_does_not_join_the_document_whose_number_it_has() -> None:
    documents = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    grid = seen(build_mask("full", layout_of(LENGTHS, documents=documents)))
    assert not grid[1, :3, 3:].any()


def test_every_query_sees_some_key() -> None:
    documents = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, -1, -1]])
    for name in ("full", "causal", "prefix"):
        for layout in (layout_of(LENGTHS), layout_of(LENGTHS, documents=documents)):
            assert seen(build_mask(name, layout)).any(-1).all()  # type: ignore[arg-type]


def test_the_bias_is_made_once_and_is_finite() -> None:
    mask = build_mask("causal", layout_of(LENGTHS))
    bias = mask.bias(2, 3, 5, torch.bfloat16)
    assert bias is not None
    assert bias.shape == (6, 5, 5)
    assert mask.bias(2, 3, 5, torch.bfloat16) is bias
    assert bool(bias.isfinite().all())
    assert torch.equal(bias.view(2, 3, 5, 5)[:, 1] == 0, seen(mask))
