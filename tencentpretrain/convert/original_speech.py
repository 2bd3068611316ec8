"""Models of TencentPretrain that hear: S2T, its names and config."""

from __future__ import annotations

from typing import Final

from tencentpretrain.convert.family import Plain
from tencentpretrain.convert.keys import Settings
from tencentpretrain.convert.table import Rule, modules
from tencentpretrain.errors import CheckpointError

SPEECH: Final = "speech"
FIRST: Final = "embedding.speech.conv.conv_layers.0.0.weight"
"""Tensor that shows that a file has such an embedding."""
SPELLING: Final = (r"(?<=\.conv_layers\.)(\d+)\.(?=weight|bias)", r"\1.0.")
"""How older files call the convolutions, and what they are called now."""
WAVES: Final[Plain] = {"layout": "halves", "offset": 2, "inclusive": True}
"""Sines before cosines on both sides of a model that hears; position i of a row is i + 2."""


def speech_rules() -> tuple[Rule, ...]:
    """Names of what only models of speech have."""
    theirs = "embedding.speech.conv.conv_layers.{n}.0"
    return modules({"embedding.frames.layers.{n}": theirs})


def speech_parts(settings: Settings, names: list[str]) -> Plain:
    """Parts of an embedding of sounds.

    Raises:
        CheckpointError: if it has others beside.
    """
    others = sorted({*names} - {SPEECH, "sinusoidalpos", "pos"})
    if others:
        raise CheckpointError(
            f"the config names {', '.join(others)} beside speech, which cannot be converted"
        )
    kernels = list(settings.get("conv_kernel_sizes", [5, 5]))
    channels = settings.get("conv_channels", 1024)
    # The last number is that of the width, twice with gates; the first is that of all before.
    first = channels[0] if isinstance(channels, list) else channels
    settings.get("conv_layers_num", None)
    frames = {
        "bands": settings.number("audio_feature_size", 80),
        "kernels": kernels,
        "strides": [2] * len(kernels),
        "channels": first if len(kernels) > 1 else None,
        "activation": "glu" if settings.get("data_processor", "") == "s2t" else "gelu",
        "scale": "sinusoidalpos" in names,
    }
    if isinstance(channels, list) and len({*channels[:-1]}) > 1:
        raise CheckpointError(f"conv_channels must be alike but for the last, but are {channels}")
    table = {"position": {"length": _length(settings)}} if "pos" in names else {}
    waves = {"sinusoidal": WAVES} if "sinusoidalpos" in names else {}
    return {"frames": frames, **table, **waves}


def speech_objective(settings: Settings) -> Plain:
    """How examples are made for such a model."""
    length = settings.number("max_seq_length", 512)
    return {
        "name": "s2t",
        "length": settings.number("max_audio_frames", 6000),
        "target_length": length,
        "start": "cls",
        "bank": {"bands": settings.number("audio_feature_size", 80)},
    }


def _length(settings: Settings) -> int:
    return max(settings.number("max_seq_length", 512), settings.number("max_audio_frames", 6000))
