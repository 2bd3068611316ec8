"""How far a long job over a corpus has come: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import Final, Self

from tqdm import tqdm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES: Final = 60.0


class Progress:
    """Shows documents/s, MB/s and the time left on standard error.

    Args:
        total: bytes on the disk that there are to read.
    """

    def __init__(self, total: int) -> None:
        self.started = time.monotonic()
        self._total = total
        self._done = 0
        self._documents = 0
        self._last_line = self.started
        self._bar: tqdm[None] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, unit="B", unit_scale=True, dynamic_ncols=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def add(self, consumed: int, documents: int) -> None:
        """Count bytes read and documents done."""
        self._done += consumed
        self._documents += documents
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self._documents / self.seconds:,.0f} documents/s", False)
            self._bar.update(consumed)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            logger.info(self.line())

    def line(self) -> str:
        """All figures in one line."""
        seconds = max(self.seconds, 1e-9)
        rate = self._done / seconds
        left = (self._total - self._done) / rate if rate else 0.0
        share = self._done / self._total if self._total else 1.0
        return (
            f"{share:4.0%}  {self._documents:,} documents  "
            f"{self._documents / seconds:,.0f} documents/s  {rate / 1e6:.2f} MB/s  "
            f"{duration(left)} left"
        )


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
