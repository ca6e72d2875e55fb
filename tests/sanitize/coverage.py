"""Prints the line coverage of each file of gcovr's summary; the frame and the decoders need 95 %."""

from __future__ import annotations

import json
import sys
from pathlib import Path

LEAST = 95.0
HELD = ("csrc/frame/", "csrc/codec_api.cpp", "csrc/codecs/", "csrc/cpu/")
# The choice of a CPU target neither decodes nor parses, and refuses only on a CPU that lacks one.
EXCEPT = ("csrc/cpu/dispatch.cpp", "csrc/cpu/targets.cpp")


def main(summary: str) -> int:
    low = []
    for file in sorted(json.loads(Path(summary).read_text())["files"], key=lambda file: file["filename"]):
        name, percent = file["filename"], file["line_percent"]
        if not file["line_total"]:
            continue
        held = name.startswith(HELD) and name not in EXCEPT
        print(f"{name:40} {file['line_covered']:5} of {file['line_total']:5} lines  {percent:6.1f} %")
        if held and percent < LEAST:
            low.append(name)
    fine = f"at least {LEAST:g} %: {', '.join(HELD)}, without {', '.join(EXCEPT)}"
    print(f"below {LEAST:g} %: {', '.join(low)}" if low else fine)
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
