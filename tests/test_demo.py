"""The data of the demonstration, on a tiny library; `make demo` itself is run by people."""

import subprocess
import sys
from pathlib import Path

import pytest

from tencentpretrain.cli import main
from tencentpretrain.demo.command import DEMO, help_table
from tencentpretrain.demo.datasets import (
    SHARES,
    Row,
    label_docstrings,
    split_modules,
    write_corpus,
    write_table,
)
from tencentpretrain.demo.library import Module, read_library, read_module, split_sentences
from tencentpretrain.demo.report import Prediction, final_report, read_predictions, sample
from tencentpretrain.demo.run import DemoConfig, call, commands, prepare_directory, run_process
from tencentpretrain.errors import DataError, UserError
from tencentpretrain.help import table_file

WRITE = "the table is old; run: python -m tencentpretrain.demo.command"
SOURCE = '''#!/usr/bin/env python
# -*- coding: utf-8 -*-
"""First line of the module. And
a second sentence.

A paragraph."""

import os  # not a line of its own

# A comment of
# two lines.
TEXT = """
# not a comment but a string
"""


class Thing:
    """What a thing is."""

    # --------
    def run(self):  # noqa
        # type: ignore[misc]
        """How it runs."""
'''


def write_library(root: Path, packages: int = 11, modules: int = 4, functions: int = 10) -> Path:
    """Packages whose docstrings all differ, beside what must be left out."""
    for package in range(packages):
        for module in range(modules):
            file = root / f"package{package}" / f"module{module}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            names = (f"{package}_{module}_{function}" for function in range(functions))
            file.write_text(
                "\n".join(
                    f'def f_{name}():\n    """Do what function {name} has to do."""'
                    for name in names
                )
            )
    for folder in ("test", "package0/tests", "site-packages", "__pycache__"):
        (root / folder).mkdir(parents=True)
        (root / folder / "left_out.py").write_text('"""This docstring must be left out."""')
    (root / "single.py").write_text('"""A module in no package is only in the corpus."""\n')
    (root / "silent.py").write_text("x = 1\n")
    return root


def test_module_is_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(SOURCE)
    module = read_module(tmp_path / "a.py", "a")
    assert module.sentences == (
        "First line of the module.",
        "And a second sentence.",
        "A paragraph.",
        "A comment of two lines.",
        "What a thing is.",
        "How it runs.",
    )
    assert module.docstrings == (
        "First line of the module. And a second sentence. A paragraph.",
        "What a thing is.",
        "How it runs.",
    )


