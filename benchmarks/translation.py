"""Translation that is learned by heart: whether an encoder-decoder can be driven to its data.

`python -m benchmarks.translation [--pairs 300] [--steps 1500] [--output runs/quality]`

A small Transformer sees the first pairs of the English-Chinese news commentary, without dropout and
label smoothing, and then translates the same sentences by beam search. The BLEU of a corpus
(Papineni et al., 2002; sacrebleu with its Chinese tokenizer) is above 90 if preprocessing with two
vocabularies, training, the checkpoint and generation agree with each other. It says nothing about
new sentences: for that 300 pairs are far too few. What is finished is not repeated; other options
want another --output.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sacrebleu.metrics.bleu import BLEU

from benchmarks.common import ROOT, shared_data
from benchmarks.quality import Notebook

CHARACTERS = (200, 60)
"""Longest English and Chinese sentences taken, so that rows of 128 tokens hold them."""
NO_DROPOUT = tuple(
    f"model.{part}.dropout=0" for part in ("embedding", "encoder", "target_embedding", "decoder")
)


def write_pairs(folder: Path, count: int) -> tuple[list[str], list[str]]:
    """The first `count` pairs that are short enough, as files for the commands."""
    path = shared_data() / "translation" / "news_commentary_en_zh.tsv"
    pairs = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    short = [
        (source.strip(), target.strip())
        for source, target in pairs
        if len(source) <= CHARACTERS[0] and len(target) <= CHARACTERS[1]
    ]
    sources, targets = ([pair[side] for pair in short[:count]] for side in (0, 1))
    lines = ["\t".join(pair) for pair in short[:count]]
    for name, texts in (("pairs.tsv", lines), ("en.txt", sources), ("zh.txt", targets)):
        (folder / name).write_text("\n".join(texts) + "\n", encoding="utf-8")
    return sources, targets


def prepare(book: Notebook, vocabulary: int) -> Path:
    """Both vocabularies and the shards."""
    folder = book.folder
    for language in ("en", "zh"):
        book.run(
            "scripts/build_vocab.py",
            "tokenizer=bpe",
            f"vocab_size={vocabulary}",
            f"corpus.path={folder / f'{language}.txt'}",
            "corpus.format=lines",
            f"output={folder / f'vocab_{language}'}",
            makes=folder / f"vocab_{language}",
        )
    book.run(
        "preprocess.py",
        "tokenizer=bpe",
        f"tokenizer.vocab={folder / 'vocab_en'}",
        "target_tokenizer=bpe",
        f"target_tokenizer.vocab={folder / 'vocab_zh'}",
        f"corpus.path={folder / 'pairs.tsv'}",
        "corpus.content=pair",
        "corpus.format=lines",
        f"output={folder / 'shards'}",
        makes=folder / "shards",
    )
    return folder / "shards"


def learn(book: Notebook, shards: Path, options: argparse.Namespace) -> float:
    """Train; returns the seconds."""
    return book.run(
        "pretrain.py",
        f"model={options.model}",
        *NO_DROPOUT,
        "model.target.lm.label_smoothing=0",
        f"data.path={shards}",
        f"data.dev={shards}",
        f"run_dir={book.folder / 'run'}",
        f"seed={options.seed}",
        f"trainer.steps={options.steps}",
        "trainer.batch_size=32",
        f"optim.lr={options.rate}",
        "optim.beta2=0.98",
        f"trainer.eval_every={options.steps // 4}",
    )


def translate(book: Notebook, beams: int) -> list[str]:
    """What the trained model writes for the sentences it was trained on."""
    output = book.folder / f"beams_{beams}.txt"
    book.run(
        "scripts/generate.py",
        f"checkpoint={book.folder / 'run'}",
        f"input={book.folder / 'en.txt'}",
        f"output={output}",
        f"beams={beams}",
        "max_new_tokens=120",
        makes=output,
    )
    return output.read_text(encoding="utf-8").splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "quality")
    parser.add_argument("--model", default="transformer/tiny")
    parser.add_argument("--rate", type=float, default=1e-3)
    for name, value in (("pairs", 300), ("steps", 800), ("vocabulary", 3000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    book = Notebook("translation", options.output.absolute())
    _, targets = write_pairs(book.folder, options.pairs)
    seconds = learn(book, prepare(book, options.vocabulary), options)
    book.rows += ["|---|---|---|"]
    for beams in (1, 4):
        written = translate(book, beams)
        bleu = BLEU(tokenize="zh")
        score = bleu.corpus_score(written, [targets]).score
        exact = sum(ours == theirs for ours, theirs in zip(written, targets, strict=True))
        book.rows.append(f"| {beams} | {score:.1f} | {exact} of {len(targets)} |")
    book.rows += ["", f"Training took {seconds:.0f} s; {bleu.get_signature()}."]
    book.write("| beams | BLEU on the training pairs | translations that are the reference |")


if __name__ == "__main__":
    main()
