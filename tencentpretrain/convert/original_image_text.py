"""Models of TencentPretrain that know images and texts: ViLT, DALL-E, and what CLIP learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from tencentpretrain.convert.family import Plain
from tencentpretrain.convert.keys import Settings
from tencentpretrain.convert.original_images import PROJECTION, image_parts, image_transform
from tencentpretrain.convert.original_towers import Pair
from tencentpretrain.convert.table import Rule
from tencentpretrain.convert.transforms import Numbers, SkippedRows, Squeezed, Transform
from tencentpretrain.errors import CheckpointError

BOTH: Final = "word_patch"
"""Their embedding of words and then patches, beside which positions and segments run on."""
BOTH_SPELLINGS: Final = (
    (r"^embedding\.word_patch\.language_embedding\.", "embedding.word."),
    (r"^embedding\.word_patch\.vision_embedding\.", "embedding.patch."),
)
INNER: Final = "embedding.concat.embeddings"
WORDS: Final = f"{INNER}.text.word.weight"
LENGTH: Final = 128
"""Tokens to which their `preprocess.py` fills texts up, where it is not told."""
ROW: Final = 333
"""Tokens that a model reads of a caption and its codes, where its config does not say."""


@dataclass(frozen=True)
class Behind(Transform):
    """A table of positions is that of a text and then that of an image.

    Their texts are filled up to one length, so that images always have the same positions; rows
    behind these are read by nothing.
    """

    def to_ours(self, theirs: Sequence[Tensor], numbers: Numbers) -> list[Tensor]:
        (table,) = theirs
        sizes = [numbers["text_positions"], numbers["image_positions"]]
        if len(table) < sum(sizes):
            raise ValueError(
                f"texts of {sizes[0]} tokens and images of {sizes[1]} positions need more "
                "rows; put the seq_length that preprocess.py was given into the JSON config"
            )
        return list(table[: sum(sizes)].split(sizes))

    def to_theirs(self, ours: Sequence[Tensor], numbers: Numbers) -> list[Tensor]:
        return [torch.cat(list(ours))]


def both_rules() -> tuple[Rule, ...]:
    """Names of what reads words and patches in one row; they go before those of words alone."""
    only = ("content", 2)
    image = f"{INNER}.image"
    return (
        Rule((WORDS,), ("embedding.word.embedding.weight",), only=only),
        Rule((f"{image}.patch.weight",), (f"{PROJECTION}.weight",), only=only),
        Rule((f"{image}.patch.class_token",), ("embedding.patch.cls_emb",), Squeezed(2), only),
        Rule(
            (f"{INNER}.text.position.weight", f"{image}.patch_position.weight"),
            ("embedding.pos.embedding.weight",),
            Behind(),
            only,
        ),
        Rule(
            ("embedding.concat.kinds",),
            ("embedding.seg.embedding.weight",),
            SkippedRows("segment_rows"),
            only,
        ),
    )


def both_parts(settings: Settings, names: list[str], length: int) -> Plain:
    """Parts of an embedding of words and then patches.

    Raises:
        CheckpointError: if it has others beside.
    """
    others = sorted({*names} - {BOTH, "pos", "seg"})
    if others:
        raise CheckpointError(
            f"the config names {', '.join(others)} beside {BOTH}, which cannot be converted"
        )
    has_table = "pos" in names
    patch = image_parts(settings, [], length)["patch"]
    words = {"word": {}, **({"position": {"length": text_length(settings)}} if has_table else {})}
    patches = {"patch": patch, **({"patch_position": {}} if has_table else {})}
    plain = {"norm": "none", "dropout": 0.0}
    return {
        "concat": {
            "embeddings": {"text": {"parts": words, **plain}, "image": {"parts": patches, **plain}},
            "kinds": "seg" in names,
        }
    }


def text_length(settings: Settings) -> int:
    """Tokens to which texts were filled up."""
    return settings.number("seq_length", LENGTH)


def both_objective(settings: Settings) -> Plain | None:
    """How examples are made for a model of both; None where images are not square."""
    transform = image_transform(settings)
    if transform is None:
        return None
    return {"name": "vilt", "length": text_length(settings), "transform": transform}


def clip_objective(pair: Pair, length: int) -> Plain | None:
    """How examples are made for a tower of texts and one of images; None for other pairs."""
    if set(pair.streams) != {"text", "image"}:
        return None
    transform = image_transform(pair.second if pair.streams[1] == "image" else pair.first)
    if transform is None:
        return None
    tokens = min(length, text_length(pair.first))
    return {"name": "clip", "length": tokens, "transform": transform}


def writes_codes(settings: Settings) -> bool:
    """Whether a model writes the codes of images behind captions (DALL-E, Talk2Face)."""
    is_known = settings.get("data_processor", "") == "dalle"
    return is_known or settings.get("tokenizer", "") in ("text_image", "multimodal")


def codes_objective(settings: Settings, length: int) -> Plain | None:
    """How examples are made for such a model; None where images are not square."""
    transform = image_transform(settings)
    if transform is None:
        return None
    tokenizer = settings.get("image_tokenizer", {})
    cells = tokenizer.get("frame_size", transform["size"] // settings.number("patch_size", 16))
    # The last code is written, and not read.
    row = settings.number("seq_length", ROW + 1) - 1
    return {
        "name": "dalle",
        "length": min(length, row),
        "cell_size": transform["size"] // cells,
        "transform": transform | {"resize": transform["size"], "crop": "center"},
        "aligned": False,
        "supervise_text": False,
    }
