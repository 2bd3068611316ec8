"""Spoken digits: which digit a sound is, and its word written by an encoder-decoder.

`python -m benchmarks.speech_quality [--steps 2000] [--speakers theo] [--output runs/quality]`

3,000 recordings of ten digits by six speakers, at 8 kHz. The first five takes of each digit by each
speaker are held out; or all takes of a speaker, whom the model has then never heard. Everything is
trained from scratch. What is finished is not repeated; other options want another --output.
"""

from __future__ import annotations

import argparse
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from benchmarks.common import ROOT, shared_data
from benchmarks.quality import Notebook

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEST_TAKES = 5
SMALL = ("model=s2t/tiny", "init=none", "model.embedding.parts.frames.bands=40")
SOUND = (
    "task.bank.rate=8000",
    "task.bank.bands=40",
    "data.bucket=8",
    "data.workers=1",
    "trainer.precision=fp32",
)
VARIED = (
    "task.speeds=[0.85,0.9,1,1.1,1.15]",
    "task.augment.band_masks=1",
    "task.augment.band_width=6",
    "task.augment.time_masks=1",
    "task.augment.time_width=6",
)


class Recording(NamedTuple):
    """One digit, as the name of its file tells."""

    digit: int
    speaker: str
    take: int

    @property
    def file(self) -> str:
        return f"{self.digit}_{self.speaker}_{self.take}.wav"


def unpack(folder: Path) -> list[Recording]:
    """The recordings, as files below `folder`/recordings."""
    target = folder / "recordings"
    target.mkdir(exist_ok=True)
    found = []
    with tarfile.open(shared_data() / "speech" / "fsdd.tar") as archive:
        for member in archive:
            name = PurePosixPath(member.name).name
            content = archive.extractfile(member)
            if content is None or not name.endswith(".wav"):
                continue
            (target / name).write_bytes(content.read())
            digit, speaker, take = name.removesuffix(".wav").split("_")
            found.append(Recording(int(digit), speaker, int(take)))
    return sorted(found)


def write_lists(
    folder: Path,
    name: str,
    recordings: list[Recording],
    is_test: Callable[[Recording], bool],
    column: str,
) -> tuple[str, str]:
    """Words for the files to train on and to test on, with a label or text for each sound."""
    paths = []
    for part, wanted in (("train", False), ("test", True)):
        lines = [f"{column}\tpath"]
        for one in recordings:
            if is_test(one) == wanted:
                said = WORDS[one.digit] if column == "text" else str(one.digit)
                lines.append(f"{said}\trecordings/{one.file}")
        path = folder / f"{name}_{column}_{part}.tsv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        paths.append(path)
    return f"data.train={paths[0]}", f"data.test={paths[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "quality")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--speakers", nargs="*", default=["theo"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    book = Notebook("spoken_digits", options.output.absolute())
    folder, recordings = book.folder, unpack(book.folder)
    trainer = (f"trainer.steps={options.steps}", "trainer.batch_size=32", f"seed={options.seed}")
    rhythm = (f"trainer.eval_every={options.steps // 4}", "optim.lr=1e-3", *trainer)
    # Often enough that no letter is left out of the vocabulary as a rare one.
    (folder / "words.txt").write_text("\n".join(WORDS * 10) + "\n", encoding="utf-8")
    book.run(
        "scripts/build_vocab.py",
        "tokenizer=character",
        f"corpus.path={folder / 'words.txt'}",
        "corpus.format=lines",
        f"output={folder / 'letters'}",
        makes=folder / "letters",
    )
    letters = ("tokenizer=character", f"tokenizer.vocab={folder / 'letters'}")
    splits: dict[str, Callable[[Recording], bool]] = {"takes": lambda one: one.take < TEST_TAKES}
    for speaker in options.speakers:
        splits[speaker] = lambda one, speaker=speaker: one.speaker == speaker  # type: ignore[misc]
    book.rows.append("|---|---|---|")
    for name, is_test in splits.items():
        for task, column in (("audio_classify", "label"), ("speech2text", "text")):
            run = folder / f"{task}_{name}"
            files = write_lists(folder, name, recordings, is_test, column)
            words = (*SMALL, *SOUND, *VARIED, *files, *rhythm)
            if task == "speech2text":
                words = (*letters, "task.writing.start=cls", *words)
            # A finished run only says so, and one that was stopped goes on.
            book.run("finetune/run.py", f"task={task}", *words, f"run_dir={run}")
            scores = ("accuracy",) if task == "audio_classify" else ("wer", "cer")
            said = ", ".join(
                f"{score} {book.values(run, f'test/{score}')[-1][1]:.4f}" for score in scores
            )
            book.rows.append(f"| {task} | {name} | {said} |")
            book.write("| task | held out | test |")


if __name__ == "__main__":
    main()
