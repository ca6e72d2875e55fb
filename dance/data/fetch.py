"""Downloads of data sets: checked by SHA-256, continued where they broke off, with progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dance.data.sources import BUILT_IN, SOURCES, fetch_folder, pooch_module
from dance.errors import DanceError

_TIMEOUT_S = 30
_CHUNK = 1 << 16


def fetch(name: str, *, show_progress: bool = True) -> Path:
    """Download a data set from its public home, checked by SHA-256; returns its folder.

    The files go to $DANCE_DATA/NAME, or to the cache folder where DANCE_DATA is not set. Files already there
    are kept. What a broken download left (FILE.part) is continued by the next one.
    """
    if name in BUILT_IN:
        raise ValueError(f"data {name!r} needs no download; use it as --data {name}")
    source = SOURCES.get(name)
    if source is None:
        raise ValueError(f"unknown data {name!r}; dance data fetch knows: {', '.join(SOURCES)}")
    pooch = pooch_module()
    folder = fetch_folder(source)
    pooch.get_logger().setLevel("ERROR")
    failures: list[str] = []
    for file, sha256 in source.sha256.items():
        for home in source.homes:
            try:
                with _bar(file, show_progress) as bar:
                    downloader = _Resuming(folder / f"{file}.part", bar)
                    pooch.retrieve(
                        home + file, f"sha256:{sha256}", fname=file, path=folder, downloader=downloader
                    )
                break
            except ValueError as error:  # what pooch raises for a wrong hash
                failures.append(
                    f"{home}{file}: the bytes are not the published ones ({str(error).splitlines()[0]})"
                )
            except OSError as error:  # requests' errors are OSErrors
                failures.append(f"{home}{file}: {_short(error)}")
        else:
            raise DanceError(
                f"data {name!r}: could not download {file} ({'; '.join(failures[-len(source.homes) :])}). "
                f"Check the network and call it again, or put the files {', '.join(source.sha256)} into "
                f"{folder} by hand; {source.hint}"
            )
    return folder


class _Resuming:
    """A downloader for pooch that keeps what has come in a file beside the target, and asks for the rest."""

    def __init__(self, part: Path, bar: _Bar) -> None:
        self.part = part
        self.bar = bar

    def __call__(self, url: str, output_file: str, _: Any) -> None:
        import requests

        have = self.part.stat().st_size if self.part.exists() else 0
        asked = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {}
        with requests.get(url, headers=asked, stream=True, timeout=_TIMEOUT_S) as answer:
            if (
                answer.status_code == 416
            ):  # there is no rest: it was whole, or it is no beginning of this file
                self.part.replace(output_file)
                return
            answer.raise_for_status()
            if answer.status_code != 206:  # a server that begins anew
                have = 0
            length = int(answer.headers.get("Content-Length") or 0)
            self.bar.begin(have, have + length if length else None)
            with open(self.part, "ab" if have else "wb") as file:
                for chunk in answer.iter_content(_CHUNK):
                    file.write(chunk)
                    self.bar.advance(len(chunk))
        size = self.part.stat().st_size
        if length and size < have + length:
            raise OSError(f"the connection broke off after {size} of {have + length} bytes")
        # From here on it is pooch's: a file with a wrong hash is deleted, and not continued.
        self.part.replace(output_file)


class _Bar:
    """A rich progress bar for one file."""

    def __init__(self, progress: Any, file: str) -> None:
        self._progress = progress
        self._task = progress.add_task(file, total=None)

    def begin(self, done: int, total: int | None) -> None:
        self._progress.update(self._task, completed=done, total=total)

    def advance(self, num_bytes: int) -> None:
        self._progress.advance(self._task, num_bytes)


@contextmanager
def _bar(file: str, show: bool) -> Iterator[_Bar]:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, disable=not show) as progress:
        yield _Bar(progress, file)


def _short(error: OSError) -> str:
    text = str(error)
    for sign in ("Max retries exceeded", "HTTPConnectionPool", "HTTPSConnectionPool"):
        if sign in text:
            return f"no connection ({type(error).__name__})"
    return text
