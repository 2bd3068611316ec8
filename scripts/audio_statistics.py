"""Compute statistics of sounds: `python scripts/average.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package, without installing it

from tencentpretrain.cli import main

if __name__ == "__main__":
    sys.exit(main("audio_statistics"))
