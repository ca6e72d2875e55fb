"""One run of a comparison in a process of its own: `python -m dance.compare CONFIG.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dance.compare.running import DIVERGED, do
from dance.errors import DanceError
from dance.gan.config import RunConfig
from dance.launch import INTERRUPTED


def main(arguments: list[str]) -> int:
    try:
        config = RunConfig.from_json(json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
        return {"done": 0, "diverged": DIVERGED, "begun": INTERRUPTED}[do(config)]
    except KeyboardInterrupt:
        return INTERRUPTED
    except (DanceError, ValueError) as error:
        print(f"dance: {error}", flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
