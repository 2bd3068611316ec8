"""From a corpus to shards: equal bytes for any workers, exact counts, clean ends."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.data import progress
from tencentpretrain.data.preprocess import PreprocessConfig, run_preprocess
from tencentpretrain.data.progress import Progress, duration
from tencentpretrain.data.shards import open_shards
from tencentpretrain.data.slices import slices
from tencentpretrain.errors import DataError

ENTRIES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##b", "北", "京", "大", "学"]


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(ENTRIES), encoding="utf-8")
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    words = ["a", "b", "abb", "北京", "大学", "zzz"]
    documents = [
        "\n".join(" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(sentences))
        for sentences in rng.integers(1, 6, size=101)
    ]
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path


def config(vocab: Path, path: object, output: Path, **keys: object) -> PreprocessConfig:
    corpus = {"path": str(path)} | {
        key.removeprefix("corpus_"): keys.pop(key) for key in list(keys) if "corpus_" in key
    }
    tokenizer = {"name": "wordpiece", "vocab": str(vocab)}
    content = {"tokenizer": tokenizer, "corpus": corpus, "output": str(output), "workers": 1}
    return decode(PreprocessConfig, content | keys)


def bytes_of(directory: Path) -> dict[str, bytes]:
    files = [file for file in directory.rglob("*") if file.is_file()]
    return {str(file.relative_to(directory)): file.read_bytes() for file in files}


def test_shards_hold_the_ids_of_the_text(tmp_path: Path, vocab: Path, corpus: Path) -> None:
    assert run_preprocess(config(vocab, corpus, tmp_path / "s")) == 0
    shards = open_shards(tmp_path / "s")
    tokenizer = shards.tokenizer()
    documents = corpus.read_text(encoding="utf-8").split("\n\n")
    assert shards.documents == len(documents)
    for number, document in enumerate(documents):
        sentences = [tokenizer.encode(line) for line in document.split("\n")]
        assert shards.read(number).tolist() == list(chain.from_iterable(sentences))
        ends = np.cumsum([len(sentence) for sentence in sentences])
        assert shards.sentence_ends(number).tolist() == ends.tolist()


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("{}/vocab.txt/s", "File exists (`{}/vocab.txt`)"),
        ("{}/vocab.txt/deep/s", "Not a directory (`{}/vocab.txt/deep`)"),
        ("/proc/s", "No such file or directory (`/proc`)"),
    ],
)
def test_an_output_that_cannot_be_made_is_refused_with_one_sentence(
    tmp_path: Path, vocab: Path, corpus: Path, output: str, reason: str
) -> None:
    output, reason = output.format(tmp_path), reason.format(tmp_path)
    with pytest.raises(DataError) as told:
        run_preprocess(config(vocab, corpus, Path(output)))
    expected = f"output `{output}` cannot be written to: {reason}; choose another `output`"
    assert str(told.value) == expected
    assert told.value.exit_code == 2


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_d6_the_bytes_do_not_depend_on_workers_or_slices(
    tmp_path: Path, vocab: Path, corpus: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_preprocess(config(vocab, corpus, tmp_path / "one", shard_tokens=300))
    for slice_bytes in (30, 1000):
        monkeypatch.setattr(
            "tencentpretrain.data.slices.slices", partial(slices, slice_bytes=slice_bytes)
        )
        output = tmp_path / f"of_{slice_bytes}"
        run_preprocess(config(vocab, corpus, output, shard_tokens=300, workers=workers))
        assert bytes_of(output) == bytes_of(tmp_path / "one")


def test_the_summary_counts_everything(
    tmp_path: Path, vocab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.txt"
    path.write_bytes(b"a zz\nab\0b\n\n\x01\n\na\n\x01\nb\xff\n")
    output = tmp_path / "s"
    run_preprocess(config(vocab, path, output, corpus_encoding_errors="skip"))
    printed = " ".join(capsys.readouterr().out.split())
    for part in (
        "documents 2 ",
        "sentences 3 ",
        "tokens 6 ",  # a [UNK] · a ##b ##b · a
        "unknown tokens 1 (16.667%)",
        f"text {path.stat().st_size} bytes",
        "1 NUL characters",
        "1 empty documents",
        "2 sentences without tokens",
        "1 lines that are not UTF-8",
        f"output {output}",
    ):
        assert part in printed
    assert open_shards(output).source["NUL characters"] == 1


def test_words_are_stored_where_a_segmenter_is_given(tmp_path: Path, vocab: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_text("北京大学\nabb 北京\n", encoding="utf-8")
    run_preprocess(config(vocab, path, tmp_path / "s", segmenter="jieba"))
    shards = open_shards(tmp_path / "s")
    assert shards.read(0).tolist() == [8, 9, 10, 11, 5, 7, 7, 8, 9]
    starts = shards.word_starts(0)
    assert starts is not None
    assert starts.astype(int).tolist() == [1, 0, 0, 0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("content", [b"", b"\n \n\r\n", b"\x01\n"])
@pytest.mark.parametrize("workers", [1, 2])
def test_an_empty_corpus_is_an_error(
    tmp_path: Path, vocab: Path, content: bytes, workers: int
) -> None:
    path = tmp_path / "c.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match="no text at all"):
        run_preprocess(config(vocab, path, tmp_path / "out" / "s", workers=workers))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_bad_line_stops_all_workers_and_leaves_nothing(
    tmp_path: Path, vocab: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tencentpretrain.data.slices.slices", partial(slices, slice_bytes=100))
    with open(corpus, "ab") as file:
        file.write(b"\n\n\xff\n" + b"a\n\n" * 1000)
    with pytest.raises(DataError, match=r"corpus\.txt, line \d+, byte \d+: byte ff is not UTF-8"):
        run_preprocess(config(vocab, corpus, tmp_path / "out" / "s", workers=2))
    assert list((tmp_path / "out").iterdir()) == []


def test_what_is_refused_before_anything_is_made(tmp_path: Path, vocab: Path, corpus: Path) -> None:
    (tmp_path / "taken").mkdir()
    for wrong in (
        config(vocab, corpus, tmp_path / "taken"),
        config(vocab, tmp_path / "missing.txt", tmp_path / "s"),
        config(tmp_path / "missing.txt", corpus, tmp_path / "s"),
        config(vocab, corpus, tmp_path / "s", segmenter="jeiba"),
    ):
        with pytest.raises(DataError) as raised:
            run_preprocess(wrong)
        assert raised.value.exit_code == 2
    assert not (tmp_path / "s").exists()
    with pytest.raises(ConfigError, match="workers"):
        config(vocab, corpus, tmp_path / "s", workers=0)


def test_no_other_process_is_needed_to_say_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO), Progress(total=1000) as shown:
        shown.add(consumed=250, documents=3)
    (line,) = caplog.messages
    assert line.startswith(" 25%  3 documents")
    assert "MB/s" in line
    assert line.endswith("left")
    assert duration(3661.4) == "1:01:01"


def test_starting_needs_no_torch() -> None:
    code = "import sys, tencentpretrain.data.preprocess; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.strip() == b"False"


def test_workers_do_not_have_what_this_process_has(
    tmp_path: Path, vocab: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "torch" in sys.modules
    (tmp_path / "no_torch.py").write_text(
        "import sys\ndef cut(text):\n    assert 'torch' not in sys.modules\n    return text.split()"
    )
    monkeypatch.syspath_prepend(tmp_path)
    keys = {"segmenter": "no_torch:cut", "plugins": ["no_torch"], "workers": 2}
    for module in ("tencentpretrain.registry", "tencentpretrain.data.segment"):
        monkeypatch.setattr(f"{module}.TRUSTED", {"no_torch"})
    assert run_preprocess(config(vocab, corpus, tmp_path / "s", **keys)) == 0


SLOW = """
import os, pathlib, time

