"""Conversion from and to the files of others: what `scripts/convert.py` does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, create_model

from tencentpretrain.config import (
    Choice,
    ComponentConfig,
    Config,
    ConfigError,
    PathLike,
    SerializeAsAny,
)
from tencentpretrain.convert.arrival import Arrival, Request, arrive
from tencentpretrain.convert.departure import Departure, depart
from tencentpretrain.errors import CheckpointError, before_start
from tencentpretrain.registry import load_plugins
from tencentpretrain.tokenizers.base import TOKENIZERS
from tencentpretrain.tools.outputs import require_replaceable
from tencentpretrain.train.manifest import MANIFEST
from tencentpretrain.train.saved_checkpoint import CHECKPOINTS

MARKS: Final = (MANIFEST, "config.json")
"""Files that show that a directory holds a model, of ours or of `transformers`."""


class ConvertKeys(Config):
    """Keys of `scripts/convert.py`; `from`, a word of the language, is added below."""

    to: PathLike
    """Directory to make: for init and checkpoint here, or one that transformers loads."""
    family: str = "auto"
    """Family of the model, where its config does not tell the right one."""
    config: PathLike | None = None
    """JSON config of a model of TencentPretrain or UER-py, which their files come without."""
    tokenizer: Annotated[SerializeAsAny[ComponentConfig] | None, Choice(TOKENIZERS)] = None
    """Tokenizer of the model, where none lies beside it."""
    target_tokenizer: Annotated[SerializeAsAny[ComponentConfig] | None, Choice(TOKENIZERS)] = None
    """Tokenizer of what a decoder writes, where that is another one."""
    model: dict[str, Any] = {}
    """Keys of our model that differ from what its config says, such as model.encoder.norm=layer."""
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    """Type in which weights are written; keep leaves each as it is."""
    pairs: bool = False
    """Whether a classifier reads pairs of texts, which no config.json says."""
    allow_unexpected: list[str] = []
    """Patterns of names of tensors that have no place on the other side and may be left."""
    overwrite: bool = False
    """Whether a model in `to` may be replaced."""
    plugins: list[str] = []
    """Packages to import that register components of your own."""

    @property
    def source(self) -> Path:
        """What is converted."""
        path: Path = getattr(self, "from")
        return path


_FROM: Any = {
    "from": (
        PathLike,
        Field(
            description="Folder of transformers, run or checkpoint of ours, or file of "
            "TencentPretrain or UER-py; it decides the direction."
        ),
    )
}
ConvertConfig = create_model("ConvertConfig", __base__=ConvertKeys, **_FROM)
"""Keys of `scripts/convert.py`."""


def run_convert(config: ConvertKeys) -> int:
    """Convert as `config` says; returns the exit code.

    Raises:
        UserError: if what is there cannot be converted, saying why; nothing is written then.
    """
    with before_start():
        load_plugins(config.plugins)
        _check_paths(config)
        prepared = _prepare(config)
    prepared.write(config.to)
    for line in prepared.report.lines():
        print(line)
    print(f"{prepared.what:<15} {config.to}", flush=True)
    return 0


def _prepare(config: ConvertKeys) -> Arrival | Departure:
    if is_ours(config.source):
        return depart(config.source, config.family, config.dtype, config.allow_unexpected)
    request = Request(
        family=config.family,
        original=config.config,
        tokenizer=config.tokenizer,
        target_tokenizer=config.target_tokenizer,
        overrides=config.model,
        is_pair=config.pairs,
        allow_unexpected=config.allow_unexpected,
    )
    return arrive(config.source, request, config.dtype)


def is_ours(path: Path) -> bool:
    """Whether `path` is a run, its checkpoints, or one checkpoint."""
    return (path / MANIFEST).exists() or (path / CHECKPOINTS).is_dir() or path.name == CHECKPOINTS


def _check_paths(config: ConvertKeys) -> None:
    """Refuse to read nothing or to lose something.

    Raises:
        CheckpointError: if there is nothing at `from`.
        ConfigError: if `to` may not be written.
    """
    if not config.source.exists():
        raise CheckpointError(f"there is nothing at from={config.source}")
    to = config.to
    if to.exists() and to.samefile(config.source):
        raise ConfigError.at("to", f"must be another directory than from, but is `{to}`")
    require_replaceable("to", to, config.overwrite, marks=MARKS)
