"""The examples in the docs are files that run, and its tables hold what there is."""

import importlib
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch

from tencentpretrain import registry
from tencentpretrain.cli import main
from tencentpretrain.commands import COMMANDS
from tencentpretrain.data.objectives import OBJECTIVES
from tencentpretrain.encoders.base import ENCODERS
from tencentpretrain.layers.dropout import Dropout
from tencentpretrain.model_files import families, model_names
from tencentpretrain.sizes import Sizes
from tencentpretrain.targets.base import TARGETS
from tencentpretrain.tasks.base import TASKS
from tencentpretrain.tokenizers.base import TOKENIZERS
from tests.helpers.docs import EXAMPLE, PAGES, ROOT, shell_lines, with_examples
from tests.helpers.models import layout_of
from tests.helpers.pretraining import metrics, write_shards

README = ROOT / "README.md"
EXAMPLES = ROOT / "docs" / "examples"
EXTENDING = ROOT / "docs" / "extending.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_holds_the_examples_as_they_are(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == with_examples(text), "run: python -m tests.helpers.docs"


def test_every_example_is_on_a_page() -> None:
    pages = [page.read_text(encoding="utf-8") for page in PAGES if page.parent == EXTENDING.parent]
    shown = {match[1] for page in pages for match in EXAMPLE.finditer(page)}
    assert shown == {f"docs/examples/{file.name}" for file in EXAMPLES.glob("*.*")}


def readme_rows() -> dict[str, str]:
    """Rows of the README's tables by the names in their first column."""
    found: dict[str, str] = {}
    for names, rest in re.findall(r"^\| (`.*?) \| (.*) \|$", README.read_text(), re.MULTILINE):
        for name in re.findall(r"`(.*?)`", names):
            found.setdefault(name, rest)  # `albert` is a family first, then an objective
    return found


def test_readme_lists_every_model() -> None:
    rows = readme_rows()
    for family, sizes in families(model_names([ROOT / "models"])).items():
        assert sorted(rows[family].partition(" |")[0].split(", ")) == sorted(sizes)


@pytest.mark.parametrize("components", [OBJECTIVES, TASKS, TOKENIZERS])
def test_readme_lists_every_component(components: Iterable[str]) -> None:
    assert set(components) <= set(readme_rows())


def command_of(example: str, script: str) -> list[str]:
    """Words of the command on the page that uses `example`."""
    lines = shell_lines(EXTENDING.read_text(encoding="utf-8"))
    line = next(line for line in lines if f"plugins=[{example}]" in line and script in line)
    environment, *words = shlex.split(line)
    assert environment == "PYTHONPATH=docs/examples"
    assert " ".join(words).startswith(script)
    return words[len(script.split()) :]


@pytest.fixture
def with_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes the examples importable, and lets other tests see nothing of them."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(registry, "TRUSTED", set())
    for known in (ENCODERS, TARGETS, OBJECTIVES, TASKS):
        list(known)  # loads the built-in ones first
        monkeypatch.setattr(known, "_classes", dict(known._classes))
    yield
    for file in EXAMPLES.glob("*.py"):
        sys.modules.pop(file.stem, None)


@pytest.fixture
def run_example(with_plugins: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command of an example with some of its words changed."""
    monkeypatch.chdir(ROOT)

    def run(example: str, command: str, *changed: str) -> int:
        keys = {word.partition("=")[0] for word in changed}
        words = command_of(example, COMMANDS[command].script)
        kept = [word for word in words if word.partition("=")[0] not in keys]
        return main(command, [*kept, *changed])

    return run


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("docs"))


@pytest.mark.parametrize(
    ("example", "kind", "changed"),
    [
        ("own_encoder", "encoder: ", []),
        ("own_target", "target.mlm: ", ["model.encoder.layers=1"]),
        ("own_objective", "objective: ", ["model.encoder.layers=1"]),
    ],
)
def test_pretraining_example_trains(
    run_example: Callable[..., int],
    shards: Path,
    tmp_path: Path,
    example: str,
    kind: str,
    changed: list[str],
) -> None:
    code = run_example(
        *(example, "pretrain", f"data.path={shards}", f"run_dir={tmp_path / 'run'}"),
        *("trainer.steps=20", "trainer.batch_size=8", "trainer.log_every=10", "optim.lr=5e-3"),
        *("model.hidden=16", "data.holdout=0.1", "parallel.device=cpu", *changed),
    )
    assert code == 0
    losses = [
        record["train/loss"] for record in metrics(tmp_path / "run") if "train/loss" in record
    ]
    assert losses[-1] < losses[0]


def write_stars(path: Path, count: int) -> None:
    """Texts of one word again and again, which decides the mark."""
    rows = [f"{number % 5 + 1}\t{f'w{number % 5} ' * (number % 4 + 2)}" for number in range(count)]
    path.write_text("\n".join(["label\ttext_a", *rows]) + "\n", encoding="utf-8")


def test_task_example_learns_and_predicts(
    run_example: Callable[..., int], shards: Path, tmp_path: Path
) -> None:
    for name, count in {"train": 200, "dev": 40, "test": 10}.items():
        write_stars(tmp_path / f"{name}.tsv", count)
    model = ["init=none", "model=bert/tiny", "model.hidden=32", "model.encoder.layers=1"]
    code = run_example(
        *("own_task", "finetune", *model, "tokenizer=wordpiece"),
        *(f"tokenizer.vocab={shards.parent / 'vocab30.txt'}", "parallel.device=cpu"),
        *(f"data.train={tmp_path / 'train.tsv'}", f"data.dev={tmp_path / 'dev.tsv'}"),
        *("trainer.steps=60", "trainer.eval_every=60", "optim.lr=5e-3", "model.init.std=0.2"),
        *("task.length=8", f"run_dir={tmp_path / 'run'}"),
    )
    assert code == 0
    assert metrics(tmp_path / "run")[-1]["eval/error"] < 0.5
    code = run_example(
        *("own_task", "predict", f"checkpoint={tmp_path / 'run'}", "device=cpu"),
        *(f"data.test={tmp_path / 'test.tsv'}", f"output={tmp_path / 'stars.tsv'}"),
    )
    assert code == 0
    header, *stars = (tmp_path / "stars.tsv").read_text().splitlines()
    assert header == "stars"
    assert [round(float(mark)) for mark in stars] == [1, 2, 3, 4, 5] * 2


def test_encoder_example_never_reads_padding(with_plugins: None) -> None:
    importlib.import_module("own_encoder")
    encoder = ENCODERS.build(ENCODERS.default("convolution"), Sizes(16, 16, 10)).eval()
    assert any(isinstance(module, Dropout) for module in encoder.modules())
    hidden = torch.randn(2, 12, 16)
    short = encoder(hidden[:, :8], layout_of([8, 5])).states
    long = encoder(hidden, layout_of([8, 5], width=12)).states
    torch.testing.assert_close(long[:, :8], short)