def cut(text):
    (pathlib.Path(__file__).parent / "pids" / str(os.getpid())).touch()
    time.sleep(0.05)
    return text.split()
"""
RUN = """
import json, sys
from tencentpretrain.config import decode
from tencentpretrain.data.preprocess import PreprocessConfig, run_preprocess
sys.exit(run_preprocess(decode(PreprocessConfig, json.loads(sys.argv[1]))))
"""


@pytest.fixture
def slow_run(tmp_path: Path, vocab: Path, corpus: Path) -> Iterator[partial[subprocess.Popen]]:
    """Starts a run in a process of its own that would take half a minute."""
    (tmp_path / "pids").mkdir()
    (tmp_path / "slow_words.py").write_text(SLOW)
    corpus.write_bytes(b"a b\n\n" * 1000)
    started: list[subprocess.Popen[bytes]] = []

    def start(workers: int) -> subprocess.Popen[bytes]:
        keys = {"workers": workers, "segmenter": "slow_words:cut", "plugins": ["slow_words"]}
        wanted = config(vocab, corpus, tmp_path / "out" / "s", **keys).to_dict()
        paths = [str(tmp_path), str(Path(__file__).resolve().parents[2])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        process = subprocess.Popen([sys.executable, "-c", RUN, json.dumps(wanted)], env=environment)
        started.append(process)
        while not any((tmp_path / "pids").iterdir()):
            assert process.poll() is None
            time.sleep(0.02)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def workers_alive(folder: Path) -> list[int]:
    pids = [int(file.name) for file in folder.iterdir()]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize(
    ("number", "code", "workers"), [(signal.SIGTERM, 143, 2), (signal.SIGINT, 130, 1)]
)
def test_a_signal_leaves_nothing(
    tmp_path: Path, slow_run: partial[subprocess.Popen], number: int, code: int, workers: int
) -> None:
    process = slow_run(workers)
    process.send_signal(number)
    assert process.wait(timeout=30) == code
    assert list((tmp_path / "out").iterdir()) == []
    assert workers_alive(tmp_path / "pids") == []


def test_workers_end_with_a_killed_parent(
    tmp_path: Path, slow_run: partial[subprocess.Popen]
) -> None:
    slow_run(2).kill()
    deadline = time.monotonic() + 30
    while workers_alive(tmp_path / "pids"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not (tmp_path / "out" / "s").exists()
