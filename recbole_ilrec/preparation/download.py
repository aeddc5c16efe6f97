"""One file over HTTP: resumed where an earlier try stopped, complete or absent."""

import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from recbole_ilrec.preparation.files import BLOCK, sync_folder


class DownloadError(Exception):
    """The file could not be had from this address now; what arrived stays in the ``.part`` file."""


def download_file(url: str, target: Path, *, timeout: float = 30.0) -> Path:
    """Fetch ``url`` to ``target`` unless it is there, with a progress bar.

    Bytes go to ``<target>.part``. A later call asks the server for the rest; a server that cannot do that sends
    everything again. The part becomes ``target`` when it has the length that the server named.

    Args:
        url: ``http(s)`` address.
        target: file to make; its folder is made too.
        timeout: seconds to wait for the server at a time.

    Raises:
        DownloadError: no connection, an answer other than success, or the connection broke.
    """
    if target.is_file():
        return target
    part = target.with_name(f"{target.name}.part")
    try:
        _fetch(url, part, timeout)
    except urllib.error.HTTPError as error:
        raise DownloadError(f"{url} answers {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise DownloadError(f"{url} cannot be reached ({error.reason})") from None
    except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise DownloadError(f"{url} broke off ({error or type(error).__name__})") from None
    os.replace(part, target)
    sync_folder(target.parent)
    return target


def _fetch(url: str, part: Path, timeout: float) -> None:
    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        # The part is complete (its rename was cut off), or longer than the file and so of another version.
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return
        part.unlink()
        return _fetch(url, part, timeout)
    with answer:
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        start = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        part.parent.mkdir(parents=True, exist_ok=True)  # only now: without an answer nothing is made
        with (
            part.open("ab" if resumed else "wb") as stream,
            tqdm(total=total, initial=start, desc=part.stem, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while block := answer.read(BLOCK):
                stream.write(block)
                bar.update(len(block))
            stream.flush()
            os.fsync(stream.fileno())
    if total is not None and part.stat().st_size != total:
        raise ConnectionError(f"{part.stat().st_size:,} of {total:,} bytes arrived")
