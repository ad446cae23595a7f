"""Trains SetCrop on one process or many.

    accelerate launch examples/train_setcrop.py --config examples/configs/gaic.yaml --data DIR --output_dir OUT

Options of the command line override those of the file; `--help` lists them.
"""

from __future__ import annotations

import sys

from modeling_setcrop.training.engine import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], prog="train_setcrop.py"))
