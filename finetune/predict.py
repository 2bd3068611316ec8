"""Predict with a fine-tuned model: `python finetune/predict.py --help`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tencentpretrain.cli import main

    sys.exit(main("predict"))
