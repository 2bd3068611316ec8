"""`scripts/generate.py`: from a run and prompts to texts on a terminal or in a file."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from tencentpretrain.config import decode
from tencentpretrain.data.chat import ChatMl
from tencentpretrain.generate.chat import chat_frame, chat_prompt
from tencentpretrain.generate.decoding import Decoding
from tencentpretrain.generate.frame import find_frame
from tencentpretrain.generate.generator import Generator
from tencentpretrain.model import ModelConfig
from tencentpretrain.tokenizers.base import TOKENIZERS, build_tokenizer
from tencentpretrain.tools.generate import generator_of
from tencentpretrain.tools.outputs import write_model
from tencentpretrain.tools.saved_model import ToolConfig, load_model
from tencentpretrain.train.load import state_tensors
from tests.helpers.docs import ROOT
from tests.helpers.saved_models import call, numbered_words, save_model, word_tokenizer
from tests.helpers.writing import POSITIONS, VOCABULARY, built, pair_config, writer_config

MARKERS = ["<|im_start|>", "<|im_end|>", "user", "assistant", "system"]
PROMPTS = ["w7 w8 w9", "w20", "", "w30 w31 w32 w33 w34"]
KEYS: dict[str, Any] = {"max_new_tokens": 6, "repetition_penalty": 1.5}


def saved(folder: Path, config: ModelConfig, tokenizer: Any) -> Path:
    save_model(folder, built(config), config.to_dict(), tokenizer)
    return folder


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return word_tokenizer(tmp_path_factory.mktemp("words"), numbered_words(VOCABULARY))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, words: Any) -> Path:
    return saved(tmp_path_factory.mktemp("run"), writer_config(), words)


@pytest.fixture(scope="module")
def generator(words: Any) -> Generator:
    config = writer_config()
    return Generator(built(config), words, find_frame(config, words))


def decoding(**keys: Any) -> Decoding:
    return decode(Decoding, KEYS | keys)


@pytest.mark.parametrize("keys", [{}, {"temperature": 1, "seed": 3}, {"beams": 2}])
def test_a_prompt_is_answered_on_the_terminal(
    run: Path, generator: Generator, keys: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    code, output, _ = call(capsys, "generate", checkpoint=run, prompt=PROMPTS[0], **KEYS, **keys)
    assert code == 0
    assert output == generator.generate(PROMPTS[:1], decoding(**keys))[0].text + "\n"


def test_what_is_written_is_shown_while_it_is(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    write = sys.stdout.write
    monkeypatch.setattr(sys.stdout, "write", lambda text: shown.append(text) or write(text))
    assert call(capsys, "generate", checkpoint=run, prompt="w7", **KEYS)[0] == 0
    assert len([piece for piece in shown if piece.strip()]) == 6


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("keys", [{}, {"temperature": 0.8, "top_p": 0.9, "seed": 2}])
def test_d78_every_line_of_a_file_is_answered(
    run: Path,
    generator: Generator,
    tmp_path: Path,
    keys: dict[str, Any],
    batch_size: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, target = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("\n".join(PROMPTS) + "\n")
    given = {"checkpoint": run, "input": source, "batch_size": batch_size, **KEYS, **keys}
    assert call(capsys, "generate", **given, output=target)[0] == 0
    answers = generator.generate(PROMPTS, decoding(**keys))
    assert [json.loads(line) for line in target.read_text().splitlines()] == [
        {"line": number, "text": answer.text, "finish": answer.finish}
        for number, answer in enumerate(answers, start=1)
    ]
    plain = "".join(f"{answer.text}\n" for answer in answers)
    code, output, _ = call(capsys, "generate", **given)
    assert (code, output) == (0, plain)
    assert call(capsys, "generate", **given, output=tmp_path / "out.txt")[0] == 0
    assert (tmp_path / "out.txt").read_text() == plain


def test_line_breaks_become_spaces_in_plain_files_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = writer_config(target={"lm": {"bias": True}})
    vocabulary = tmp_path / "vocab.txt"
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "\\n", *map(chr, range(200, 244))]
    vocabulary.write_text("\n".join(entries) + "\n", encoding="utf-8")
    keys = {"name": "character", "vocab": str(vocabulary)}
    tokenizer = build_tokenizer(decode(TOKENIZERS.config_class("character"), keys))
    model = built(config)
    model.target["lm"].output.bias.data[5] = 100.0  # writes nothing but line breaks
    save_model(tmp_path / "run", model, config.to_dict(), tokenizer)
    (tmp_path / "in.txt").write_text("ÈÉ\n", encoding="utf-8")
    given = {"checkpoint": tmp_path / "run", "input": tmp_path / "in.txt", "max_new_tokens": 3}
    for name in ("out.txt", "out.jsonl"):
        assert call(capsys, "generate", **given, output=tmp_path / name)[0] == 0
    assert (tmp_path / "out.txt").read_text() == "  \n"
    assert json.loads((tmp_path / "out.jsonl").read_text())["text"] == "\n\n\n"


def test_a_decoder_answers_with_its_own_tokenizer(
    tmp_path: Path, words: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    target = word_tokenizer(tmp_path, [f"v{n}" for n in range(55)], ("[UNK]", "[CLS]", "[SEP]"))
    config = pair_config(target_vocabulary=60)
    model = built(config)
    files = {"tokenizer": words, "target_tokenizer": target}
    for name, tokenizer in files.items():
        tokenizer.save(tmp_path / name)
    paths = {name: tmp_path / name for name in files}
    write_model(tmp_path / "run", state_tensors(model), {"model": config.to_dict()}, paths)
    frame = find_frame(config, words, target)
    generator = Generator(model, words, frame, target_tokenizer=target)
    expected = generator.generate(PROMPTS[:1], decoding())[0].text
    code, output, _ = call(
        capsys, "generate", checkpoint=tmp_path / "run", prompt=PROMPTS[0], **KEYS
    )
    assert (code, output) == (0, expected + "\n")
    assert " v" in output


def test_conversations_are_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = word_tokenizer(tmp_path, [*MARKERS, *numbered_words(VOCABULARY - 5)])
    run = saved(tmp_path / "run", writer_config(), words)
    generator = Generator(built(writer_config()), words, chat_frame(ChatMl(words), words))
    talk = [("system", "w6"), ("user", "w7 w8"), ("assistant", "w9"), ("user", "w10")]
    rows = [
        chat_prompt(ChatMl(words), words, *zip(*talk, strict=True)),
        chat_prompt(ChatMl(words), words, ["user"], ["w8"]),
    ]
    expected = [answer.text for answer in generator.generate_rows(rows, decoding())]
    messages = [{"role": role, "content": text} for role, text in talk]
    lines = [json.dumps({"messages": messages}), json.dumps({"prompt": "w8"})]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    keys = {"checkpoint": run, "template": "chatml", **KEYS}
    code, output, _ = call(capsys, "generate", input=tmp_path / "in.jsonl", **keys)
    assert (code, output.splitlines()) == (0, expected)
    code, output, _ = call(capsys, "generate", prompt="w8", **keys)
    assert (code, output) == (0, expected[1] + "\n")


def test_prompts_may_hold_line_breaks_in_json(
    run: Path, generator: Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": "w7\nw8", "other": 1}) + "\n")
    code, output, _ = call(capsys, "generate", checkpoint=run, input=tmp_path / "in.jsonl", **KEYS)
    expected = generator.generate(["w7\nw8"], decoding())[0].text
    assert (code, output) == (0, expected + "\n")


@pytest.mark.parametrize(
    "line",
    ["no json", '["w7"]', '{"text": "w7"}', '{"prompt": 7, "messages": []}'],
)
@pytest.mark.parametrize("template", [None, "plain"])
def test_lines_without_a_prompt_are_named(
    run: Path, tmp_path: Path, line: str, template: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "w7"}\n' + line + "\n")
    keys = {} if template is None else {"template": template}
    code, _, errors = call(capsys, "generate", checkpoint=run, input=tmp_path / "in.jsonl", **keys)
    assert code == 2
    what = "a text `prompt`" if template is None else "a text `prompt` or a list `messages`"
    assert f"in.jsonl, line 2 must be a JSON object with {what}" in errors[0]


def test_a_line_that_is_too_long_is_refused_before_anything_is_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("w7\n" + "w8 " * (POSITIONS + 1) + "\n")
    code, _, errors = call(capsys, "generate", checkpoint=run, input=source, output=target)
    assert code == 2
    assert errors == [
        f"error: prompt 2 has {POSITIONS + 1} tokens, but the model reads at most {POSITIONS} "
        "positions; shorten it"
    ]
    assert not target.exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "either prompt or input must be given"),
        ({"prompt": "a", "input": "b"}, "either prompt or input must be given"),
        ({"prompt": "a", "output": "b"}, "output needs input"),
        ({"prompt": "a", "top_k": 5}, "top_k needs a temperature above 0"),
        ({"prompt": "a", "start": "bos"}, "start: is for models with a decoder"),
        ({"prompt": "a", "template": "plain", "begin": "bos"}, "exclude each other"),
        ({"prompt": "a", "end_tokens": "[w99]"}, "`w99` of end_tokens is not in the vocabulary"),
        ({"prompt": "a", "template": "plane"}, "template"),
        ({"prompt": "a", "begin": "pat"}, "begin"),
    ],
)
def test_mistakes_are_told_before_the_start(
    run: Path, keys: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output, errors = call(capsys, "generate", checkpoint=run, **keys)
    assert (code, output) == (2, "")
    assert len(errors) == 1
    assert message in errors[0]


def test_models_that_cannot_are_refused(
    tmp_path: Path, words: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = writer_config(target={"classify": {"classes": 3}})
    run = saved(tmp_path / "classifier", config, words)
    code, _, errors = call(capsys, "generate", checkpoint=run, prompt="w7")
    assert code == 2
    assert "has not learned to write text: its targets are classify" in errors[0]
    frames: Any = {"parts": {"frames": {"bands": 8}}, "norm": "none", "dropout": 0.0}
    run = saved(tmp_path / "heard", pair_config(embedding=frames), words)
    code, _, errors = call(capsys, "generate", checkpoint=run, prompt="w7")
    assert code == 2
    assert "does not write on behind texts: its embedding reads frames" in errors[0]
    run = saved(tmp_path / "pair", pair_config(), words)
    code, _, errors = call(capsys, "generate", checkpoint=run, prompt="w7", template="plain")
    assert code == 2
    assert "template: is for models without a decoder" in errors[0]


def test_an_output_is_not_replaced_by_chance(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("w7\n")
    target.write_text("mine")
    given = {"checkpoint": run, "input": source, "output": target, **KEYS}
    code, _, errors = call(capsys, "generate", **given)
    assert code == 2
    assert "exists; choose another name" in errors[0]
    assert target.read_text() == "mine"
    assert call(capsys, "generate", **given, overwrite=True)[0] == 0
    assert target.read_text() != "mine"


def test_the_example_of_the_docs_writes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # In the type that the machine is fast at, as the example.
    config = ToolConfig(checkpoint=run, device="cpu")
    generator = generator_of(load_model(config, config.machine()), config.machine())
    example = runpy.run_path(str(ROOT / "docs" / "examples" / "write_texts.py"))
    example["main"](str(run), *PROMPTS[:2])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].split(" ")[0] for line in lines[:6]] == [
        *("greedy", "greedy", "drawn", "drawn", "search", "search")
    ]
    answers = generator.generate(PROMPTS[:2], Decoding(max_new_tokens=20))
    for line, prompt, answer in zip(lines, PROMPTS, answers, strict=False):
        assert line.endswith(f"{prompt}{answer.text}")
    assert lines[6] == answers[0].text
