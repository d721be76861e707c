# SPDX-License-Identifier: GPL-2.0-only
"""JUnit XML, for the viewers that every CI system has.

One suite for each MMU mode, and a last one that holds the verdict as a test case: a viewer counts
cases, and a run in which everything was skipped, or whose kernel complained between two tests,
must not look green to it. JUnit knows failure, error and skipped only, so the outcome itself is a
property of each test case: ``missing`` and ``error`` stay apart for those who look.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from harness.result.outcome import Outcome, TestOutcome
from harness.result.record import RunRecord
from harness.result.summary import closing_lines, failure_lines
from harness.result.verdict import Word

_INVALID = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, not even as a character reference (production 2, Char)."""

_ELEMENTS = {
    Outcome.FAIL: "failure",
    Outcome.ERROR: "error",
    Outcome.MISSING: "error",
    Outcome.SKIP: "skipped",
}


def as_junit(record: RunRecord) -> str:
    """junit.xml as text."""
    kinds = [outcome.outcome for outcome in record.outcomes]
    sums = _sums([*kinds, _as_outcome(record)], sum(item.seconds for item in record.outcomes))
    root = ET.Element("testsuites", {"name": "mmu-harness", **sums})
    for mmu in sorted({outcome.mmu for outcome in record.outcomes}):
        outcomes = [outcome for outcome in record.outcomes if outcome.mmu == mmu]
        suite = ET.SubElement(
            root,
            "testsuite",
            {
                "name": _valid(mmu or "no mode"),
                "timestamp": record.started.isoformat(timespec="seconds"),
                **_sums(
                    [outcome.outcome for outcome in outcomes],
                    sum(outcome.seconds for outcome in outcomes),
                ),
            },
        )
        _properties(
            suite,
            {
                "kernel": record.kernel.origin,
                "release": record.kernel.release or "",
                "verdict": record.verdict.word,
                "exit_code": str(int(record.verdict.exit_code)),
            },
        )
        for outcome in outcomes:
            _case(suite, outcome)
    _verdict(root, record)
    ET.indent(root)
    sink = io.BytesIO()
    ET.ElementTree(root).write(sink, encoding="utf-8", xml_declaration=True)
    return sink.getvalue().decode("utf-8") + "\n"


def _verdict(root: ET.Element, record: RunRecord) -> None:
    """The verdict as a suite of one case; what is neither PASS nor FAIL is an error to JUnit."""
    suite = ET.SubElement(root, "testsuite", {"name": "verdict", **_sums([_as_outcome(record)])})
    case = ET.SubElement(
        suite, "testcase", {"classname": "mmu-harness", "name": "verdict", "time": "0.000"}
    )
    if (element := _ELEMENTS.get(_as_outcome(record))) is not None:
        word = str(record.verdict.word)
        child = ET.SubElement(case, element, {"message": word, "type": word})
        child.text = _valid("\n".join(closing_lines(record)))


def _as_outcome(record: RunRecord) -> Outcome:
    words = {Word.PASS: Outcome.PASS, Word.FAIL: Outcome.FAIL}
    return words.get(record.verdict.word, Outcome.ERROR)


def _case(suite: ET.Element, outcome: TestOutcome) -> None:
    module, _, name = outcome.id.partition("::")
    case = ET.SubElement(
        suite,
        "testcase",
        {
            "classname": _valid(module.removesuffix(".py").replace("/", ".")),
            "name": _valid(name or outcome.id),
            "time": f"{outcome.seconds:.3f}",
        },
    )
    properties = {"outcome": str(outcome.outcome), "mmu": outcome.mmu, "backing": outcome.backing}
    for report in outcome.oracles:
        properties[f"oracle {report.name}"] = str(report.status)
    _properties(case, properties)
    if (element := _ELEMENTS.get(outcome.outcome)) is not None:
        first = outcome.message.partition("\n")[0] or str(outcome.outcome)
        child = ET.SubElement(case, element, {"message": _valid(first)})
        if element != "skipped":
            child.set("type", str(outcome.outcome))
            child.text = _valid("\n".join(failure_lines(outcome)))
    if outcome.log_excerpt:
        ET.SubElement(case, "system-out").text = _valid(outcome.log_excerpt)


def _properties(parent: ET.Element, values: dict[str, str]) -> None:
    properties = ET.SubElement(parent, "properties")
    for name, value in values.items():
        ET.SubElement(properties, "property", {"name": _valid(name), "value": _valid(value)})


def _sums(kinds: Sequence[Outcome], seconds: float = 0.0) -> dict[str, str]:
    def count(*wanted: Outcome) -> str:
        return str(sum(kind in wanted for kind in kinds))

    return {
        "tests": str(len(kinds)),
        "failures": count(Outcome.FAIL),
        "errors": count(Outcome.ERROR, Outcome.MISSING),
        "skipped": count(Outcome.SKIP),
        "time": f"{seconds:.3f}",
    }


def _valid(text: str) -> str:
    return _INVALID.sub("", text)
