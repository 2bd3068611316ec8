"""From files to shards: every file decoded once, equal bytes for any workers, nothing lost."""

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tencentpretrain.cli import main
from tencentpretrain.config import ConfigError
from tencentpretrain.data import preprocess
from tencentpretrain.data.media import encode
from tencentpretrain.data.media.images import Pixels
from tencentpretrain.data.media.records import grouped
from tencentpretrain.data.preprocess import run_preprocess
from tencentpretrain.data.shards import open_shards
from tencentpretrain.errors import DataError
from tests.helpers.pictures import class_folders, encoded, media_config, media_shards, picture
from tests.helpers.records import vocabulary


def bytes_of(directory: Path) -> dict[str, bytes]:
    files = [file for file in directory.rglob("*") if file.is_file()]
    return {str(file.relative_to(directory)): file.read_bytes() for file in files}


def tokenizer(folder: Path) -> dict[str, str]:
    return {"name": "space", "vocab": str(vocabulary(folder))}


@pytest.mark.parametrize("store", ["bytes", "path"])
def test_shards_hold_the_files(tmp_path: Path, store: str) -> None:
    folder = class_folders(tmp_path / "data", count=3)
    shards = media_shards(tmp_path / "s", folder, corpus_store=store)
    files = sorted(folder.rglob("*.png"))
    assert shards.documents == 6
    assert [shards.media(number) for number in range(6)] == [file.read_bytes() for file in files]
    assert [shards.labels[shards.label(n)] for n in range(6)] == ["blue"] * 3 + ["red"] * 3
    assert (shards.tokens, shards.vocab_size, shards.has_tokenizer) == (0, 1, False)
    held = {"media"} if store == "bytes" else {"path", "path_size", "path_crc"}
    assert {*shards.columns} == {"tokens", "label", *held}


def test_texts_lie_beside_the_files(tmp_path: Path) -> None:
    class_folders(tmp_path / "data", count=2)
    lines = [f"w{number} w1\tdata/red/{number:03}.png" for number in range(2)]
    (tmp_path / "a.tsv").write_text("\n".join(["text\tpath", *lines]))
    chosen = tokenizer(tmp_path)
    shards = media_shards(tmp_path / "s", tmp_path / "a.tsv", "image_text", tokenizer=chosen)
    ids = shards.tokenizer().encode("w1 w1")
    assert shards.read(1).tolist() == ids
    assert shards.sentence_ends(1).tolist() == [2]
    assert shards.media(1) == (tmp_path / "data" / "red" / "001.png").read_bytes()
    assert shards.labels == []
    assert shards.lengths("label").tolist() == [0, 0]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_bytes_do_not_depend_on_workers_or_groups(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = class_folders(tmp_path / "data", count=8)
    (folder / "red" / "003.png").write_bytes(b"")
    keys: dict[str, Any] = {"corpus_bad_files": "skip", "shard_bytes": 1000}
    keys |= {"format": "image_text", "corpus_caption": "w1 {label}"}
    keys["tokenizer"] = tokenizer(tmp_path)
    media_shards(tmp_path / "one", folder, **keys)
    monkeypatch.setattr(preprocess, "grouped", lambda entries: grouped(entries, count=3))
    shards = media_shards(tmp_path / "other", folder, workers=workers, **keys)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "other")
    assert shards.documents == 15
    assert sum("media.npy" in name for name in bytes_of(tmp_path / "one")) > 2


def wav(samples: int = 800, **keys: Any) -> bytes:
    file = io.BytesIO()
    options = {"samplerate": 8000, "format": "WAV", "subtype": "PCM_16", **keys}
    soundfile.write(file, np.sin(np.arange(samples) / 9), **options)
    return file.getvalue()


GOOD: dict[str, dict[str, bytes]] = {
    "image": {
        "a.png": encoded(picture(0)),
        "other_kind.jpg": encoded(picture(0)),
        "grey.png": encoded(picture(0), mode="L"),
        "alpha.png": encoded(picture(0), mode="RGBA"),
        "palette.png": encoded(picture(0), mode="P"),
        "cmyk.jpg": encoded(picture(0), "JPEG", "CMYK"),
        "one.webp": encoded(picture(0, 1, 1), "WEBP"),
    },
    "audio": {
        "a.wav": wav(),
        "eight.wav": wav(subtype="PCM_U8"),
        "float.wav": wav(subtype="FLOAT"),
        "b.flac": wav(format="FLAC"),
        "rate.ogg": wav(format="OGG", subtype="VORBIS", samplerate=22_050),
        "other_kind.wav": wav(format="FLAC"),
    },
}
BROKEN: dict[str, dict[str, bytes]] = {
    "image": {
        "cut.jpg": encoded(picture(0, 64, 64), "JPEG")[:500],
        "empty.png": b"",
        "words.png": b"these are words",
        "sound.png": wav(),
    },
    "audio": {
        "cut.wav": wav()[:900],
        "empty.wav": b"",
        "silence.wav": wav(0),
        "words.mp3": b"these are words, said in a file of its own" * 9,
        "picture.wav": encoded(picture(0)),
    },
}


