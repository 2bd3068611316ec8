"""The prose in a library of Python modules: its docstrings and comments, in their order."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tencentpretrain.errors import DataError

SKIPPED: Final = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
)
"""Folders that hold tests or come from elsewhere, so that they differ between machines."""
MARKS: Final = ("!", " -*-", "-*-", " type:", " noqa", " pragma", " pylint", " mypy")
"""What comments begin with that are meant for programs."""
SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(`])")
PARAGRAPH_END: Final = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Module:
    """What one module says.

    Args:
        name: Dotted name, such as "email.mime.text".
        docstrings: Of the module, its classes and functions, each with its white space cleaned.
        sentences: All docstrings and comments in the order of the source, cut into sentences.
    """

    name: str
    docstrings: tuple[str, ...]
    sentences: tuple[str, ...]

    @property
    def package(self) -> str | None:
        """Top-level package; None for a module that is in none."""
        package, dot, _ = self.name.partition(".")
        return package if dot else None


def read_library(root: Path) -> list[Module]:
    """Every module below `root` that has prose, by name.

    Raises:
        DataError: if there is none.
    """
    files = sorted(file for file in root.rglob("*.py") if not SKIPPED & set(_parts(file, root)))
    modules = [read_module(file, _name(file, root)) for file in files]
    found = [module for module in modules if module.sentences]
    if not found:
        raise DataError(f"{root} holds no Python module with docstrings or comments")
    return sorted(found, key=lambda module: module.name)


def _parts(file: Path, root: Path) -> tuple[str, ...]:
    return file.relative_to(root).parts


def _name(file: Path, root: Path) -> str:
    """The dotted name; a package's own `__init__` keeps it, so that it counts as in the package."""
    return ".".join(file.relative_to(root).with_suffix("").parts)


def read_module(file: Path, name: str) -> Module:
    """Read one file.

    Raises:
        DataError: if it is not Python that this interpreter can read.
    """
    try:
        with tokenize.open(file) as stream:
            source = stream.read()
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as Python: {error}") from error
    found = sorted([*_docstrings(nodes), *_comments(source, nodes)])
    docstrings = tuple(" ".join(text.split()) for _, is_comment, text in found if not is_comment)
    sentences = tuple(sentence for _, _, text in found for sentence in split_sentences(text))
    return Module(name, docstrings, sentences)


def _docstrings(nodes: Sequence[ast.AST]) -> Iterator[tuple[int, bool, str]]:
    """Line, False, text of each docstring."""
    for node in nodes:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, False, text


def _comments(source: str, nodes: Sequence[ast.AST]) -> Iterator[tuple[int, bool, str]]:
    """First line, True, text of each block of lines that hold nothing but a comment.

    The syntax tree tells which lines are inside a string; that is ten times as fast as `tokenize`.
    """
    quoted = {
        line
        for node in nodes
        if isinstance(node, ast.Constant | ast.JoinedStr)
        for line in range(node.lineno + 1, (node.end_lineno or node.lineno) + 1)
    }
    first, last, block = 0, -1, list[str]()
    for number, line in enumerate(source.split("\n"), start=1):
        text = line.strip()
        if not text.startswith("#") or text[1:].startswith(MARKS) or number in quoted:
            continue
        if number != last + 1 and block:
            yield first, True, "\n".join(block)
            block = []
        first, last = first if block else number, number
        block.append(text.lstrip("#").strip())
    if block:
        yield first, True, "\n".join(block)


def split_sentences(text: str) -> list[str]:
    """Sentences of `text`, one line each; lines without two words, such as rulers, are left out."""
    paragraphs = (" ".join(part.split()) for part in PARAGRAPH_END.split(text))
    sentences = (part for paragraph in paragraphs for part in SENTENCE_END.split(paragraph))
    return [sentence for sentence in sentences if _word_count(sentence) > 1]


def _word_count(text: str) -> int:
    return sum(any(c.isalpha() for c in word) for word in text.split())


def packages(modules: Sequence[Module]) -> dict[str, list[Module]]:
    """Modules by top-level package."""
    found: dict[str, list[Module]] = {}
    for module in modules:
        if module.package is not None:
            found.setdefault(module.package, []).append(module)
    return found
