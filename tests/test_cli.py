import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tencentpretrain import registry
from tencentpretrain.cli import main
from tencentpretrain.commands import COMMANDS
from tencentpretrain.compose import group_options
from tencentpretrain.config import ConfigError
from tencentpretrain.configure import load_config
from tencentpretrain.errors import DataError, TrainingError, UserError, before_start
from tencentpretrain.targets.base import TARGETS
from tests.helpers.dummy_command import DUMMY, OPTIMIZERS

ROOT = Path(__file__).resolve().parents[1]
GOOD = ("model=bert/tiny", "run_dir=run")


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and nobody trusted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "TRUSTED", set())
    monkeypatch.setattr(OPTIMIZERS, "_classes", dict(OPTIMIZERS._classes))
    return tmp_path


def call(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(DUMMY, words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_run_that_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(GOOD, capsys) == (0, "", "")
    assert Path("run/metrics.jsonl").is_file()


@pytest.mark.parametrize(
    ("mode", "code", "line"),
    [
        ("fail", 1, "error: the loss is not finite"),
        ("refuse", 2, "error: the corpus is empty; give one with text"),
        ("full", 1, "error: No space left on device: model.bin"),
    ],
)
def test_a_failure_is_one_sentence(
    mode: str, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call([*GOOD, f"mode={mode}"], capsys) == (code, "", line + "\n")


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError, match="a defect"):
        main(DUMMY, [*GOOD, "mode=crash"])


def test_everything_that_is_wrong_is_told_and_nothing_is_created(
    empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model=bert/bsae", "optim=sdg", "stesp=3", "steps=0", "mode=on", "foo", "text=true"]
    code, out, err = call(words, capsys)
    lines = err.splitlines()
    assert (code, out) == (2, "")
    assert lines[:2] == [
        "error: `foo` must be key=value, but has no `=`",
        "error: model: there is no model `bert/bsae`; did you mean `bert/base`?",
    ]
    assert sorted(lines[2:-1]) == [
        "error: mode: must be one of ok, fail, refuse, crash, full or wait, but is 'on'; "
        "valid are: crash, fail, full, ok, refuse, wait",
        "error: optim.name: there is no optimiser `sdg`; did you mean `sgd`?",
        "error: run_dir: is required, but was not given",
        "error: steps: must be > 0, but is 0",
        "error: stesp: is not a known key; did you mean `steps`?",
        "error: text: must be a valid string, but is True",
    ]
    assert lines[-1].endswith("python dummy.py --help")
    assert list(empty.iterdir()) == []


def test_a_missing_model_lists_the_families(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(["run_dir=run"], capsys)
    assert code == 2
    assert "error: model: is required, but was not given; model=family/size, or" in err
    assert "bert/{tiny,mini,small,medium,base,large" in err


@pytest.mark.parametrize("word", ["wrappers=loora", "wrappers=[loora]", "wrappers.loora.rank=4"])
def test_a_misspelt_wrapper_is_refused_under_its_own_name(word: str) -> None:
    words = ["model=bert/tiny", "data.path=data", "run_dir=run", "trainer.steps=1", word]
    with pytest.raises(ConfigError) as raised:
        load_config(COMMANDS["pretrain"], words)
    (line,) = str(raised.value).splitlines()
    assert line == "wrappers.loora: there is no wrapper `loora`; did you mean `lora`?"


@pytest.mark.parametrize(
    ("command", "lines"),
    [
        ("pretrain", ["data: data.path (or data.mix) is required: documents that preprocess.py"]),
        ("finetune", ["data.train: is required"]),
        ("predict", ["data.test: is required"]),
        ("preprocess", ["corpus.path: is required"]),
    ],
)
def test_a_section_that_is_missing_is_told_by_its_keys(command: str, lines: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(COMMANDS[command], [])
    told = str(raised.value).splitlines()
    for line in lines:
        assert any(one.startswith(line) for one in told), told
    assert not any(one.startswith(("data: is required", "corpus: is required")) for one in told)


@pytest.mark.parametrize("word", ["steps=1,2", "model=bert/tiny,bert/mini", "optim=adamw,sgd"])
def test_several_values_without_the_flag(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = {item.partition("=")[0]: item for item in (*GOOD, word)}
    code, _, err = call(list(words.values()), capsys)
    assert code == 2
    assert "several values to try one after another need the flag -m" in err


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("--hlep", "did you mean `--help`?"),
        ("--steps=3", "keys have no dashes: `steps=3`"),
        ("--steps", "keys have no dashes: `steps=...`"),
        ("--cgf", "did you mean `--cfg`?"),
    ],
)
def test_an_unknown_flag(flag: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call([*GOOD, flag], capsys)
    assert code == 2
    assert err.startswith(f"error: `{flag}` is not a known flag; {hint}\n")


@pytest.mark.parametrize("flags", [["--cfg"], ["--cfg", "job"], ["--cfg=job"]])
def test_cfg_prints_the_whole_configuration(
    empty: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call([*GOOD, "text=no", "optim=sgd", *flags], capsys)
    assert (code, err) == (0, "")
    printed = yaml.safe_load(out)
    assert printed["optim"] == {"name": "sgd", "lr": 0.01, "momentum": 0.9}
    assert printed["text"] == "no"
    assert printed["steps"] == 1
    assert list(empty.iterdir()) == []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(["--version"], capsys)
    assert code == 0
    assert out.startswith("tencentpretrain 0.")
    assert "torch 2." in out


def test_paths_and_texts_stay_as_they_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["model=bert/tiny", "run_dir=1e3", "text=+7"], capsys)[0] == 0
    assert Path("1e3").is_dir()
    config = load_config(DUMMY, ["model=bert/tiny", "run_dir=a(1),b=c", "steps=1e1"])
    assert config.to_dict()["run_dir"] == "a(1),b=c"
    assert config.to_dict()["steps"] == 10


def write_plugin(folder: Path, name: str) -> None:
    source = """
        from tencentpretrain.config import ComponentConfig
        from tests.helpers.dummy_command import OPTIMIZERS

        class Mine:
            class Config(ComponentConfig):
                force: int = 3
        """
    (folder / f"{name}.py").write_text(textwrap.dedent(source))


def test_a_dotted_name_of_the_user_is_trusted(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_plugin(empty, "plugin_of_words")
    monkeypatch.syspath_prepend(empty)
    config = load_config(DUMMY, [*GOOD, "optim=plugin_of_words:Mine"])
    assert config.to_dict()["optim"] == {"name": "plugin_of_words:Mine", "force": 3}
    assert {"plugin_of_words"} == registry.TRUSTED


def test_plugins_are_imported_before_decoding(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_plugin(empty, "plugin_by_name")
    with (empty / "plugin_by_name.py").open("a") as file:
        file.write('\nOPTIMIZERS.register("of_plugin")(Mine)\n')
    monkeypatch.syspath_prepend(empty)
    config = load_config(DUMMY, [*GOOD, "plugins=[plugin_by_name]", "optim=of_plugin"])
    assert config.to_dict()["optim"]["force"] == 3


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("plugins=[no_such_plugin]", "cannot be imported: No module named 'no_such_plugin'"),
        ("plugins={a: 1}", "must be a list of packages"),
    ],
)
def test_bad_plugins(word: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call([*GOOD, word], capsys)
    assert code == 2
    assert err.startswith(f"error: plugins: {message}")


def test_an_error_before_the_start_is_a_refusal() -> None:
    def fail(error: UserError) -> None:
        with before_start():
            raise error

    with pytest.raises(DataError) as raised:
        fail(DataError("empty"))
    assert raised.value.exit_code == 2
    assert TrainingError("later").exit_code == 1


def script(folder: Path) -> Path:
    """A script that calls the dummy command, as pretrain.py calls its own."""
    path = folder / "dummy.py"
    path.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from tencentpretrain.cli import main\n"
        "from tests.helpers.dummy_command import DUMMY\n"
        "sys.exit(main(DUMMY))\n"
    )
    return path


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["model=bert/tiny", "run_dir=r"], 0, ""),
        (["model=bert/tiny", "run_dir=r", "mode=crash"], 1, "ZeroDivisionError: a defect"),
        (["model=bert/tiny", "run_dir=r", "stpes=1"], 2, "did you mean `steps`?"),
    ],
)
def test_exit_codes_of_a_process(tmp_path: Path, words: list[str], code: int, error: str) -> None:
    work = tmp_path / "work"
    work.mkdir()
    result = subprocess.run(
        [sys.executable, str(script(tmp_path)), *words],
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == code
    assert error in result.stderr
    assert ("Traceback" in result.stderr) == (code == 1)
    assert [path.name for path in work.iterdir()] == ([] if code else ["r"])


def test_an_early_end_of_the_reader_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} {script(tmp_path)} --help | head -n 1; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines() == ["Do nothing.", "0"]
    assert result.stderr == ""


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_names_what_exists(name: str) -> None:
    command = COMMANDS[name]
    assert (ROOT / command.script.removeprefix("python ")).is_file()
    keys = command.config_class().model_fields
    assert command.result is None or command.result in keys
    assert callable(command.run_function())


@pytest.mark.parametrize(
    ("name", "example"),
    [(name, example) for name in sorted(COMMANDS) for example in COMMANDS[name].examples],
)
def test_the_examples_of_help_are_sound(name: str, example: str) -> None:
    import shlex

    from tencentpretrain.sweep import plan

    words = [word for word in shlex.split(example) if word not in ("--cfg", "job")]
    command = COMMANDS[name]
    if "-m" in words:
        words.remove("-m")
        words = list(plan(command, words)[-1].words)
    assert isinstance(load_config(command, words), command.config_class())


ONE_OF_EACH = {name.split("/")[0]: name for name in group_options("model")}


@pytest.mark.parametrize("model", ONE_OF_EACH.values())
def test_a_model_of_every_family_is_a_sound_config(model: str) -> None:
    words = [f"model={model}", "run_dir=r", "data.path=d", "trainer.steps=9"]
    config = load_config(COMMANDS["pretrain"], words).to_dict()
    names = {target["name"] for target in config["model"]["target"].values()}
    assert names
    assert names <= {*TARGETS}


def test_commands_can_be_changed_for_a_toolkit_of_your_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(replace(DUMMY, summary="Mine."), ["--help"]) == 0
    assert capsys.readouterr().out.startswith("Mine.")
