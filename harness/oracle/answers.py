# SPDX-License-Identifier: GPL-2.0-only
"""How the answers of oracles are kept for one test, and a wrong one is raised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.errors import Violation
from harness.result.outcome import OracleReport, OracleStatus

SHOWN = 4
"""How many pages a message names; the record has more."""

_RECORDED = 64


class Answers:
    """What each oracle said in one test."""

    def __init__(self) -> None:
        self._reports: dict[str, OracleReport] = {}
        self._asked: dict[str, int] = {}

    @property
    def reports(self) -> tuple[OracleReport, ...]:
        """One report for each oracle that the test named, in the order of first mention."""
        return tuple(self._reports.values())

    def _judge(
        self,
        oracle: str,
        expected: str,
        wrong: Sequence[str],
        page: int | None = None,
        agreed: str = "as expected",
    ) -> None:
        """Record what an oracle saw, and raise Violation when anything is wrong."""
        if not wrong:
            self._record(OracleStatus.AGREES, oracle, expected, agreed)
            return
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        seen = "; ".join(wrong[:SHOWN]) + more
        detail = {"wrong": list(wrong[:_RECORDED]), "count": len(wrong)}
        self._record(OracleStatus.VIOLATED, oracle, expected, seen, detail)
        raise Violation(oracle, expected, seen, page)

    def _not_consulted(self, oracle: str, why: object) -> None:
        # What an oracle did say in the same test is not taken back by what it could not.
        if oracle not in self._reports:
            self._record(OracleStatus.NOT_CONSULTED, oracle, "", str(why))

    def _record(
        self,
        status: OracleStatus,
        oracle: str,
        expected: str,
        seen: str,
        detail: Mapping[str, object] | None = None,
    ) -> None:
        self._asked[oracle] = self._asked.get(oracle, 0) + 1
        detail = {"asked": self._asked[oracle], **(detail or {})}
        self._reports[oracle] = OracleReport(oracle, status, expected, seen, detail)
