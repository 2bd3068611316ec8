"""The token that decoders of speech start from, in what is written for `transformers`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tencentpretrain.config import decode
from tencentpretrain.convert.departure import depart
from tencentpretrain.convert.families.speech import WHISPER
from tencentpretrain.convert.outgoing import Departing, export_model
from tencentpretrain.convert.weights import read_json
from tencentpretrain.model import ModelConfig, build_model
from tencentpretrain.tools.outputs import saved_beside, write_model
from tencentpretrain.train.load import state_tensors
from tencentpretrain.train.tensor_file import LazyTensors
from tests.helpers.models import model_data
from tests.helpers.saved_models import word_tokenizer

transformers = pytest.importorskip("transformers")

SMALL = {"layers": 1, "heads": 2, "ffn": 32}
TASK = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")


def written_start(
    folder: Path, name: str, specials: Sequence[str], writing: dict[str, Any], is_tuned: bool
) -> dict[str, Any]:
    """What becomes of a model of ours that writes as `writing` says, in their config.json.

    Args:
        folder: Where it is written.
        name: Of the model.
        specials: Special tokens of its vocabulary.
        writing: Keys of what begins its texts.
        is_tuned: Whether its task says so, and not its objective.
    """
    tokenizer = word_tokenizer(folder, [f"w{number}" for number in range(30)], specials)
    data = model_data(name, {"hidden": 16, "encoder": SMALL, "decoder": SMALL})
    data = data | {"objective": None if is_tuned else {**data["objective"], **writing}}
    model = build_model(decode(ModelConfig, data), tokenizer.vocab_size)
    task = {"task.json": json.dumps({"name": "speech2text", "writing": writing}).encode()}
    with saved_beside(tokenizer) as files:
        files |= task if is_tuned else {}
        write_model(folder / "ours", state_tensors(model), {"model": data}, files)
    departure = depart(folder / "ours")
    departure.write(folder / "theirs")
    assert not departure.report.remarks
    return read_json(folder / "theirs" / "config.json")


@pytest.mark.parametrize("is_tuned", [False, True], ids=["pre-trained", "fine-tuned"])
@pytest.mark.parametrize(
    ("writing", "start"),
    [
        ({"prompt": [*TASK]}, 5),
        ({"prompt": [], "start": "cls"}, 2),
        ({"prompt": [], "start": "auto"}, 2),
    ],
)
def test_whisper_starts_from_the_token_of_its_vocabulary(
    writing: dict[str, Any], start: int, is_tuned: bool, tmp_path: Path
) -> None:
    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *TASK)
    found = written_start(tmp_path, "whisper/tiny", specials, writing, is_tuned)
    assert found["decoder_start_token_id"] == start
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "theirs")
    assert theirs.generation_config.decoder_start_token_id == start
    # Ids of a published vocabulary, which mean something else here.
    assert not theirs.generation_config.begin_suppress_tokens
    written = theirs.generate(torch.zeros(1, 80, 3000), max_new_tokens=2)
    assert written.max() < found["vocab_size"]


@pytest.mark.parametrize("is_tuned", [False, True], ids=["pre-trained", "fine-tuned"])
@pytest.mark.parametrize(("start", "number"), [("eos", 3), ("cls", 2), ("auto", 2)])
def test_speech2text_starts_from_the_token_of_its_role(
    start: str, number: int, is_tuned: bool, tmp_path: Path
) -> None:
    specials = ("[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]")
    found = written_start(tmp_path, "s2t/tiny", specials, {"start": start}, is_tuned)
    assert found["decoder_start_token_id"] == number


@pytest.mark.parametrize(("rows", "start"), [(60, None), (51864, 50257), (51865, 50258)])
def test_without_a_tokenizer_only_published_vocabularies_tell_the_start(
    rows: int, start: int | None
) -> None:
    changes = {"hidden": 16, "encoder": SMALL, "decoder": SMALL}
    config = decode(ModelConfig, model_data("whisper/tiny", changes))
    tensors = LazyTensors.of(state_tensors(build_model(config, rows)))
    outgoing = export_model(WHISPER, Departing(config, tensors))
    assert outgoing.config.get("decoder_start_token_id") == start
    told = [line for line in outgoing.report.remarks if "`decoder_start_token_id`" in line]
    assert len(told) == (start is None)
