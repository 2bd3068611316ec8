"""Files of a corpus, and that slices lose nothing and double nothing."""

import gzip
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.data.corpora import CorpusConfig, find_files
from tencentpretrain.data.documents import CUT_DOCUMENTS, read_documents
from tencentpretrain.data.slices import slices
from tencentpretrain.errors import DataError


def read(
    path: Path, slice_bytes: int = 1 << 20, remarks: Counter[str] | None = None, **keys: object
) -> list[list[str]]:
    config = decode(CorpusConfig, {"path": str(path), **keys})
    found: Counter[str] = Counter() if remarks is None else remarks
    return [
        document
        for file in find_files(config)
        for piece in slices(file, config, slice_bytes)
        for document in read_documents(piece, config, found)
    ]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def naive(content: bytes) -> list[list[str]]:
    """Documents of the format `sentences`, by the plainest code."""
    documents: list[list[str]] = [[]]
    for line in content.split(b"\n"):
        if line.strip():
            documents[-1].append(line.removesuffix(b"\r").decode())
        else:
            documents.append([])
    return [document for document in documents if document]


LINES = st.sampled_from(
    [b"", b"", b" \t", b"\r", b"a", b"bc\r", "字".encode(), b" x " * 9, b"\xc2\x85"]
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(LINES, max_size=40), st.booleans(), st.integers(1, 80), st.booleans())
def test_d6_slices_lose_and_double_nothing(
    tmp_path: Path, lines: list[bytes], ends: bool, slice_bytes: int, is_compressed: bool
) -> None:
    content = b"\n".join(lines) + (b"\n" if ends else b"")
    path = write(tmp_path / "c.txt", gzip.compress(content) if is_compressed else content)
    assert read(path, slice_bytes) == naive(content)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(LINES, max_size=40),
    st.integers(1, 80),
    st.integers(1, 40),
    st.sampled_from(["sentences", "text"]),
)
def test_long_documents_are_cut_at_the_same_lines_whatever_the_slices_are(
    tmp_path: Path, lines: list[bytes], slice_bytes: int, limit: int, layout: str
) -> None:
    content = b"\n".join(lines)
    path = write(tmp_path / "c.txt", content)
    once: Counter[str] = Counter()
    sliced: Counter[str] = Counter()
    keys = {"format": layout, "max_document_bytes": limit}
    whole = read(path, 1 << 20, once, **keys)
    assert read(path, slice_bytes, sliced, **keys) == whole
    assert sliced[CUT_DOCUMENTS] == once[CUT_DOCUMENTS]
    if layout == "text":
        text = content.decode().replace("\r\n", "\n").removesuffix("\r")
        assert "".join(sentence for document in whole for sentence in document) == text
    else:
        assert [s for d in whole for s in d] == [s for d in naive(content) for s in d]


@pytest.mark.parametrize("content", [b" \na", b"a\n ", b"\r\na", b"\n", b"a", b""])
def test_tiny_files(tmp_path: Path, content: bytes) -> None:
    assert read(write(tmp_path / "a", content)) == naive(content)


@pytest.mark.parametrize("layout", ["lines", "jsonl", "tsv"])
def test_each_line_is_a_document(tmp_path: Path, layout: str) -> None:
    texts = [f"text {number} 字" for number in range(200)]
    row = {"lines": "{}", "jsonl": '{{"text": "{}"}}', "tsv": "0\t{}"}[layout]
    header = "label\ttext_a\n" if layout == "tsv" else ""
    content = header + "\r\n\n".join(row.format(text) for text in texts)
    path = write(tmp_path / "corpus", content.encode())
    for slice_bytes in (1, 7, 64, 1 << 20):
        assert read(path, slice_bytes, format=layout) == [[text] for text in texts]


def test_formats_follow_extensions(tmp_path: Path) -> None:
    for name in ("a.txt", "b.jsonl", "c.tsv.gz", "d.JSONL", "e.json"):
        write(tmp_path / name, b"x\n")
    found = find_files(CorpusConfig(path=str(tmp_path)))
    assert [file.format for file in found] == ["sentences", "jsonl", "tsv", "jsonl", "jsonl"]


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a", b"\xef\xbb\xbfone\n")) == [["one"]]
    tsv = write(tmp_path / "a.tsv", b"\xef\xbb\xbftext_a\tlabel\none\t1\n")
    assert read(tsv) == [["one"]]


def test_utf16_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="UTF-16"):
        read(write(tmp_path / "a", "one".encode("utf-16")))


def test_files_directories_globs_and_lists(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    a = write(tmp_path / "deep" / "a.txt", b"a\n")
    b = write(tmp_path / "deep" / "er" / "b.txt", b"b\n")
    write(tmp_path / "deep" / ".hidden", b"c\n")

    def found(*paths: object) -> list[Path]:
        return [f.path for f in find_files(CorpusConfig(path=[str(path) for path in paths]))]

    assert found(tmp_path / "deep") == [a, b]
    assert found(tmp_path / "**" / "*.txt") == [a, b]
    assert found(b, a) == [b, a]
    with pytest.raises(DataError, match="twice"):
        found(a, tmp_path / "deep" / "*.txt")


def test_a_name_with_brackets_is_no_glob(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a[1].txt", b"x")) == [["x"]]


def test_missing_and_empty_paths(tmp_path: Path) -> None:
    write(tmp_path / "corpus.txt", b"x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"does not exist; did you mean `corpus.txt`"):
        read(tmp_path / "corpsu.txt")
    with pytest.raises(DataError, match="no file matches"):
        read(tmp_path / "*.json")
    with pytest.raises(DataError, match="holds no file"):
        read(tmp_path / "empty")
    for nothing in ("", [], ["a", ""]):
        with pytest.raises(ConfigError, match="at least one file"):
            decode(CorpusConfig, {"path": nothing})


def test_damaged_gzip_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(random.Random(0).randbytes(9000).hex().encode())
    flipped = whole[:5000] + bytes([whole[5000] ^ 255]) + whole[5001:]
    for content in (whole[:-300], flipped, b"not compressed"):
        path = write(tmp_path / "a.gz", content)
        with pytest.raises(DataError, match=r"a\.gz"):
            read(path)


def test_a_missing_tsv_column_suggests_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", b"label\ttext_b\n1\tx\n")
    with pytest.raises(DataError, match=r"no column `text_a`; did you mean `text_b`"):
        read(path)
    assert read(path, column="text_b") == [["x"]]


def test_d87_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with open(path, "wb") as file:
        for _ in range(300):
            file.write(b"a line\n" * 1000)
    config = CorpusConfig(path=str(path), max_document_bytes=10_000)
    pieces = list(slices(find_files(config)[0], config, 4096))
    assert max(len(piece.data) for piece in pieces) < 20_000
    assert sum(len(piece.data) for piece in pieces) == path.stat().st_size
    assert sum(piece.consumed for piece in pieces) == path.stat().st_size
