"""What preprocess.py tells of a corpus when it is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from tencentpretrain.data.encoded import Encoded
from tencentpretrain.data.progress import duration
from tencentpretrain.data.shard_format import LABEL
from tencentpretrain.data.shard_writer import Ragged

SHOWN_LABELS: Final = 20
"""Labels that the summary names."""
SHOWN_FILES: Final = 10
"""Files that the summary says are left out."""
LEFT_OUT: Final = "left_out.tsv"
"""File beside the shards that names all of them."""


@dataclass
class Summary:
    """Totals of a corpus."""

    unit: str = "text"
    """What the bytes are of."""
    documents: int = 0
    sentences: int = 0
    tokens: int = 0
    unknown: int = 0
    size: int = 0
    target_tokens: int = 0
    target_unknown: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """Names of files that were left out, and why."""
    labels: dict[str, int] = field(default_factory=dict)
    """Number of each label, in the order of the first documents that have them."""
    remarks: Counter[str] = field(default_factory=Counter)

    def add(self, encoded: Encoded) -> None:
        self.documents += encoded.documents
        self.sentences += encoded.sentences
        self.tokens += encoded.tokens
        self.unknown += encoded.unknown
        self.size += encoded.size
        self.target_tokens += encoded.target_tokens
        self.target_unknown += encoded.target_unknown
        self.remarks.update(encoded.remarks)
        self.left_out += encoded.left_out

    def number(self, encoded: Encoded) -> None:
        """Put the numbers of labels in the whole corpus for those in the slice."""
        if LABEL in encoded.columns:
            found = [self.labels.setdefault(name, len(self.labels)) for name in encoded.labels]
            column = encoded.columns[LABEL]
            numbers = np.array(found, np.int32)[column.values]
            encoded.columns[LABEL] = Ragged(numbers, column.lengths)

    def counts(self) -> dict[str, int]:
        """What the index of the shards records: nothing that depends on how the work was cut."""
        totals = {"sentences": self.sentences, "unknown tokens": self.unknown}
        if self.target_tokens:
            totals["target tokens"] = self.target_tokens
            totals["unknown target tokens"] = self.target_unknown
        return totals | dict(sorted(self.remarks.items()))

    def lines(self, seconds: float) -> Iterator[str]:
        yield f"documents       {self.documents:,}"
        if self.tokens:
            yield f"sentences       {self.sentences:,}"
            yield f"tokens          {self.tokens:,}"
            yield f"unknown tokens  {self.unknown:,} ({self.unknown / self.tokens:.3%})"
        if self.target_tokens:
            rate = self.target_unknown / self.target_tokens
            yield f"target tokens   {self.target_tokens:,} ({rate:.3%} unknown)"
        if self.labels:
            names = list(self.labels)
            shown = ", ".join(names[:SHOWN_LABELS]) + ", ..." * (len(names) > SHOWN_LABELS)
            yield f"labels          {len(names):,} ({shown})"
        yield f"{self.unit:15} {self.size:,} bytes"
        yield f"time            {duration(seconds)} ({self.size / 1e6 / seconds:.2f} MB/s)"
        for reason, count in sorted(self.remarks.items()):
            yield f"left out or changed: {count:,} {reason}"
        if not self.remarks:
            yield "left out or changed: nothing"
        for name, reason in self.left_out[:SHOWN_FILES]:
            yield f"  {name}: {reason}"
        if len(self.left_out) > SHOWN_FILES:
            yield f"  and {len(self.left_out) - SHOWN_FILES:,} more in {LEFT_OUT}"

    def notes(self) -> dict[str, str]:
        """Files for people to read, by name."""
        lines = "".join(f"{name}\t{reason}\n" for name, reason in self.left_out)
        return {LEFT_OUT: lines} if lines else {}
