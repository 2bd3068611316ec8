"""Pre-train a model: `python pretrain.py --help`."""

import sys

from tencentpretrain.cli import main

if __name__ == "__main__":
    sys.exit(main("pretrain"))
