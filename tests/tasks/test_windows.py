"""Long recordings: windows that reach the end, and texts of which nothing is lost."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tencentpretrain.config import ConfigError
from tencentpretrain.data.media.audio import decode_audio
from tencentpretrain.model import Model, build_model
from tencentpretrain.tasks.base import Inputs
from tencentpretrain.tasks.inference import Machine, _BySize, infer
from tencentpretrain.tasks.speech2text import Speech2TextTask
from tencentpretrain.tasks.windows import join, starts
from tencentpretrain.tokenizers.base import build_tokenizer
from tencentpretrain.tokenizers.simple import CharacterTokenizer
from tencentpretrain.types import SRC, Batch
from tests.helpers.models import model_config
from tests.helpers.sounds import LETTERS, RATE, encoded, letters
from tests.tasks import toy

MACHINE = Machine(torch.device("cpu"), torch.float32, 3)


@pytest.mark.parametrize("length", [1, 9, 10, 11, 17, 18, 100, 101])
@pytest.mark.parametrize("overlap", [0, 3, 5])
def test_windows_reach_the_end_and_none_is_idle(length: int, overlap: int) -> None:
    found = starts(length, 10, overlap)
    assert found[0] == 0
    assert {later - earlier for earlier, later in pairwise(found)} <= {10 - overlap}
    assert found[-1] + 10 >= length
    assert len(found) == 1 or found[-2] + 10 < length


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["hello wor", "lo world and"], ["hello world and"]),
        (["one two three fo", "ree four five"], ["one two three four five"]),
        # Of repeated words as many stay as can be heard.
        (["nine nine nine", "nine nine one"], ["nine nine nine one"]),
        (["all of it"], ["all of it"]),
        (["before", "", "behind"], ["before", "behind"]),
        (["abcdef", "uvwxyz"], ["abcdef", "uvwxyz"]),
        (["", ""], []),
        ([], []),
    ],
)
def test_texts_meet_where_they_say_the_same(texts: list[str], expected: list[str]) -> None:
    found = join([[*map(ord, text)] for text in texts], 0.5)
    assert ["".join(map(chr, passage)) for passage in found] == expected


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_at_borders_of_words(seed: int) -> None:
    """Windows of a known text, each with half a word at its borders."""
    draw = np.random.default_rng(seed)
    text = [*draw.integers(0, 40, 97)]
    window, overlap = 20, 6
    parts = []
    for start in starts(len(text), window, overlap):
        part = text[start : start + window]
        noise = [100 + start], [200 + start]
        has_before, has_after = start > 0, start + window < len(text)
        parts.append([*noise[0] * has_before, *part, *noise[1] * has_after])
    assert join(parts, overlap / window) == [text]


def spoken(text: str, seconds: float = 0.1) -> np.ndarray:
    """A tone for each letter, far apart from those of others."""
    times = np.arange(round(seconds * RATE)) / RATE
    tones = [0.4 * np.sin(2 * np.pi * pitch_of(letter) * times) for letter in text]
    return np.concatenate(tones).astype(np.float32)


def pitch_of(letter: str) -> float:
    return 300.0 * 1.12 ** LETTERS.index(letter)


class Hears(Speech2TextTask):
    """Writes the letter whose band is loudest in each tenth of a second."""

    def infer(self, model: Model, batch: Batch, is_labelled: bool) -> tuple[None, list[Any]]:
        assert self._writer is not None
        stream, bands = batch.streams[SRC], self.bands
        written = []
        for frames, valid in zip(stream.inputs["frames"], stream.layout.valid, strict=True):
            # Windows begin between letters, and lack the last two frames of 25 ms.
            tenths = frames[valid].split(10)
            heard = [bands[int(part[2:7].mean(0).argmax())] for part in tenths if len(part) > 6]
            written.append(tuple(self._writer.tokenizer.encode("".join(heard))))
        return None, written

    def learn_bands(self) -> None:
        assert self._bank is not None
        self.bands = {
            int(self._bank(spoken(letter))[2:7].mean(0).argmax()): letter for letter in LETTERS
        }
        assert len(self.bands) == len(LETTERS)


def examples_of(folder: Path, texts: list[str], **keys: Any) -> tuple[Hears, Any, Any, Model]:
    lines = ["text\tpath"]
    for number, text in enumerate(texts):
        (folder / f"{number}.wav").write_bytes(encoded(spoken(text)))
        lines.append(f"{text}\t{number}.wav")
    listing = toy.write(folder / "list.tsv", lines)
    bank = {"bands": 80, "normalise": "none", **keys.pop("bank", {})}
    task = Hears(toy.task("speech2text", bank=bank, **keys).config)
    rows = task.read(listing, True)
    config = model_config("s2t/tiny")
    task.targets(config)
    task.learn_bands()
    vocabulary = {"name": "character", "vocab": str(letters(folder))}
    tokenizer = build_tokenizer(toy.decode(CharacterTokenizer.Config, vocabulary))
    examples = task.examples(rows, Inputs(config, tokenizer), False)
    return task, rows, examples, build_model(config, tokenizer.vocab_size)


def random_text(length: int) -> str:
    return "".join(np.random.default_rng(length).choice(LETTERS, length))


def test_a_long_recording_is_written_to_its_end(tmp_path: Path) -> None:
    """Beside short ones, whose windows are whole, in batches of all."""
    texts = [random_text(count) for count in (5, 96, 20, 21, 1)]
    task, rows, examples, model = examples_of(tmp_path, texts, length=200, overlap=0.5)
    assert [sum(row == n for row, _ in examples.frames.places) for n in range(5)] == [1, 7, 1, 2, 1]
    outputs, _ = infer(task, model, examples, MACHINE)
    answers = list(task.decode(rows, examples, outputs))
    assert [answer["text"] for answer in answers] == texts
    assert task.metrics(examples, outputs) == {"wer": 0.0, "cer": 0.0}


def test_windows_are_no_longer_than_a_bank_fills_up(tmp_path: Path) -> None:
    text = random_text(40)
    task, rows, examples, model = examples_of(
        tmp_path, [text], bank={"seconds": 1.0, "normalise": "none"}, overlap=0.4
    )
    assert len(examples) == 6
    assert len(examples.make(0, 0)["frames"]) <= 100
    outputs, _ = infer(task, model, examples, MACHINE)
    assert next(iter(task.decode(rows, examples, outputs)))["text"].startswith(text)


def test_short_sounds_have_the_frames_that_they_had(tmp_path: Path) -> None:
    """As one window, whatever the overlap."""
    task, _, examples, _ = examples_of(tmp_path, ["abc", random_text(20)], length=200)
    assert task._bank is not None
    for number in range(2):
        samples = decode_audio((tmp_path / f"{number}.wav").read_bytes(), RATE)
        assert np.array_equal(examples.make(0, number)["frames"], task._bank(samples))


def test_overlaps_of_more_than_half_a_window_are_refused() -> None:
    with pytest.raises(ConfigError, match="overlap must be at most half"):
        toy.task("speech2text", length=100, overlap=0.6)


def test_long_recordings_are_decoded_once_for_their_full_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.wav").write_bytes(encoded(spoken("abcdefgh")))
    made = toy.task("speech2text", length=16, overlap=0.0)
    vocab = CharacterTokenizer.Config(name="character", vocab=letters(tmp_path))
    inputs = Inputs(model_config("s2t/tiny"), build_tokenizer(vocab))
    rows = made.read(tmp_path, False)
    made.adopt(inputs.model)
    examples = made.examples(rows, inputs, False)
    count = 0

    def counted(*given: Any) -> Any:
        nonlocal count
        count += 1
        return decode_audio(*given)

    monkeypatch.setattr("tencentpretrain.tasks.sounds.decode_audio", counted)
    view = _BySize(examples)
    assert len(view) == 15
    for index in range(len(view)):
        view.make(0, index)
    # Their last windows are shorter, and so come behind all full ones.
    assert count <= 2 * 3
