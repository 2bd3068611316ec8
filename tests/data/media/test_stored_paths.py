"""Shards that name files: what is missing or has changed is found, early where that is quick."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tencentpretrain.cli import main
from tencentpretrain.data.media import encode, stored_paths
from tencentpretrain.data.shard_format import PATH, Column, media_columns
from tencentpretrain.data.shards import ShardSet, ShardWriter, open_shards
from tencentpretrain.errors import DataError
from tests.helpers.pictures import class_folders, media_config, media_shards

Change = Callable[[Path], object]


def altered(file: Path) -> None:
    """Change one byte; the size stays."""
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return sorted(class_folders(tmp_path / "data", count=3).rglob("*.png"))


@pytest.fixture
def stored(tmp_path: Path, files: list[Path]) -> Path:
    media_shards(tmp_path / "s", tmp_path / "data", corpus_store="path", shard_bytes=100)
    return tmp_path / "s"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (Path.unlink, r"cannot be read \(No such file or directory\)"),
        (lambda file: file.write_bytes(b"12345"), "has 5 bytes instead of "),
    ],
)
def test_opening_names_the_first_wrong_file_and_counts_all(
    stored: Path, files: list[Path], change: Change, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_paths, "AT_ONCE", 2)
    change(files[2])
    files[4].unlink()
    with pytest.raises(DataError, match=f": {files[2]} {reason}.*; 2 of 6 files are missing or"):
        open_shards(stored)
    assert len(open_shards(stored, verify=False)) == 6


def test_opening_reads_no_file(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: str) -> bytes:
        raise AssertionError(path)

    monkeypatch.setattr(stored_paths, "read_file", read)
    assert len(open_shards(stored)) == 6


def test_a_file_of_equal_size_is_known_when_it_is_read(stored: Path, files: list[Path]) -> None:
    altered(files[1])
    shards = open_shards(stored)
    assert shards.media(0) == files[0].read_bytes()
    with pytest.raises(DataError, match=f"^{files[1]} has changed since it was preprocessed; put"):
        shards.media(1)


def test_the_fingerprint_depends_on_what_is_in_the_files(tmp_path: Path, files: list[Path]) -> None:
    data = files[1].read_bytes()
    found = []
    for number, end in enumerate((b"a", b"b", b"a")):  # decoders do not look behind the image
        files[1].write_bytes(data + end)
        made = media_shards(tmp_path / f"s{number}", tmp_path / "data", corpus_store="path")
        found.append(made.fingerprint)
    assert found[0] == found[2] != found[1]


def earlier(folder: Path) -> ShardSet:
    """Shards as earlier versions wrote them, which know paths only."""
    columns: dict[str, Column] = media_columns("image", 1, "path")
    columns = {name: column for name, column in columns.items() if not name.startswith("path_")}
    config = media_config(folder / "s", folder / "data", corpus_store="path")
    entries = sorted((folder / "data").rglob("*.png"))
    make = encode.MediaEncoderFactory(config.corpus, None)()
    encoded = make([encode.MediaEntry("", str(e), None, 9, "", "", str(e)) for e in entries])
    with ShardWriter(folder / "s", columns=columns, vocab_size=1) as writer:
        writer.labels = []
        writer.write({name: encoded.columns[name] for name in columns})
    return open_shards(folder / "s")


def test_shards_of_earlier_versions_are_read(tmp_path: Path, files: list[Path]) -> None:
    shards = earlier(tmp_path)
    assert PATH in shards.columns
    assert [shards.media(number) for number in range(6)] == [file.read_bytes() for file in files]
    altered(files[0])
    assert shards.media(0) == files[0].read_bytes()
    files[0].unlink()
    with pytest.raises(DataError, match=r"000\.png cannot be read"):
        open_shards(tmp_path / "s")


def test_shards_of_earlier_versions_and_new_ones_go_together(
    tmp_path: Path, files: list[Path]
) -> None:
    earlier(tmp_path)
    media_shards(tmp_path / "new", tmp_path / "data", corpus_store="path", corpus_format="image")
    shards = open_shards([tmp_path / "s", tmp_path / "new"])
    assert [shards.media(number) for number in (0, 6)] == [files[0].read_bytes()] * 2
    altered(files[0])
    assert shards.media(0) == files[0].read_bytes()
    with pytest.raises(DataError, match="has changed since"):
        shards.media(6)


def test_no_run_begins_without_its_files(
    tmp_path: Path, stored: Path, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    files[3].unlink()
    words = [f"data.path={stored}", f"run_dir={tmp_path / 'run'}", "trainer.steps=1"]
    assert main("pretrain", ["model=vit/tiny", "model.target.classify.classes=2", *words]) == 2
    assert f"{stored}: {files[3]} cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
