# SPDX-License-Identifier: GPL-2.0-only
"""Claims about the notifiers themselves, by secondary MMUs in software."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence

import numpy as np

from harness.errors import ProbeError
from harness.guest.user import Access, Callback, Device, HeldDevice, NotifierUser
from harness.oracle import callbacks as judged
from harness.oracle.evidence import Evidence
from harness.oracle.settle import settled

_ORDER = "callbacks"
_TLB = "secondary TLB"
_NOT_FREE = "no entry of a page that is free"


class SecondaryEvidence(Evidence):
    """What the oracles said in a test with secondary MMUs that are not KVM."""

    def well_told(
        self, device: Device | HeldDevice, before: Sequence[Callback] = ()
    ) -> tuple[Callback, ...]:
        """Its callbacks came in order and in pairs, and before any page was free; what they were.

        ``before`` are those that it was asked for already. What is under way is given time to end:
        the OOM reaper goes on when its victim is gone. Raises ProbeError when there was no room for
        all of them.
        """
        calls, state = list(before), dict[str, int]()

        def wrong() -> tuple[str, ...]:
            calls.extend(device.callbacks())
            state.update(device.state())
            self.complete(state)
            return (*judged.out_of_order(calls), *judged.unbalanced(state))

        left = settled(wrong, self._patience())
        self._judge(_ORDER, "each start with its end", left, agreed=f"{len(calls)} calls")
        self.not_freed_early(state)
        return tuple(calls)

    def not_freed_early(self, state: Mapping[str, int]) -> None:
        """No page was free before the device was told to drop it from its TLB."""
        agreed = f"{state['hits']} hits, {state['misses']} misses, {state['retries']} retries"
        self._judge(_TLB, _NOT_FREE, judged.freed_early(state), agreed=agreed)

    def complete(self, state: Mapping[str, int]) -> None:
        """Raise ProbeError unless the device recorded all that it should."""
        if state["lost"]:
            raise ProbeError(f"The device had no room for {state['lost']} records.")

    def told_of(
        self,
        user: NotifierUser,
        calls: Sequence[Callback],
        first: int = 0,
        pages: int | None = None,
    ) -> None:
        """Starts among the calls cover each page of a range."""
        count = user.pages - first if pages is None else pages
        covered = judged.told(calls, user.hva, user.pages)[first : first + count]
        missed = first + np.flatnonzero(~covered)
        wrong = [f"{len(missed)} pages were not, the first is {missed[0]}"] if len(missed) else []
        self._judge(
            "notifier",
            f"invalidate_range_start for pages {first} to {first + count - 1}",
            wrong,
            page=int(missed[0]) if len(missed) else None,
            agreed=f"{len(calls)} calls",
        )

    def granted(self, what: str, access: Access) -> tuple[int, ...]:
        """The device was let do something; the words that it read."""
        if access.refused == errno.ESTALE:
            wrong = [f"page {access.done} was free while its entry was in the TLB"]
            self._judge(_TLB, _NOT_FREE, wrong, page=access.done)
        wrong = [f"errno {access.refused} at page {access.done}"] if access.refused else []
        page = access.done if access.refused else None
        self._judge("access", f"the device to get through {what}", wrong, page=page)
        return access.words

    def denied(self, what: str, access: Access, page: int) -> None:
        """The primary MMU refused the device the access to ``page``."""
        wrong = []
        if not access.refused:
            saw = f", and read {access.words[0]:#x}" if access.words else ""
            wrong.append(f"the access went through{saw}")
        elif access.done != page:
            wrong.append(f"page {access.done} was refused already")
        self._judge("access", f"{what} to be refused", wrong, page=page)

    def counted(self, what: str, expected: int, seen: int) -> None:
        """A counter of a device is exactly as expected."""
        wrong = [] if seen == expected else [f"{seen}"]
        self._judge(_ORDER, f"{expected} {what}", wrong, agreed=f"{seen}")

    def same_calls(self, devices: Sequence[Sequence[Callback]]) -> None:
        """Notifiers on the same memory were told the same in the same order."""
        first = [_told(call) for call in devices[0]]
        wrong = [
            f"notifier {number} was told {len(calls)} times and not {len(first)}, or otherwise"
            for number, calls in enumerate(devices)
            if [_told(call) for call in calls] != first
        ]
        self._judge(
            _ORDER, "all notifiers to be told the same", wrong, agreed=f"{len(first)} calls"
        )


def _told(call: Callback) -> tuple[object, ...]:
    return call.what, call.start, call.end, call.pid, call.blockable
