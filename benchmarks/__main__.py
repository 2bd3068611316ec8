"""All speed benchmarks, one after another: `python -m benchmarks [NAME ...]`, or `make bench`.

`python -m benchmarks.quality` measures quality, which takes much longer.
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks.common import ROOT

SPEED = (
    *(
        "train_step",
        "preprocess",
        "loader",
        "image_loader",
        "audio_loader",
        "checkpoint",
        "parallel",
        "start",
        "generate",
        "lm_memory",
    ),
    "methods.lora_cost",
)


def main() -> int:
    failed = [
        name
        for name in sys.argv[1:] or SPEED
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=ROOT).returncode
    ]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
