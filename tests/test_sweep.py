import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tencentpretrain.config import ConfigError
from tencentpretrain.sweep import Job, plan, sweep, table
from tests.helpers.dummy_command import DUMMY

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory beside a script that runs the dummy command."""
    script = tmp_path / "dummy.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from tencentpretrain.cli import main\n"
        "from tests.helpers.dummy_command import DUMMY\n"
        "sys.exit(main(DUMMY))\n"
    )
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [str(script)])
    return folder


def start(words: list[str], script: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(script), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_the_plan_is_the_product_in_the_order_of_the_words() -> None:
    jobs = plan(DUMMY, ["model=bert/tiny,bert/mini", "run_dir=R", "steps=range(1,3)", "text=x"])
    assert [job.directory.as_posix() for job in jobs] == [
        "R/0_model-bert-tiny_steps-1",
        "R/1_model-bert-tiny_steps-2",
        "R/2_model-bert-mini_steps-1",
        "R/3_model-bert-mini_steps-2",
    ]
    assert jobs[1].changes == ("model=bert/tiny", "steps=2")
    assert jobs[1].words == ("model=bert/tiny", "steps=2", "text=x", f"run_dir={jobs[1].directory}")


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("text=choice(a,b)", ["text=a", "text=b"]),
        ("model=glob(bert/*,exclude=*large)", 5),
        ("steps=1e1, 2e1", ["steps=1e1", "steps=2e1"]),
        ("text='a,b'", ["text='a,b'"]),
        ("text='a,b',c", ["text='a,b'", "text=c"]),
        ("text=[a,b]", ["text=[a,b]"]),
        ("text=[a,b],[c]", ["text=[a,b]", "text=[c]"]),
        ("text=ü(1),ö", ["text=ü(1)", "text=ö"]),
        ("~text", ["~text"]),
    ],
)
def test_alternatives(word: str, values: list[str] | int) -> None:
    jobs = plan(DUMMY, [word, "run_dir=R"])
    if isinstance(values, int):
        assert len(jobs) == values
    else:
        assert [job.words[0] for job in jobs] == values


def test_a_long_name_ends_in_a_hash_and_stays_different() -> None:
    texts = ",".join(("x" * 200 + end) for end in "ab")
    first, second = (job.directory.name for job in plan(DUMMY, [f"text={texts}", "run_dir=R"]))
    assert len(first) == len(second) == 100
    assert first != second


def test_numbers_have_one_width() -> None:
    jobs = plan(DUMMY, ["steps=range(0,11)", "run_dir=R"])
    assert [job.directory.name[:3] for job in jobs][::5] == ["00_", "05_", "10_"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["steps=1,2"], "run_dir: is required with -m"),
        (["steps=interval(0,1)", "run_dir=R"], "steps: must be a list of values"),
        (["model=glob(zzz*)", "run_dir=R"], "model: means no value at all"),
        (["foo", "run_dir=R"], "`foo` must be key=value"),
    ],
)
def test_what_is_no_sweep_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(DUMMY, words)


def test_a_command_without_a_directory_cannot_sweep() -> None:
    with pytest.raises(ConfigError, match="pretrain writes no directory"):
        plan(replace(DUMMY, result=None), ["steps=1,2"])


def test_many_processes_do_not_each_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun"):
        plan(DUMMY, ["steps=1,2", "run_dir=R"])


def test_a_typo_in_any_job_stops_all_before_the_first(work: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        sweep(DUMMY, ["model=bert/tiny", "steps=1,0", "run_dir=R", "txet=a"])
    assert [str(problem) for problem in raised.value.problems] == [
        "txet: is not a known key; did you mean `text`?",
        "steps: must be > 0, but is 0 (with steps=0)",
    ]
    assert list(work.iterdir()) == []


def test_a_failing_job_does_not_stop_the_rest(
    work: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RUNS", "of the day")
    words = ["model=bert/tiny", "mode=ok,fail,ok", "run_dir=${oc.env:RUNS}/R"]
    assert sweep(DUMMY, [*words[:1], "mode=fail,ok", words[2]]) == 1
    captured = capfd.readouterr()
    assert captured.out.splitlines() == [
        "job          overrides  exit  last evaluation",
        "0_mode-fail  mode=fail  1",
        "1_mode-ok    mode=ok    0     eval/loss=0.3333",
    ]
    assert "error: the loss is not finite" in captured.err
    assert (work / "of the day" / "R" / "1_mode-ok" / "metrics.jsonl").is_file()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl_c", "sigterm"]
)
def test_a_signal_ends_the_job_that_saves_and_starts_no_other(
    work: Path, number: signal.Signals, code: int
) -> None:
    words = ["-m", "model=bert/tiny", "steps=1,2", "mode=wait", "run_dir=R"]
    process = start(words, Path(sys.argv[0]))
    started = work / "R" / "0_steps-1" / "started"
    deadline = time.monotonic() + 60
    while not started.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert (started.parent / "saved").exists()
    assert [path.name for path in (work / "R").iterdir()] == ["0_steps-1"]
    assert [line.split()[2:4] for line in out.splitlines()[1:]] == [
        [str(code), "eval/loss=0.3333"],
        ["not", "run"],
    ]


def test_the_table_shows_the_last_evaluation(tmp_path: Path) -> None:
    records = [
        {"step": 1, "eval/loss": 3.0, "train/loss": 9.0},
        {"step": 2, "dev/accuracy": 0.5, "eval/loss": 2.0},
        {"step": 3, "dev/accuracy": 0.75},
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "metrics.jsonl").write_text(lines + '{"step": 4, "dev/acc')
    row = table([Job(("a=1",), (), tmp_path, 0)]).splitlines()[1]
    assert row.endswith("a=1        0     eval/loss=2 dev/accuracy=0.75")