def test_broken_module_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def (:\n")
    with pytest.raises(DataError, match=r"broken\.py cannot be read as Python"):
        read_module(tmp_path / "broken.py", "broken")


def test_sentences_end_where_a_new_one_begins() -> None:
    text = "Use e.g. this one. Then that! (Or not.)\n=====\n\n    Indented\n    lines."
    assert split_sentences(text) == [
        "Use e.g. this one.",
        "Then that!",
        "(Or not.) =====",
        "Indented lines.",
    ]


def test_library_is_read_without_tests(tmp_path: Path) -> None:
    names = [module.name for module in read_library(write_library(tmp_path))]
    assert names == sorted(names)
    assert len(names) == 11 * 4 + 1
    assert "package3.module2" in names
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no Python module"):
        read_library(tmp_path / "empty")


def test_no_module_is_in_two_parts(tmp_path: Path) -> None:
    parts = label_docstrings(read_library(write_library(tmp_path)))
    modules = {part: {row.module for row in rows} for part, rows in parts.items()}
    assert modules["train"] | modules["dev"] | modules["test"] == {
        f"package{package}.module{module}" for package in range(11) for module in range(4)
    }
    assert sum(map(len, modules.values())) == 44
    for rows in parts.values():
        assert {row.label for row in rows} == {f"package{package}" for package in range(11)}
    assert sum(map(len, parts.values())) == 440


def test_repeated_short_and_rare_docstrings_are_left_out() -> None:
    def module(package: str, number: int, *texts: str) -> Module:
        return Module(f"{package}.m{number}", texts, texts)

    modules = [
        module(f"p{p}", m, *(f"One two three four {p} {m} {d}" for d in range(10)))
        for p in range(10)
        for m in range(3)
    ]
    modules += [module("p0", 3, "Said in two different modules, so left out")]
    modules += [module("p1", 3, "Said in two different modules, so left out", "Too short")]
    modules += [module("rare", m, f"One two three four rare {m}") for m in range(5)]
    rows = [row for part in label_docstrings(modules).values() for row in part]
    assert len(rows) == 300
    assert {row.label for row in rows} == {f"p{p}" for p in range(10)}
    with pytest.raises(DataError, match=r"needs 10 packages .* but the library has 9"):
        label_docstrings(modules[3:])


@pytest.mark.parametrize("sizes", [[100, 10, 10], [5, 5, 5, 5], [50, 40, 30, 20, 10, 1], [1, 1, 1]])
def test_split_fills_every_part(sizes: list[int]) -> None:
    chosen = split_modules({f"m{number}": size for number, size in enumerate(sizes)})
    assert len(chosen) == len(sizes)
    assert set(chosen.values()) == set(SHARES)
    assert chosen["m0"] == "train"


def test_files_are_what_the_commands_read(tmp_path: Path) -> None:
    write_corpus([Module("a", (), ("One.", "Two.")), Module("b", (), ("Three.",))], tmp_path / "c")
    assert (tmp_path / "c").read_text() == "One.\nTwo.\n\nThree.\n\n"
    write_table([Row("x", "Some text", "x.y")], tmp_path / "t.tsv")
    assert (tmp_path / "t.tsv").read_text() == "label\ttext_a\tmodule\nx\tSome text\tx.y\n"


def write_predictions(path: Path, answers: str) -> None:
    lines = [f"{answer}\t0.9\t0.9" for answer in answers]
    path.write_text("\n".join(["label\tprobability\tprobabilities.a", *lines]) + "\n")


def test_report_compares_predictions_with_rows(tmp_path: Path) -> None:
    rows = [Row(label, f"Text {label} " * 20, "m") for label in "aaab"]
    write_predictions(tmp_path / "predictions_with.tsv", "aaab")
    write_predictions(tmp_path / "predictions_without.tsv", "abbb")
    train = [*rows[3:], *rows[3:], rows[0]]
    lines = list(final_report(tmp_path, {"train": train, "test": rows}, {"one": 1.6, "two": 3}))
    report = "\n".join(lines)
    assert "with pre-training  100.0%\nwithout            50.0%\nmajority class     25.0%" in report
    assert "one  2\ntwo  3\nall  5" in report
    assert f"{tmp_path}/runs/with" in report
    assert "Text a Text a" in report
    with pytest.raises(DataError, match="must have 3 predictions, but has 4"):
        read_predictions(tmp_path / "predictions_with.tsv", rows[:3])


def test_sample_is_spread_over_all_predictions() -> None:
    predictions = [Prediction(str(number), 1.0, Row("", "", "")) for number in range(100)]
    assert [p.answer for p in sample(predictions, 4)] == ["12", "37", "62", "87"]
    assert len(sample(predictions[:3], 4)) == 3


def test_commands_of_the_demo_are_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {
        "scripts/build_vocab.py": "build_vocab",
        "preprocess.py": "preprocess",
        "pretrain.py": "pretrain",
        "finetune/run.py": "finetune",
        "finetune/predict.py": "predict",
    }
    called = list(commands(DemoConfig(output=tmp_path / "with space")).values())
    assert {words[0] for words in called} == set(names)
    for words in called:
        assert main(names[words[0]], [*words[1:], "--cfg"]) == 0, capsys.readouterr().err


def test_both_finetunings_have_the_same_settings() -> None:
    called = commands(DemoConfig()).values()
    with_, without = (set(words) for words in called if words[0] == "finetune/run.py")
    keys = {word.partition("=")[0] for word in with_ ^ without}
    assert keys == {"init", "model", "tokenizer", "tokenizer.vocab", "run_dir"}


def test_only_a_directory_of_the_demo_is_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="exists; choose another output"):
        prepare_directory(mine, overwrite=True)
    assert (mine / "thesis.txt").exists()
    prepare_directory(tmp_path / "demo", overwrite=False)
    (tmp_path / "demo" / "old").write_text("")
    with pytest.raises(UserError, match="overwrite=true"):
        prepare_directory(tmp_path / "demo", overwrite=False)
    prepare_directory(tmp_path / "demo", overwrite=True)
    assert not (tmp_path / "demo" / "old").exists()


def test_failing_step_ends_the_demo(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # Too few packages: the message is a sentence, and nothing further is run.
    library = write_library(tmp_path / "library", packages=2)
    assert main(DEMO, [f"output={tmp_path / 'demo'}", f"library={library}"]) == 1
    assert "the library has 2" in capfd.readouterr().err
    with pytest.raises(UserError, match="the step `vocabulary` ended with exit code 2"):
        call("vocabulary", ["scripts/build_vocab.py", "tokenizer=wordpiece"])


def test_exit_code_of_a_process_is_returned() -> None:
    assert run_process([sys.executable, "-c", "raise SystemExit(3)"]) == 3


def test_script_explains_its_keys() -> None:
    assert table_file(DEMO).read_text() == help_table(), WRITE
    script = Path(__file__).resolve().parents[1] / "scripts" / "demo.py"
    result = subprocess.run(
        [sys.executable, script, "--help"], capture_output=True, text=True, check=True
    )
    assert help_table().strip() in result.stdout
