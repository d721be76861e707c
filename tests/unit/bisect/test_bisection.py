# SPDX-License-Identifier: GPL-2.0-only
"""Whole bisections of real git histories, by a check that reads a file of the tree."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from fake_check import LEAKY, FakeChecker, Repository

from harness.bisect.drive import Bisection, HarnessChecker
from harness.bisect.history import History
from harness.bisect.plan import Answer, NoAnswer
from harness.bisect.question import Question
from harness.bisect.trial import HOST, Finding, Kind, interpret
from harness.errors import InfrastructureError, MachineUnfitError, SourceError, UsageError
from harness.progress import Silent


@dataclasses.dataclass
class Setting:
    """A user's repository, and a bisection of it that can be begun again and again."""

    repository: Repository
    directory: Path
    checker: FakeChecker

    def question(self, good: str, bad: str, **options: object) -> Question:
        history = self.history()
        question = Question(self.repository.path, history.resolve(good), history.resolve(bad))
        return dataclasses.replace(question, **options)  # type: ignore[arg-type]

    def history(self) -> History:
        history = History(self.repository.path, self.directory / "tree")
        history.open()
        return history

    def run(self, good: str, bad: str, **options: object) -> Answer | NoAnswer:
        question = self.question(good, bad, **options)
        results = self.directory / "results"
        results.mkdir(exist_ok=True)
        return Bisection(question, self.history(), self.checker, results, Silent()).run()

    def read(self, name: str) -> str:
        return (self.directory / "results" / name).read_text()


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    directory = tmp_path / "ours"
    directory.mkdir()
    return Setting(Repository(tmp_path / "user's tree"), directory, FakeChecker())


def synthetic(rate: str = "1") -> list[str]:
    """64 commits on top of a good one: one leaks, two do not build, one fails to boot, and one
    breaks something unrelated, which a later one repairs."""
    words = ["pass"] * 65
    for number in range(41, 65):
        words[number] = f"leak {rate}"
    for number in (32, 40):
        words[number] = "build"
    words[48] = "boot"
    for number in range(28, 36):
        words[number] += "\nother"
    return words


def test_the_commit_that_leaks_is_found_among_others_that_break(setting: Setting) -> None:
    words = synthetic()
    words[40] = "pass"
    commits = setting.repository.linear(words)
    answer = setting.run(commits[0], "main")
    assert answer == Answer(commits[41], (commits[40],), identical=False)
    assert len(setting.checker.seen) <= 40
    assert {"32", "48"} & set(setting.checker.seen), "what cannot be tested was in the way"
    assert "access in tests/kvm/test_fork.py::test_child[tdp]" not in setting.read("summary.txt")


def test_a_failure_of_another_kind_is_reported_and_not_followed(setting: Setting) -> None:
    words = ["pass"] * 17
    for number in range(6, 10):
        words[number] = "worse"
    for number in range(12, 17):
        words[number] = "leak 1"
    commits = setting.repository.linear(words)
    answer = setting.run(commits[0], "main")
    assert answer == Answer(commits[12], (commits[11],), identical=False)
    text = setting.read("summary.txt")
    assert f'{commits[8][:12]} ("Change number 8"): translations in {LEAKY}' in text


def test_of_two_failures_the_older_is_found_and_the_other_named(setting: Setting) -> None:
    words = ["pass"] * 4 + ["other"] * 4 + ["other\nleak 1"] * 4
    commits = setting.repository.linear(words)
    answer = setting.run(commits[0], "main")
    assert isinstance(answer, Answer)
    assert answer.culprit == commits[4]
    text = setting.read("summary.txt")
    assert f"  references in {LEAKY}, tdp (not seen at the first bad commit)" in text
    assert "--select" in text


def test_what_cannot_be_built_before_the_culprit_is_told(setting: Setting) -> None:
    commits = setting.repository.linear(synthetic())
    answer = setting.run(commits[0], "main")
    assert isinstance(answer, NoAnswer)
    assert set(answer.commits) == {commits[40], commits[41]}
    assert "cannot be tested" in setting.read("summary.txt")


def test_a_failure_that_shows_in_30_percent_of_the_runs_is_found(setting: Setting) -> None:
    words = synthetic("0.3")
    words[40] = "pass"
    commits = setting.repository.linear(words)
    answer = setting.run(commits[0], "main")
    assert answer == Answer(commits[41], (commits[40],), identical=False)
    document = json.loads(setting.read("bisect.json"))
    assert 0.05 < document["rate"]["least"] < 0.3 < document["rate"]["most"]


