"""Ray as the engine: the bytes of the local one, lost workers, clean ends. Skips without Ray."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tencentpretrain.config import decode
from tencentpretrain.data import ray_engine
from tencentpretrain.data.engine import IN_FLIGHT, make_engine
from tencentpretrain.data.preprocess import PreprocessConfig, run_preprocess
from tencentpretrain.data.slices import slices
from tencentpretrain.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##b", "北", "京"]
NEEDS_RAY = "Ray is not installed (the extra [ray])"

pytestmark = [pytest.mark.filterwarnings("default")]  # Ray warns of what it uses itself


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    ray: Any = pytest.importorskip("ray", reason=NEEDS_RAY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(ROOT))  # of the workers
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()


class Square:
    """Squares numbers; some of them go wrong.

    Args:
        folder: Where a worker leaves a mark before it is killed.
        survives: Whether a number kills only its first worker.
    """

    def __init__(self, folder: Path, survives: bool = True) -> None:
        self.folder, self.survives = folder, survives

    def __call__(self) -> Callable[[int], int]:
        (self.folder / f"made_{os.getpid()}").touch()
        return self.square

    def square(self, number: int) -> int:
        time.sleep(0.01 * (number % 3))  # so that results come out of order
        if number == 13:
            raise DataError("thirteen is not wanted")
        if number < 0:
            mark = self.folder / f"killed_{number}"
            if not (self.survives and mark.exists()):
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return number**2


def fail() -> Callable[[int], int]:
    raise DataError("nothing to work with")


def preprocess_config(folder: Path, name: str, **keys: object) -> PreprocessConfig:
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    tokenizer = {"name": "wordpiece", "vocab": str(folder / "vocab.txt")}
    corpus = {"path": str(folder / "corpus.txt")}
    content = {"tokenizer": tokenizer, "corpus": corpus, "output": str(folder / name)}
    return decode(PreprocessConfig, content | keys)


def bytes_of(directory: Path) -> dict[str, bytes]:
    files = [file for file in directory.rglob("*") if file.is_file()]
    return {str(file.relative_to(directory)): file.read_bytes() for file in files}


def test_without_ray_one_sentence_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: None)
    (tmp_path / "corpus.txt").write_text("a b", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"not installed; .*pip install 'tencentpretrain\[ray\]'"
    ) as e:
        run_preprocess(preprocess_config(tmp_path, "s", engine="ray"))
    assert e.value.exit_code == 2
    assert not (tmp_path / "s").exists()


def test_results_come_in_order_and_items_are_read_as_needed(cluster: Any, tmp_path: Path) -> None:
    read = 0

    def items() -> Iterator[int]:
        nonlocal read
        for number in range(100, 130):
            read += 1
            yield number

    results = make_engine(2, "ray").map(Square(tmp_path), items())
    for done, number in enumerate(range(100, 130), start=1):
        assert next(results) == number**2
        assert read <= done + 2 * IN_FLIGHT
    assert list(results) == []
    assert cluster.is_initialized()
    # The function is made once for each worker, not for each slice.
    assert len(list(tmp_path.glob("made_*"))) <= 4


def test_an_error_comes_out_as_it_is(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^thirteen is not wanted$") as caught:
        list(make_engine(2, "ray").map(Square(tmp_path), range(100)))
    assert type(caught.value) is DataError
    with pytest.raises(DataError, match="nothing to work with"):
        list(make_engine(2, "ray").map(fail, range(100)))


def test_the_slice_of_a_killed_worker_is_done_by_another(cluster: Any, tmp_path: Path) -> None:
    numbers = [1, 2, -9, *range(14, 30), -4, 31]
    found = list(make_engine(2, "ray").map(Square(tmp_path), numbers))
    assert found == [number**2 for number in numbers]
    assert len(list(tmp_path.glob("killed_*"))) == 2


def test_a_slice_that_kills_every_worker_is_an_error(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lost its worker 4 times"):
        list(make_engine(2, "ray").map(Square(tmp_path, survives=False), [1, -9, 2]))


@pytest.mark.parametrize("workers", [1, 3])
def test_the_bytes_are_those_of_the_local_engine(
    cluster: Any, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["a b\n北京 abb", "b", "a zzz b a", "京 北\na"] * 25
    (tmp_path / "corpus.txt").write_text("\n\n".join(texts), encoding="utf-8")
    monkeypatch.setattr("tencentpretrain.data.slices.slices", partial(slices, slice_bytes=200))
    for name, engine in (("one", "local"), ("of_ray", "ray")):
        keys = {"workers": workers, "shard_tokens": 100, "engine": engine}
        assert run_preprocess(preprocess_config(tmp_path, name, **keys)) == 0
    assert bytes_of(tmp_path / "of_ray") == bytes_of(tmp_path / "one")


def test_a_cluster_that_is_not_there_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray: Any = pytest.importorskip("ray", reason=NEEDS_RAY)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(DataError, match=r"RAY_ADDRESS=127\.0\.0\.1:\d+ does not answer"):
            next(make_engine(2, "ray").map(Square(tmp_path), [1]))


SLOW = """
import os, time
from pathlib import Path
(Path(__file__).parent / "pids" / str(os.getpid())).touch()

def cut(sentence):
    time.sleep(0.03)
    return sentence.split()
"""
RUN = """
import json, sys
from tencentpretrain.config import decode
from tencentpretrain.data.preprocess import PreprocessConfig, run_preprocess
sys.exit(run_preprocess(decode(PreprocessConfig, json.loads(sys.argv[1]))))
"""


def test_an_interruption_ends_the_cluster_that_was_started_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    pytest.importorskip("ray", reason=NEEDS_RAY)
    (tmp_path / "pids").mkdir()
    (tmp_path / "slow_words.py").write_text(SLOW)
    (tmp_path / "corpus.txt").write_bytes(b"a b\n\n" * 2000)
    keys = {"engine": "ray", "workers": 1, "segmenter": "slow_words:cut", "plugins": ["slow_words"]}
    wanted = preprocess_config(tmp_path, "out/s", **keys).to_dict()
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": paths}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-c", RUN, json.dumps(wanted)]
    process = subprocess.Popen(command, env=environment, cwd=tmp_path)
    try:
        # The command itself imports the plug-in, and so does the worker.
        while len(list((tmp_path / "pids").iterdir())) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.wait()
    assert list((tmp_path / "out").iterdir()) == []
    pids = [int(file.name) for file in (tmp_path / "pids").iterdir()]
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)
