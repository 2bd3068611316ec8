"""Texts that a model writes for prompts: what `scripts/generate.py` does."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tencentpretrain.config import ConfigError, PathLike, check
from tencentpretrain.data.chat import TEMPLATES, Template
from tencentpretrain.data.records import USER
from tencentpretrain.errors import CheckpointError, DataError, before_start
from tencentpretrain.generate.chat import chat_frame, chat_prompt
from tencentpretrain.generate.decoding import Decoding
from tencentpretrain.generate.frame import Edge, find_frame
from tencentpretrain.generate.generator import Generation, Generator
from tencentpretrain.generate.pictures import Painter
from tencentpretrain.model_config import parts_of
from tencentpretrain.tasks.answers import answer_lines
from tencentpretrain.tasks.inference import Machine
from tencentpretrain.tasks.table import JSON_LINES
from tencentpretrain.tools.outputs import check_file, write_lines
from tencentpretrain.tools.pictures import (
    PictureKeys,
    check_picture_keys,
    check_text_keys,
    makes_pictures,
    paint,
    painter_of,
)
from tencentpretrain.tools.saved_model import SavedModel, ToolConfig, load_model
from tencentpretrain.tools.texts import Line, in_parts, read_lines, run_sorted

log = logging.getLogger("tencentpretrain")


class GenerateConfig(ToolConfig, Decoding, PictureKeys):
    """Write texts with a model, or pictures with one of captions and image codes."""

    prompt: str | None = None
    """One prompt; what follows is printed while it is written. An encoder-decoder reads it as the
    source."""
    input: PathLike | None = None
    """File with a prompt a line, or with JSON lines that have a `prompt` or, under a template,
    `messages`; in the place of prompt."""
    output: PathLike | None = None
    """File for what is written: JSON lines if it ends in .jsonl, else a text a line, in which line
    breaks become spaces; null prints that. Pictures need one: a grid with a row a prompt if it ends
    in .png, their codes if it ends in .jsonl."""
    overwrite: bool = False
    """Whether output may replace a file that is there."""
    template: Literal["chatml", "plain"] | None = None
    """How a conversation is written around a prompt: the corpus.template that the model was tuned
    with; null is not at all."""
    begin: Edge = "auto"
    """Special token before a prompt; auto is as in training."""
    start: Edge = "auto"
    """Special token that a decoder begins with; auto is as in training."""

    @check("prompt", "input")
    def _one_source(self) -> str | None:
        if (self.prompt is None) == (self.input is None):
            return "either prompt or input must be given"
        return None

    @check("prompt", "output")
    def _output_has_input(self) -> str | None:
        is_picture = self.output is not None and self.output.suffix.lower() == ".png"
        if self.output is not None and self.input is None and not is_picture:
            return "output needs input; what follows on a prompt is printed"
        return None

    @check("template", "begin")
    def _template_begins(self) -> str | None:
        if self.template is None or self.begin == "auto":
            return None
        return "begin and template exclude each other"


class Row(NamedTuple):
    """A prompt as the model reads it, and the number of its line, from 1."""

    number: int
    ids: list[int]


class Prompts:
    """Reads prompts and makes rows of them.

    Args:
        generator: Whose rows they are; or a painter.
        template: Of conversations, if prompts are some.
        path: Where they come from, for messages.
    """

    def __init__(
        self,
        generator: Generator | Painter,
        template: Template | None = None,
        path: Path | None = None,
    ) -> None:
        self._generator = generator
        self._template = template
        self._path = path
        self._is_json = path is not None and path.suffix.lower() in JSON_LINES

    def rows(self, lines: Iterable[Line]) -> Iterator[list[Row]]:
        """Rows of `lines`, some at a time.

        Raises:
            DataError: naming a line that holds no prompt, or one that the model cannot read.
        """
        for part in in_parts(iter(lines)):
            prompts = [self._read(line) for line in part]
            if self._template is None:
                texts = [prompt for prompt in prompts if isinstance(prompt, str)]
                ids = self._generator.encode(texts)
            else:
                ids = [self._conversation(self._template, prompt) for prompt in prompts]
            numbers = [line.number for line in part]
            self._generator.check(ids, [number - 1 for number in numbers])
            yield [Row(*pair) for pair in zip(numbers, ids, strict=True)]

    def _conversation(self, template: Template, prompt: Any) -> list[int]:
        messages = [(USER, prompt)] if isinstance(prompt, str) else prompt
        roles, texts = zip(*messages, strict=True)
        return chat_prompt(template, self._generator.tokenizer, roles, texts)

    def _read(self, line: Line) -> str | list[tuple[str, str]]:
        """A prompt, or messages as pairs of role and text."""
        if not self._is_json:
            return line.text
        try:
            content = json.loads(line.text)
        except ValueError:
            content = None
        found = content if isinstance(content, dict) else {}
        messages = found.get("messages")
        if self._template is not None and isinstance(messages, list) and messages:
            pairs = [_message(message) for message in messages]
            if None not in pairs:
                return [pair for pair in pairs if pair is not None]
        elif isinstance(found.get("prompt"), str):
            prompt: str = found["prompt"]
            return prompt
        what = "a text `prompt`"
        if self._template is not None:
            what += " or a list `messages` of objects with the texts `role` and `content`"
        raise DataError(f"{self._path}, line {line.number} must be a JSON object with {what}")


def _message(message: object) -> tuple[str, str] | None:
    if not isinstance(message, dict):
        return None
    role, content = message.get("role"), message.get("content")
    return (role, content) if isinstance(role, str) and isinstance(content, str) else None


def run_generate(config: GenerateConfig) -> int:
    """Write as `config` says; returns the exit code."""
    with before_start():
        if config.output is not None:
            inputs = [] if config.input is None else [config.input]
            check_file(config.output, config.overwrite, inputs)
        machine = config.machine()
        saved = load_model(config, machine)
    write = _write_pictures if makes_pictures(saved) else _write_texts
    return write(config, saved, machine)


def _write_pictures(config: GenerateConfig, saved: SavedModel, machine: Machine) -> int:
    with before_start():
        check_picture_keys(config, config.output)
        painter = painter_of(saved, machine, config.codes)
        rows = _captions(painter, config)
    assert config.output is not None
    paint(painter, rows, config.output, config.samples, config, machine.batch_size)
    return 0


def _write_texts(config: GenerateConfig, saved: SavedModel, machine: Machine) -> int:
    with before_start():
        check_text_keys(config, config.output)
        template = None
        if config.template is not None:
            template = TEMPLATES[config.template](saved.text_tokenizer())
        generator = generator_of(
            saved, machine, template=template, begin=config.begin, start=config.start
        )
        generator.ends(config)  # refused now rather than behind the first prompts
        prompts = Prompts(generator, template, config.input)
        if config.input is None:
            ((row,),) = prompts.rows([Line(1, config.prompt or "")])
        else:
            # Once to find what cannot be read, before hours are spent on the lines before it.
            for _ in prompts.rows(read_lines(config.input)):
                pass
    if config.input is None:
        return _print_text(generator, row, config)
    parts = prompts.rows(read_lines(config.input))
    answers = chain.from_iterable(_answers(generator, part, machine, config) for part in parts)
    if config.output is None:
        return _print_lines(_plain(answer) for _, answer in answers)
    write_lines(config.output, _lines(config.output, answers))
    log.info(f"what was written is in {config.output}")
    return 0


def _captions(painter: Painter, config: GenerateConfig) -> list[list[int]]:
    """All prompts as rows, which are few beside their pictures."""
    lines = [Line(1, config.prompt or "")] if config.input is None else read_lines(config.input)
    return [row.ids for part in Prompts(painter, None, config.input).rows(lines) for row in part]


def generator_of(
    saved: SavedModel,
    machine: Machine,
    *,
    template: Template | None = None,
    begin: Edge = "auto",
    start: Edge = "auto",
) -> Generator:
    """A trained model, ready to write.

    Args:
        saved: The model.
        machine: How it is run.
        template: Of conversations, if prompts are some.
        begin: Special token before a prompt.
        start: Special token that a decoder begins with.

    Raises:
        CheckpointError: if the model cannot write.
        ConfigError: if the vocabulary lacks a token, or the model has no place for the template.
    """
    tokenizer, target = saved.text_tokenizer(), saved.target_tokenizer
    parts = [part.name for _, part in parts_of("embedding", saved.config.embedding)]
    if "word" not in parts:
        raise CheckpointError(
            f"`{saved.checkpoint.path}` does not write on behind texts: its embedding reads "
            f"{', '.join(parts)}; what is said in sounds is written by finetune/predict.py"
        )
    if template is None:
        frame = find_frame(saved.config, tokenizer, target, begin, start)
    elif saved.config.decoder is None and start == "auto":
        frame = chat_frame(template, tokenizer)
    else:
        message = "is for models without a decoder, which write on in the row of the prompt"
        raise ConfigError.at("template", message)
    return Generator(saved.model, tokenizer, frame, target_tokenizer=target, dtype=machine.dtype)


def _answers(
    generator: Generator, rows: Sequence[Row], machine: Machine, decoding: Decoding
) -> Iterator[tuple[Row, Generation]]:
    """What is written for each of `rows`, in their order."""

    def compute(places: list[int]) -> list[Generation]:
        chosen = [rows[place] for place in places]
        numbers = [row.number - 1 for row in chosen]
        return generator.generate_rows([row.ids for row in chosen], decoding, numbers=numbers)

    # Sorting looks at lengths only.
    sized: Any = [row.ids for row in rows]
    yield from zip(rows, run_sorted(sized, machine, compute), strict=True)


def _plain(answer: Generation) -> str:
    return " ".join(answer.text.splitlines())


def _lines(path: Path, answers: Iterable[tuple[Row, Generation]]) -> Iterator[str]:
    if path.suffix.lower() not in JSON_LINES:
        return (_plain(answer) + "\n" for _, answer in answers)
    return answer_lines(path, (_record(*pair) for pair in answers))


def _record(row: Row, answer: Generation) -> dict[str, Any]:
    record = {"line": row.number, "text": answer.text, "finish": answer.finish}
    return record if answer.score is None else {**record, "score": answer.score}


def _print_text(generator: Generator, row: Row, decoding: Decoding) -> int:
    """Print what is written while it is."""
    began = time.monotonic()

    def show(place: int, piece: str) -> None:
        print(piece, end="", flush=True)

    with _reader_may_leave():
        (answer,) = generator.generate_rows([row.ids], decoding, report=show)
        print(flush=True)
        seconds = time.monotonic() - began
        log.info(f"{len(answer.ids):,} tokens in {seconds:.1f} s, finish: {answer.finish}")
    return 0


def _print_lines(lines: Iterable[str]) -> int:
    with _reader_may_leave():
        for line in lines:
            print(line, flush=True)
    return 0


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    """Nothing is wrong where the reader of what is printed (such as `head`) has seen enough."""
    try:
        yield
    except BrokenPipeError:
        # Python flushes once more when it ends; that must not fail a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
