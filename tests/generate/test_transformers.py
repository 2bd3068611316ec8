"""With copied weights, `transformers` writes the same tokens."""

from typing import Any

import pytest
import torch

from tests.helpers.writing import write

transformers = pytest.importorskip("transformers")
reference = pytest.importorskip("tests.helpers.reference")

FAMILIES = ("gpt2", "llama", "bloom", "t5", "bart")
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "penalty": {"repetition_penalty": 1.4},
    "long": {"beams": 4, "length_penalty": 2.0, "early_stopping": "never"},
    "short": {"beams": 3, "length_penalty": -1.0, "repetition_penalty": 1.3},
    "first": {"beams": 4, "length_penalty": 0.6, "early_stopping": True},
}
LENGTHS, STEPS, ENDS, PAD, START = (7, 1, 4), 9, [7, 12, 30, 44], 0, 2


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return reference.pair(request.param)


@pytest.mark.parametrize("search", SEARCHES)
def test_texts_are_those_of_transformers(pair: Any, search: str) -> None:
    keys, is_pair = SEARCHES[search], pair.ours.decoder is not None
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(5, 99, (n,), generator=generator).tolist() for n in LENGTHS]
    written = write(pair.ours, prompts, STEPS, ENDS, start=[START] if is_pair else [], **keys)
    width = max(LENGTHS)
    rows = []
    for ids in prompts:
        fill = [PAD] * (width - len(ids))
        rows.append(ids + fill if is_pair else fill + ids)
    theirs = pair.theirs.generate(
        input_ids=torch.tensor(rows),
        attention_mask=torch.tensor(rows) != PAD,
        max_new_tokens=STEPS,
        do_sample=False,
        num_beams=keys.get("beams", 1),
        eos_token_id=ENDS,
        pad_token_id=PAD,
        decoder_start_token_id=START,
        forced_bos_token_id=None,
        forced_eos_token_id=None,
        return_dict_in_generate=True,
        output_scores=True,
        **{key: value for key, value in keys.items() if key != "beams"},
    )
    tokens = theirs.sequences[:, 1 if is_pair else width :].tolist()
    assert [row.ids for row in written] == [_until_end(ids) for ids in tokens]
    assert {row.finish for row in written} <= {"end", "length"}
    if "beams" in keys:
        scores = torch.tensor([row.score for row in written])
        torch.testing.assert_close(scores, theirs.sequences_scores, rtol=1e-5, atol=1e-5)


def _until_end(ids: list[int]) -> list[int]:
    stop = next((n for n, token in enumerate(ids) if token in ENDS), len(ids))
    return ids[: stop + 1]