@pytest.mark.parametrize("format", ["image", "audio"])
def test_odd_files_are_taken(tmp_path: Path, format: str) -> None:
    for name, data in GOOD[format].items():
        (tmp_path / name).write_bytes(data)
    shards = media_shards(tmp_path / "s", tmp_path, format)
    assert shards.documents == len(GOOD[format])


CASES = [(format, name, 1) for format, files in BROKEN.items() for name in files]


@pytest.mark.parametrize(("format", "name", "workers"), [*CASES, ("image", "cut.jpg", 2)])
def test_a_bad_file_stops_with_one_sentence(
    tmp_path: Path, format: str, name: str, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    for good, data in GOOD[format].items():
        (tmp_path / "data" / good).write_bytes(data)
    (tmp_path / "data" / name).write_bytes(BROKEN[format][name])
    words = [f"corpus.format={format}", f"corpus.path={tmp_path / 'data'}", f"workers={workers}"]
    assert main("preprocess", [*words, f"output={tmp_path / 's'}"]) != 0
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert f"{tmp_path / 'data' / name}: the " in errors[0]
    assert "corpus.bad_files=skip" in errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("format", ["image", "audio"])
def test_bad_files_can_be_left_out_with_counts_and_names(
    tmp_path: Path, format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, data in (GOOD[format] | BROKEN[format]).items():
        (tmp_path / name).write_bytes(data)
    names = [*GOOD[format], *BROKEN[format], "gone.png", "notes.md"]
    (tmp_path / "notes.md").write_bytes(b"words")
    (tmp_path / "a.tsv").write_text("\n".join(["path", *names]))
    shards = media_shards(tmp_path / "s", tmp_path / "a.tsv", format, corpus_bad_files="skip")
    expected = {"files that cannot be decoded": len(BROKEN[format]) + 1, "missing files": 1}
    assert {key: shards.source[key] for key in expected} == expected
    lines = (tmp_path / "s" / "left_out.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == [*BROKEN[format], "gone.png", "notes.md"]
    printed = capsys.readouterr().out
    for name in BROKEN[format]:
        assert f"{name}: " in printed


def test_a_missing_file_is_told_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "1.png").write_bytes(encoded(picture(0)))
    (tmp_path / "a.tsv").write_text("path\n1.png\ngone.png\n")
    words = ["corpus.format=image", f"corpus.path={tmp_path / 'a.tsv'}"]
    assert main("preprocess", [*words, f"output={tmp_path / 's'}"]) == 2
    assert "a.tsv, line 3, `gone.png`: there is no file" in capsys.readouterr().err


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match="holds no image at all; 1 files that cannot be decoded"):
        media_shards(tmp_path / "s", tmp_path / "a", corpus_bad_files="skip")
    assert not (tmp_path / "s").exists()


def test_every_file_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = class_folders(tmp_path / "data", count=3)
    decoded: list[bytes] = []

    def decode(data: bytes) -> Pixels:
        decoded.append(data)
        return picture(0)

    monkeypatch.setattr(encode, "decode_image", decode)
    media_shards(tmp_path / "s", folder)
    assert decoded == [file.read_bytes() for file in sorted(folder.rglob("*.png"))]


def test_a_stored_path_that_is_gone_is_told(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "data", count=1)
    shards = media_shards(tmp_path / "s", folder, corpus_store="path")
    (folder / "blue" / "000.png").unlink()
    with pytest.raises(DataError, match=r"000.png cannot be read: No such file"):
        shards.media(0)


def test_shards_without_texts_say_so(tmp_path: Path) -> None:
    shards = media_shards(tmp_path / "s", class_folders(tmp_path / "data", count=1))
    for read in (shards.tokenizer, shards.sentence_boundaries, lambda: shards.sentence_ends(0)):
        with pytest.raises(DataError, match="holds no texts; preprocess with"):
            read()


@pytest.mark.parametrize(
    ("format", "keys", "message"),
    [
        ("image_text", {}, "tokenizer is required"),
        ("image", {"tokenizer": {"name": "space", "vocab": "v"}}, "corpus.format=image has none"),
        ("image", {"segmenter": "jieba"}, "segmenter must be none for corpus.content=image"),
    ],
)
def test_contradictions_are_told(
    tmp_path: Path, format: str, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        media_config(tmp_path / "s", tmp_path, format, **keys)


def test_paths_need_files_of_their_own(tmp_path: Path, shared_data: Path) -> None:
    archive = shared_data / "image" / "cifar10_test.tar"
    with pytest.raises(DataError, match=r"corpus\.store=path is for files"):
        run_preprocess(media_config(tmp_path / "s", archive, corpus_store="path"))


def test_cifar_is_read_from_its_archive(
    tmp_path: Path, shared_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    archive = shared_data / "image" / "cifar10_test.tar"
    shards = media_shards(tmp_path / "s", archive)
    assert shards.documents == 2000
    assert len(shards.labels) == 10
    counts = np.bincount([shards.label(number) for number in range(2000)])
    assert counts.sum() == 2000
    assert not caplog.records
    assert open_shards(tmp_path / "s").fingerprint == shards.fingerprint
