"""What every benchmark needs: the data, the machine in words, and a place for results."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def shared_data() -> Path:
    """Folder of the real data sets."""
    folder = Path(os.environ.get("TENCENTPRETRAIN_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        sys.exit(f"the real data sets are not at {folder}; set TENCENTPRETRAIN_DATA")
    return folder


def environment() -> str:
    """Hardware, versions and date."""
    if torch.cuda.is_available():
        hardware = torch.cuda.get_device_name()
    else:
        hardware = f"{torch.cpu.get_capabilities().get('cpu_name', platform.processor())}"
        bf16 = "with" if torch.cpu.get_capabilities().get("avx512_bf16") else "without"
        hardware += f", {torch.get_num_threads()} threads, {bf16} avx512_bf16"
        hardware += " and amx_bf16" * bool(torch.cpu.get_capabilities().get("amx_bf16"))
    python = platform.python_version()
    return f"{datetime.date.today()}, {hardware}, Python {python}, torch {torch.__version__}"


def remembered(
    path: Path, key: Sequence[str], measure: Callable[[], dict[str, float]]
) -> dict[str, float]:
    """Figures that `path` holds for `key`; otherwise those that `measure` returns, kept there.

    The key says all that the figures depend on, such as the words of the command that was run.
    """
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["key"] == list(key):
            found: dict[str, float] = kept["figures"]
            return found
    figures = measure()
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(json.dumps({"key": list(key), "figures": figures}, indent=1))
    unfinished.replace(path)
    return figures


def write_result(name: str, command: str, lines: list[str]) -> None:
    """Print a result and keep it as benchmarks/results/<name>.md."""
    text = "\n".join([f"# {name}", "", environment(), "", f"`{command}`", "", *lines, ""])
    print(text)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
