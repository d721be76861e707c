# SPDX-License-Identifier: GPL-2.0-only
"""The verdict: a table of what must come out, and properties that no run may break."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import (
    BootError,
    BuildError,
    ExitCode,
    HarnessError,
    HostLostError,
    Interrupted,
    KernelSplat,
    MachineUnfitError,
    OracleUnavailable,
    QemuError,
    UsageError,
    Violation,
)
from harness.result.outcome import OracleReport, OracleStatus, Outcome, Request, TestOutcome
from harness.result.verdict import Crash, Evidence, Verdict, Word, exit_code, judge

AGREES = (OracleReport("references", OracleStatus.AGREES),)
OOPS = Crash("oops", "BUG: unable to handle page fault")


def ended(
    kind: Outcome, name: str = "a", mmu: str = "tdp", code: ExitCode | None = None
) -> TestOutcome:
    return TestOutcome(name, kind, mmu, "anon", 1.0, AGREES, message=f"{name} {kind}", code=code)


def request(name: str = "a", mmu: str = "tdp") -> Request:
    return Request(name, mmu, "anon")


def host(name: str = "tdp", **changes: object) -> Evidence:
    nonce = f"nonce of {name}"
    plain = Evidence(name, name, nonce, nonce, log_end_mark=True)
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


A = request()
PASS, FAIL = ended(Outcome.PASS), ended(Outcome.FAIL)
SKIP, ERROR = ended(Outcome.SKIP), ended(Outcome.ERROR)
DEAD = host(nonce_seen=None, log_end_mark=False)

_Run = tuple[list[Request], list[TestOutcome], list[Evidence], list[BaseException]]

TABLE: dict[str, tuple[_Run, int, str]] = {
    "all passed": (([A], [PASS], [host()], []), 0, "1 test passed"),
    "some skipped": (
        ([A, request("b")], [PASS, ended(Outcome.SKIP, "b")], [host()], []),
        0,
        "1 skipped",
    ),
    "a fail": (([A], [FAIL], [host()], []), 1, "a failed: a fail"),
    "a fail and a lost host": (
        ([A, request("b")], [FAIL], [host(log_end_mark=False)], [HostLostError("Gone.")]),
        1,
        "Gone.",
    ),
    "a fail and a bug": (([A], [FAIL], [host()], [KeyError("x")]), 1, "KeyError: 'x'"),
    "a fail and a kernel that does not boot": (
        ([A, request("b", "shadow")], [FAIL], [host()], [BootError("No init.")]),
        1,
        "No init.",
    ),
    "a splat that no test saw": (([A], [PASS], [host(crashes=(OOPS,))], []), 1, "oops"),
    "a splat beats a lost connection": (
        (
            [A],
            [ended(Outcome.ERROR, code=ExitCode.INFRASTRUCTURE)],
            [host(crashes=(OOPS,), log_end_mark=False)],
            [HostLostError("Gone.")],
        ),
        1,
        "oops",
    ),
    "a violation that ended the run": (
        ([A], [], [host()], [KernelSplat("WARN", "WARNING: CPU: 0")]),
        1,
        "WARNING: CPU: 0",
    ),
    "a crash while booting": (
        ([A], [], [dataclasses.replace(DEAD, crashes=(OOPS,))], [BootError("No init.")]),
        125,
        "crashed before it answered: oops",
    ),
    "a crash while booting that nobody else noticed": (
        ([A], [SKIP], [dataclasses.replace(DEAD, crashes=(OOPS,))], []),
        125,
        "crashed before it answered",
    ),
    "does not build": (([A], [], [], [BuildError("make failed.")]), 125, "make failed."),
    "does not boot": (([A], [], [DEAD], [BootError("No init.")]), 125, "No init."),
    "one mode does not boot": (
        ([A, request("b", "shadow")], [PASS], [host()], [BootError("No init.")]),
        125,
        "1 test (b) never reported",
    ),
    "does not boot, and a test of another mode got lost": (
        ([A, request("b")], [PASS], [host()], [BootError("No init.")]),
        200,
        "1 test (b) never reported",
    ),
    "errors because of the kernel": (
        ([A], [ended(Outcome.ERROR, code=ExitCode.UNTESTABLE)], [DEAD], []),
        125,
        "ended in an error",
    ),
    "all skipped": (([A], [SKIP], [host()], []), 125, "All tests were skipped."),
    "all skipped because of an oracle": (
        ([A], [], [host()], [OracleUnavailable("No DWARF.")]),
        125,
        "No DWARF.",
    ),
    "missing": (([A], [], [host()], []), 200, "1 test (a) never reported"),
    "missing beside a pass": (([A, request("b")], [PASS], [host()], []), 200, "(b)"),
    "an error": (([A], [ERROR], [host()], []), 200, "a error"),
    "reported twice": (([A], [PASS, PASS], [host()], []), 200, "2 times"),
    "QEMU died": (([A], [], [DEAD], [QemuError("QEMU died.")]), 200, "QEMU died."),
    "QEMU died and another host does not boot": (
        ([A], [], [], [BootError("No init."), QemuError("QEMU died.")]),
        200,
        "QEMU died.",
    ),
    "no nonce": (([A], [PASS], [DEAD], []), 200, "never answered"),
    "stale nonce": (([A], [PASS], [host(nonce_seen="old")], []), 200, "another run's nonce"),
    "empty nonce": (
        ([A], [PASS], [host(nonce_expected="", nonce_seen="")], []),
        200,
        "share a nonce",
    ),
    "shared nonce": (([A], [PASS], [host(), host()], []), 200, "share a nonce"),
    "no end mark": (([A], [PASS], [host(log_end_mark=False)], []), 200, "breaks off"),
    "no evidence": (([A], [PASS], [], []), 200, "MMU mode tdp"),
    "evidence of another mode": (([A], [PASS], [host("shadow")], []), 200, "MMU mode tdp"),
    "a fail of a host that gave no evidence": (([A], [FAIL], [], []), 1, "a failed"),
    "nothing selected": (([], [], [], []), 201, "matched no test"),
    "bad option": (([], [], [], [UsageError("No such mode.")]), 201, "No such mode."),
    "no QEMU": (([A], [], [], [MachineUnfitError("No QEMU.")]), 202, "No QEMU."),
    "a bug": (([A], [], [], [KeyError("x")]), 203, "KeyError: 'x'"),
    "a bug of ours": (([A], [], [], [HarnessError("Impossible.")]), 203, "Impossible."),
    "no space": (
        ([A], [], [], [OSError(errno.ENOSPC, "No space left on device")]),
        200,
        "No space left",
    ),
    "interrupted": (([A], [], [DEAD], [Interrupted(signal.SIGINT)]), 130, "SIGINT"),
    "terminated": (([A], [], [DEAD], [Interrupted(signal.SIGTERM)]), 143, "SIGTERM"),
    "interrupted without a handler": (([A], [], [], [KeyboardInterrupt()]), 130, "SIGINT"),
    "interrupted, then terminated": (
        ([A], [], [], [Interrupted(signal.SIGINT), Interrupted(signal.SIGTERM)]),
        143,
        "SIGINT",
    ),
    "interrupted after a fail": (
        ([A, request("b")], [FAIL], [host()], [Interrupted(signal.SIGINT)]),
        130,
        "a failed",
    ),
    "interrupted after all passed": (
        ([A], [PASS], [host()], [Interrupted(signal.SIGINT)]),
        130,
        "SIGINT",
    ),
}

WORDS = {0: "PASS", 1: "FAIL", 125: "UNTESTABLE", 130: "INTERRUPTED", 143: "INTERRUPTED"}


@pytest.mark.parametrize("name", TABLE)
def test_table(name: str) -> None:
    (requested, outcomes, evidence, problems), code, said = TABLE[name]
    verdict = judge(requested, outcomes, evidence, problems)
    assert verdict.exit_code == code
    assert verdict.word == WORDS.get(code, "ERROR")
    assert said in "\n".join(verdict.reasons)


def test_no_stop_of_pytest_makes_an_exit_code_of_its_own() -> None:
    assert {exit_code(error) for error in (SystemExit(0), RuntimeError(), OSError())} == {
        ExitCode.BUG
    }
    assert exit_code(Violation("sptes", "0", "1")) is ExitCode.FAIL
    assert exit_code(MemoryError()) is ExitCode.INFRASTRUCTURE


def test_reasons_are_printable_and_bounded() -> None:
    verdict = judge([A], [], [], [BootError("\x1b[2J" + "x" * 1_000_000)])
    assert verdict.reasons[0].startswith("\\x1b[2J")
    assert len(verdict.reasons[0]) < 3_000


def test_many_tests_are_counted_not_listed() -> None:
    requested = [request(f"test {number}") for number in range(500)]
    (reason,) = judge(requested, [], [host()]).reasons
    assert reason.startswith("500 tests (test 0, ")
    assert "and 495 more" in reason


_MODES = st.sampled_from(("tdp", "shadow"))
_OUTCOMES = st.builds(
    TestOutcome,
    id=st.sampled_from("abcd"),
    outcome=st.sampled_from(Outcome),
    mmu=_MODES,
    backing=st.just("anon"),
    seconds=st.just(1.0),
    oracles=st.sampled_from((AGREES, ())),
    code=st.sampled_from((None, *ExitCode)),
)
_REQUESTS = st.builds(Request, id=st.sampled_from("abcd"), mmu=_MODES, backing=st.just("anon"))
_EVIDENCE = st.builds(
    Evidence,
    host=_MODES,
    mmu=_MODES,
    nonce_expected=st.sampled_from(("1", "2")),
    nonce_seen=st.sampled_from((None, "1", "2")),
    log_end_mark=st.booleans(),
    crashes=st.sampled_from(((), (), (OOPS,))),
)
_PROBLEMS = st.sampled_from(
    (
        BootError("boot"),
        QemuError("qemu"),
        UsageError("usage"),
        MachineUnfitError("unfit"),
        KeyError("bug"),
        Interrupted(signal.SIGINT),
        KernelSplat("WARN", "text"),
    )
)
_RUNS = st.tuples(
    st.lists(_REQUESTS, max_size=4, unique_by=lambda request: request.id),
    st.lists(_OUTCOMES, max_size=4),
    st.lists(_EVIDENCE, max_size=3),
    st.one_of(st.just([]), st.lists(_PROBLEMS, max_size=2)),
)


@given(_RUNS)
def test_pass_is_nothing_but_positive_evidence(run: _Run) -> None:
    requested, outcomes, evidence, problems = run
    if judge(*run).exit_code is not ExitCode.PASS:
        return
    assert not problems
    assert {item.id for item in requested} <= {item.id for item in outcomes}
    assert {item.outcome for item in outcomes} <= {Outcome.PASS, Outcome.SKIP}
    passed = [item for item in outcomes if item.outcome is Outcome.PASS]
    assert passed
    assert all(item.nonce_seen == item.nonce_expected for item in evidence)
    assert all(item.log_end_mark and not item.crashes for item in evidence)
    assert {item.mmu for item in passed} <= {item.mmu for item in evidence}


def test_the_property_above_does_see_passes() -> None:
    # It would hold just as well if nothing ever passed.
    requests = [request(name) for name in "ab"]
    assert judge(requests, [ended(Outcome.PASS, n) for n in "ab"], [host()]).word is Word.PASS


@given(_RUNS)
def test_a_fail_decides_unless_somebody_stopped_the_run(run: _Run) -> None:
    requested, outcomes, evidence, problems = run
    verdict = judge(requested, [*outcomes, FAIL], evidence, problems)
    stopped = any(isinstance(problem, Interrupted) for problem in problems) or any(
        item.outcome is Outcome.ERROR and item.code in (ExitCode.INTERRUPTED, ExitCode.TERMINATED)
        for item in outcomes
    )
    assert verdict.word is (Word.INTERRUPTED if stopped else Word.FAIL)


@given(_RUNS)
def test_infrastructure_alone_never_becomes_a_judgement_of_the_kernel(run: _Run) -> None:
    requested, outcomes, evidence, problems = run
    verdict = judge(requested, outcomes, evidence, [*problems, HostLostError("Gone.")])
    assert verdict.word is not Word.PASS
    assert verdict.word is not Word.UNTESTABLE
    if verdict.word is Word.FAIL:
        without = judge(requested, outcomes, evidence, problems)
        assert without.word is Word.FAIL


@given(_RUNS, st.randoms(use_true_random=False))
def test_the_order_in_which_things_happened_does_not_matter(run: _Run, random: object) -> None:
    expected = judge(*run)
    shuffled = [list(part) for part in run]
    for part in shuffled:
        random.shuffle(part)  # type: ignore[attr-defined]
    verdict = judge(*shuffled)  # type: ignore[arg-type]
    assert (verdict.word, verdict.exit_code) == (expected.word, expected.exit_code)


@given(_RUNS)
def test_every_verdict_has_a_reason_and_one_word_per_code(run: _Run) -> None:
    verdict = judge(*run)
    assert verdict.reasons
    assert all(verdict.reasons)
    assert verdict.word == WORDS.get(verdict.exit_code, "ERROR")


def test_a_verdict_is_a_plain_value() -> None:
    verdicts = [judge([A], [PASS], [host()]) for _ in range(2)]
    assert all(one == other for one, other in itertools.pairwise(verdicts))
    assert isinstance(verdicts[0], Verdict)


def test_a_strict_run_may_skip_nothing() -> None:
    both = [ended(Outcome.PASS, "a"), ended(Outcome.SKIP, "b")]
    requests = [request("a"), request("b")]
    assert judge(requests, both, [host()]).exit_code == 0
    verdict = judge(requests, both, [host()], strict=True)
    assert (verdict.word, verdict.exit_code) == (Word.UNTESTABLE, 125)
    assert verdict.reasons == (
        "1 of 2 tests skipped, which --strict forbids.",
        "1 skipped: b skip",
    )
    assert judge([A], [PASS], [host()], strict=True).exit_code == 0
    failed = [ended(Outcome.FAIL, "a"), ended(Outcome.SKIP, "b")]
    assert judge(requests, failed, [host()], strict=True).exit_code == 1