def test_the_users_repository_is_not_touched(setting: Setting) -> None:
    commits = setting.repository.linear(["pass", "pass", "leak 1", "leak 1"])
    path = setting.repository.path
    (path / "verdict").write_text("work in progress")
    (path / "untracked").write_text("mine")

    def state() -> dict[str, tuple[int, bytes]]:
        return {
            str(file.relative_to(path)): (file.stat().st_mtime_ns, file.read_bytes())
            for file in sorted(path.rglob("*"))
            if file.is_file()
        }

    before = state()
    assert isinstance(setting.run(commits[0], "HEAD"), Answer)
    assert state() == before


def test_killed_after_any_check_it_goes_on_where_it_was(setting: Setting) -> None:
    commits = setting.repository.linear(["pass"] * 9 + ["leak 1"] * 8)
    whole = setting.run(commits[0], "main")
    seen = list(setting.checker.seen)
    assert isinstance(whole, Answer)
    setting.directory = setting.directory / "again"
    setting.directory.mkdir()
    setting.checker = FakeChecker()
    for number in range(len(seen)):
        setting.checker.kill_after = number + 1
        if number + 1 < len(seen):
            with pytest.raises(KeyboardInterrupt):
                setting.run(commits[0], "main")
    setting.checker.kill_after = None
    assert setting.run(commits[0], "main") == whole
    assert setting.checker.seen == seen
    # Once it has its answer, it gives it without another check.
    assert setting.run(commits[0], "main") == whole
    assert setting.checker.seen == seen


def test_a_checkout_that_was_lost_is_made_again(setting: Setting) -> None:
    commits = setting.repository.linear(["pass"] * 9 + ["leak 1"] * 8)
    setting.checker.kill_after = 10
    with pytest.raises(KeyboardInterrupt):
        setting.run(commits[0], "main")
    shutil.rmtree(setting.directory / "tree")
    setting.checker.kill_after = None
    assert setting.run(commits[0], "main") == Answer(commits[9], (commits[8],), identical=False)


def test_infrastructure_that_stays_broken_is_given_up_and_kept(setting: Setting) -> None:
    commits = setting.repository.linear(["pass", "infra", "leak 1"])
    with pytest.raises(InfrastructureError, match=r"4 checks in a row.*The host is gone"):
        setting.run(commits[0], "main")
    assert setting.checker.seen[-4:] == ["1"] * 4
    document = json.loads(setting.read("bisect.json"))
    assert document["answer"] is None
    assert [trial["finding"] for trial in document["trials"]][-1] == "infrastructure"


def test_a_history_with_merges_is_no_obstacle(setting: Setting) -> None:
    repository = setting.repository
    base = repository.commit("base", "pass")
    repository.git("checkout", "-q", "-b", "side")
    culprit = [repository.commit(f"side{at}", "pass" if at < 3 else "leak 1") for at in range(6)][3]
    repository.git("checkout", "-q", "main")
    for at in range(5):
        repository.commit(f"main{at}", "pass", more=str(at))
    repository.git("merge", "-q", "-s", "ours", "--no-commit", "side")
    repository.commit("merge", "leak 1")
    repository.commit("after", "leak 1")
    answer = setting.run(base, "main")
    assert isinstance(answer, Answer)
    assert answer.culprit == culprit


def test_a_patch_is_left_out_where_it_is_in_already(setting: Setting) -> None:
    repository = setting.repository
    first = repository.commit(0, "pass", fix="old\n")
    repository.commit(1, "pass", more="1")
    second = repository.commit(2, "pass", fix="new\n")
    patch = setting.directory / "fix.patch"
    patch.write_text(repository.git("diff", first, second, "--", "fix") + "\n")
    for number in range(3, 7):
        repository.commit(number, "pass" if number < 5 else "leak 1")
    answer = setting.run(first, "main", patches=(patch,))
    assert isinstance(answer, Answer)
    for seen, patches in zip(setting.checker.seen, setting.checker.patches, strict=True):
        assert patches == ((patch,) if int(seen) < 2 else ())


