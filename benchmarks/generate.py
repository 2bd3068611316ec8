"""Speed of writing with a cache against `generate` of `transformers`, on models of the same sizes.

`python -m benchmarks.generate [--rounds 7] [--tokens 64] [--threads 1]`

LLaMA tiny (2 layers, width 128) and T5 tiny (4 + 4 layers, width 256) with 32,000 entries, random
weights, fp32, prompts of 32 tokens, greedy and with 4 beams. The contestants take turns in one
process, and the ratio of neighbouring turns is reported as a median, so that a machine whose speed
drifts gives the same answer. No text ends before its limit.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
import transformers

from benchmarks.common import ROOT, write_result
from tencentpretrain.config import decode
from tencentpretrain.generate.decoding import Decoding
from tencentpretrain.generate.engine import Engine
from tencentpretrain.generate.written import Written
from tencentpretrain.model import ModelConfig, build_model
from tencentpretrain.model_files import find_model, load_inherited

VOCABULARY: Final = 32000
PROMPT: Final = 32
BEAMS: Final = 4
CASES: Final = (("llama", 1, 1), ("llama", 8, 1), ("t5", 1, 1), ("t5", 8, 1))
SEARCHES: Final = (("llama", 2, BEAMS), ("t5", 2, BEAMS))


class Contestants(NamedTuple):
    """A model of ours and one of theirs."""

    engine: Engine
    theirs: Any
    device: torch.device


def build(family: str) -> Contestants:
    """Both models of a family, on the GPU if there is one."""
    models = ROOT / "models"
    data = load_inherited(find_model(f"{family}/tiny", [models]), [models])
    config = decode(ModelConfig, data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ours = build_model(config, VOCABULARY, device).eval()
    common: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": None}
    theirs: Any
    if family == "llama":
        theirs = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                **common,
                hidden_size=128,
                intermediate_size=344,
                num_hidden_layers=2,
                num_attention_heads=2,
                bos_token_id=None,
            )
        )
    else:
        theirs = transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                **common,
                d_model=256,
                d_kv=64,
                d_ff=1024,
                num_layers=4,
                num_heads=4,
                decoder_start_token_id=0,
            )
        )
    start = () if family == "llama" else (0,)
    theirs = theirs.eval().to(device)
    mine, other = (sum(p.numel() for p in model.parameters()) for model in (ours, theirs))
    assert mine == other, f"{family}: {mine:,} parameters against {other:,}"
    return Contestants(Engine(ours, start=start), theirs, device)


def turns(
    contestants: Contestants, rows: int, beams: int, tokens: int
) -> tuple[Callable[[], None], Callable[[], None]]:
    """One call of each contestant that writes `tokens` for each of `rows` prompts."""
    engine, theirs, device = contestants
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (rows, PROMPT), generator=random)
    prompts = ids.tolist()
    ids = ids.to(device)

    def ours() -> None:
        written = [Written(tokens) for _ in prompts]
        engine.write(prompts, written, Decoding(beams=beams, max_new_tokens=tokens))
        assert all(len(row.ids) == tokens for row in written)

    def reference() -> None:
        mask = torch.ones_like(ids)
        keys = {"max_new_tokens": tokens, "do_sample": False, "num_beams": beams}
        found = theirs.generate(input_ids=ids, attention_mask=mask, **keys)
        assert found.shape[1] >= tokens

    return ours, reference


def seconds(turn: Callable[[], None]) -> float:
    """Of one call; both give the tokens to the host, so no device is left behind."""
    start = time.perf_counter()
    turn()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=64)
    # Threads that wait for one another make a busy machine slower for both contestants.
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    lines = [
        "| model | prompts | beams | tokens/s (median) | transformers | ratio (median) |",
        "|---|---|---|---|---|---|",
    ]
    built = {family: build(family) for family in ("llama", "t5")}
    for family, rows, beams in (*CASES, *SEARCHES):
        pair = turns(built[family], rows, beams, options.tokens)
        for turn in pair:
            turn()
        times = [(seconds(pair[0]), seconds(pair[1])) for _ in range(options.rounds)]
        mine, theirs = (statistics.median(t[side] for t in times) for side in (0, 1))
        ratio = statistics.median(theirs / mine for mine, theirs in times)
        count = rows * options.tokens
        lines.append(
            f"| {family} | {rows} | {beams} | {count / mine:,.0f} | {count / theirs:,.0f} | "
            f"{ratio:.2f} |"
        )
    command = "python -m benchmarks.generate " + " ".join(
        f"--{key} {value}" for key, value in vars(options).items()
    )
    write_result("generate", command, lines)


if __name__ == "__main__":
    main()
