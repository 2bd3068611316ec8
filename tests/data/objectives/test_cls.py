from pathlib import Path

import numpy as np
import pytest

from tencentpretrain.data.shards import ShardSet
from tencentpretrain.errors import DataError
from tests.helpers.objectives import original
from tests.helpers.records import WORDS, record_objective, record_shards, words

ROWS = [
    ("good", "w0 w1 w2"),
    ("bad", "w3", "w4 w5"),
    ("good", " ".join(WORDS[:20])),
    ("odd", "w6", " ".join(WORDS[20:40])),
    ("bad", " ".join(WORDS[:20]), " ".join(WORDS[30:50])),
    ("bad", " ".join(WORDS[:20]), "w9"),
]


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    return record_shards(tmp_path, "label", "\n".join("\t".join(row) for row in ROWS))


def test_rows_have_a_sep_behind_each_text(shards: ShardSet) -> None:
    made = record_objective("cls", shards, length=14)
    rows = [words(shards, made.make(0, index)["ids"]) for index in range(len(made))]
    assert rows == [
        "[CLS] w0 w1 w2 [SEP]",
        "[CLS] w3 [SEP] w4 w5 [SEP]",
        # Too long: a text is cut at its end, of two the longer one first.
        f"[CLS] {' '.join(WORDS[:12])} [SEP]",
        f"[CLS] w6 [SEP] {' '.join(WORDS[20:30])} [SEP]",
        f"[CLS] {' '.join(WORDS[:6])} [SEP] {' '.join(WORDS[30:35])} [SEP]",
        f"[CLS] {' '.join(WORDS[:10])} [SEP] w9 [SEP]",
    ]
    assert made.make(0, 1)["segments"].tolist() == [0, 0, 0, 1, 1, 1]
    assert made.make(0, 0)["segments"].tolist() == [0] * 5


def test_a_batch_has_a_label_for_each_row(shards: ShardSet) -> None:
    made = record_objective("cls", shards, length=14)
    batch = made.collate([made.make(0, index) for index in range(4)])
    assert made.supervises == ("classify",)
    assert batch.labels["classify"].values.tolist() == [0, 1, 0, 2]
    assert batch.labels["classify"].index is None
    stream = batch.streams["src"]
    assert stream.inputs["ids"].shape == stream.inputs["segments"].shape == (4, 14)
    assert batch.tokens == int(stream.layout.valid.sum()) == 5 + 6 + 14 + 14


def test_masks_and_labels_at_once(shards: ShardSet) -> None:
    made = record_objective("cls_mlm", shards, length=14, mask_rate=0.3)
    plain = record_objective("cls", shards, length=14)
    assert made.supervises == ("mlm", "classify")
    examples = [made.make(0, index) for index in range(len(made))]
    for index, example in enumerate(examples):
        row = plain.make(0, index)
        assert np.array_equal(original(example), row["ids"])
        assert np.array_equal(example["segments"], row["segments"])
        assert not set(row["ids"][example["index"]]) & made.tokenizer.special_ids
    batch = made.collate(examples)
    assert batch.labels["classify"].values.tolist() == [0, 1, 0, 2, 1, 1]
    assert len(batch.labels["mlm"].values) == sum(len(e["index"]) for e in examples)
    twin = record_objective("cls_mlm", shards, length=14, mask_rate=0.3)
    same = [np.array_equal(twin.make(0, i)["ids"], e["ids"]) for i, e in enumerate(examples)]
    assert all(same)
    later = [np.array_equal(made.make(1, i)["ids"], e["ids"]) for i, e in enumerate(examples)]
    assert not all(later)


def test_held_out_documents_are_other_documents(shards: ShardSet) -> None:
    made = record_objective("cls", shards, documents=np.array([3, 1]), length=14)
    assert len(made) == 2
    assert made.make(0, 1)["row_label"].tolist() == [1]


@pytest.mark.parametrize("name", ["cls", "cls_mlm"])
def test_shards_of_text_are_refused(tmp_path: Path, name: str) -> None:
    shards = record_shards(tmp_path, "text", "w0\n")
    with pytest.raises(DataError, match=rf"`{name}` .* preprocess with corpus\.content=label"):
        record_objective(name, shards)


def test_stored_words_are_masked_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "two_words.py").write_text(
        "def cut(text):\n"
        "    parts = text.split(' ')\n"
        "    return [' '.join(parts[i : i + 2]) for i in range(0, len(parts), 2)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("tencentpretrain.registry", "tencentpretrain.data.segment"):
        monkeypatch.setattr(f"{module}.TRUSTED", {"two_words"})
    text = "\n".join("\t".join(row) for row in ROWS)
    keys = {"segmenter": "two_words:cut", "plugins": ["two_words"]}
    shards = record_shards(tmp_path, "label", text, **keys)
    made = record_objective("cls_mlm", shards, length=64, masking="word", mask_rate=0.4)
    example = made.make(0, 4)
    chosen = np.isin(np.arange(len(example["ids"])), example["index"])
    for first in (1, 22):  # where the texts begin
        pairs = chosen[first : first + 20].reshape(-1, 2)
        assert (pairs[:, 0] == pairs[:, 1]).all()
    assert chosen.any()


def test_the_number_of_cut_rows_is_told(shards: ShardSet, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        record_objective("cls", shards, length=14)
    assert caplog.messages == ["objective `cls` cuts 4 of 6 examples to length=14"]
