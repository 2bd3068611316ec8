"""Where images and sounds are found, and what is said of files that are not there."""

import errno
import gzip
import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.data.corpora import CorpusConfig
from tencentpretrain.data.media.records import MediaRecord, find_media, grouped, read_media
from tencentpretrain.errors import DataError


def corpus(path: object, format: str = "image", **keys: Any) -> CorpusConfig:
    return decode(CorpusConfig, {"path": path, "format": format, **keys})


def found(path: object, format: str = "image", **keys: Any) -> list[MediaRecord]:
    return list(read_media(corpus(str(path), format, **keys)))


def touch(folder: Path, *names: str) -> Path:
    """Files that hold their own name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def tar(path: Path, *names: str, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            content = os.fsencode(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


NAMES = ("b/2.png", "b/1.JPG", "a/deep/x.webp", "top.png")


def test_folders_are_classes(tmp_path: Path) -> None:
    touch(tmp_path, *NAMES, "b/notes.txt", ".hidden/1.png", "b/.2.png")
    remarks: Counter[str] = Counter()
    entries = list(find_media(corpus(str(tmp_path)), remarks))
    assert [(e.name, e.label) for e in entries] == [
        ("top.png", ""),
        ("a/deep/x.webp", "deep"),
        ("b/1.JPG", "b"),
        ("b/2.png", "b"),
    ]
    assert remarks == {"files of other kinds": 1}
    assert [record.data.decode() for record in found(tmp_path)] == [e.name for e in entries]


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "1.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "elsewhere")
    assert [record.label for record in found(tmp_path / "data")] == ["cat"]


def test_links_without_end_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "data", "cat/1.png", "dog/2.png")
    (tmp_path / "data" / "cat" / "up").symlink_to("..")
    with pytest.raises(DataError, match=r"cat/up is a link to a folder that it lies in, .*data; "):
        found(tmp_path / "data")
    (tmp_path / "data" / "cat" / "up").unlink()
    # Each leads into the other.
    (tmp_path / "data" / "cat" / "d").symlink_to("../dog")
    (tmp_path / "data" / "dog" / "c").symlink_to("../cat")
    with pytest.raises(DataError, match="is a link to a folder that it lies in"):
        found(tmp_path / "data")


def test_folders_that_cannot_be_read_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "data", "cat/1.png", "dog/2.png")
    scan = os.scandir

    def locked(path: Any) -> Any:
        if Path(path).name == "dog":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(DataError, match=r"data/dog cannot be read: Permission denied"):
        found(tmp_path / "data")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bad\udcff.png", r"bad\\udcff.png: the name is not in UTF-8; rename the file"),
        ("a\tb.png", r"a\\tb.png: the name holds a tab or a line break; rename the file"),
        ("a\nb.png", r"a\\nb.png: the name holds a tab or a line break; rename the file"),
    ],
)
@pytest.mark.parametrize("is_tar", [False, True])
def test_names_that_no_list_can_hold_are_told(
    tmp_path: Path, name: str, message: str, is_tar: bool
) -> None:
    data = tmp_path / "data" if not is_tar else tar(tmp_path / "a.tar", "图.png", name)
    if not is_tar:
        (touch(data, "图.png") / name).touch()
    with pytest.raises(DataError, match=message):
        found(data)
    names = [entry.name for entry in find_media(corpus(str(data)), Counter()) if entry.problem]
    assert len(names) == 1
    assert names[0].isprintable()


def test_names_of_columns_may_be_labels(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "a,b.png")
    (tmp_path / "a.tsv").write_text("text\t1.png\nlabel\t1.png\n")
    assert [record.label for record in found(tmp_path / "a.tsv")] == ["text", "label"]
    (tmp_path / "a.csv").write_text("a,b.png\n")
    assert [record.name for record in found(tmp_path / "a.csv")] == ["a,b.png"]


def test_the_folder_of_the_file_system_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png", "lost+found/2.png")
    assert [record.label for record in found(tmp_path)] == ["cat"]


def test_links_to_nothing_are_told(tmp_path: Path) -> None:
    (touch(tmp_path, "1.png") / "2.png").symlink_to("gone")
    with pytest.raises(DataError, match=r"2.png: the link leads to no file$"):
        found(tmp_path)


def test_tar_files_are_read_like_folders(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar", *[f"train/{name}" for name in NAMES], "train/read.me")
    records = found(archive)
    assert [(record.data.decode(), record.label) for record in records] == [
        (f"train/{name}", label)
        for name, label in zip(NAMES, ("b", "b", "deep", "train"), strict=True)
    ]
    assert [record.name for record in records] == [record.data.decode() for record in records]


def test_several_paths_and_patterns(tmp_path: Path) -> None:
    for number in range(3):
        tar(tmp_path / f"{number}.tar", f"c/{number}.png")
    touch(tmp_path / "more", "d/9.png")
    records = list(read_media(corpus([str(tmp_path / "*.tar"), str(tmp_path / "more")])))
    assert [record.label for record in records] == ["c", "c", "c", "d"]


FORMS = {
    "named.tsv": "text\tpath\tlabel\na dog\tx/1.png\tdog\n\na cat\tx/2.png\tcat\n",
    "json.jsonl": '{"path": "x/1.png", "label": "dog", "text": "a dog"}\n'
    '{"text": "a cat", "path": "x/2.png", "label": "cat", "more": [1]}\n',
    "windows.tsv": "\ufefftext\tpath\tlabel\r\na dog\tx/1.png\tdog\r\na cat\tx/2.png\tcat\r\n",
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("is_compressed", [False, True])
def test_lists_name_files_from_their_own_folder(
    tmp_path: Path, name: str, is_compressed: bool
) -> None:
    touch(tmp_path, "x/1.png", "x/2.png")
    path, content = tmp_path / name, FORMS[name].encode()
    if is_compressed:
        path, content = tmp_path / f"{name}.gz", gzip.compress(content)
    path.write_bytes(content)
    expected = [("x/1.png", "dog", "a dog"), ("x/2.png", "cat", "a cat")]
    assert [(r.name, r.label, r.text) for r in found(path, "image_text")] == expected
    assert [(r.name, r.label, r.text) for r in found(path)] == [(n, c, "") for n, c, _ in expected]


@pytest.mark.parametrize(
    ("format", "line", "label", "text"),
    [
        ("image", "dog\tx/1.png", "dog", ""),
        ("image", "x/1.png", "", ""),
        ("image_text", "a dog\tx/1.png", "", "a dog"),
        ("audio_text", "a dog\tx/1.png", "", "a dog"),
    ],
)
def test_lists_of_tencentpretrain_have_no_header(
    tmp_path: Path, format: str, line: str, label: str, text: str
) -> None:
    touch(tmp_path, "x/1.png")
    (tmp_path / "a.tsv").write_text(f"{line}\n{line}\n")
    assert (
        found(tmp_path / "a.tsv", format) == [MediaRecord("x/1.png", b"x/1.png", label, text)] * 2
    )


def test_columns_have_any_name(tmp_path: Path) -> None:
    touch(tmp_path, "1.wav")
    (tmp_path / "a.tsv").write_text("words\twav_path\nhello\t1.wav\n")
    fields = {"path": "wav_path", "text": "words"}
    assert found(tmp_path / "a.tsv", "audio_text", fields=fields)[0].text == "hello"
    (tmp_path / "a.jsonl").write_text(json.dumps({"wav_path": "1.wav", "label": 3}))
    assert found(tmp_path / "a.jsonl", "audio", fields=fields)[0].label == "3"


def test_captions_are_made_of_labels(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png")
    records = found(tmp_path, "image_text", caption="a photo of a {label}")
    assert [record.text for record in records] == ["a photo of a cat"]


BAD = [
    ("a.tsv", "dog\tgone.png\n", "line 1, `gone.png`: there is no file .*gone.png"),
    ("a.tsv", "label\tpath\ndog\t1.png\ncat\tgone.png\n", "line 3, `gone.png`: there is no file"),
    ("a.tsv", "label\tpath\ndog\t\n", "line 2, byte 11: there must be label and path"),
    ("a.tsv", "label\tpath\ndog\n", "line 2, .*label and path"),
    ("a.tsv", "1\t2\t3\n", "line 1, .*label and path"),
    ("a.jsonl", '{"path": "1.png"}\n{"file": "1.png"}\n', "line 2, .*no path in `path`"),
    ("a.jsonl", '{"path": "1.png", "label": [1]}\n', "line 1, .*`label` must be a text"),
    ("a.jsonl", "{path}\n", "line 1, .*not valid JSON"),
    ("a.jsonl", '"1.png"\n', "line 1, .*no record"),
    ("a.tsv", "d\xf6g\t1.png\n", "line 1, byte 1: byte f6 is not UTF-8"),
    ("a.tsv", "", "holds no image"),
    ("a.tsv", "label\tfile\ndog\t1.png\n", "no column `path`, only `label` and `file`; rename"),
    ("a.tsv", "file\tlabel\n1.png\tdog\n", "no column `path`, only `file` and `label`"),
    ("a.tsv", "1.png\t" + "a long text " * 40 + "\n", "line 1, .*cannot be read: File name too"),
    ("a.csv", "label,path\ndog,1.png\n", "must be tabs between columns, not commas"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_bad_lists_are_told_with_their_line(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    touch(tmp_path, "1.png")
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        found(tmp_path / name)


def test_d36_bad_and_blank_lines_can_be_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "1.png")
    (tmp_path / "a.tsv").write_text("label\tpath\nlost\n\ncat\t1.png\n")
    remarks: Counter[str] = Counter()
    entries = list(find_media(corpus(str(tmp_path / "a.tsv"), bad_lines="skip"), remarks))
    assert [entry.label for entry in entries] == ["cat"]
    assert remarks == {"lines that lack what they should hold": 1, "blank lines": 1}


def test_bad_paths_are_told(tmp_path: Path) -> None:
    touch(tmp_path / "data", "1.txt")
    (tmp_path / "a.zip").write_bytes(b"PK")
    for path, message in (
        (tmp_path / "dta", "does not exist.*data"),
        (tmp_path / "no" / "data", "does not exist, nor does the folder .*no"),
        (tmp_path / "data", r"holds no image \(.jpg"),
        (tmp_path / "a.zip", "must be a folder, a file that ends in .tar"),
        (tmp_path / "*.tar", "nothing matches"),
    ):
        with pytest.raises(DataError, match=message):
            found(path)


def test_damaged_archives_are_told(tmp_path: Path) -> None:
    whole = tar(tmp_path / "a.tar", "c/1.png", "c/2.png").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:1400])
    (tmp_path / "words.tar").write_bytes(b"no archive" * 100)
    tar(tmp_path / "zipped.tar", "c/1.png", mode="w:gz")
    for name in ("cut", "words", "zipped"):
        with pytest.raises(DataError, match=rf"{name}.tar is no whole tar file"):
            found(tmp_path / f"{name}.tar")


def test_texts_are_required_where_the_format_says_so(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png", "2.png")
    with pytest.raises(DataError, match=r"there is no text for format=image_text.*corpus.caption"):
        found(tmp_path / "cat", "image_text")
    with pytest.raises(DataError, match="there is no label for format=image_text"):
        found(tmp_path, "image_text", caption="a {label}")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"content": "label"}, "format=image is also the content"),
        ({"caption": "a {label}"}, "caption must hold"),
        ({"format": "image_text", "caption": "a dog"}, "caption must hold"),
        ({"format": "auto", "store": "path"}, "store, bad_files and caption are for image"),
    ],
)
def test_contradictions_are_told(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decode(CorpusConfig, {"path": "x", "format": "image", **keys})


def test_entries_are_grouped_by_number_and_size(tmp_path: Path) -> None:
    touch(tmp_path, *[f"c/{number}.png" for number in range(7)])
    entries = list(find_media(corpus(str(tmp_path)), Counter()))
    assert [len(group) for group in grouped(entries, count=3)] == [3, 3, 1]
    assert [len(group) for group in grouped(entries, size=14)] == [2, 2, 2, 1]
