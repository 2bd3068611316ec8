"""From records to shards: what is stored, equal bytes for any workers, two tokenizers."""

from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from tencentpretrain.config import ConfigError
from tencentpretrain.data import lines
from tencentpretrain.data.preprocess import run_preprocess
from tencentpretrain.data.shards import open_shards
from tencentpretrain.data.slices import slices
from tencentpretrain.errors import DataError
from tests.helpers.records import (
    WORDS,
    record_config,
    record_shards,
    some_chats,
    some_pairs,
    vocabulary,
    words,
)

SIZES = [(1 + number % 7, 1 + number % 5) for number in range(97)]
LABELS = "".join(
    f"{'abcde'[number * number % 5]}\t{' '.join(WORDS[number % 9 : number % 9 + 4])}"
    + ("\tw1 w2" if number % 3 else "")
    + "\r\n"
    for number in range(97)
)
CORPORA = {"pair": some_pairs(SIZES), "label": LABELS, "chat": some_chats(SIZES)}


def bytes_of(directory: Path) -> dict[str, bytes]:
    files = [file for file in directory.rglob("*") if file.is_file()]
    return {str(file.relative_to(directory)): file.read_bytes() for file in files}


@pytest.mark.parametrize("content", CORPORA)
def test_the_bytes_do_not_depend_on_workers_or_slices(
    tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"shard_tokens": 150, "file": "corpus"}
    corpus = CORPORA[content].removesuffix("\r\n")
    record_shards(tmp_path, content, corpus, name="one", **keys)
    for workers, slice_bytes in ((1, 30), (2, 100), (3, 400), (4, 1000)):
        monkeypatch.setattr(
            "tencentpretrain.data.slices.slices", partial(slices, slice_bytes=slice_bytes)
        )
        name = f"of_{workers}"
        record_shards(tmp_path, content, corpus, name=name, workers=workers, **keys)
        assert bytes_of(tmp_path / name) == bytes_of(tmp_path / "one")


def test_pairs_are_two_columns(tmp_path: Path) -> None:
    shards = record_shards(tmp_path, "pair", CORPORA["pair"])
    for number, line in enumerate(CORPORA["pair"].splitlines()):
        source, target = line.split("\t")
        assert words(shards, shards.read(number)) == source
        assert words(shards, shards.column("target", number)) == target
        assert shards.sentence_ends(number).tolist() == [len(source.split())]
    assert shards.lengths("target").tolist() == [target for _, target in SIZES]
    assert shards.target_tokenizer() is shards.tokenizer()
    assert shards.target_vocab_size == shards.vocab_size
    assert not shards.has_target_tokenizer


def test_labels_are_numbered_by_first_appearance(tmp_path: Path) -> None:
    shards = record_shards(tmp_path, "label", CORPORA["label"], shard_tokens=100)
    rows = [line.split("\t") for line in CORPORA["label"].splitlines()]
    assert shards.labels == list(dict.fromkeys(row[0] for row in rows))
    for number, (label, *texts) in enumerate(rows):
        assert shards.labels[shards.label(number)] == label
        ends = [0, *shards.sentence_ends(number).tolist()]
        found = [shards.read(number, start, stop) for start, stop in pairwise(ends)]
        assert [words(shards, ids) for ids in found] == texts


def test_other_data_is_numbered_like_known_data(tmp_path: Path) -> None:
    first = record_shards(tmp_path, "label", "x\tw0\ny\tw1\n", name="first")
    other = record_shards(tmp_path, "label", "z\tw2\ny\tw3\nx\tw4\n", name="other")
    assert first.labels == ["x", "y"]
    assert other.labels == ["z", "y", "x"]
    for paths, known in (
        ([tmp_path / "first", tmp_path / "other"], []),
        ([tmp_path / "other"], "xy"),
    ):
        shards = open_shards(paths, labels=list(known))
        assert shards.labels == ["x", "y", "z"]
        numbers = [shards.label(number) for number in range(shards.documents)]
        assert numbers[-3:] == [2, 1, 0]


@pytest.mark.parametrize("side", ["source", "target"])
def test_d53_each_side_has_its_own_options(tmp_path: Path, side: str) -> None:
    upper = vocabulary(tmp_path, "upper", ["Ab"])
    lower = vocabulary(tmp_path, "lower", ["x", "y", "ab"])
    plain = {"name": "space", "vocab": str(upper)}
    lowered = {"name": "space", "vocab": str(lower), "lowercase": True}
    one, other = (plain, lowered) if side == "target" else (lowered, plain)
    shards = record_shards(
        tmp_path, "pair", "Ab Ab\tAb\nAb\tAb Ab\n", tokenizer=one, target_tokenizer=other
    )
    assert shards.has_target_tokenizer
    found = {"source": shards.tokenizer(), "target": shards.target_tokenizer()}
    assert found[side].token(int(shards.column({"source": "tokens"}.get(side, side), 0)[0])) == "ab"
    assert {shards.vocab_size, shards.target_vocab_size} == {6, 8}
    assert words(shards, shards.read(1)).lower() == "ab"
    assert (tmp_path / "shards" / "target_tokenizer" / "description.json").is_file()
    assert (
        shards.fingerprint
        != record_shards(
            tmp_path, "pair", "Ab Ab\tAb\nAb\tAb Ab\n", name="single", tokenizer=one
        ).fingerprint
    )


