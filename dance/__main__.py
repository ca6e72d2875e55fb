"""`python -m dance`, also under torchrun: the command line."""

from __future__ import annotations

import sys

from dance.cli import main

if __name__ == "__main__":
    sys.exit(main())
