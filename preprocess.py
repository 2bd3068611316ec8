"""Turn a corpus into shards: `python preprocess.py --help`."""

import sys

from tencentpretrain.cli import main

if __name__ == "__main__":
    sys.exit(main("preprocess"))
