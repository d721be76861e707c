# SPDX-License-Identifier: GPL-2.0-only
"""A report for KCIDB, the common database of kernel test results, in schema 5.3.

One checkout, one build of it, a test for each scenario in each MMU mode, and above them the test
``mmu_harness`` with the verdict. Its statuses are ours by other names: ERROR is a test that broke,
MISS one that the harness never ran. The origin is ``mmu_harness``; who submits to the database
has a name of their own there, and puts it in its place.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex

from harness.errors import ExitCode
from harness.result.outcome import OracleReport, Outcome, TestOutcome, run_word
from harness.result.record import RunRecord, as_json
from harness.result.summary import numbered
from harness.result.text import EXCERPT_LIMIT, Json, one_line, plain, printable

ORIGIN = "mmu_harness"

_STATUS = {
    Outcome.PASS: "PASS",
    Outcome.FAIL: "FAIL",
    Outcome.ERROR: "ERROR",
    Outcome.MISSING: "MISS",
    Outcome.SKIP: "SKIP",
}
_VERDICT = {ExitCode.PASS: "PASS", ExitCode.FAIL: "FAIL", ExitCode.UNTESTABLE: "ERROR"}
"""Every other code says that the harness did not get to a verdict: MISS."""


def as_kcidb(record: RunRecord) -> str:
    """kcidb.json as text."""
    return json.dumps(report(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def report(record: RunRecord) -> Json:
    """The report as plain data; the same record gives the same ids."""
    # Not the time alone: two runs may start in the same second.
    digest = hashlib.sha256(as_json(record).encode("utf-8", "backslashreplace")).hexdigest()
    run = f"{ORIGIN}:{record.started.strftime('%Y%m%dT%H%M%SZ')}-{digest[:16]}"
    tests = [_test(record, outcome, run, number) for number, outcome in enumerate(record.outcomes)]
    return plain(
        {
            "version": {"major": 5, "minor": 3},
            "checkouts": [_checkout(record, run)],
            "builds": [_build(record, run)],
            "tests": [_verdict(record, run), *tests],
        }
    )


def _checkout(record: RunRecord, run: str) -> dict[str, object]:
    kernel = record.kernel
    comment = f"{kernel.origin} {kernel.release or ''}".rstrip()
    if kernel.control:
        comment += f", with the guarantee {kernel.control} broken on purpose"
    checkout: dict[str, object] = {
        "id": run,
        "origin": ORIGIN,
        "comment": one_line(comment),
        "start_time": record.started.isoformat(),
        "misc": {"reference": kernel.origin, "patches": kernel.patches, "control": kernel.control},
    }
    if not kernel.patches:
        checkout["patchset_hash"] = ""
    if kernel.image_digest is not None:
        checkout["valid"] = True
    return checkout


def _build(record: RunRecord, run: str) -> dict[str, object]:
    kernel = record.kernel
    build: dict[str, object] = {
        "id": run,
        "checkout_id": run,
        "origin": ORIGIN,
        "architecture": "x86_64",
        "comment": one_line(kernel.release or kernel.origin),
        "misc": {
            "image_sha256": kernel.image_digest,
            "config_sha256": kernel.config_digest,
            "symbols": kernel.symbols,
        },
    }
    if kernel.image_digest is not None:
        build["status"] = "PASS"
    elif record.verdict.exit_code is ExitCode.UNTESTABLE:
        build["status"] = "FAIL"
        build["log_excerpt"] = _excerpt("\n".join(record.problems))
    else:
        build["status"] = "MISS"
    return build


def _verdict(record: RunRecord, run: str) -> dict[str, object]:
    verdict = record.verdict
    crashes = [crash.excerpt for host in record.hosts for crash in host.evidence.crashes]
    return {
        **_base(record, run, f"{run}-verdict"),
        "path": ORIGIN,
        "comment": f"{verdict.word} (exit code {int(verdict.exit_code)})",
        "status": _VERDICT.get(verdict.exit_code, "MISS"),
        "start_time": record.started.isoformat(),
        "duration": record.seconds,
        "log_excerpt": _excerpt("\n".join((*verdict.reasons, *crashes))),
        "misc": {
            "command": shlex.join(record.command),
            "exit_code": int(verdict.exit_code),
            "counts": record.counts(),
        },
    }


def _test(record: RunRecord, outcome: TestOutcome, run: str, number: int) -> dict[str, object]:
    test: dict[str, object] = {
        **_base(record, run, f"{run}-{number}", outcome.mmu),
        "path": _path(outcome),
        "comment": numbered(outcome),
        "status": _STATUS[outcome.outcome],
        "duration": outcome.seconds,
        "misc": {
            "id": outcome.id,
            "outcome": outcome.outcome,
            "backing": outcome.backing,
            "message": outcome.message,
            "oracle": outcome.oracle,
            "page": outcome.page,
            "oracles": [_oracle(one) for one in outcome.oracles],
            "command": shlex.join(outcome.command),
        },
    }
    if outcome.started is not None:
        test["start_time"] = outcome.started.isoformat()
    if outcome.outcome not in (Outcome.PASS, Outcome.SKIP):
        test["log_excerpt"] = _excerpt(f"{outcome.message}\n{outcome.log_excerpt}".strip())
    return test


def _base(record: RunRecord, run: str, id_: str, mmu: str | None = None) -> dict[str, object]:
    machine = record.machine
    how = f"QEMU with {machine.accelerator}" if machine.accelerator else "no accelerator"
    return {
        "id": id_,
        "build_id": run,
        "origin": ORIGIN,
        "environment": {
            "comment": one_line(f"{how} on {machine.machine}, {machine.cpus} CPUs"),
            "misc": {
                "accelerator": machine.accelerator,
                "mmu": mmu,
                "versions": machine.versions,
            },
        },
    }


def _oracle(oracle: OracleReport) -> dict[str, object]:
    # Without the detail, which may hold thousands of pages.
    return {
        "name": oracle.name,
        "status": oracle.status,
        "expected": oracle.expected,
        "seen": oracle.seen,
    }


def _path(outcome: TestOutcome) -> str:
    """The place in the tree of tests: origin, mode, file, function and parameters."""
    file, _, name = outcome.id.rpartition("::")
    file = file.rpartition("/")[2].removesuffix(".py")
    function, _, parameters = name.partition("[")
    if outcome.repetition:
        # The same test each time, to a database that counts by path.
        parameters = re.sub(rf"-{run_word(outcome.repetition)}(?=-|\])", "", parameters)
    parts = [
        ORIGIN,
        outcome.mmu or "no_mode",
        file.removeprefix("test_"),
        function.removeprefix("test_"),
        parameters.removesuffix("]"),
    ]
    return ".".join(re.sub(r"[^A-Za-z0-9_-]+", "_", part) for part in parts if part)


def _excerpt(text: str) -> str:
    # A little less than the limit: what says that something is left out needs room too.
    return printable(text, EXCERPT_LIMIT - 64)
