import json
from pathlib import Path

import pytest

from tencentpretrain.errors import DataError
from tencentpretrain.tasks.table import read_table
from tests.tasks.toy import write


def read(path: Path, content: bytes, *required: str, optional: tuple[str, ...] = ()) -> list[dict]:
    path.write_bytes(content)
    return [
        {name: row[name] for name in row.columns} for row in read_table(path, required, optional)
    ]


def test_fields_of_a_table_are_raw(tmp_path: Path) -> None:
    content = b'label\tother\ttext_a\n1\tx\t"a, ""b"" \\n\n0\ty\t  spaces  \n'
    rows = read(tmp_path / "a.tsv", content, "label", "text_a", optional=("text_b",))
    assert rows == [
        {"label": "1", "text_a": '"a, ""b"" \\n'},
        {"label": "0", "text_a": "  spaces  "},
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"text_a\tlabel\na\t1\nb\t2",
        b"\xef\xbb\xbftext_a\tlabel\r\na\t1\r\nb\t2\r\n",
        b"text_a\tlabel\na\t1\n\nb\t2\n\n\n",
    ],
    ids=["no final newline", "Windows", "empty lines"],
)
def test_no_row_is_lost_or_doubled(tmp_path: Path, content: bytes) -> None:
    rows = read(tmp_path / "a.tsv", content, "text_a", "label")
    assert rows == [{"text_a": "a", "label": "1"}, {"text_a": "b", "label": "2"}]


def test_rows_may_be_empty_texts(tmp_path: Path) -> None:
    assert [row["text_a"] for row in read(tmp_path / "a.tsv", b"text_a\na\n\nb\n", "text_a")] == [
        "a",
        "",
        "b",
    ]
    rows = read(tmp_path / "b.tsv", b"label\ttext_a\n1\t\n", "text_a", "label")
    assert rows == [{"text_a": "", "label": "1"}]


def test_other_separators_of_lines_are_characters(tmp_path: Path) -> None:
    content = "text_a\na\u2028b\x0bc\x85d\n".encode()
    assert read(tmp_path / "a.tsv", content, "text_a") == [{"text_a": "a\u2028b\x0bc\x85d"}]


def test_json_lines(tmp_path: Path) -> None:
    records = [
        {"text_a": "one\ttwo", "label": 1, "more": None},
        {"label": True, "text_a": ["a", "b"]},
    ]
    content = "\n\n".join(json.dumps(record) for record in records).encode()
    rows = read(tmp_path / "a.jsonl", content, "text_a", "label", optional=("text_b",))
    assert rows == [{"text_a": "one\ttwo", "label": "1"}, {"text_a": "a b", "label": "true"}]


def test_rows_know_their_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", ["text_a\tlabel", "a\t1", "", "b\t2"])
    assert [row.line for row in read_table(path, ["text_a"])] == [2, 4]
    assert read_table(path, ["text_a"])[1].where == f"{path}, line 4"


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.tsv", b"", ["a.tsv is empty"]),
        ("a.tsv", b" \n\n", ["a.tsv is empty"]),
        ("a.tsv", b"text_a\tlabel\n", ["a.tsv has no row"]),
        ("a.tsv", b"text\tlabel\na\t1\n", ["no column `text_a`", "`text`, `label`"]),
        ("a.tsv", b"text_a\ttext_a\na\t1\n", ["column `text_a` twice"]),
        ("a.tsv", b"text_a\tlabel\na\t1\nb\n", ["line 3", "2 fields (text_a, label)", "has 1"]),
        ("a.tsv", b"text_a\tlabel\na\tb\t1\n", ["line 2", "has 3"]),
        ("a.tsv", b"text_a\n\xe4\xb8\xad\na\xff\n", ["line 3, byte 2 is not UTF-8"]),
        ("a.tsv", "text_a\na\n".encode("utf-16-le"), ["line 1", "NUL", "UTF-16"]),
        ("a.jsonl", b'{"text_a": "a"}\n{"text_a": \n', ["line 2 is not JSON"]),
        ("a.jsonl", b"[1]\n", ["line 1 must be a JSON object"]),
        ("a.jsonl", b'{"text_a": "a"}\n{"text": "b"}\n', ["line 2", "`text_a`", "are `text`"]),
        ("a.jsonl", b'{"text_a": null}\n', ["line 1: `text_a`", "but is null"]),
        ("a.jsonl", b'{"text_a": ["a b"]}\n', ["without spaces", '["a b"]']),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, name: str, content: bytes, parts: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        read_table(tmp_path / name, ["text_a"])
    assert [part for part in parts if part not in str(error.value)] == []


def test_a_missing_file_suggests_one_that_is_there(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", ["text_a", "a"])
    with pytest.raises(DataError, match=r"does not exist; did you mean `train\.tsv`\?"):
        read_table(tmp_path / "trian.tsv", ["text_a"])
    with pytest.raises(DataError, match="is not a file"):
        read_table(tmp_path, ["text_a"])
    with pytest.raises(DataError, match="does not exist"):
        read_table(tmp_path / "nowhere" / "a.tsv", ["text_a"])
