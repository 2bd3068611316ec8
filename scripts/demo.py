"""Show what the toolkit does, from a corpus to predictions: `python scripts/demo.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package, without installing it

from tencentpretrain.cli import main
from tencentpretrain.demo.command import DEMO

if __name__ == "__main__":
    sys.exit(main(DEMO))
