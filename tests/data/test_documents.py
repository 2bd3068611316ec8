"""What is done about bad lines, and how documents become sentences."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tencentpretrain.data import lines
from tencentpretrain.data.documents import EMPTY
from tencentpretrain.errors import DataError
from tests.data.test_corpora import read, write


@pytest.fixture
def remarks() -> Counter[str]:
    return Counter()


@pytest.mark.parametrize("slice_bytes", [1, 1 << 20])
def test_undecodable_bytes_are_located(tmp_path: Path, slice_bytes: int) -> None:
    content = "一\n\nok\n".encode() + b"bad \xff here\n"
    path = write(tmp_path / "a.txt", content)
    with pytest.raises(DataError, match=rf"a\.txt, line 4, byte {content.index(0xFF)}: byte ff is"):
        read(path, slice_bytes)


def test_undecodable_bytes_are_replaced_or_skipped(tmp_path: Path, remarks: Counter[str]) -> None:
    path = write(tmp_path / "a.txt", b"one\nb\xffd\ntwo\n")
    assert read(path, remarks=remarks, encoding_errors="replace") == [["one", "b\ufffdd", "two"]]
    assert read(path, remarks=remarks, encoding_errors="skip") == [["one", "two"]]
    assert remarks == {lines.REPLACED: 1, lines.UNDECODABLE: 1}


@pytest.mark.parametrize("layout", ["sentences", "lines"])
def test_nul_is_dropped_and_counted(tmp_path: Path, layout: str, remarks: Counter[str]) -> None:
    path = write(tmp_path / "a", b"a\0b\0\n")
    assert read(path, remarks=remarks, format=layout) == [["ab"]]
    assert remarks == {lines.NUL: 2}


@pytest.mark.parametrize("slice_bytes", [3, 50, 1 << 20])
@pytest.mark.parametrize("layout", ["sentences", "lines", "text"])
def test_an_overlong_line_is_refused_or_left_out(
    tmp_path: Path, layout: str, slice_bytes: int, remarks: Counter[str]
) -> None:
    path = write(tmp_path / "a", b"one\n" + b"x" * 1000 + b"\ntwo\nth\xffree\n")
    keys = {"format": layout, "max_line_bytes": 20}
    with pytest.raises(DataError, match=r"line 2, byte 4: longer than corpus\.max_line_bytes=20"):
        read(path, slice_bytes, **keys)
    # What is left out in between must not spoil the places of later errors.
    with pytest.raises(DataError, match=r"line 4, byte 1011: byte ff"):
        read(path, slice_bytes, bad_lines="skip", **keys)
    policy = {"bad_lines": "skip", "encoding_errors": "skip"}
    found = read(path, slice_bytes, remarks, **policy, **keys)
    assert [text.strip() for document in found for text in document] == ["one", "two"]
    assert remarks[lines.TOO_LONG] == 1


def test_a_hundred_megabyte_line_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with open(path, "wb") as file:
        for _ in range(100):
            file.write(b"x" * 1_000_000)
    with pytest.raises(DataError, match="line 1, byte 0: longer than"):
        read(path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "a"', "not valid JSON"),
        ('{"text": 1}', "no text under the key `text`"),
        ('{"txet": "a"}', r"no text under the key `text` \(the keys are txet\)"),
        ("[" * 100_000, "not valid JSON"),
        ("3", "no object"),
    ],
)
def test_bad_json_is_located_or_skipped(
    tmp_path: Path, line: str, reason: str, remarks: Counter[str]
) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"text": "ok"}}\n\n{line}\n{{"text": "ok"}}'.encode())
    with pytest.raises(DataError, match=rf"a\.jsonl, line 3, byte 16: .*{reason}"):
        read(path)
    assert read(path, remarks=remarks, bad_lines="skip") == [["ok"], ["ok"]]
    assert sum(remarks.values()) == 1


def test_half_a_character_in_json_is_a_matter_of_encoding(
    tmp_path: Path, remarks: Counter[str]
) -> None:
    path = write(tmp_path / "a.jsonl", rb'{"text": "a\ud800b \ud83d\ude00"}')
    with pytest.raises(DataError, match="line 1"):
        read(path)
    assert read(path, remarks=remarks, encoding_errors="replace") == [["a\ufffdb 😀"]]
    assert read(path, remarks=remarks, encoding_errors="skip") == []


def test_a_short_tsv_row_is_bad(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", b"label\ttext_a\n1\tx\n1\n")
    with pytest.raises(DataError, match=r"line 3, byte 17: 1 cells"):
        read(path)
    assert read(path, bad_lines="skip") == [["x"]]


def test_a_text_in_one_piece_is_cut_at_its_newlines(tmp_path: Path, remarks: Counter[str]) -> None:
    text = "one\r\ntwo\n\n three"
    rows = [json.dumps({"body": text}), json.dumps({"body": " \n"})]
    path = write(tmp_path / "a.jsonl", "\n".join(rows).encode())
    assert read(path, remarks=remarks, field="body") == [["one", "two", " three"]]
    assert remarks == {EMPTY: 1}
    kept = [["one\n", "two\n", "\n", " three"]]
    assert read(path, field="body", keep_newlines=True) == kept


def test_newlines_are_kept_where_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"one\r\ntwo\n\nthree")
    assert read(path, keep_newlines=True) == [["one\n", "two\n"], ["three"]]
    assert read(path, format="text") == [["one\n", "two\n", "\n", "three"]]


def test_overlong_sentences_are_cut_at_spaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remarks: Counter[str]
) -> None:
    monkeypatch.setattr(lines, "MAX_CHARACTERS", 10)
    path = write(tmp_path / "a.txt", b"some words and averyveryverylongone\n")
    expected = ["some", " words", " and", " averyvery", "verylongon", "e"]
    for layout in ("sentences", "lines"):
        assert read(path, format=layout) == [expected]
    read(path, remarks=remarks)
    assert remarks == {lines.CUT_SENTENCES: 5}
