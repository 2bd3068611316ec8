"""What holds for the project as a whole: dependencies, forbidden calls, sizes, commands in docs."""

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.__main__ import SPEED
from tencentpretrain.commands import COMMANDS
from tencentpretrain.configure import load_config
from tests.helpers.docs import PAGES, ROOT, shell_lines

PACKAGE = ROOT / "tencentpretrain"
OWN_CODE = [
    file
    for folder in ("tencentpretrain", "tests", "scripts", "finetune", "benchmarks", "docs")
    for file in sorted((ROOT / folder).rglob("*.py"))
] + [ROOT / "preprocess.py", ROOT / "pretrain.py"]
IMPORT_NAMES = {
    "hydra-core": {"hydra"},
    "pyyaml": {"yaml"},
    "pillow": {"PIL"},
    "scikit-learn": {"sklearn"},
    "pydantic": {"pydantic", "pydantic_core", "annotated_types"},
}
MAX_LINES = 400


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def project() -> dict[str, list[Requirement]]:
    """Ranges in pyproject.toml by group; the run-time ones are in the group ""."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"": table["dependencies"], **table["optional-dependencies"]}
    return {name: [Requirement(line) for line in lines] for name, lines in groups.items()}


def pins(name: str) -> dict[str, str]:
    """Version by package in a list of requirements."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith(("#", "-r"))]
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in found}


def named(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


@pytest.mark.parametrize(
    ("file", "group"), [("requirements.txt", ""), ("requirements-dev.txt", "dev")]
)
def test_d96_pinned_versions_are_those_of_pyproject(file: str, group: str) -> None:
    pinned, ranges = pins(file), project()[group]
    assert set(pinned) == named(ranges)
    for requirement in ranges:
        pinned_version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pinned_version), f"{requirement}, {pinned_version}"


def test_suite_runs_on_the_pinned_versions() -> None:
    installed = {name: version(name).partition("+")[0] for name in pins("requirements.txt")}
    assert installed == pins("requirements.txt")


def module_level_imports(tree: ast.Module) -> Iterator[str]:
    """Top-level names that importing a module imports; not those inside of functions."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending += ast.iter_child_nodes(node)


def test_package_imports_only_its_dependencies() -> None:
    allowed = {"tencentpretrain", *sys.stdlib_module_names}
    for name in named(project()[""]):
        allowed |= IMPORT_NAMES.get(name, {name.replace("-", "_")})
    found = {
        (relative(file), name)
        for file in PACKAGE.rglob("*.py")
        for name in module_level_imports(ast.parse(file.read_text(encoding="utf-8")))
        if name not in allowed
    }
    assert not found


def test_d48_every_module_imports_anywhere_without_development_packages(tmp_path: Path) -> None:
    development = named(project()["dev"]) | named(project()["zh"])
    code = """
import importlib, importlib.abc, pkgutil, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(f"{name} is not a run-time dependency")

sys.meta_path.insert(0, Absent())
import tencentpretrain
for module in pkgutil.walk_packages(tencentpretrain.__path__, "tencentpretrain."):
    importlib.import_module(module.name)
"""
    names = sorted(name.replace("-", "_") for name in development)
    result = subprocess.run(
        [sys.executable, "-c", code, *names],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


CALLED_BY_OTHERS = {
    *("ignore_aliases", "generate_state"),  # of PyYAML's dumper, of numpy's seeds
    *("tok_encode", "_loglikelihood_tokens", "loglikelihood_rolling", "generate_until"),
    *("request_stop", "to_vqgan"),  # for callbacks and scripts of users
}
"""Methods of classes of other packages, and what is offered without being used here."""


def test_d97_nothing_is_defined_that_nobody_uses() -> None:
    code = [file for file in OWN_CODE if not file.is_relative_to(ROOT / "tests")]
    words = Counter(
        word for file in code for word in re.findall(r"\w+", file.read_text(encoding="utf-8"))
    )
    unused = {
        f"{relative(file)}: {node.name}"
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and words[node.name] == 1
        and not node.name.startswith("__")
        and node.name not in CALLED_BY_OTHERS
        # What registers it calls it.
        and not any(isinstance(decorator, ast.Call) for decorator in node.decorator_list)
    }
    assert not unused


def dotted(node: ast.AST) -> str:
    """`torch.load` for the expression that says so, "" for any that is no dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def forbidden(tree: ast.Module) -> Iterator[str]:
    """What no file of the project may hold, with its line."""
    unpicklers = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
            yield from (f"{node.lineno}: imports {name}" for name in names & unpicklers)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").partition(".")[0] in unpicklers:
                yield f"{node.lineno}: imports from {node.module}"
            if any(alias.name == "*" for alias in node.names):
                yield f"{node.lineno}: imports everything from {node.module}"
        elif isinstance(node, ast.Call):
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if dotted(node.func) == "torch.load" and keywords.get("weights_only") != "True":
                yield f"{node.lineno}: torch.load unpickles without weights_only=True"
            is_load = dotted(node.func) in ("np.load", "numpy.load")
            if is_load and keywords.get("allow_pickle") != "False":
                yield f"{node.lineno}: np.load without allow_pickle=False"
        elif isinstance(node, ast.ExceptHandler) and swallows(node):
            yield f"{node.lineno}: catches everything and goes on"


