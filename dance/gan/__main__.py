"""One process of a run: `python -m dance.gan CONFIG.json [DATA]`, under torchrun's variables, is a node."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from dance.data import load
from dance.errors import DanceError
from dance.gan import RunConfig, run
from dance.launch import INTERRUPTED


def main(arguments: list[str]) -> int:
    try:
        config = RunConfig.from_json(json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
        data = load(arguments[1]) if len(arguments) > 1 else None
        return INTERRUPTED if run(config, data=data).interrupted else 0
    except (DanceError, ValueError) as error:
        print(f"dance: node {os.environ.get('RANK', '?')}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
