"""One verified, resumable, atomic download; pooch checks the hash and shows the file only then.

A download is written to ``<name>.part``. When the connection drops, the part stays, and the next
try asks for the rest with ``Range: bytes=<size of the part>-``.
"""

from __future__ import annotations

import os
from pathlib import Path

from structdiff.errors import StructDiffError

_CHUNK = 1 << 13  # at most this much is sent twice after a dropped connection
_ATTEMPTS = 3


class DownloadError(StructDiffError):
    """A file that cannot be reached, or that arrived with the wrong hash."""


def download(url: str, sha256: str, folder: Path, *, progress: bool = True) -> Path:
    """Download ``url`` into ``folder`` unless it is there; resume what was interrupted.

    Parameters
    ----------
    url
        Public address.
    sha256
        What the file must hash to.
    folder
        Where it goes; made if it does not exist.
    progress
        Whether to draw a progress bar on standard error.

    Returns
    -------
    Path
        The complete file, its hash verified.

    Raises
    ------
    DownloadError
        The address cannot be reached or the connection keeps dropping (what came is kept and
        resumed by the next call), or the file has the wrong hash (nothing is kept).
    """
    import pooch
    import requests

    folder.mkdir(parents=True, exist_ok=True)
    name = f"{sha256[:16]}-{url.rsplit('/', 1)[-1]}"
    partial = folder / f"{name}.part"

    def resume(url: str, output_file: str, _: object) -> None:
        _append_until_complete(url, partial, progress)
        os.replace(partial, output_file)

    pooch.get_logger().setLevel("WARNING")
    try:
        return Path(
            pooch.retrieve(
                url, known_hash=f"sha256:{sha256}", fname=name, path=folder, downloader=resume
            )
        )
    except requests.RequestException as error:
        kept = partial.stat().st_size if partial.is_file() else 0
        state = f"; {kept:,} bytes are kept and the next try resumes there" if kept else ""
        raise DownloadError(f"could not download {url} ({_reason(error)}){state}") from error
    except ValueError as error:  # pooch's word for a wrong hash; it has deleted the file
        raise DownloadError(
            f"{url} arrived damaged or was changed at its source (sha256 should be {sha256}); "
            "nothing was kept"
        ) from error


def _append_until_complete(url: str, partial: Path, progress: bool) -> None:
    """Append to ``partial``; a connection that drops on the way is taken up again."""
    import requests

    dropped = (
        requests.ConnectionError,
        requests.Timeout,
        requests.exceptions.ChunkedEncodingError,
    )
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _append(url, partial, progress)
            return
        except dropped:
            if attempt == _ATTEMPTS or not partial.is_file():
                raise


def _append(url: str, partial: Path, progress: bool) -> None:
    import requests
    from tqdm import tqdm

    start = partial.stat().st_size if partial.is_file() else 0
    # A compressed transfer would make byte positions meaningless.
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with requests.get(url, headers=headers, stream=True, timeout=30) as response:
        if start and response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # nothing is left to send: the part is complete, and its hash will tell
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            start = 0  # this server sends the whole file again
        remaining = int(response.headers.get("Content-Length", 0))
        with (
            open(partial, "ab" if start else "wb") as out,
            tqdm(
                total=start + remaining or None,
                initial=start,
                unit="B",
                unit_scale=True,
                desc=url.rsplit("/", 1)[-1],
                disable=not progress,
            ) as bar,
        ):
            for chunk in response.iter_content(_CHUNK):
                out.write(chunk)
                bar.update(len(chunk))


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words: connection errors nest four deep."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error) or type(error).__name__
