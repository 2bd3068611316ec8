"""Whether each objective teaches: its loss after a few hundred steps beside a unigram's.

`python -m benchmarks.objectives [NAME ...] [--steps 300] [--output runs/objectives]`

Models of 2 layers and width 128 on the real corpora. The unigram predicts every label with its
frequency among the labels of 500 training examples (add-one smoothing), on the same validation
examples; for pairs of a batch it guesses. All losses are in nats.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import ROOT, shared_data, write_result
from tencentpretrain.commands import COMMANDS
from tencentpretrain.configure import load_config
from tencentpretrain.data.objectives.base import Objective
from tencentpretrain.train.pretrain import PretrainConfig
from tencentpretrain.train.sources import Sources
from tencentpretrain.types import IGNORE

SMALL = ("model.hidden=128", "model.encoder.layers=2", "model.encoder.heads=2")
ENCODER = (*SMALL, "model.encoder.ffn=512")
DECODER = ("model.decoder.layers=2", "model.decoder.heads=2", "model.decoder.ffn=512")
LENGTH = ("model.objective.length=128",)
BOTH = (*ENCODER, *DECODER, *LENGTH, "model.objective.target_length=128")
WRITING = (*LENGTH, "model.objective.target_length=128")
BATCH = 16


@dataclass(frozen=True)
class Case:
    """An objective with a model for it and the data set that it learns from."""

    data: str
    words: tuple[str, ...]


CASES = {
    "bert": Case("text", ("model=bert/tiny", *LENGTH)),
    "albert": Case("text", ("model=albert/base", *ENCODER, *LENGTH, "model.embedding.size=64")),
    "mlm": Case("text", ("model=roberta/tiny", *LENGTH)),
    "lm": Case("text", ("model=gpt2/tiny", *LENGTH)),
    "bilm": Case("text", ("model=elmo/bilstm", "model.hidden=128", "model.embedding.size=64")),
    "t5": Case("text", ("model=t5/tiny", *BOTH, "model.encoder.head_size=64")),
    "bart": Case("text", ("model=bart/tiny", *WRITING)),
    "pegasus": Case("text", ("model=pegasus/tiny", *WRITING)),
    "cls": Case("label", ("model=bert/tiny", *LENGTH, "model.objective.name=cls")),
    "cls_mlm": Case("label", ("model=bert/tiny", *LENGTH, "model.objective.name=cls_mlm")),
    "prefix_lm": Case("pair", ("model=gpt2/tiny", *LENGTH, "model.objective.name=prefix_lm")),
    "translate": Case("pair", ("model=transformer/tiny", "model.target.lm.label_smoothing=0")),
    "pairs": Case("pair", ("model=sbert/tiny", *LENGTH)),
    "sft": Case("chat", ("model=gpt2/tiny", *LENGTH, "model.objective.name=sft")),
}
CLASSIFY = ("model.target.nsp=null", "model.target.classify.classes=2")
FURTHER = {
    "cls": (*CLASSIFY, "model.target.mlm=null", "model.ties=null"),
    "cls_mlm": CLASSIFY,
    "prefix_lm": ("model.encoder.mask=prefix",),
}


def preprocess_words(name: str, folder: Path) -> list[str]:
    """What `preprocess.py` is told to make the data set `name`."""
    data = shared_data()
    entries = (data / "vocab" / "google_zh_vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    entries += [f"<extra_id_{number}>" for number in range(100)]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(entries) + "\n", encoding="utf-8")
    chinese = ["tokenizer=wordpiece", f"tokenizer.vocab={vocabulary}"]
    bpe = [f"tokenizer.{key}={data}/vocab/gpt2_{key}.json" for key in ("vocab",)]
    bpe += [f"tokenizer.merges={data}/vocab/gpt2_merges.txt", "tokenizer=bpe"]
    return {
        "text": [*chinese, f"corpus.path={data}/corpora/clue_zh.txt"],
        "label": [
            *chinese,
            f"corpus.path={data}/classification/chnsenticorp_zh/train.tsv",
            "corpus.content=label",
        ],
        "pair": [
            *chinese,
            f"corpus.path={data}/translation/news_commentary_en_zh.tsv",
            "corpus.content=pair",
            "corpus.format=lines",
        ],
        "chat": [
            *bpe,
            f"corpus.path={data}/instruction/gsm8k_train.jsonl",
            "corpus.content=chat",
            "corpus.fields.prompt=question",
        ],
    }[name]


def run(script: str, *words: str) -> None:
    """Run a command of the toolkit."""
    print("$ python", script, *words, flush=True)
    subprocess.run([sys.executable, script, *words], cwd=ROOT, check=True)


def labels_of(objective: Objective, name: str, count: int) -> Tensor:
    """Supervised values of target `name` in `count` examples, evenly spread."""
    chosen = [n * len(objective) // count for n in range(min(count, len(objective)))]
    batch = objective.collate([objective.make(0, index) for index in chosen])
    values = batch.labels[name].values.flatten()
    return values[values != IGNORE]


def unigram_losses(words: list[str]) -> dict[str, float]:
    """Loss by target of predicting labels by their frequency."""
    config = load_config(COMMANDS["pretrain"], words)
    assert isinstance(config, PretrainConfig)
    assert config.model.objective is not None
    sources = Sources(config.data, config.model.objective, config.seed)
    source = next(iter(sources.sources.values()))
    assert source.dev is not None
    losses = {}
    for name in config.model.target:
        if name == "contrast":
            losses[name] = math.log(BATCH)
            continue
        values = labels_of(source.train, name, 500)
        dev = labels_of(source.dev, name, 200)
        rows = max(int(values.max()), int(dev.max()), 1) + 1
        if name not in ("nsp", "sop", "classify"):
            rows = max(rows, sources.shards.vocab_size)
        counts = torch.bincount(values, minlength=rows).double() + 1
        losses[name] = float(-(counts / counts.sum()).log()[dev].mean())
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=sorted(CASES))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "objectives")
    options = parser.parse_args()
    output = options.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    rows = ["| objective | target | unigram | after training |", "|---|---|---|---|"]
    for name in options.names:
        case = CASES[name]
        shards = output / case.data
        if not shards.exists():
            run("preprocess.py", *preprocess_words(case.data, output), f"output={shards}")
        words = [
            *case.words,
            *FURTHER.get(name, ()),
            f"data.path={shards}",
            f"run_dir={output / name}",
            "data.holdout=0.05",
            "data.dev_examples=200",
            f"trainer.steps={options.steps}",
            f"trainer.eval_every={options.steps}",
            f"trainer.batch_size={BATCH}",
            "optim.lr=1e-3",
        ]
        run("pretrain.py", *words)
        lines = (output / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        record = [json.loads(line) for line in lines if "eval/loss" in line][-1]
        for target, baseline in unigram_losses(words).items():
            loss = record.get(f"eval/{target}/loss", record["eval/loss"])
            rows.append(f"| {name} | {target} | {baseline:.3f} | {loss:.3f} |")
            print(rows[-1], flush=True)
    command = f"python -m benchmarks.objectives {' '.join(options.names)} --steps {options.steps}"
    write_result("objectives", command, rows)


if __name__ == "__main__":
    main()
