"""Answers of a task as lines of a file: a table with a header, or one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tencentpretrain.tasks.table import JSON_LINES


def answer_lines(
    path: Path, answers: Iterable[dict[str, Any]], left_out: Sequence[str] = ()
) -> Iterator[str]:
    """Lines, newlines included, for a file called `path`; its ending chooses the form.

    A table has one column for each key of `answers`, and for each key inside a group, such as
    `probabilities.positive`; lists and other values that are no texts are written as JSON.

    Args:
        path: JSON lines where it ends in .jsonl, .ndjson or .json, else TSV.
        answers: One for each row.
        left_out: Keys that are not written.
    """
    kept = ({k: v for k, v in answer.items() if k not in left_out} for answer in answers)
    if path.suffix.lower() in JSON_LINES:
        for answer in kept:
            yield json.dumps(_rounded(answer), ensure_ascii=False) + "\n"
        return
    has_header = False
    for answer in kept:
        fields = dict(_fields(answer))
        if not has_header:
            yield "\t".join(fields) + "\n"
            has_header = True
        yield "\t".join(fields.values()) + "\n"


def _fields(answer: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in answer.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", _text(inner)) for name, inner in value.items())
        else:
            yield key, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.6f}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _rounded(value: Any) -> Any:
    """`value` with as many digits as a table shows; a model does not know more."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return round(value, 6) if isinstance(value, float) else value
