from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tencentpretrain.data.shards import ShardSet
from tencentpretrain.errors import DataError
from tests.helpers.records import json_lines, record_objective, record_shards, some_chats, words

SIZES = [(2, 3), (1, 1), (4, 6), (12, 2), (3, 12), (2, 2), (5, 1), (1, 4), (2, 5), (1, 2)]


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    return record_shards(tmp_path, "chat", some_chats(SIZES), corpus_template="plain")


def pairs(example: dict[str, np.ndarray]) -> list[tuple[int, int]]:
    """Position and label of all that is learned."""
    return list(zip(example["index"].tolist(), example["labels"].tolist(), strict=True))


def test_only_the_answer_and_its_end_are_learned(shards: ShardSet) -> None:
    made = record_objective("sft", shards, length=32, pack=False)
    example = made.make(0, 0)
    assert words(shards, example["ids"]) == "[CLS] w0 w1 w2 w3 w4"
    assert words(shards, example["labels"]) == "w2 w3 w4 [SEP]"
    assert example["index"].tolist() == [2, 3, 4, 5]
    everything = record_objective("sft", shards, length=32, pack=False, supervise_prompt=True)
    assert words(shards, everything.make(0, 0)["labels"]) == "w0 w1 w2 w3 w4 [SEP]"


def test_chatml_learns_nothing_behind_the_end_of_a_turn(tmp_path: Path) -> None:
    shards = record_shards(tmp_path, "chat", some_chats([(1, 2)]))
    example = record_objective("sft", shards, length=32, pack=False).make(0, 0)
    assert words(shards, example["labels"]) == "w1 w2 <|im_end|>"
    assert words(shards, example["ids"][example["index"]]) == "assistant w1 w2"


@pytest.mark.parametrize("pack", [False, True])
def test_d20_conversations_without_an_answer_in_the_row_are_left_out(
    shards: ShardSet, pack: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        made = record_objective("sft", shards, length=12, pack=pack)
    assert caplog.messages == [
        "objective `sft` leaves out 1 of 10 conversations: length=12 holds nothing of them to "
        "learn",
        "objective `sft` cuts 1 of 9 conversations to length=12",
    ]
    for epoch in range(2):
        for index in range(len(made)):
            example = made.make(epoch, index)
            assert len(example["labels"])
            assert len(example["ids"]) <= 12
    with pytest.raises(DataError, match=r"1 of 1 conversations: .* raise model.objective.length"):
        record_objective("sft", shards, length=8, documents=np.array([3]))


def test_a_conversation_that_just_reaches_its_answer_is_kept(tmp_path: Path) -> None:
    shards = record_shards(tmp_path, "chat", some_chats([(8, 3), (7, 3)]), corpus_template="plain")
    made = record_objective("sft", shards, length=8, pack=False)
    assert made.documents.tolist() == [1]
    assert words(shards, made.make(0, 0)["labels"]) == "w18"


def test_packed_rows_hold_each_conversation_once_and_apart(shards: ShardSet) -> None:
    packed = record_objective("sft", shards, length=16)
    single = record_objective("sft", shards, length=16, pack=False)
    assert len(packed) < len(single)
    for epoch in range(3):
        found: Counter[tuple[int, ...]] = Counter()
        for index in range(len(packed)):
            example = packed.make(epoch, index)
            borders = np.searchsorted(example["documents"], np.arange(example["documents"][-1] + 2))
            for start, stop in pairwise(borders.tolist()):
                assert example["positions"][start:stop].tolist() == list(range(stop - start))
                inside = [(p - start, label) for p, label in pairs(example) if start <= p < stop]
                found[(*example["ids"][start:stop], -1, *sum(inside, ()))] += 1
        expected = Counter(
            (*row["ids"], -1, *sum(pairs(row), ()))
            for row in (single.make(epoch, index) for index in range(len(single)))
        )
        assert found == expected


def test_packed_batches_have_documents_and_positions(shards: ShardSet) -> None:
    made = record_objective("sft", shards, length=16)
    examples = [made.make(0, index) for index in range(len(made))]
    batch = made.collate(examples)
    stream = batch.streams["src"]
    assert stream.layout.documents is not None
    assert stream.inputs["positions"].shape == stream.inputs["ids"].shape
    flat = stream.inputs["ids"].flatten()
    index = batch.labels["lm"].index
    assert index is not None
    assert flat[index].tolist() == [n for e in examples for n in e["ids"][e["index"]].tolist()]


def test_conversations_meet_others_in_other_epochs_and_with_other_seeds(tmp_path: Path) -> None:
    shards = record_shards(tmp_path, "chat", some_chats([(2, 3)] * 60), corpus_template="plain")
    made, twin, other = (
        record_objective("sft", shards, seed=seed, length=16) for seed in (1, 1, 2)
    )

    def rows(objective, epoch: int) -> list[list[int]]:
        return [objective.make(epoch, index)["ids"].tolist() for index in range(len(objective))]

    assert rows(made, 0) == rows(twin, 0)
    assert rows(made, 0) != rows(made, 1)
    assert rows(made, 0) != rows(other, 0)


def test_plain_text_is_refused_with_the_way_out(tmp_path: Path) -> None:
    shards = record_shards(tmp_path, "text", "w0 w1\n")
    with pytest.raises(DataError, match=r"`sft` .* than the text .* corpus\.content=chat"):
        record_objective("sft", shards)


def test_an_answer_without_a_prompt_is_learned_but_for_its_first_token(tmp_path: Path) -> None:
    alone = [{"role": "assistant", "content": "w1 w2"}]
    shards = record_shards(
        tmp_path, "chat", json_lines([{"messages": alone}]), corpus_template="plain"
    )
    example = record_objective("sft", shards, length=8, pack=False).make(0, 0)
    assert words(shards, example["labels"]) == "w1 w2 [SEP]"
