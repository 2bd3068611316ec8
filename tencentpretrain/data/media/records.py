"""Images and sounds on the disk: folders of classes, tar files of them, and lists of files.

Imported by worker processes of `preprocess.py`: nothing here may import torch.
"""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from glob import glob, has_magic
from pathlib import Path, PurePosixPath
from typing import Final, Literal, NamedTuple, NoReturn

from tencentpretrain.data.corpora import CorpusConfig
from tencentpretrain.data.media.lists import LISTS, MediaEntry, file_entry, read_list
from tencentpretrain.errors import DataError
from tencentpretrain.problems import nothing_at

Medium = Literal["image", "audio"]
EXTENSIONS: Final[dict[Medium, tuple[str, ...]]] = {
    "image": (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"),
    "audio": (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3"),
}
"""Endings of the files that count in folders and tar files; a list may name any file."""
TARS: Final = (".tar",)

LOST: Final = "lost+found"
"""Folder of the system at the top of a disk, which only root may read."""
OTHER: Final = "files of other kinds"


class MediaRecord(NamedTuple):
    """One encoded image or sound, with what is known of it.

    Args:
        name: Path as the folder, tar file or list has it.
        data: Encoded bytes.
        label: Name of its class, "" without one.
        text: Caption or transcript, "" without one.
    """

    name: str
    data: bytes
    label: str
    text: str


def find_media(config: CorpusConfig, remarks: Counter[str]) -> Iterator[MediaEntry]:
    """All images or sounds of a corpus: as lists have them, by name within folders.

    The label of a file in a folder or tar file is the name of the folder that it lies in.

    Args:
        config: Of a corpus of images or sounds.
        remarks: Counts what is left out, by reason.

    Raises:
        DataError: if a path does not exist or holds nothing, or a list has a bad line.
    """
    names = [config.path] if isinstance(config.path, str) else config.path
    for path in (path for name in names for path in _expand(name)):
        count = 0
        for entry in _find(path, config, remarks):
            count += 1
            if entry.offset is not None and config.store == "path":
                raise DataError(f"corpus.store=path is for files; {path} is a tar file: unpack it")
            yield _captioned(_on_one_line(entry), config)
        if not count:
            known = ", ".join(EXTENSIONS[medium_of(config)])
            raise DataError(f"{path} holds no {medium_of(config)} ({known})")


def total_size(config: CorpusConfig) -> int:
    """Bytes of all images or sounds of a corpus.

    Raises:
        DataError: as `find_media`, or if a file is missing, unless the config says to go on.
    """
    total = 0
    for entry in find_media(config, Counter()):
        if entry.size is None and config.bad_files == "error":
            read_entry(entry)
        total += entry.size or 0
    return total


def read_media(config: CorpusConfig) -> Iterator[MediaRecord]:
    """All images or sounds of a corpus, undecoded.

    Raises:
        DataError: as `find_media`, or if a file is missing or cannot be read.
    """
    for entry in find_media(config, Counter()):
        yield MediaRecord(entry.name, read_entry(entry), entry.label, entry.text)


def read_entry(entry: MediaEntry) -> bytes:
    """The encoded bytes of an entry.

    Raises:
        DataError: if they cannot be read.
    """
    if entry.size is None:
        raise DataError(f"{entry.where}: {entry.problem}")
    if entry.offset is None:
        return read_file(entry.path)
    try:
        with open(entry.path, "rb") as file:
            file.seek(entry.offset)
            data = file.read(entry.size)
    except OSError as error:
        raise DataError(f"{entry.path} cannot be read: {error.strerror or error}") from error
    if len(data) < entry.size:
        raise DataError(f"{entry.path} ends inside of {entry.name}; copy it again")
    return data


def read_file(path: str) -> bytes:
    """All bytes of a file.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def medium_of(config: CorpusConfig) -> Medium:
    """Whether a corpus is of images or of sounds."""
    return "image" if config.format in ("image", "image_text") else "audio"


def _expand(name: str) -> list[Path]:
    path = Path(name).expanduser()
    if not path.exists() and has_magic(name):
        found = [Path(match) for match in sorted(glob(str(path), recursive=True))]
        if found:
            return found
        raise DataError(f"nothing matches `{name}`")
    if not path.exists():
        raise DataError(f"{path} {nothing_at(path)}")
    return [path]


def _find(path: Path, config: CorpusConfig, remarks: Counter[str]) -> Iterator[MediaEntry]:
    endings, ending = EXTENSIONS[medium_of(config)], path.suffix.lower()
    if path.is_dir():
        return _in_folder(path, endings, remarks)
    if ending in TARS:
        return _in_tar(path, endings, remarks)
    if ending in LISTS or (path.name.endswith(".gz") and Path(path.stem).suffix in LISTS):
        return read_list(path, config, remarks)
    if ending in endings:
        return iter([file_entry(path.name, str(path), str(path), "there is no such file")])
    kinds = ", ".join((*TARS, *LISTS))
    raise DataError(
        f"{path} must be a folder, a file that ends in {kinds}, or one of "
        f"{', '.join(endings)}; unpack archives of other kinds"
    )


def _check_end(archive: tarfile.TarFile) -> None:
    """Refuse an archive that was cut between two members, which ends reading in silence."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError("the header of a member is cut or damaged")


def _captioned(entry: MediaEntry, config: CorpusConfig) -> MediaEntry:
    """`entry` with a text, where the format wants one."""
    if config.media is None or not config.media.endswith("_text"):
        return entry._replace(text="") if entry.text else entry
    if entry.text.strip():
        return entry
    if config.caption is None or not entry.label:
        what = "label" if config.caption else "text"
        raise DataError(
            f"{entry.where}: there is no {what} for format={config.media}; list the files with "
            "their texts in a .tsv or .jsonl file whose column is corpus.fields.text (of a task: "
            "task.text_column), or make texts of labels with corpus.caption (task.templates)"
        )
    return entry._replace(text=config.caption.replace("{label}", entry.label))


def _on_one_line(entry: MediaEntry) -> MediaEntry:
    """`entry` as one that cannot be read, where files of names could not hold its name."""
    text = entry.path + entry.name
    if text.isascii() and text.isprintable():
        return entry
    try:
        text.encode()
    except UnicodeEncodeError:
        problem = "the name is not in UTF-8; rename the file"
    else:
        if len(text.splitlines()) == 1 and "\t" not in text:
            return entry
        problem = "the name holds a tab or a line break; rename the file"
    name, path, where = (ascii(part)[1:-1] for part in (entry.name, entry.path, entry.where))
    return MediaEntry(name, path, None, None, "", entry.text, where, problem)


def _refuse(error: OSError) -> NoReturn:
    """Say that a folder cannot be listed, which `os.walk` would pass over."""
    raise DataError(f"{error.filename} cannot be read: {error.strerror or error}") from error


def _require_no_loop(root: Path, folder: Path) -> None:
    """Refuse a link to a folder that it lies in, which has no end."""
    above = folder.parent
    while not folder.samefile(above):
        if above == root:
            return
        above = above.parent
    raise DataError(f"{folder} is a link to a folder that it lies in, {above}; remove the link")


def _in_folder(root: Path, endings: tuple[str, ...], remarks: Counter[str]) -> Iterator[MediaEntry]:
    for folder, folders, files in os.walk(root, onerror=_refuse, followlinks=True):
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n != LOST)
        here = Path(folder)
        for name in folders:
            if (here / name).is_symlink():
                _require_no_loop(root, here / name)
        label = "" if here == root else here.name
        for file in sorted(files):
            if file.startswith("."):
                continue
            if not file.lower().endswith(endings):
                remarks[OTHER] += 1
                continue
            path = here / file
            missing = "the link leads to no file"
            entry = file_entry(path.relative_to(root).as_posix(), str(path), str(path), missing)
            yield entry._replace(label=label)


def _in_tar(path: Path, endings: tuple[str, ...], remarks: Counter[str]) -> Iterator[MediaEntry]:
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                # Otherwise the archive keeps every member that it has seen.
                archive.members = []  # type: ignore[attr-defined]
                name = PurePosixPath(member.name)
                if not member.isfile() or name.name.startswith("."):
                    continue
                if not member.name.lower().endswith(endings):
                    remarks[OTHER] += 1
                    continue
                where = f"{path}, member {member.name}"
                offset, size = member.offset_data, member.size
                label = name.parent.name
                yield MediaEntry(member.name, str(path), offset, size, label, "", where)
            _check_end(archive)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(
            f"{path} is no whole tar file ({error}); copy it again, or decompress it first"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def grouped(
    entries: Iterable[MediaEntry], count: int = 256, size: int = 1 << 22
) -> Iterator[tuple[MediaEntry, ...]]:
    """Entries in portions of at most `count`, and of about `size` bytes."""
    group: list[MediaEntry] = []
    total = 0
    for entry in entries:
        group.append(entry)
        total += entry.size or 0
        if len(group) == count or total >= size:
            yield tuple(group)
            group, total = [], 0
    if group:
        yield tuple(group)
