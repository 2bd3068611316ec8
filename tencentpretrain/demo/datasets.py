"""A corpus and a labelled set made from a library of Python modules.

The labelled set asks for the top-level package that a docstring comes from. It is split by module,
so that no module is in two parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tencentpretrain.demo.library import Module, packages
from tencentpretrain.errors import DataError

SHARES: Final = {"train": 0.6, "dev": 0.15, "test": 0.25}
"""Share of a package's docstrings that each part is to have."""
MIN_CLASSES: Final = 10
MIN_MODULES: Final = 3
MIN_DOCSTRINGS: Final = 30
MIN_WORDS: Final = 5
"""A shorter docstring, in words, says too little to tell where it comes from."""


@dataclass(frozen=True)
class Row:
    """One labelled docstring and the module that it is from."""

    label: str
    text: str
    module: str


def label_docstrings(modules: Sequence[Module]) -> dict[str, list[Row]]:
    """The parts "train", "dev" and "test", over all packages that are large enough.

    Raises:
        DataError: if fewer than ten packages are.
    """
    owners: dict[str, set[str]] = {}
    for module in modules:
        for text in module.docstrings:
            owners.setdefault(text, set()).add(module.name)
    parts: dict[str, list[Row]] = {name: [] for name in SHARES}
    for package, members in packages(modules).items():
        rows = {m.name: _rows(package, m, owners) for m in members}
        rows = {name: found for name, found in rows.items() if found}
        if len(rows) < MIN_MODULES or sum(map(len, rows.values())) < MIN_DOCSTRINGS:
            continue
        for name, part in split_modules({name: len(found) for name, found in rows.items()}).items():
            parts[part] += rows[name]
    classes = {row.label for row in parts["train"]}
    if len(classes) < MIN_CLASSES:
        raise DataError(
            f"the labelled set needs {MIN_CLASSES} packages with {MIN_MODULES} modules and "
            f"{MIN_DOCSTRINGS} docstrings each, but the library has {len(classes)}"
        )
    return parts


def _rows(package: str, module: Module, owners: dict[str, set[str]]) -> list[Row]:
    """Docstrings that say enough and that no other module repeats; each once."""
    texts = dict.fromkeys(
        text
        for text in module.docstrings
        if len(text.split()) >= MIN_WORDS and owners[text] == {module.name}
    )
    return [Row(package, text, module.name) for text in texts]


def split_modules(sizes: dict[str, int]) -> dict[str, str]:
    """The part of each module, the largest first, each to the part that lacks most.

    Args:
        sizes: Number of docstrings by module.
    """
    total = sum(sizes.values())
    lacking = {part: share * total for part, share in SHARES.items()}
    chosen: dict[str, str] = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        empty = [part for part in SHARES if part not in chosen.values()]
        # The last modules go to parts that still have none, whatever they lack.
        options = empty if len(empty) >= len(sizes) - len(chosen) else list(SHARES)
        part = max(options, key=lambda part: lacking[part])
        chosen[name] = part
        lacking[part] -= sizes[name]
    return chosen


def write_corpus(modules: Iterable[Module], path: Path) -> None:
    """One sentence a line, a blank line after each module."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for module in modules:
            file.write("\n".join(module.sentences) + "\n\n")


def write_table(rows: Iterable[Row], path: Path) -> None:
    """A TSV with the columns label, text_a and module."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write("label\ttext_a\tmodule\n")
        file.writelines(f"{row.label}\t{row.text}\t{row.module}\n" for row in rows)


def majority_accuracy(train: Sequence[Row], test: Sequence[Row]) -> float:
    """Accuracy on `test` of always answering the commonest label of `train`."""
    commonest = Counter(row.label for row in train).most_common(1)[0][0]
    return sum(row.label == commonest for row in test) / len(test)
