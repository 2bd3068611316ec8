"""Pictures that a model of captions and image codes makes: `scripts/generate.py`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from tencentpretrain.annotators.image_codec import ImageCodec
from tencentpretrain.config import Config, ConfigError, PathLike, PositiveInt
from tencentpretrain.data.objectives.dalle import DalleObjective
from tencentpretrain.generate.decoding import Decoding
from tencentpretrain.generate.pictures import Painter, grid_of
from tencentpretrain.generate.rows import Ids
from tencentpretrain.tasks.inference import Machine
from tencentpretrain.tasks.table import JSON_LINES
from tencentpretrain.tools.outputs import published, write_lines
from tencentpretrain.tools.saved_model import SavedModel
from tencentpretrain.train.durable import DurableFile, sync_directory

log = logging.getLogger("tencentpretrain")

FOR_TEXT: Final = ("template", "begin", "start", "stop", "end_tokens", "max_new_tokens")
"""Keys that pictures have no use for."""
FAR: Final = 1 << 32
"""Between the numbers of two pictures of one prompt: more than there are prompts."""


class PictureKeys(Config):
    """Keys of models that write the codes of images."""

    samples: PositiveInt = 1
    """Pictures of each prompt, next to each other; they differ where temperature is above 0."""
    codes: PathLike | None = None
    """Autoencoder that makes pictures of codes; null is the one of training."""


def makes_pictures(saved: SavedModel) -> bool:
    """Whether a model was trained on captions and image codes."""
    return isinstance(saved.config.objective, DalleObjective.Config)


def check_text_keys(keys: PictureKeys, output: Path | None) -> None:
    """Refuse what only models of image codes can do.

    Raises:
        ConfigError: naming the key.
    """
    given = {"samples": keys.samples != 1, "codes": keys.codes is not None}
    given["output"] = output is not None and output.suffix.lower() == ".png"
    for key, is_given in given.items():
        if is_given:
            raise ConfigError.at(key, "is for models of captions and image codes (objective dalle)")


def check_picture_keys(config: Config, output: Path | None) -> None:
    """Refuse what pictures have no use for.

    Raises:
        ConfigError: naming the key.
    """
    for key in FOR_TEXT:
        if getattr(config, key) != type(config).model_fields[key].default:
            raise ConfigError.at(key, "is for texts, but the model makes pictures; leave it out")
    if output is None or output.suffix.lower() not in (".png", *JSON_LINES):
        message = "must name a file that ends in .png or .jsonl: the model makes pictures"
        raise ConfigError.at("output", message)


def painter_of(saved: SavedModel, machine: Machine, codes: Path | None) -> Painter:
    """A trained model, ready to make pictures.

    Args:
        saved: The model.
        machine: How it is run.
        codes: Its autoencoder; None is the one of training.

    Raises:
        ConfigError: if the autoencoder of training is not there.
        CheckpointError: if an autoencoder does not fit.
    """
    objective = saved.config.objective
    assert isinstance(objective, DalleObjective.Config)
    path = codes or objective.codes.path
    if path is None or not path.exists():
        message = f"is required: the autoencoder of training, `{path}`, is not there"
        raise ConfigError.at("codes", message)
    codec = ImageCodec.open(path, machine.device, machine.dtype)
    trained = saved.checkpoint.manifest.fingerprints.get("image codes", codec.fingerprint)
    if trained != codec.fingerprint:
        log.warning(f"`{path}` is not the autoencoder of training, whose codes mean other things")
    return Painter(saved.model, saved.text_tokenizer(), objective, codec, machine.dtype)


def paint(
    painter: Painter,
    rows: Sequence[Ids],
    output: Path,
    samples: int,
    decoding: Decoding,
    batch_size: int,
) -> None:
    """Write the pictures of captions, or their codes.

    Args:
        painter: Makes them.
        rows: The captions, as `painter` reads them.
        output: A grid (.png) with a line a caption, or JSON lines of codes.
        samples: Pictures of each caption.
        decoding: How codes are chosen.
        batch_size: Pictures made at once.
    """
    wanted = [(number, sample) for number in range(len(rows)) for sample in range(samples)]
    found: list[Tensor] = []
    for start in range(0, len(wanted), batch_size):
        part = wanted[start : start + batch_size]
        # A picture depends on the seed, its prompt's number and its own, not on how many are made.
        numbers = [number + FAR * sample for number, sample in part]
        found.append(painter.codes([rows[number] for number, _ in part], decoding, numbers))
    codes = torch.cat(found)
    if output.suffix.lower() in JSON_LINES:
        write_lines(output, _lines(wanted, codes))
    else:
        parts = [painter.pictures(part) for part in codes.split(batch_size)]
        _write(output, grid_of(torch.cat([torch.from_numpy(p) for p in parts]).numpy(), samples))
    log.info(f"{len(wanted)} pictures are in {output}")


def _lines(wanted: Sequence[tuple[int, int]], codes: Tensor) -> Iterator[str]:
    for (number, sample), row in zip(wanted, codes.tolist(), strict=True):
        record: dict[str, Any] = {"line": number + 1, "sample": sample + 1, "codes": row}
        yield json.dumps(record) + "\n"


def _write(path: Path, data: bytes) -> None:
    with published(path) as partial, DurableFile(partial) as file:
        file.write(data)
    sync_directory(path.absolute().parent)
