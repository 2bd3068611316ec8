"""Vectors of texts, images, sounds, or words: what `scripts/extract.py` does."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Final, Literal, NamedTuple

from torch import Tensor

from tencentpretrain.config import ConfigError, PathLike, PositiveInt, check
from tencentpretrain.data.corpora import CorpusConfig
from tencentpretrain.data.media.lists import MediaEntry
from tencentpretrain.data.media.records import find_media
from tencentpretrain.errors import before_start
from tencentpretrain.targets.classify import PoolingName
from tencentpretrain.tasks.inference import Machine
from tencentpretrain.tools.image_vectors import (
    ImageVectors,
    image_stream_name,
    trained_transform,
)
from tencentpretrain.tools.outputs import check_file, published, write_lines
from tencentpretrain.tools.pooled import ComparedVectors, PooledStates
from tencentpretrain.tools.saved_model import ToolConfig, load_model
from tencentpretrain.tools.sound_vectors import SoundVectors, trained_bank
from tencentpretrain.tools.text_vectors import TextVectors
from tencentpretrain.tools.texts import read_lines
from tencentpretrain.tools.vector_file import NPY, TSV, VectorFile, Vectors, read_vectors
from tencentpretrain.tools.whitening import Moments, Whitening
from tencentpretrain.tools.word_vectors import word_lines
from tencentpretrain.types import SRC, Stream

log = logging.getLogger("tencentpretrain")


class ExtractConfig(ToolConfig):
    """Extract vectors from a model."""

    what: Literal["texts", "words", "images", "sounds"] = "texts"
    """A vector for each line of input, the word table in word2vec's text format, or a vector for
    each image or sound of input."""
    input: PathLike | None = None
    """File with a text a line; blank lines have vectors too, so that the numbers stay. Of images
    and sounds a folder, tar file or list."""
    names: PathLike | None = None
    """File for the names of the images or sounds, a line for each vector."""
    output: PathLike
    """File for the vectors: an array if it ends in .npy, or numbers between tabs (.tsv)."""
    overwrite: bool = False
    """Whether output and fit_whitening may replace files that are there."""
    pooling: PoolingName = "first"
    """What stands for a text: its first or last position, or the mean or maximum of all."""
    compared: bool = False
    """Whether vectors are those that a model with the target contrast compares (CLIP), of length 1;
    pooling and layer then say nothing."""
    layer: int = -1
    """Layer whose states are pooled: 0 is the embedding, -1 the last, behind a final norm."""
    length: PositiveInt | None = None
    """Greatest length of a text in tokens, special ones included, longer ones are cut; null is that
    of training."""
    fit_whitening: PathLike | None = None
    """File for a whitening that is fitted to the vectors of input, and applied to them."""
    whitening: PathLike | None = None
    """File of a whitening that was fitted before, to be applied."""
    dimensions: PositiveInt | None = None
    """Components of whitened vectors to keep, those of the greatest variance; null keeps all."""

    @check("what", "input")
    def _contents_need_input(self) -> str | None:
        if (self.what != "words") == (self.input is not None):
            return None
        if self.input is None:
            return f"input is required for what={self.what}"
        return "words need no input"

    @check("what", "names", "length")
    def _keys_are_of_contents(self) -> str | None:
        if self.names is not None and self.what not in ("images", "sounds"):
            return "names are for what=images or sounds"
        if self.length is not None and self.what in ("images", "sounds"):
            return "length is for what=texts"
        return None

    @check("whitening", "fit_whitening", "dimensions", "what")
    def _whitening_fits(self) -> str | None:
        if self.whitening is not None and self.fit_whitening is not None:
            return "whitening and fit_whitening exclude each other"
        is_white = self.whitening is not None or self.fit_whitening is not None
        if is_white and self.what == "words":
            return "whitening is not for what=words"
        if self.dimensions is not None and not is_white:
            return "dimensions needs whitening or fit_whitening"
        return None

    @check("what", "output")
    def _form_is_known(self) -> str | None:
        if self.what == "words" or self.output.suffix.lower() in (NPY, TSV):
            return None
        return f"output must end in {NPY} or {TSV}, but is {self.output}"


def run_extract(config: ExtractConfig) -> int:
    """Extract as `config` says; returns the exit code."""
    with before_start():
        inputs = [path for path in (config.input, config.whitening) if path is not None]
        check_file(config.output, config.overwrite, inputs)
        machine = config.machine()
        if config.input is None:
            saved = load_model(config, machine)
            lines = word_lines(saved.text_tokenizer(), saved.model)
        else:
            parts = _prepare(config, config.input, machine)
    if config.input is None:
        write_lines(config.output, lines)
        log.info(f"the word vectors are in {config.output}")
    else:
        count = _write(config, parts)
        log.info(f"{count:,} vectors are in {config.output}")
    return 0


def _text_vectors(config: ExtractConfig, path: Path, machine: Machine) -> Iterator[Vectors]:
    lines = read_lines(path)
    saved = load_model(config, machine)
    reader = TextVectors(
        saved, machine, config.pooling, config.layer, config.length, config.compared
    )
    return reader.vectors(lines)


def _image_vectors(config: ExtractConfig, path: Path, machine: Machine) -> Iterator[Vectors]:
    entries = list(find_media(CorpusConfig(path=str(path), format="image"), Counter()))
    saved = load_model(config, machine)
    stream = image_stream_name(saved)
    read: Callable[[Stream], Tensor] = PooledStates(saved, stream, config.pooling, config.layer)
    if config.compared:
        read = ComparedVectors(saved, stream)
    _write_names(config, path, entries)
    return ImageVectors(read, trained_transform(saved), machine).vectors(entries)


def _sound_vectors(config: ExtractConfig, path: Path, machine: Machine) -> Iterator[Vectors]:
    entries = list(find_media(CorpusConfig(path=str(path), format="audio"), Counter()))
    saved = load_model(config, machine)
    bank = trained_bank(saved)
    read: Callable[[Stream], Tensor] = PooledStates(saved, SRC, config.pooling, config.layer)
    if config.compared:
        read = ComparedVectors(saved, SRC)
    _write_names(config, path, entries)
    return SoundVectors(read, bank, machine).vectors(entries)


def _write_names(config: ExtractConfig, path: Path, entries: Sequence[MediaEntry]) -> None:
    if config.names is not None:
        check_file(config.names, config.overwrite, [path, config.output], "names")
        write_lines(config.names, (f"{entry.name}\n" for entry in entries))


VECTORS: Final = {"texts": _text_vectors, "images": _image_vectors, "sounds": _sound_vectors}
"""Vectors of each kind of content, some at a time."""


class _Parts(NamedTuple):
    """Vectors of a content, some at a time, and what is done to them."""

    vectors: Iterator[Vectors]
    width: int
    whitening: Whitening | None


def _prepare(config: ExtractConfig, path: Path, machine: Machine) -> _Parts:
    """Everything that can go wrong before there is an output."""
    if config.fit_whitening is not None:
        check_file(config.fit_whitening, config.overwrite, [path, config.output], "fit_whitening")
    whitening = None if config.whitening is None else Whitening.load(config.whitening)
    vectors = VECTORS[config.what](config, path, machine)
    first = next(vectors)
    width = first.shape[1]
    if config.dimensions is not None and config.dimensions > width:
        message = f"must be at most {width}, the width of the vectors, but is {config.dimensions}"
        raise ConfigError.at("dimensions", message)
    if whitening is not None:
        whitening.check(width, config.dimensions or width)
    return _Parts(chain([first], vectors), width, whitening)


def _write(config: ExtractConfig, parts: _Parts) -> int:
    """Write the vectors, whitened if they are to be; returns their number."""
    kept = config.dimensions or parts.width
    if config.fit_whitening is None:
        return _store(config.output, parts.vectors, parts.whitening, kept)
    # The whitening is known when all vectors are; until then they lie beside the output.
    with tempfile.TemporaryDirectory(prefix=".", dir=config.output.absolute().parent) as folder:
        plain, moments = Path(folder) / f"plain{NPY}", Moments(parts.width)
        _store(plain, _counted(parts.vectors, moments), None, parts.width)
        whitening = Whitening.fit(moments)
        with before_start():  # there is no output yet
            whitening.check(parts.width, kept)
        whitening.save(config.fit_whitening)
        return _store(config.output, read_vectors(plain), whitening, kept)


def _store(path: Path, parts: Iterable[Vectors], whitening: Whitening | None, width: int) -> int:
    """Write vectors that become `width` wide to a file; returns their number."""
    with published(path) as partial, VectorFile(partial, width, path.suffix.lower()) as file:
        for vectors in parts:
            file.append(vectors if whitening is None else whitening.apply(vectors, width))
    return file.count


def _counted(parts: Iterable[Vectors], moments: Moments) -> Iterator[Vectors]:
    for vectors in parts:
        moments.add(vectors)
        yield vectors
