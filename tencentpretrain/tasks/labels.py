"""Labels as people write them, and the numbers that a model gives them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from tencentpretrain.config import nearest
from tencentpretrain.errors import DataError
from tencentpretrain.tasks.table import Row, shorten

INTEGER: Final = re.compile(r"0|-?[1-9][0-9]*")


class LabelSet:
    """Labels in a stable order; the number of a label is its place in it.

    Args:
        names: All labels, in that order.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._numbers = {name: number for number, name in enumerate(self.names)}

    @classmethod
    def sorted(cls, labels: Iterable[str]) -> LabelSet:
        """All different `labels`: integers by their value, anything else by its characters."""
        names = set(labels)
        if all(INTEGER.fullmatch(name) for name in names):
            return cls(sorted(names, key=int))
        return cls(sorted(names))

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, label: str) -> bool:
        return label in self._numbers

    def number(self, label: str, where: str) -> int:
        """The number of `label`; `where` says in which file and line it is.

        Raises:
            DataError: if it was not in the training data.
        """
        found = self._numbers.get(label)
        if found is None:
            raise DataError(
                f"{where}: the label `{shorten(label)}` is not in the training data; "
                f"{nearest(label, self.names)}"
            )
        return found


def label_of(row: Row, column: str) -> str:
    """The label of `row`, without spaces around it.

    Raises:
        DataError: if there is none, or it could not be written into a table.
    """
    label = row[column].strip()
    if not label:
        raise DataError(f"{row.where} has no label in the column `{column}`")
    if "\t" in label or "\n" in label:
        raise DataError(f"{row.where}: a label must not hold tabs or newlines, but is {label!r}")
    return label
