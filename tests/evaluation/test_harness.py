import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tencentpretrain.config import ConfigError
from tencentpretrain.errors import CheckpointError
from tencentpretrain.evaluation.harness import HarnessMethods, decoding, main
from tencentpretrain.tokenizers.base import Tokenizer
from tests.helpers.reference_run import LENGTH, reference_run
from tests.tasks import toy

ROOT = Path(__file__).resolve().parents[2]
Run = tuple[Path, nn.Module, Tokenizer]


@dataclass
class Request:
    """What the harness hands over, as far as it is read."""

    args: tuple[Any, ...]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return reference_run(tmp_path_factory.mktemp("gpt2"), "gpt2")


def adapter(run: Path, **keys: Any) -> HarnessMethods:
    return HarnessMethods(str(run), batch_size="2", device="cpu", precision="fp32", **keys)


def log_probabilities(theirs: nn.Module, ids: list[int]) -> torch.Tensor:
    """Of the token behind each position [S, V]."""
    with torch.no_grad():
        logits: torch.Tensor = theirs(input_ids=torch.tensor([ids])).logits
    return logits[0].log_softmax(-1)


def test_continuations_are_scored_as_by_transformers(gpt2: Run) -> None:
    run, theirs, tokenizer = gpt2
    model = adapter(run)
    pairs = [("w9 w10 w11", " w12 w13"), ("", "w7 w8"), ("w5", "w6"), ("w6 " * 20, "w8 w9")]
    encoded = [(model.tok_encode(a), model.tok_encode(b)) for a, b in pairs]
    found = model._loglikelihood_tokens([(None, a, b) for a, b in encoded])
    for (context, rest), (value, is_greedy) in zip(encoded, found, strict=True):
        ids = [*(context or [tokenizer.require("bos")]), *rest]
        ids = ids[-LENGTH - 1 :]
        table = log_probabilities(theirs, ids[:-1])[-len(rest) :]
        expected = sum(float(table[place, token]) for place, token in enumerate(rest))
        assert value == pytest.approx(expected, rel=1e-5)
        assert is_greedy == (table.argmax(-1).tolist() == rest)


def test_whole_texts_are_scored_in_windows_behind_a_first_token(gpt2: Run) -> None:
    run, theirs, tokenizer = gpt2
    short, long = "w9 w10 w11", " ".join(f"w{number}" for number in range(5, 35))
    found = adapter(run).loglikelihood_rolling([Request((short,)), Request((long,))])
    ids = [tokenizer.require("bos"), *tokenizer.encode(long)]
    total = 0.0
    for first in (1, LENGTH + 1):
        end = min(first - 1 + LENGTH, len(ids) - 1)
        table = log_probabilities(theirs, ids[end - LENGTH : end])
        total += sum(
            float(table[place - 1 - (end - LENGTH), ids[place]]) for place in range(first, end + 1)
        )
    assert found[1] == pytest.approx(total, rel=1e-5)
    ids = [tokenizer.require("bos"), *tokenizer.encode(short)]
    table = log_probabilities(theirs, ids[:-1])
    expected = sum(float(table[place, token]) for place, token in enumerate(ids[1:]))
    assert found[0] == pytest.approx(expected, rel=1e-5)


def test_texts_are_continued_until_a_string_or_a_number_of_tokens(gpt2: Run) -> None:
    run, theirs, tokenizer = gpt2
    contexts = ["w9 w10 w11", "w7 " * 30, "w5 w6"]
    greedy = []
    for context in contexts:
        ids = tokenizer.encode(context)[-(LENGTH - 4) :]
        size = len(ids)
        for _ in range(4):
            ids.append(int(log_probabilities(theirs, ids)[-1].argmax()))
        greedy.append(tokenizer.decode(ids[size:]))
    options = {"until": ["\n\n"], "max_gen_toks": 4, "do_sample": False}
    model = adapter(run)
    found = model.generate_until([Request((context, options)) for context in contexts])
    assert [text.strip() for text in found] == greedy
    stop = greedy[0].split()[-1]
    requests = [Request((contexts[0], {**options, "until": stop})), Request((contexts[2], options))]
    first, second = model.generate_until(requests)
    assert first.strip() == greedy[0][: greedy[0].index(stop)].strip()
    assert second.strip() == greedy[2]


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({}, {"max_new_tokens": 256, "stop": [], "temperature": 0.0}),
        ({"until": "x", "max_gen_toks": 5}, {"max_new_tokens": 5, "stop": ["x"]}),
        ({"until": ["x", ""], "temperature": 0.7, "do_sample": False}, {"temperature": 0.0}),
        ({"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.7, "top_p": 0.9, "top_k": None}),
        ({"temperature": 0.0, "do_sample": True, "top_k": 3}, {"temperature": 0.0, "top_k": None}),
    ],
)
def test_options_of_a_task_become_ours(options: dict[str, Any], keys: dict[str, Any]) -> None:
    found = decoding(options)
    assert {key: getattr(found, key) for key in keys} == keys