def test_d53_merges_of_the_target_are_its_own(shared_data: Path, tmp_path: Path) -> None:
    vocab = shared_data / "vocab"
    second = {
        "name": "bpe",
        "vocab": str(vocab / "gpt2_vocab.json"),
        "merges": str(vocab / "gpt2_merges.txt"),
    }
    path = shared_data / "translation" / "news_commentary_en_zh.tsv"
    shards = record_shards(
        tmp_path,
        "pair",
        path.read_bytes(),
        tokenizer={"name": "sentencepiece", "vocab": str(vocab / "clue_zh_sentencepiece.model")},
        target_tokenizer=second,
    )
    assert shards.documents == 1000
    assert shards.target_vocab_size == 50257
    assert shards.read(0).dtype != shards.column("target", 0).dtype
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    for number in (0, 500, 999):
        source, target = rows[number]
        assert shards.tokenizer().encode(source) == shards.read(number).tolist()
        assert shards.target_tokenizer().decode(shards.column("target", number)) == target


def test_records_without_tokens_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zero = "​"  # a space of no width, which WordPiece drops
    vocab = {"name": "wordpiece", "vocab": str(vocabulary(tmp_path, "v", ["a"]))}
    shards = record_shards(tmp_path, "pair", f"a\ta\n{zero}\ta\n\na\t{zero}\n", tokenizer=vocab)
    assert shards.documents == 1
    assert shards.source["records without tokens"] == 2
    assert shards.source["blank lines"] == 1
    assert "2 records without tokens" in capsys.readouterr().out
    text = f"0\t{zero}\ta\n1\ta\t{zero}\n2\ta\ta\n"
    shards = record_shards(tmp_path, "label", text, name="l", tokenizer=vocab)
    assert shards.labels == ["1", "2"]
    assert [len(shards.sentence_ends(number)) for number in range(2)] == [1, 2]
    assert shards.source["sentences without tokens"] == 1


def test_the_summary_counts_both_sides_and_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record_shards(tmp_path, "pair", "w0 w1\tw2\nw3\tw4 nowhere w5\n")
    printed = " ".join(capsys.readouterr().out.split())
    assert "documents 2 sentences 2 tokens 3 unknown tokens 0" in printed
    assert "target tokens 4 (25.000% unknown)" in printed
    record_shards(tmp_path, "label", "x\tw0\ny\tw0\n", name="l")
    assert "labels 2 (x, y)" in " ".join(capsys.readouterr().out.split())


def test_texts_too_long_for_the_tokenizer_stay_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_CHARACTERS", 10)
    shards = record_shards(tmp_path, "pair", "w0 w1 w2 w3 w4\tw5\nw6\tw7 w8 w9 w10\n")
    assert words(shards, shards.read(0)) == "w0 w1 w2 w3 w4"
    assert words(shards, shards.column("target", 1)) == "w7 w8 w9 w10"
    assert shards.sentence_ends(0).tolist() == [5]


def test_stored_words_go_with_labelled_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_words.py").write_text("def cut(text):\n    return text.split('_')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("tencentpretrain.registry", "tencentpretrain.data.segment"):
        monkeypatch.setattr(f"{module}.TRUSTED", {"own_words"})
    tokenizer = {"name": "character", "vocab": str(vocabulary(tmp_path, "c", [*"abcd_"]))}
    keys = {"segmenter": "own_words:cut", "plugins": ["own_words"], "tokenizer": tokenizer}
    shards = record_shards(tmp_path, "label", "0\tab_cd\td_a\n", **keys)
    starts = shards.word_starts(0)
    assert starts is not None
    assert starts.astype(int).tolist() == [1, 0, 0, 1, 0, 1, 0, 1]


def test_keys_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    second = {"name": "space", "vocab": "x"}
    with pytest.raises(ConfigError, match=r"target_tokenizer is for corpus\.content=pair"):
        record_config(tmp_path, "label", "", target_tokenizer=second)
    with pytest.raises(ConfigError, match=r"segmenter must be none for corpus\.content=chat"):
        record_config(tmp_path, "chat", "", segmenter="jieba")


@pytest.mark.parametrize("content", CORPORA)
def test_a_corpus_without_records_is_an_error(tmp_path: Path, content: str) -> None:
    config = record_config(tmp_path, content, "\n\n")
    with pytest.raises(DataError, match="no text at all; 2 blank lines") as raised:
        run_preprocess(config)
    assert raised.value.exit_code == 2
    assert not config.output.exists()


def test_a_bad_record_stops_all_workers_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tencentpretrain.data.slices.slices", partial(slices, slice_bytes=100))
    corpus = CORPORA["pair"] + "alone\n" + CORPORA["pair"]
    config = record_config(tmp_path, "pair", corpus, workers=2, file="corpus")
    with pytest.raises(DataError, match=r"corpus, line 98, byte \d+: .* there are 1"):
        run_preprocess(config)
    assert not config.output.exists()
    skipping = record_config(tmp_path, "pair", corpus, corpus_bad_lines="skip", file="corpus")
    run_preprocess(skipping)
    shards = open_shards(skipping.output)
    assert shards.documents == 2 * len(SIZES)
    assert shards.source["lines that lack what they should hold"] == 1
