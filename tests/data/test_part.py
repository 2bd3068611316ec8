"""Parts of a corpus: one after another they are the whole, and teach the same examples."""

import gzip
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.data.corpora import CorpusConfig, find_files
from tencentpretrain.data.objectives.base import OBJECTIVES
from tencentpretrain.data.preprocess import PreprocessConfig, run_preprocess
from tencentpretrain.data.shards import open_shards
from tencentpretrain.data.slices import Part, part_slices, slices
from tencentpretrain.errors import DataError

ENTRIES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d", "e"]


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tencentpretrain.data.slices.slices", partial(slices, slice_bytes=64))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Files of unlike sizes: one compressed, one of blank lines, one with a long document."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    documents = [f"{'abcde'[n % 5]} {'edcba'[n % 3]} {n % 7 * 'a '}\nb c" for n in range(120)]
    (folder / "1.txt").write_text("\n\n".join(documents[:70]))
    (folder / "2.txt.gz").write_bytes(gzip.compress("\n\n".join(documents[70:90]).encode()))
    (folder / "3.txt").write_text("\n\n\n")
    (folder / "4.txt").write_text("\n".join(documents[90:]) + "\n\n")
    return folder


def config(folder: Path, corpus: Path, name: str, **keys: object) -> PreprocessConfig:
    (folder / "vocab.txt").write_text("\n".join(ENTRIES), encoding="utf-8")
    tokenizer = {"name": "wordpiece", "vocab": str(folder / "vocab.txt")}
    known = {key.removeprefix("corpus_"): keys.pop(key) for key in list(keys) if "corpus_" in key}
    content = {
        "tokenizer": tokenizer,
        "corpus": {"path": str(corpus)} | known,
        "output": str(folder / name),
        "workers": 1,
    }
    return decode(PreprocessConfig, content | keys)


def made_parts(folder: Path, corpus: Path, count: int, **keys: object) -> list[Path]:
    """Directories of all parts; of a small corpus some may hold nothing."""
    directories = [folder / f"part_{number}" for number in range(1, count + 1)]
    for number, directory in enumerate(directories, start=1):
        chosen = config(folder, corpus, directory.name, part=f"{number}/{count}", **keys)
        with suppress(DataError):
            run_preprocess(chosen)
    return [directory for directory in directories if directory.exists()]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 40])
def test_parts_one_after_another_are_the_whole(tmp_path: Path, corpus: Path, count: int) -> None:
    run_preprocess(config(tmp_path, corpus, "whole", corpus_max_document_bytes=200))
    made = made_parts(tmp_path, corpus, count, corpus_max_document_bytes=200)
    assert len(made) == count or count == 40
    whole, joined = open_shards(tmp_path / "whole"), open_shards(made)
    assert whole.documents == joined.documents
    for number in range(whole.documents):
        assert whole.read(number).tolist() == joined.read(number).tolist()
        assert whole.sentence_ends(number).tolist() == joined.sentence_ends(number).tolist()


def test_a_part_that_holds_nothing_is_told(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(DataError, match=r"part 2/1000 of 4 files hold no text at all") as caught:
        run_preprocess(config(tmp_path, corpus, "s", part="2/1000"))
    assert caught.value.exit_code == 2
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("name", ["lm", "bert"])
def test_examples_are_those_of_the_whole(tmp_path: Path, corpus: Path, name: str) -> None:
    run_preprocess(config(tmp_path, corpus, "whole"))
    objectives = []
    for paths in ([tmp_path / "whole"], made_parts(tmp_path, corpus, 3)):
        shards = open_shards(paths)
        chosen = decode(OBJECTIVES.get(name).Config, {"name": name, "length": 16})
        objectives.append(OBJECTIVES.build(chosen, shards, shards.tokenizer(), 0))
    one, other = objectives
    assert len(one) == len(other) > 4
    for index in range(len(one)):
        batches = [objective.collate([objective.make(1, index)]) for objective in objectives]
        for stream in batches[0].streams:
            ids = [batch.streams[stream].inputs["ids"] for batch in batches]
            assert torch.equal(*ids)


def test_labels_mean_the_same_in_all_parts(tmp_path: Path) -> None:
    table = tmp_path / "labelled.tsv"
    rows = [f"{'xyzw'[n * n % 4 if n < 30 else n % 3]}\ta b {n % 5 * 'c '}" for n in range(90)]
    table.write_text("label\ttext_a\n" + "\n".join(rows), encoding="utf-8")
    keys = {"corpus_content": "label"}
    run_preprocess(config(tmp_path, table, "whole", **keys))
    shards = open_shards(made_parts(tmp_path, table, 4, **keys))
    assert len({index.read_text() for index in tmp_path.glob("part_*/index.json")}) == 4
    whole = open_shards(tmp_path / "whole")
    names = [whole.labels[whole.label(number)] for number in range(90)]
    assert [shards.labels[shards.label(number)] for number in range(90)] == names
    assert shards.labels == whole.labels


def test_files_outside_a_part_are_not_read(corpus: Path) -> None:
    known = decode(CorpusConfig, {"path": str(corpus)})
    files = find_files(known)
    (corpus / "4.txt").unlink()
    total = sum(len(piece.data) for piece in part_slices(files, known, Part(1, 4)))
    assert total > 0
    with pytest.raises(DataError, match=r"4\.txt cannot be read"):
        list(part_slices(files, known, Part(4, 4)))


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "a/b", "-1/2", "1/2/3"])
def test_a_part_must_be_one(tmp_path: Path, corpus: Path, part: str) -> None:
    with pytest.raises(ConfigError, match="part must be K/N with K from 1 to N"):
        config(tmp_path, corpus, "s", part=part)
