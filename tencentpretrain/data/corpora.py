"""Corpora on the disk: which files belong to one, and how they are laid out."""

from __future__ import annotations

from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Final, Literal

from tencentpretrain.config import Config, PositiveInt, check
from tencentpretrain.errors import DataError
from tencentpretrain.problems import nothing_at

Format = Literal["sentences", "lines", "text", "jsonl", "tsv"]
Content = Literal["text", "pair", "label", "chat"]
MediaFormat = Literal["image", "image_text", "audio", "audio_text"]
MEDIA_FORMATS: Final[tuple[MediaFormat, ...]] = ("image", "image_text", "audio", "audio_text")
FORMATS: Final[dict[Content, tuple[Format, ...]]] = {
    "text": ("sentences", "lines", "text", "jsonl", "tsv"),
    "pair": ("lines", "jsonl", "tsv"),
    "label": ("lines", "jsonl", "tsv"),
    "chat": ("jsonl",),
}
"""Formats that hold each content; the first is that of files whose extension says nothing."""
EXTENSIONS: Final[dict[str, Format]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".tsv": "tsv",
}


class FieldsConfig(Config):
    """Names of what a record holds: headers of TSV columns or keys of JSON lines."""

    source: str = "source"
    """First text of a pair."""
    target: str = "target"
    """Second text of a pair, the one to be written."""
    label: str = "label"
    """Label of one or two texts."""
    text_a: str = "text_a"
    """First labelled text."""
    text_b: str = "text_b"
    """Second labelled text; a file or a JSON line may lack it."""
    messages: str = "messages"
    """List of messages, each with a `role` and a `content`; JSON lines that lack it have a prompt
    and an answer."""
    prompt: str | list[str] = "prompt"
    """What is asked; of several keys all but the first may be missing or empty, and the texts are
    joined with newlines."""
    answer: str = "answer"
    """What the assistant answers to the prompt."""
    path: str = "path"
    """Path of an image or sound, from the folder of the file that lists it on."""
    text: str = "text"
    """Caption of an image, or what is said in a sound."""

    @check("prompt")
    def _some_prompt(self) -> str | None:
        return None if self.prompt else "prompt must name at least one key, but is empty"

    @property
    def prompts(self) -> list[str]:
        """The keys of the prompt."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class CorpusConfig(Config):
    """Where the raw text is and how it is laid out."""

    path: str | list[str]
    """File, directory or glob, or a list of them; files may be compressed with gzip. Images and
    sounds: folders of classes, tar files of such folders, and lists (.tsv, .jsonl) of files."""
    content: Content = "text"
    """What is learned from: `text`; a `pair` of a source and a target text; one or two texts with a
    `label`; or conversations (`chat`)."""
    format: Literal["auto", "sentences", "lines", "text", "jsonl", "tsv"] | MediaFormat = "auto"
    """`sentences`: one a line, blank lines between documents; `lines`: one document a line, with
    tabs between the texts of a pair, or the label and its texts; `text`: a file is one document and
    keeps its newlines; `jsonl`; `tsv`: the first line names the columns; `auto`: jsonl and tsv by
    their extension, else sentences, or lines for pairs and labels; `image`, `image_text`, `audio`
    and `audio_text`, instead of content: encoded files, maybe with captions or transcripts."""
    fields: FieldsConfig = FieldsConfig()
    """Names of what a record holds, where the content is not text."""
    template: Literal["chatml", "plain"] = "chatml"
    """How conversations are written: `chatml` (<|im_start|>role, newline, content, <|im_end|>,
    newline), or `plain` (the tokens bos, prompt, answer, eos)."""
    store: Literal["bytes", "path"] = "bytes"
    """What the shards hold of images and sounds: the encoded files, or where they are."""
    bad_files: Literal["error", "skip"] = "error"
    """What to do with an image or sound that is missing or cannot be decoded; those skipped are
    listed in `left_out.tsv` of the output."""
    caption: str | None = None
    """Text of images and sounds that have none, such as `a photo of a {label}`."""
    field: str = "text"
    """Key of a JSON line that holds the text of the document, where the content is text."""
    column: str = "text_a"
    """Header of the TSV column that holds the text of the document, where the content is text."""
    keep_newlines: bool = False
    """Whether the newline behind a sentence is part of it, as a model that writes text needs it;
    always so in the format `text` and inside of pairs, labelled texts and messages."""
    encoding_errors: Literal["error", "replace", "skip"] = "error"
    """What to do with a line that is not UTF-8: stop, put U+FFFD for the bytes, or leave it out."""
    bad_lines: Literal["error", "skip"] = "error"
    """What to do with a line that is too long, no JSON, or lacks what it should hold."""
    max_line_bytes: PositiveInt = 1 << 24
    """A longer line, in bytes, is a bad line."""
    max_document_bytes: PositiveInt = 1 << 22
    """A longer document, in bytes, is cut at the next end of a line, so that memory is bounded."""

    @check("path")
    def _some_path(self) -> str | None:
        paths = [self.path] if isinstance(self.path, str) else self.path
        return None if paths and all(paths) else "path must name at least one file, but is empty"

    @check("content", "format")
    def _content_has_format(self) -> str | None:
        if self.format in MEDIA_FORMATS:
            has_other = self.content != "text"
            return f"format={self.format} is also the content; leave content out" * has_other
        if self.format in ("auto", *FORMATS[self.content]):
            return None
        return (
            f"format must be {' or '.join(FORMATS[self.content])} for content={self.content}, "
            f"but is {self.format}"
        )

    @check("format", "store", "bad_files", "caption")
    def _files_have_format(self) -> str | None:
        if self.format in MEDIA_FORMATS:
            has_text = self.format.endswith("_text")
            if self.caption is None or (has_text and "{label}" in self.caption):
                return None
            return "caption must hold {label}, and is for format=image_text or audio_text"
        if (self.store, self.bad_files, self.caption) == ("bytes", "error", None):
            return None
        return f"store, bad_files and caption are for {', '.join(MEDIA_FORMATS)}; leave them out"

    @property
    def media(self) -> MediaFormat | None:
        """The format, where that is one of images or sounds."""
        return self.format if self.format in MEDIA_FORMATS else None

    @property
    def kind(self) -> Content | MediaFormat:
        """What is learned from, whichever key says so."""
        return self.media or self.content

    @property
    def columns(self) -> tuple[list[str], list[str]]:
        """Names of the TSV columns to read: those that must be there, those that may be."""
        fields = self.fields
        if self.content == "pair":
            return [fields.source, fields.target], []
        if self.content == "label":
            return [fields.label, fields.text_a], [fields.text_b]
        return [self.column], []


@dataclass(frozen=True)
class CorpusFile:
    """One file of a corpus; its size on the disk in bytes is for the progress."""

    path: Path
    format: Format
    size: int


def find_files(config: CorpusConfig) -> list[CorpusFile]:
    """All files of a corpus: in the order of the paths, and by name within a glob or directory.

    Raises:
        DataError: if a path does not exist, matches nothing, or names a file again.
    """
    paths = [config.path] if isinstance(config.path, str) else config.path
    found = [file for path in paths for file in _expand(path)]
    seen: set[Path] = set()
    for file in found:
        if file.resolve() in seen:
            raise DataError(f"corpus.path names {file} twice; its text would be doubled")
        seen.add(file.resolve())
    return [CorpusFile(f, _format_of(f, config), f.stat().st_size) for f in found]


def _expand(path: str) -> list[Path]:
    given = Path(path).expanduser()
    if not given.exists() and has_magic(path):
        found = sorted(Path(name) for name in glob(str(given), recursive=True))
        files = [file for file in found if file.is_file()]
        if not files:
            raise DataError(f"corpus.path: no file matches `{path}`")
        return files
    if given.is_dir():
        files = sorted(f for f in given.rglob("*") if f.is_file() and not _is_hidden(f, given))
        if not files:
            raise DataError(f"corpus.path: the directory {given} holds no file")
        return files
    if not given.is_file():
        reason = "is not a regular file" if given.exists() else nothing_at(given)
        raise DataError(f"corpus.path: {given} {reason}")
    return [given]


def _is_hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _format_of(file: Path, config: CorpusConfig) -> Format:
    given = next((known for known in FORMATS["text"] if known == config.format), None)
    if given is not None:
        return given
    name = file.name.removesuffix(".gz")
    usual = FORMATS[config.content]
    found = EXTENSIONS.get(Path(name).suffix.lower())
    return found if found in usual else usual[0]
