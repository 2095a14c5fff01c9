"""`python -m lightning_lrnn`, the same as the command `lightning-lrnn`."""

import sys

from lightning_lrnn.cli import main

if __name__ == "__main__":
    sys.exit(main())