def swallows(node: ast.ExceptHandler) -> bool:
    catches_all = node.type is None or dotted(node.type) == "BaseException"
    return catches_all and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))


@pytest.mark.parametrize("file", OWN_CODE, ids=relative)
def test_file_is_short_and_holds_nothing_forbidden(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    # Tests of hostile files must make them.
    is_test = file.is_relative_to(ROOT / "tests")
    assert is_test or not list(forbidden(ast.parse(text)))
    assert text.count("\n") <= MAX_LINES, "split the file by what it holds"


def test_forbidden_calls_are_found() -> None:
    code = (
        "import pickle\nfrom torch import *\nimport numpy as np\nnp.load('x')\ntorch.load('x')\n"
        "try:\n    x\nexcept:\n    pass\n"
    )
    lines = sorted(line.partition(":")[0] for line in forbidden(ast.parse(code)))
    assert lines == ["1", "2", "4", "5", "8"]


def commands_in_docs() -> list[tuple[str, str]]:
    """Commands of all pages, without those of docs/examples: test_docs.py runs them."""
    return [
        (relative(file), line)
        for file in PAGES
        for line in shell_lines(file.read_text(encoding="utf-8"))
        if not line.startswith("PYTHONPATH=docs/examples")
    ]


@pytest.mark.parametrize(("file", "line"), commands_in_docs())
def test_command_in_docs_is_accepted(file: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert next(word for word in words[1:] if "=" not in word) in targets
        return
    scripts = {command.script: command for command in COMMANDS.values()}
    command = scripts.get(" ".join(words[:2]).replace(".venv/bin/python", "python"))
    if command is None:
        files = [word for word in words if word.endswith(".py")]
        files += [f"{w.replace('.', '/')}.py" for before, w in pairwise(words) if before == "-m"]
        assert all((ROOT / name).is_file() for name in files)
        return
    if "-m" not in words and "--help" not in words:
        load_config(command, [word for word in words[2:] if not word.startswith("--")])


@pytest.mark.parametrize(("file", "line"), commands_in_docs())
def test_command_in_docs_leaves_the_models_alone(file: str, line: str) -> None:
    # In a checkout such a place may exist, and what lies there is taken for a model by its name.
    written = re.findall(r"\b(?:to|output|run_dir)=(\S+)", line)
    assert not [place for place in written if place.startswith("models")]


def test_docs_hold_the_commands_that_a_user_needs() -> None:
    readme = "\n".join(shell_lines((ROOT / "README.md").read_text(encoding="utf-8")))
    for command in COMMANDS.values():
        assert command.script in readme


@pytest.mark.parametrize("file", PAGES, ids=relative)
def test_links_in_docs_lead_somewhere(file: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", file.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (file.parent / link).exists()]
    assert not missing


def test_make_targets_are_explained() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", text, flags=re.MULTILINE)
    assert phony is not None
    explained = re.findall(r"^([a-z]+):.*## ", text, flags=re.MULTILINE)
    assert sorted(phony[1].split()) == sorted(explained)


def test_the_benchmarks_that_are_run_exist() -> None:
    files = [ROOT / "benchmarks" / f"{name.replace('.', '/')}.py" for name in SPEED]
    assert not [file for file in files if not file.is_file()]
