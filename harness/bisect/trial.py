# SPDX-License-Identifier: GPL-2.0-only
"""What one check of one commit said, read from its results.json and from nothing else."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

from harness.errors import KERNEL_LOG, ExitCode, HarnessError, MachineUnfitError, UsageError

HOST = "host"
"""Stands for a test where the kernel's log complained outside of any."""


class Finding(enum.StrEnum):
    """What a check says about the failure that is looked for."""

    FAILS = "fails"
    PASSES = "passes"
    OTHERWISE = "fails otherwise"
    UNTESTABLE = "untestable"
    INFRASTRUCTURE = "infrastructure"


class Purpose(enum.StrEnum):
    """Why a commit was checked."""

    MEASURE = "measure"
    STEP = "step"
    CONFIRM = "confirm"


@dataclasses.dataclass(frozen=True, order=True)
class Kind:
    """A kind of failure: which test, under which MMU mode, and which oracle noticed."""

    test: str
    mmu: str
    oracle: str

    def __str__(self) -> str:
        return f"{self.oracle} in {self.test}"


@dataclasses.dataclass(frozen=True)
class Trial:
    """One check of a commit on fresh boots.

    ``kinds`` are all failures that it saw, whether looked for or not. ``binary`` identifies what
    was booted, None where that is not known; ``results`` is the directory of the check.
    """

    commit: str
    purpose: Purpose
    finding: Finding
    kinds: tuple[Kind, ...] = ()
    reason: str = ""
    binary: str | None = None
    seconds: float = 0.0
    results: str = ""


def failures(document: Mapping[str, Any]) -> tuple[Kind, ...]:
    """The kinds of failure that a results.json holds."""
    kinds = [
        Kind(test["id"], test["mmu"], _noticed(test))
        for test in document["tests"]
        if test["outcome"] == "fail"
    ]
    # A report in the log fails the test during which it came, too; it is a kind of its own only
    # where no test was running.
    if not kinds:
        kinds = [
            Kind(HOST, host["mmu"], f"{KERNEL_LOG}: {crash['kind']}")
            for host in document["qemu"]["hosts"]
            if host["answered"]
            for crash in host["crashes"]
        ]
    return tuple(sorted(set(kinds)))


def interpret(document: Mapping[str, Any], looked_for: frozenset[Kind]) -> tuple[Finding, str]:
    """What a results.json says about the failure ``looked_for``, and why in a sentence.

    Nothing looked for means any failure. Raises UsageError, MachineUnfitError and HarnessError
    for verdicts that no other commit would change.
    """
    verdict = document["verdict"]
    reason = str(verdict["reasons"][0])
    code = ExitCode(verdict["exit_code"])
    if code is ExitCode.USAGE:
        raise UsageError(reason)
    if code is ExitCode.UNFIT:
        raise MachineUnfitError(reason)
    if code is ExitCode.BUG:
        raise HarnessError(reason)
    if code is ExitCode.UNTESTABLE:
        return Finding.UNTESTABLE, reason
    if code is ExitCode.FAIL:
        seen = failures(document)
        if looked_for & set(seen) or (seen and not looked_for):
            return Finding.FAILS, reason
        if looked_for and _passed(document, looked_for):
            return Finding.PASSES, f"What is looked for passed. Besides: {reason}"
        return Finding.OTHERWISE, reason
    if code is ExitCode.PASS:
        if not _passed(document, looked_for):
            return Finding.UNTESTABLE, "What is looked for was skipped."
        return Finding.PASSES, reason
    return Finding.INFRASTRUCTURE, reason


def _noticed(test: Mapping[str, Any]) -> str:
    """The oracle of a failure; for the kernel's log with what it reported, as that differs."""
    for report in test["oracles"]:
        if test["oracle"] == KERNEL_LOG == report["name"] and report["status"] == "violated":
            return f"{KERNEL_LOG}: {report['seen'].partition(':')[0]}"
    return test["oracle"] or "unnamed"


def _passed(document: Mapping[str, Any], looked_for: frozenset[Kind]) -> bool:
    """Whether every test passed that could have shown the failure."""
    outcomes = {test["id"]: test["outcome"] for test in document["tests"]}
    return all(
        outcomes.get(kind.test) == "pass" or (kind.test == HOST and outcomes) for kind in looked_for
    )