def test_what_cannot_be_evaluated_is_refused(gpt2: Run, tmp_path: Path) -> None:
    toy.save_run(tmp_path / "bert", toy.MODEL)
    with pytest.raises(CheckpointError, match="has not learned to predict the next token") as error:
        adapter(tmp_path / "bert")
    assert error.value.exit_code == 2
    with pytest.raises(ConfigError, match="length: must be at most 16"):
        adapter(gpt2[0], length=17)
    with pytest.raises(ConfigError, match="precision: must be one of auto, fp32 or bf16"):
        HarnessMethods(str(gpt2[0]), precision="fp8")


def test_without_the_harness_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    assert main() == 2
    assert capsys.readouterr().err == (
        "error: lm-evaluation-harness is not installed; install it with "
        "pip install 'tencentpretrain[eval]'\n"
    )


def evaluate(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command without any network."""
    offline = {"HF_HOME": str(folder), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "tencentpretrain.evaluation.harness", *words],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | offline,
        capture_output=True,
        text=True,
        check=False,
    )


def test_tasks_with_local_data_are_evaluated(gpt2: Run, tmp_path: Path) -> None:
    """The example of the docs and all three kinds of requests, through the harness itself."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (extra [eval])")
    model = adapter(gpt2[0])
    (written,) = model.generate_until([Request(("w9 w10 w11", {"max_gen_toks": 3}))])
    row = {"text": "w9 w10 w11", "written": written.strip()}
    toy.write(tmp_path / "rows.jsonl", [json.dumps(row)])
    common = (
        f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\n"
        "test_split: test\nmetadata: {version: 1.0}\n"
    )
    kinds = {
        "rolling": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: text\n"
        "metric_list: [{metric: byte_perplexity}]\n",
        "writing": "output_type: generate_until\ndoc_to_text: text\ndoc_to_target: written\n"
        "generation_kwargs: {until: ['@'], max_gen_toks: 3}\n"
        "metric_list: [{metric: exact_match, ignore_case: true}]\n"
        "filter_list: [{name: plain, filter: [{function: remove_whitespace}]}]\n",
    }
    for name, text in kinds.items():
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\n{common}{text}")
    (tmp_path / "proverbs.yaml").symlink_to(ROOT / "docs" / "examples" / "harness/proverbs.yaml")
    result = evaluate(
        *(tmp_path, "run", "--model", "tencentpretrain", "--tasks", "proverbs,rolling,writing"),
        *("--model_args", f"checkpoint={gpt2[0]},precision=fp32"),
        *("--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")),
    )
    assert result.returncode == 0, result.stderr
    (path,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(path.read_text())["results"]
    assert found["proverbs"]["acc,none"] == pytest.approx(accuracy(model))
    (log_probability,) = model.loglikelihood_rolling([Request(("w9 w10 w11",))])
    expected = torch.tensor(-log_probability / 10).exp().item()
    assert found["rolling"]["byte_perplexity,none"] == pytest.approx(expected, rel=1e-4)
    assert found["writing"]["exact_match,plain"] == 1.0


def accuracy(model: HarnessMethods) -> float:
    """Of the proverbs of the docs, without the harness."""
    lines = (ROOT / "docs" / "examples" / "harness" / "proverbs.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    hits = []
    for row in rows:
        context = model.tok_encode(row["text"])
        rests = [model.tok_encode(f" {choice}") for choice in row["choices"]]
        scores = [
            value for value, _ in model._loglikelihood_tokens([(0, context, r) for r in rests])
        ]
        hits.append(scores.index(max(scores)) == row["answer"])
    return sum(hits) / len(hits)
