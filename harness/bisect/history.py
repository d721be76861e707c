# SPDX-License-Identifier: GPL-2.0-only
"""git bisect in a checkout of its own, on the objects of the user's repository.

The user's repository is only read. Ours borrows its objects (gitrepository-layout(5), alternates)
and has its own refs and its own work tree, which the builds see as a plain source tree.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from harness.bisect.plan import Candidate, Found, Marks, Position, Stuck
from harness.command import Completed
from harness.errors import CommandError, SourceError, UsageError
from harness.kernel import git

_FIRST_BAD = re.compile(r"^([0-9a-f]{40,64}) is the first (?:bad|new) commit", re.MULTILINE)
_ONLY_SKIPPED = "There are only 'skip'ped commits left to test"
_COMMIT = re.compile(r"^([0-9a-f]{40,64})$", re.MULTILINE)
_STRANGE = re.compile(r"[\0\n]|^-|^$")


class History:
    """A repository in ``directory`` with the history of the checkout ``source``."""

    def __init__(self, source: Path, directory: Path) -> None:
        self.tree = directory
        self._source = source.absolute()
        self._told: Marks | None = None
        self._position: Position | None = None

    def open(self) -> None:
        """Make the repository, or take over the one that an earlier run left."""
        objects = self._ask_source("rev-parse", "--path-format=absolute", "--git-path", "objects")
        shallow = self._ask_source("rev-parse", "--path-format=absolute", "--git-path", "shallow")
        if not (self.tree / ".git" / "HEAD").exists():
            shutil.rmtree(self.tree, ignore_errors=True)
            self.tree.mkdir(parents=True)
            self._git("init", "--quiet", "--initial-branch=none")
        info = self.tree / ".git" / "objects" / "info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "alternates").write_text(f"{objects}\n")
        ours = self.tree / ".git" / "shallow"
        if Path(shallow).exists():
            shutil.copyfile(shallow, ours)
        else:
            ours.unlink(missing_ok=True)
        # What was left by a run that was killed.
        (self.tree / ".git" / "index.lock").unlink(missing_ok=True)

    def resolve(self, revision: str) -> str:
        """The commit that a revision of the user's repository means; raises UsageError."""
        if not _STRANGE.search(revision):
            told = git.in_checkout(
                self._source, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"
            )
            if told.status == 0:
                return told.stdout.strip()
        raise UsageError(f'There is no commit "{revision}" in {self._source}.')

    def position(self, good: str, bad: str, marks: Marks) -> Position:
        """Where git bisect is when it was told all this."""
        told, now = self._told, self._position
        new = marks[len(told) :] if told is not None and marks[: len(told)] == told else None
        if new is None or not isinstance(now, Candidate) or [now.commit] != [c for c, _ in new]:
            if new == () and now is not None:
                return now
            now = self._replayed(good, bad, marks)
        else:
            now = self._read(self._git("bisect", new[0][1], new[0][0], check=False))
        self._told, self._position = marks, now
        return now

    def _replayed(self, good: str, bad: str, marks: Marks) -> Position:
        """Begin anew, and tell git what is known: first how far bad reaches back.

        A commit that was taken for good by chance may turn out to be bad, and then others that
        were taken for good come after it: git is not told of them, nor of anything else that has
        left the range in question.
        """
        self._git("bisect", "reset", check=False)
        if self._git("rev-parse", "--verify", "--quiet", "HEAD", check=False).status != 0:
            # As in a new checkout for a state that is older; git bisect asks where HEAD is.
            self._git("update-ref", "--no-deref", "HEAD", bad)
        now = self._read(self._git("bisect", "start", "--no-checkout", bad, good, check=False))
        for wanted in ("bad", "good", "skip"):
            for commit, word in marks:
                inside = isinstance(now, Candidate) and self._inside(commit)
                if word == wanted and inside:
                    now = self._read(self._git("bisect", word, commit, check=False))
        return now

    def _inside(self, commit: str) -> bool:
        """Whether a commit is among those of which git still wants to know."""
        goods = self._git("for-each-ref", "--format=^%(refname)", "refs/bisect/good-*").stdout
        left = self._git("rev-list", "refs/bisect/bad", *goods.split(), f"^{commit}^@").stdout
        return commit in left.split()

    def checkout(self, commit: str) -> Path:
        """Have the work tree at a commit, with nothing left of any other."""
        self._git("checkout", "--quiet", "--force", "--detach", commit)
        self._git("clean", "--quiet", "-d", "--force", "--force", "-x")
        return self.tree

    def has(self, patch: Path) -> bool:
        """Whether the checked out commit has a patch already."""
        applies = ("apply", "--check", "--whitespace=nowarn")
        path = str(patch.absolute())
        if git.in_checkout(self.tree, *applies, path).status == 0:
            return False
        return git.in_checkout(self.tree, *applies, "--reverse", path).status == 0

    def log(self) -> str:
        """The log of git bisect, which `git bisect replay` reads."""
        return self._git("bisect", "log", check=False).stdout

    def title(self, commit: str) -> str:
        """A commit's abbreviated hash and subject."""
        told = self._git("show", "--no-patch", "--abbrev=12", '--format=%h ("%s")', commit)
        return told.stdout.strip()

    def describe(self, commit: str) -> str:
        """What a mail says about a commit: hash, author, date, subject and body."""
        return self._git("show", "--no-patch", "--no-color", commit).stdout.strip()

    def order(self, good: str, bad: str) -> dict[str, int]:
        """The place of each commit between good (0) and bad, oldest first."""
        listed = self._git("rev-list", "--reverse", "--topo-order", f"{good}..{bad}").stdout.split()
        return {good: 0, **{commit: place for place, commit in enumerate(listed, 1)}}

    def _read(self, told: Completed) -> Position:
        """What git said after a mark: the next commit, the culprit, or that it is stuck."""
        said = told.stdout + told.stderr
        if found := _FIRST_BAD.search(said):
            line = self._git("rev-list", "--parents", "-n1", found[1]).stdout.split()
            return Found(found[1], tuple(line[1:]))
        if _ONLY_SKIPPED in said:
            return Stuck(tuple(_COMMIT.findall(said)))
        if told.status == 0:
            head = self._git("rev-parse", "--verify", "--quiet", "BISECT_HEAD", check=False)
            if head.status == 0:
                return Candidate(head.stdout.strip())
        # As when a merge base is bad, which means that the good revision has a fix.
        raise UsageError(f"git bisect cannot go on: {said.strip()}")

    def _ask_source(self, *arguments: str) -> str:
        told = git.in_checkout(self._source, *arguments)
        if told.status != 0:
            raise SourceError(
                f"{self._source} is no checkout of git, so there is no history to bisect: "
                f"{told.stderr.strip()}"
            )
        return told.stdout.strip()

    def _git(self, *arguments: str, check: bool = True) -> Completed:
        told = git.in_own(self.tree, *arguments)
        if check and told.status != 0:
            raise CommandError(told.argv, told.status, told.stderr)
        return told