def test_a_commit_that_passed_by_chance_does_not_lead_astray(setting: Setting) -> None:
    commits = setting.repository.linear(["pass"] * 5 + ["leak 1"] * 28)
    honest = setting.checker

    class Lucky(FakeChecker):
        """The first check of the commit in the middle passes, although it leaks."""

        def __call__(self, tree: Path, *others: object) -> object:  # type: ignore[override]
            number = (tree / "number").read_text().strip()
            if number == "16" and "16" not in honest.seen:
                words = (tree / "verdict").read_text()
                (tree / "verdict").write_text("pass")
                try:
                    return honest(tree, *others)  # type: ignore[arg-type]
                finally:
                    (tree / "verdict").write_text(words)
            return honest(tree, *others)  # type: ignore[arg-type]

    setting.checker = Lucky()
    answer = setting.run(commits[0], "main")
    assert answer == Answer(commits[5], (commits[4],), identical=False)
    assert honest.seen.count("16") >= 2
    replay = subprocess.run(
        ["git", "bisect", "replay", str(setting.directory / "results" / "bisect.log")],
        cwd=setting.directory / "tree",
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{commits[5]} is the first bad commit" in replay.stdout


# What it leaves.


def test_the_summary_has_what_a_mail_needs(setting: Setting) -> None:
    words = ["pass"] * 4 + ["leak 1"] * 5
    words[6] += "\nother"
    words[5] = "build"
    commits = setting.repository.linear(words)
    assert isinstance(setting.run(commits[0], "main", patches=()), Answer)
    text = setting.read("summary.txt")
    assert text.startswith(f'First bad commit: {commits[4][:12]} ("Change number 4")\n')
    assert commits[4] in text
    assert f"references in {LEAKY}, tdp" in text
    assert "in 8 of 8 runs: in 51.6% to 100.0%" in text
    assert "each bound with 99.50% confidence" in text
    assert "for an error bound of 1.00%" in text
    assert f'{commits[5][:12]} ("Change number 5") cannot be tested: make failed.' in text or (
        "5" not in setting.checker.seen
    )
    assert f"mmu-harness check --kernel linux-culprit --mmu tdp '{LEAKY}'" in text
    assert "Author: A. Developer <a@example.org>" in text


def test_an_identical_binary_is_said_in_the_summary(setting: Setting) -> None:
    class Same(FakeChecker):
        """Every binary is the same."""

        def __call__(self, *arguments: object) -> object:  # type: ignore[override]
            where, document = super().__call__(*arguments)  # type: ignore[arg-type]
            assert document is not None
            document["kernel"]["binary_digest"] = "0" * 64
            return where, document

    setting.checker = Same()
    commits = setting.repository.linear(["pass", "pass", "leak 1", "leak 1"])
    answer = setting.run(commits[0], "main")
    assert isinstance(answer, Answer)
    assert answer.identical
    assert "identical to its parent's" in setting.read("summary.txt")


def test_the_picture_is_svg_with_a_mark_for_each_commit(setting: Setting) -> None:
    commits = setting.repository.linear(["pass"] * 9 + ["leak 1"] * 8)
    setting.run(commits[0], "main")
    root = ET.fromstring(setting.read("path.svg"))
    texts = ["".join(item.itertext()) for item in root.iter("{http://www.w3.org/2000/svg}text")]
    for commit in {trial["commit"] for trial in json.loads(setting.read("bisect.json"))["trials"]}:
        assert any(commit[:12] in text for text in texts)


# Bad input.


@pytest.mark.parametrize("revision", ["nope", "", "-x", "a\nb", "main^{tree}"])
def test_a_revision_that_is_none_is_bad_usage(setting: Setting, revision: str) -> None:
    setting.repository.commit(0, "pass")
    with pytest.raises(UsageError, match="There is no commit"):
        setting.question(revision, "main")


def test_a_directory_without_history_is_said(setting: Setting, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with pytest.raises(SourceError, match="is no checkout of git"):
        History(tmp_path / "plain", setting.directory / "tree").open()


def test_revisions_in_the_wrong_order_are_said(setting: Setting) -> None:
    commits = setting.repository.linear(["leak 1", "leak 1", "pass", "pass"])
    with pytest.raises(UsageError, match="git bisect cannot go on"):
        setting.run(commits[3], commits[0])


def test_a_file_of_another_question_is_not_taken_over(setting: Setting) -> None:
    commits = setting.repository.linear(["pass", "pass", "leak 1"])
    setting.run(commits[0], "main")
    with pytest.raises(UsageError, match="cannot be continued"):
        setting.run(commits[1], "main")


# The real checker.


def checker(question: Question, program: str, directory: Path) -> HarnessChecker:
    script = directory / "program.sh"
    script.write_text(f"#!/bin/sh\n{program}\n")
    return HarnessChecker(question, Silent(), ("sh", str(script)))


LEAK = frozenset({Kind(LEAKY, "tdp", "references")})


def test_results_are_read_and_the_exit_code_is_not(tmp_path: Path) -> None:
    question = Question(tmp_path, "g", "b")
    program = (
        'where=${2#--results=}\nmkdir "$where/20260101T000000Z-0"\n'
        'ln -s 20260101T000000Z-0 "$where/latest"\n'
        'echo "{\\"argv\\": \\"$*\\"}" >"$where/latest/results.json"\nexit 1\n'
    )
    run = checker(question, program, tmp_path)
    for _ in range(2):
        where, document = run(tmp_path, [], LEAK, tmp_path / "results" / "1")
        assert where.name == "20260101T000000Z-0"
        assert document is not None
        results = tmp_path / "results" / "1"
        begins = f"check --results={results} --ci --kernel={tmp_path} --accel=auto"
        assert document["argv"].startswith(begins)


@pytest.mark.parametrize(
    ("code", "error"), [(201, UsageError), (202, MachineUnfitError), (1, None), (125, None)]
)
def test_without_results_only_what_no_commit_changes_ends_it(
    tmp_path: Path, code: int, error: type[Exception] | None
) -> None:
    run = checker(Question(tmp_path, "g", "b"), f"echo It is so.; exit {code}", tmp_path)
    if error is None:
        assert run(tmp_path, [], LEAK, tmp_path / "results")[1] is None
    else:
        with pytest.raises(error, match="It is so"):
            run(tmp_path, [], LEAK, tmp_path / "results")


def test_only_the_tests_that_can_show_the_failure_are_run(tmp_path: Path) -> None:
    question = Question(
        tmp_path, "g", "b", select="fork", modes=("tdp", "shadow"), jobs=2,
        fragments=(Path("x.config"),),
    )  # fmt: skip
    words = HarnessChecker(question, Silent()).words
    everything = words(tmp_path, [Path("a.patch")], frozenset())
    assert everything[-2:] == ("-k", "fork")
    assert {"--mmu=tdp", "--mmu=shadow", "--jobs=2", "--patch=a.patch"} <= set(everything)
    assert "--config=x.config" in everything
    narrow = words(tmp_path, [], LEAK)
    assert narrow[-2:] == ("--", LEAKY)
    assert "--mmu=shadow" not in narrow
    assert "-k" not in narrow
    outside = words(tmp_path, [], frozenset({Kind(HOST, "tdp", "kernel log: WARNING")}))
    assert outside[-2:] == ("-k", "fork")


IDLE = "tests/kvm/test_reclaim.py::test_an_idle_guest_is_swapped_out_whole_and_back[tdp]"


@pytest.mark.parametrize(
    "looked_for", [frozenset(), frozenset({Kind(IDLE, "tdp", "references")})], ids=["all", "narrow"]
)
def test_the_real_check_says_when_a_tree_is_no_kernel(
    tmp_path: Path, looked_for: frozenset[Kind]
) -> None:
    # The whole way, with everything real but a kernel: a process, its results, what they say.
    (tmp_path / "tree").mkdir()
    question = Question(tmp_path, "g", "b", modes=("tdp",), accelerator="tcg")
    _, document = HarnessChecker(question, Silent())(
        tmp_path / "tree", [], looked_for, tmp_path / "results"
    )
    assert document is not None
    assert not looked_for or [test["id"] for test in document["tests"]] == [IDLE]
    finding, reason = interpret(document, frozenset())
    assert finding is Finding.UNTESTABLE
    assert "without a kernel source tree in it" in reason


# Without our help.


def test_plain_git_bisect_run_reads_our_exit_codes(setting: Setting, tmp_path: Path) -> None:
    words = ["pass"] * 9 + ["leak 1"] * 8
    words[12], words[6] = "build", "boot"
    commits = setting.repository.linear(words)
    repository = setting.repository
    repository.git("bisect", "start", commits[16], commits[0])
    said = repository.git("bisect", "run", *code_of_a_check(tmp_path))
    assert f"{commits[9]} is the first bad commit" in said
    assert "skip" in repository.git("bisect", "log")


def test_plain_git_bisect_run_stops_at_infrastructure(setting: Setting, tmp_path: Path) -> None:
    commits = setting.repository.linear(["pass", "pass", "infra", "leak 1", "leak 1"])
    setting.repository.git("bisect", "start", commits[4], commits[0])
    with pytest.raises(subprocess.CalledProcessError) as caught:
        setting.repository.git("bisect", "run", *code_of_a_check(tmp_path))
    assert "200" in caught.value.stderr


def code_of_a_check(directory: Path) -> list[str]:
    """A program that ends with the exit code of a check of the tree it is started in."""
    script = directory / "check.py"
    script.write_text(
        "import random, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from fake_check import checked\n"
        "document = checked(open('verdict').read(), random.Random(1), frozenset())\n"
        "sys.exit(document['verdict']['exit_code'])\n"
    )
    return [sys.executable, str(script)]


def test_chance_is_what_the_fake_check_says_it_is() -> None:
    chance = random.Random(1)
    assert sum(chance.random() < 0.3 for _ in range(1000)) == pytest.approx(300, abs=45)
