"""Pre-train a model: `python pretrain.py --help`."""

import sys

if __name__ == "__main__":
    # Imported here, because worker processes import this file too and need none of it.
    from tencentpretrain.cli import main

    sys.exit(main("pretrain"))
