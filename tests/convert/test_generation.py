"""How `transformers` generates texts by a model that went here and came back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tencentpretrain.convert.arrival import Request, arrive
from tencentpretrain.convert.departure import depart
from tencentpretrain.convert.weights import read_json
from tencentpretrain.errors import CheckpointError
from tests.helpers.reference import VOCABULARY, reference, save
from tests.helpers.saved_models import SPECIALS, call, numbered_words

transformers = pytest.importorskip("transformers")

FILE = "generation_config.json"
MULTILINGUAL: dict[str, Any] = {
    "decoder_start_token_id": 50,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "is_multilingual": True,
    "lang_to_id": {"<|en|>": 51, "<|de|>": 52},
    "task_to_id": {"transcribe": 53, "translate": 54},
    "no_timestamps_token_id": 55,
    "suppress_tokens": [7, 8, 9],
}


def their_folder(folder: Path, case: str, content: dict[str, Any], is_reversed: bool) -> Path:
    """A model of theirs that is told how to generate, with a vocabulary in one of two orders."""
    save(reference(case), folder)
    write_words(folder / "vocab.txt", is_reversed)
    (folder / FILE).write_text(json.dumps(content))
    return folder


def write_words(path: Path, is_reversed: bool) -> Path:
    words = numbered_words(VOCABULARY)
    names = [*SPECIALS, *(reversed(words) if is_reversed else words)]
    path.write_text("".join(f"{name}\n" for name in names))
    return path


def test_whisper_generates_as_before_in_every_language(tmp_path: Path) -> None:
    theirs = their_folder(tmp_path / "theirs", "whisper", MULTILINGUAL, False)
    arrive(theirs, Request()).write(tmp_path / "ours")
    departure = depart(tmp_path / "ours")
    departure.write(tmp_path / "back")
    assert read_json(tmp_path / "back" / FILE) == MULTILINGUAL
    assert not departure.report.remarks
    frames = torch.randn(2, 10, 22, generator=torch.Generator().manual_seed(1))
    before, after = (
        transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
        for folder in (theirs, tmp_path / "back")
    )
    for options in ({"language": "de", "task": "transcribe"}, {"language": "en"}, {}):
        expected = before.generate(frames, max_new_tokens=5, **options)
        assert torch.equal(after.generate(frames, max_new_tokens=5, **options), expected)


@pytest.mark.parametrize("case", ["whisper", "gpt2"])
def test_a_model_without_such_a_file_has_none_afterwards(case: str, tmp_path: Path) -> None:
    save(reference(case), tmp_path / "theirs")
    (tmp_path / "theirs" / FILE).unlink(missing_ok=True)
    arrive(tmp_path / "theirs", Request()).write(tmp_path / "ours")
    departure = depart(tmp_path / "ours")
    departure.write(tmp_path / "back")
    assert not (tmp_path / "back" / FILE).exists()
    assert not any(FILE in line for line in departure.report.lines())


@pytest.mark.parametrize("is_reversed", [False, True])
def test_ids_of_another_vocabulary_are_left_out(
    is_reversed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = their_folder(tmp_path / "theirs", "gpt2", {"suppress_tokens": [7]}, False)
    arrive(theirs, Request()).write(tmp_path / "ours")
    vocabulary = write_words(tmp_path / "vocab.txt", is_reversed)
    keys: dict[str, Any] = {"tokenizer": "wordpiece", "tokenizer.vocab": vocabulary}
    places = {"checkpoint": tmp_path / "ours", "output": tmp_path / "adapted"}
    assert call(capsys, "adapt_vocab", **places, **keys)[0] == 0
    departure = depart(tmp_path / "adapted")
    assert (FILE in departure.files) is not is_reversed
    told = any(f"{FILE} is left out" in line for line in departure.report.lines())
    assert told is is_reversed


def test_what_names_code_is_not_kept(tmp_path: Path) -> None:
    content = {"top_k": 5, "auto_map": {"AutoModel": "evil.Model"}}
    theirs = their_folder(tmp_path / "theirs", "gpt2", content, False)
    arrive(theirs, Request()).write(tmp_path / "ours")
    assert json.loads(depart(tmp_path / "ours").files[FILE]) == {"top_k": 5}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    theirs = their_folder(tmp_path / "theirs", "gpt2", {}, False)
    (theirs / FILE).write_text("{")
    with pytest.raises(CheckpointError, match=f"{FILE}` is not JSON"):
        arrive(theirs, Request())
