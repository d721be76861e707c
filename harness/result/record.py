# SPDX-License-Identifier: GPL-2.0-only
"""Everything that is known about a run, and results.json, from which all else can be made."""

from __future__ import annotations

import dataclasses
import datetime
import json
import shlex
from collections.abc import Mapping

from harness.result.outcome import Outcome, TestOutcome
from harness.result.text import Json, plain
from harness.result.verdict import Evidence, Verdict

SCHEMA = 1
"""Version of results.json; docs/results.schema.json describes it. Readers refuse what is newer."""


@dataclasses.dataclass(frozen=True)
class KernelFacts:
    """The kernel under test. Digests are sha256 in hex, None where there is no such file.

    ``origin`` is the reference as the user wrote it; ``control`` names the guarantee that was
    broken on purpose. ``binary_digest`` covers all that runs, which is the image and its modules.
    ``symbols`` are the configuration symbols that decide what was tested.
    """

    origin: str
    release: str | None = None
    image_digest: str | None = None
    config_digest: str | None = None
    patches: tuple[str, ...] = ()
    control: str | None = None
    symbols: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    binary_digest: str | None = None


@dataclasses.dataclass(frozen=True)
class MachineFacts:
    """The machine that ran the harness, and how it ran hosts.

    ``versions`` maps programs and libraries to versions; ``accelerator_reason`` is the sentence
    that says why this accelerator was chosen.
    """

    machine: str
    cpus: int
    accelerator: str | None = None
    accelerator_reason: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class HostRun:
    """One host that was started: QEMU's version and argv, and what it left as evidence.

    ``started`` is when it was started, and ``boot_seconds`` from then to its first answer, None
    if there was none; ``pace`` is how many times slower than expected this machine was found to
    be.
    """

    evidence: Evidence
    qemu_version: str | None = None
    argv: tuple[str, ...] = ()
    release: str | None = None
    boot_seconds: float | None = None
    pace: float | None = None
    started: datetime.datetime | None = None


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """One run, complete; times are aware datetimes. Every format is a function of this alone.

    ``outcomes`` hold one object for each requested test (see outcome.completed). ``command`` is
    the argv that repeats the run.
    """

    verdict: Verdict
    outcomes: tuple[TestOutcome, ...]
    kernel: KernelFacts
    machine: MachineFacts
    hosts: tuple[HostRun, ...]
    command: tuple[str, ...]
    started: datetime.datetime
    finished: datetime.datetime
    problems: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """How long the run took by the wall clock, never negative."""
        return max(0.0, (self.finished - self.started).total_seconds())

    @property
    def repetitions(self) -> int:
        """How often its tests were run, or begun to be."""
        return max((outcome.repetition for outcome in self.outcomes), default=0) or 1

    def counts(self) -> dict[Outcome, int]:
        """How many tests ended each way, every way named."""
        return {kind: sum(outcome.outcome is kind for outcome in self.outcomes) for kind in Outcome}


def as_json(record: RunRecord) -> str:
    """results.json as text."""
    return json.dumps(document(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def document(record: RunRecord) -> Json:
    """results.json as plain data; the key order is what a person wants to read first."""
    return plain(
        {
            "schema": SCHEMA,
            "verdict": {
                "word": record.verdict.word,
                "exit_code": int(record.verdict.exit_code),
                "reasons": record.verdict.reasons,
            },
            "command": shlex.join(record.command),
            "started": _iso(record.started),
            "finished": _iso(record.finished),
            "seconds": round(record.seconds, 3),
            "repetitions": record.repetitions,
            "counts": record.counts(),
            "tests": [_test(outcome) for outcome in record.outcomes],
            "kernel": {
                key: value
                for key, value in _fields(record.kernel).items()
                if key not in ("symbols",)
            },
            "config": {"digest": record.kernel.config_digest, "symbols": record.kernel.symbols},
            "qemu": {
                "version": next((run.qemu_version for run in record.hosts), None),
                "hosts": [_host_run(run) for run in record.hosts],
            },
            "host": {
                "machine": record.machine.machine,
                "cpus": record.machine.cpus,
                "accelerator": record.machine.accelerator,
                "accelerator_reason": record.machine.accelerator_reason,
                "versions": record.machine.versions,
            },
            "problems": record.problems,
        }
    )


def _test(outcome: TestOutcome) -> dict[str, object]:
    return {
        "id": outcome.id,
        "outcome": outcome.outcome,
        "mmu": outcome.mmu,
        "backing": outcome.backing,
        "repetition": outcome.repetition,
        "started": _iso(outcome.started) if outcome.started else None,
        "seconds": round(outcome.seconds, 3),
        "message": outcome.message,
        "oracle": outcome.oracle,
        "page": outcome.page,
        "oracles": [_fields(report) for report in outcome.oracles],
        "log_excerpt": outcome.log_excerpt,
        "command": shlex.join(outcome.command) if outcome.command else None,
    }


def _host_run(run: HostRun) -> dict[str, object]:
    evidence = run.evidence
    return {
        "host": evidence.host,
        "mmu": evidence.mmu,
        "release": run.release,
        "started": _iso(run.started) if run.started else None,
        "boot_seconds": run.boot_seconds,
        "pace": run.pace,
        "answered": evidence.nonce_seen is not None,
        "nonce_matches": evidence.came_up,
        "log_end_mark": evidence.log_end_mark,
        "crashes": [_fields(crash) for crash in evidence.crashes],
        "argv": run.argv,
    }


def _fields(item: object) -> dict[str, object]:
    # Not dataclasses.asdict: that deep-copies details of thousands of pages.
    assert dataclasses.is_dataclass(item)
    return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}


def _iso(moment: datetime.datetime) -> str:
    return moment.astimezone(datetime.UTC).isoformat(timespec="milliseconds")
