"""Records out of slices of a corpus: pairs of texts, labelled texts, conversations.

A record is one line, of cells between tabs or of JSON. Blank lines are counted, and what is no
record is a bad line.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from tencentpretrain.config import nearest
from tencentpretrain.data.corpora import CorpusConfig
from tencentpretrain.data.lines import Line, LineReader
from tencentpretrain.data.slices import Slice

BLANK: Final = "blank lines"
NO_FIELD: Final = "lines that lack what they should hold"
EMPTY_FIELD: Final = "lines with an empty text or label"
ASSISTANT: Final = "assistant"
USER: Final = "user"
SHOWN: Final = 200
"""Characters of a list of names that a message shows."""


class Record(NamedTuple):
    """One example.

    Args:
        texts: source and target; or one or two labelled texts; or the messages of a conversation.
        label: of the texts, as it is written.
        roles: who wrote each of the messages.
    """

    texts: tuple[str, ...]
    label: str = ""
    roles: tuple[str, ...] = ()


def read_records(piece: Slice, config: CorpusConfig, remarks: Counter[str]) -> Iterator[Record]:
    """The records of a slice of a corpus whose content is not text.

    Args:
        piece: what to read.
        config: how it is laid out.
        remarks: counts what is left out or changed, by reason.

    Raises:
        DataError: for a bad line, unless the config says to go on; names file, line and byte.
    """
    return READERS[config.content](piece, config, remarks).records()


class _RecordReader(LineReader, ABC):
    """Reads one kind of records."""

    def records(self) -> Iterator[Record]:
        for line in self.lines():
            if not line.content.strip():
                self.remarks[BLANK] += 1
                continue
            text = self.decode(line)
            record = None if text is None else self._read(text, line)
            if record is not None:
                yield record

    def _read(self, text: str, line: Line) -> Record | None:
        """The record in a line; None if it is to be left out."""
        content = self.parse(text, line, NO_FIELD, "record")
        record = None if content is None else self._members(content, line)
        if record is None or "\\u" not in text:
            return record
        sound = [self.characters(value, text, line) for value in (*record.texts, record.label)]
        kept = [value for value in sound if value is not None]
        if len(kept) < len(sound):
            return None
        return record._replace(texts=tuple(kept[:-1]), label=kept[-1])

    @abstractmethod
    def _members(self, content: dict[str, Any], line: Line) -> Record | None:
        """The record that a JSON object holds."""

    def _member(self, content: dict[str, Any], key: str, line: Line) -> str | None:
        value = content.get(key)
        if isinstance(value, str):
            return value
        if key in content:
            reason = f"`{key}` must be a text, but is {str(value)[:SHOWN]}"
        else:
            reason = f"there is no key `{key}`; {nearest(key, content)}"
        self.bad(line, NO_FIELD, f"{reason}; the keys are chosen with corpus.fields")
        return None

    def _is_filled(self, value: str, name: str, line: Line) -> bool:
        if value.strip():
            return True
        self.bad(line, EMPTY_FIELD, f"the {name} is empty")
        return False


class _ColumnReader(_RecordReader):
    """Reads records that also tables have."""

    def _read(self, text: str, line: Line) -> Record | None:
        if self.piece.format == "jsonl":
            return super()._read(text, line)
        cells = text.split("\t")
        required, optional = self.config.columns
        least, most = len(required), len(required) + len(optional)
        if self.piece.format == "tsv":
            places = self.piece.columns
            if max(places) < len(cells):
                return self._record([cells[place] for place in places], line)
            needed = f"at least {max(places) + 1}"
        elif least <= len(cells) <= most:
            return self._record(cells, line)
        else:
            needed = f"{least} or {most}" if optional else str(least)
        reason = f"there must be {needed} fields with tabs between them, but there are {len(cells)}"
        self.bad(line, NO_FIELD, reason)
        return None

    def _members(self, content: dict[str, Any], line: Line) -> Record | None:
        required, optional = self.config.columns
        values = []
        for key in (*required, *(key for key in optional if content.get(key) is not None)):
            value = self._member(content, key, line)
            if value is None:
                return None
            values.append(value)
        return self._record(values, line)

    @abstractmethod
    def _record(self, values: list[str], line: Line) -> Record | None:
        """A record of `values`, in the order of `CorpusConfig.columns`."""


class PairReader(_ColumnReader):
    """Pairs of a source and a target text."""

    def _record(self, values: list[str], line: Line) -> Record | None:
        source, target = map(self.clean, values)
        if self._is_filled(source, "source", line) and self._is_filled(target, "target", line):
            return Record((source, target))
        return None


class LabelReader(_ColumnReader):
    """One or two texts with a label; an empty second text counts as none."""

    def _record(self, values: list[str], line: Line) -> Record | None:
        label, *texts = map(self.clean, values)
        if not self._is_filled(label, "label", line) or not self._is_filled(texts[0], "text", line):
            return None
        return Record(tuple(text for text in texts if text.strip()), label.strip())

    def _member(self, content: dict[str, Any], key: str, line: Line) -> str | None:
        value = content.get(key)
        if key == self.config.fields.label and isinstance(value, int | float):
            return str(value).lower() if isinstance(value, bool) else str(value)
        return super()._member(content, key, line)


class ChatReader(_RecordReader):
    """Conversations: a list of messages, or a prompt and its answer."""

    def _members(self, content: dict[str, Any], line: Line) -> Record | None:
        fields = self.config.fields
        if fields.messages in content:
            return self._conversation(content[fields.messages], line)
        first, *more = fields.prompts
        if first not in content:
            names = f"neither `{fields.messages}` nor `{first}`"
            found = f"the keys are {', '.join(content)}"[:SHOWN]
            self.bad(line, NO_FIELD, f"there is {names} ({found}); choose them with corpus.fields")
            return None
        values = [
            self._member(content, key, line)
            for key in (first, *(key for key in more if content.get(key) is not None))
        ]
        answer = self._member(content, fields.answer, line)
        given = [value for value in values if value is not None]
        if answer is None or len(given) < len(values):
            return None
        prompt = "\n".join(text for text in given if text.strip())
        filled = self._is_filled(given[0], "prompt", line)
        if not filled or not self._is_filled(answer, "answer", line):
            return None
        return Record((self.clean(prompt), self.clean(answer)), roles=(USER, ASSISTANT))

    def _conversation(self, messages: object, line: Line) -> Record | None:
        key = self.config.fields.messages
        if not isinstance(messages, list) or not all(map(_is_message, messages)):
            reason = "a list of objects with a `role` of one word and a text as `content`"
            self.bad(line, NO_FIELD, f"`{key}` must be {reason}")
            return None
        roles = tuple(message["role"] for message in messages)
        if ASSISTANT not in roles:
            self.bad(line, NO_FIELD, f"`{key}` has no message of the role `{ASSISTANT}` to learn")
            return None
        texts = tuple(self.clean(message["content"]) for message in messages)
        for role, text in zip(roles, texts, strict=True):
            if role == ASSISTANT and not self._is_filled(text, "message of the assistant", line):
                return None
        return Record(texts, roles=roles)


def _is_message(message: object) -> bool:
    if not isinstance(message, dict):
        return False
    role, content = message.get("role"), message.get("content")
    return isinstance(role, str) and role.split() == [role] and isinstance(content, str)


READERS: Final[dict[str, type[_RecordReader]]] = {
    "pair": PairReader,
    "label": LabelReader,
    "chat": ChatReader,
}
