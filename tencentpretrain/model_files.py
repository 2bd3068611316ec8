"""The YAML files that describe models: where they lie, and inheritance between them.

`models/bert/base.yaml` is the model `bert/base`. Its list `defaults: [_family]` names the files
that it inherits from: beside it, or from the top of any folder of models. A file whose name begins
with an underscore holds what others share and is no model itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from omegaconf import OmegaConf

from tencentpretrain.config import ConfigError, nearest
from tencentpretrain.yaml_text import load_yaml

ENVIRONMENT: Final = "TENCENTPRETRAIN_MODELS"
BY_SIZE: Final = ("tiny", "mini", "small", "medium", "base", "large", "xlarge", "xxlarge")


def model_folders() -> list[Path]:
    """Folders of models, first found wins: ./models, that of the environment, the toolkit's own."""
    package = Path(__file__).resolve().parent
    # Inside an installed package, beside it in a checkout.
    inside = package / "models"
    own = inside if inside.is_dir() else package.parent / "models"
    named = [Path(os.environ[ENVIRONMENT])] if os.environ.get(ENVIRONMENT) else []
    for folder in named:
        if not folder.is_dir():
            raise ConfigError.at("", f"{ENVIRONMENT}={folder} must be a folder, but is not")
    found = [folder.resolve() for folder in (Path("models"), *named, own) if folder.is_dir()]
    return list(dict.fromkeys(found))


def model_names(folders: Sequence[Path]) -> list[str]:
    """Every model such as `bert/base`, by family, then from small to large."""
    names = {
        path.relative_to(folder).with_suffix("").as_posix()
        for folder in folders
        for path in folder.glob("**/*.yaml")
        if not path.name.startswith("_")
    }
    return sorted(names, key=_family_and_size)


def _family_and_size(name: str) -> tuple[str, int, str]:
    family, _, size = name.rpartition("/")
    return family, BY_SIZE.index(size) if size in BY_SIZE else len(BY_SIZE), size


def families(names: Sequence[str]) -> dict[str, list[str]]:
    """Sizes by family."""
    found: dict[str, list[str]] = {}
    for name in names:
        family, _, size = name.rpartition("/")
        found.setdefault(family, []).append(size)
    return found


def list_families(names: Sequence[str]) -> str:
    """One readable sentence part: `bert/{tiny,base}, gpt2/{small}`."""
    groups = families(names).items()
    return ", ".join(
        f"{family}/{{{','.join(sizes)}}}" if family else ", ".join(sizes)
        for family, sizes in groups
    )


def find_model(name: str, folders: Sequence[Path]) -> Path:
    """The file of the model `name`.

    Raises:
        ConfigError: if there is none; the message has the nearest name or the sizes of a family.
    """
    found = _find(name, folders)
    if found is not None and not found.name.startswith("_"):
        return found
    names = model_names(folders)
    if not names:
        hint = f"there are no model files; put them into ./models or the folder in {ENVIRONMENT}"
    elif name.rstrip("/") in families(names):
        hint = f"`{name}` is a family; its sizes are: {list_sizes(name.rstrip('/'), names)}"
    else:
        close = nearest(name, names)
        hint = close if close.startswith("did you mean") else f"there are {list_families(names)}"
    raise ConfigError.at("model", f"there is no model `{name}`; {hint}")


def list_sizes(family: str, names: Sequence[str]) -> str:
    return ", ".join(f"{family}/{size}" for size in families(names)[family])


def _find(name: str, folders: Sequence[Path]) -> Path | None:
    files = (folder / f"{name}.yaml" for folder in folders)
    return next((file for file in files if file.is_file()), None)


def load_inherited(
    file: Path, folders: Sequence[Path], children: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """The content of `file` merged over what it inherits; mappings are merged, lists replaced.

    Args:
        file: A YAML file, in one of `folders` or not.
        folders: Where the names in `defaults` are looked up after the folder of `file` itself.
        children: The files that led here.

    Raises:
        ConfigError: if a file is not YAML, or inherits from itself or from what does not exist.
    """
    if file in children:
        chain = " -> ".join(str(path) for path in (*children, file))
        raise ConfigError.at("", f"{file}: must not inherit from itself, but does: {chain}")
    data = load_yaml(file)
    parents = data.pop("defaults", [])
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError.at("", f"{file}: `defaults` must be a list of names, but is {parents!r}")
    layers: list[Mapping[str, Any]] = [
        load_inherited(_parent(name, file, folders), folders, (*children, file))
        for name in parents
        if name != "_self_"
    ]
    merged = OmegaConf.to_container(OmegaConf.merge(*layers, data), resolve=False)
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}


def _parent(name: str, file: Path, folders: Sequence[Path]) -> Path:
    """The file that `name` means in the `defaults` of `file`."""
    here = [file.parent]
    for folder in folders:
        if file.is_relative_to(folder):
            # A family may be spread: ./models/bert/own.yaml finds the toolkit's bert/_family.
            here += [other / file.parent.relative_to(folder) for other in folders]
    found = _find(name, [*here, *folders])
    if found is None:
        beside = [path.stem for path in file.parent.glob("*.yaml") if path != file]
        hint = nearest(name, [*beside, *model_names(folders)])
        raise ConfigError.at("", f"{file}: inherits from `{name}`, which does not exist; {hint}")
    return found
