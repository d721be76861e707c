# SPDX-License-Identifier: GPL-2.0-only
"""Fetch a kernel or its source over https, and believe its digest only."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import IO

from harness.deadline import Deadline
from harness.errors import InfrastructureError, SourceError
from harness.kernel.reference import Download
from harness.progress import Progress
from harness.store import Store

_RECIPE = 1
_SECONDS = 3600.0
_SILENCE_SECONDS = 60.0
"""How long a server may send nothing."""

_CHUNK = 1 << 20
_GONE = (401, 403, 404, 410, 451)
"""Answers that another attempt will not change: the address is wrong, or not for us."""


def fetch(reference: Download, store: Store, progress: Progress) -> Path:
    """The file at the address, from the store if it was fetched before.

    Raises SourceError when the address has no such file or one with another digest, and
    InfrastructureError when the network or the server fails.
    """

    def make(directory: Path) -> None:
        with progress.phase(f"Fetch {reference.url}"):
            _load(reference, directory / reference.name, store, progress)

    # The digest says all: where the file came from does not matter later.
    key = {"recipe": _RECIPE, "sha256": reference.sha256, "name": reference.name}
    waiting = f"Another run fetches {reference.url}; waiting for it."
    entry = store.entry("download", key, make, waiting=lambda: progress.note(waiting))
    return entry / reference.name


def _load(reference: Download, path: Path, store: Store, progress: Progress) -> None:
    deadline = Deadline.after(_SECONDS, f"Fetching {reference.url}")
    total = hashlib.sha256()
    count = 0
    with _answer(reference.url) as answer, path.open("wb") as file:
        size = int(answer.headers.get("Content-Length") or 0)
        store.require_space(size, f"Fetching {reference.url}")
        while chunk := answer.read(_CHUNK):
            deadline.check()
            total.update(chunk)
            file.write(chunk)
            count += len(chunk)
            progress.update(f"{count / 1e6:.0f} of {size / 1e6:.0f} MB" if size else f"{count} B")
    if size and count < size:
        raise InfrastructureError(
            f"{reference.url} ended after {count} of {size} bytes; run it again."
        )
    if total.hexdigest() != reference.sha256:
        raise SourceError(
            f"{reference.url} is not what its digest promises: sha256 is {total.hexdigest()} "
            f"instead of {reference.sha256} ({count} bytes). The file was changed, or the digest "
            "belongs to another; ask whoever gave it to you."
        )


@contextlib.contextmanager
def _answer(url: str) -> Iterator[http.client.HTTPResponse]:
    """The server's answer, with errors in our words."""
    opener = urllib.request.build_opener(
        _OnlyHttps, urllib.request.HTTPSHandler(context=ssl.create_default_context())
    )
    try:
        with opener.open(url, timeout=_SILENCE_SECONDS) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        error.close()
        text = f"{url} cannot be fetched: the server says {error.code} {error.reason}."
        if error.code in _GONE:
            raise SourceError(f"{text} Check the address.") from error
        raise InfrastructureError(f"{text} Try again later.") from error
    except urllib.error.URLError as error:
        raise InfrastructureError(
            f"{url} cannot be fetched: {error.reason}. Check the network and the address."
        ) from error
    except (http.client.HTTPException, ssl.SSLError, TimeoutError, ConnectionError) as error:
        raise InfrastructureError(
            f"{url} cannot be fetched: {error or type(error).__name__}. Try again."
        ) from error


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    """Follows a server to other addresses, as long as those are https too."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage | Message,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The request to the new address; raises SourceError if that is not https."""
        if not newurl.lower().startswith("https://"):
            raise SourceError(
                f"{req.full_url} leads to {newurl}, which is not https; give another address."
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
