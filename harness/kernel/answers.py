# SPDX-License-Identifier: GPL-2.0-only
"""Remember what a program answered, for as long as the files that it reads stay the same.

apt takes 0.2 s for each question, and a kernel that is built is to be found in no more than that.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from harness.kernel.fingerprint import write_atomically


class Answers:
    """The answers in the file ``path``; all are forgotten when something in ``places`` changes.

    Of a directory, what lies right in it is looked at. Empty answers are not kept: what is not
    known yet may be known the next time.
    """

    def __init__(self, path: Path, places: Iterable[Path]) -> None:
        self._path = path
        self._places = tuple(places)

    def ask(self, question: Sequence[str], program: Callable[[], str]) -> str:
        """What was answered to a question before, or else what ``program`` returns."""
        key = "\0".join(question)
        before = self._stamp()
        known = self._known(before)
        if key not in known:
            answer = program()
            # What changed while the program ran belongs to no stamp.
            if not answer or self._stamp() != before:
                return answer
            known[key] = answer
            write_atomically(self._path, json.dumps({"stamp": before, "answers": known}))
        return known[key]

    def _known(self, stamp: list[list[object]]) -> dict[str, str]:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads(self._path.read_text())
            if said["stamp"] == stamp:
                return dict(said["answers"])
        return {}

    def _stamp(self) -> list[list[object]]:
        found: list[list[object]] = []
        for place in self._places:
            inside = sorted(place.iterdir()) if place.is_dir() else [place]
            for path in inside:
                with contextlib.suppress(OSError):
                    status = path.stat()
                    found.append([str(path), status.st_size, status.st_mtime_ns, status.st_ino])
        return found
