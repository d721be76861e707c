# SPDX-License-Identifier: GPL-2.0-only
"""Check what is claimed of CONFIG_MMU_NOTIFIER: it is there for KVM, and costs nobody else.

Three small kernels are configured and built from the same source: with KVM built in, with KVM as
a module, and with no user of MMU notifiers. The first two must have notifiers, the third must
build without a symbol of them and without a call to them where fork and munmap do their work.
That the symbols and the calls are found in the first two shows that they could be found.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from harness.command import require, run
from harness.deadline import Deadline
from harness.errors import BuildError, HarnessError, KconfigError
from harness.kernel import kconfig
from harness.kernel.fragments import Request, merged, read_fragments
from harness.kernel.kconfig_reader import KconfigTree
from harness.kernel.make import Make, check_path, require_tools, toolchain
from harness.kernel.series import Patch
from harness.kernel.source import Source
from harness.kernel.tree import BuildTree
from harness.progress import Progress
from harness.store import Store

_RECIPE = 1
_FRAGMENTS = Path(__file__).resolve().parents[2] / "kernel-config" / "claims"
_BYTES = 3 << 30
_NM_SECONDS = 60.0

_NOTIFIER = re.compile(r"mmu_notifier")
_PATHS = ("kernel/fork.o", "mm/memory.o", "mm/mmap.o", "mm/vma.o", "mm/mprotect.o", "mm/mremap.o")
"""Where fork copies page tables, and munmap, mprotect, mremap and exit change them; mm/vma.c came
with commit 49b1b8d6f682 ("mm: move internal core VMA manipulation functions to own file")
(in v6.12)."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One configuration: what it is called, its fragment, and whether it has notifiers."""

    name: str
    fragment: str
    notifiers: bool


CASES = (
    Case("KVM=y", "kvm-y.config", notifiers=True),
    Case("KVM=m", "kvm-m.config", notifiers=True),
    Case("no user", "no-user.config", notifiers=False),
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was found for one case.

    ``kvm`` and ``notifier`` are the values of CONFIG_KVM and CONFIG_MMU_NOTIFIER ("n" if unset).
    ``symbols`` are those of MMU notifiers in System.map, and ``calls`` what the objects of fork and
    munmap refer to, by object; None where nothing was built. ``problems`` are clauses.
    """

    case: Case
    kvm: str
    notifier: str
    symbols: tuple[str, ...] | None = None
    calls: Mapping[str, tuple[str, ...]] | None = None
    problems: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Selection:
    """Who selects MMU_NOTIFIER in a tree: the path from KVM to it, and all selectors."""

    chain: tuple[str, ...]
    selectors: tuple[str, ...]


class Claims:
    """The claims on one source with patches; ``jobs`` is for make."""

    def __init__(
        self,
        source: Source,
        patches: Sequence[Patch],
        store: Store,
        progress: Progress,
        jobs: int,
    ) -> None:
        self._source = source
        self._patches = patches
        self._store = store
        self._progress = progress
        self._jobs = jobs
        self._tools = toolchain()

    def check(self, *, build: bool = True) -> tuple[Selection, tuple[Finding, ...]]:
        """What is found on the tree, and for each case; without ``build`` only configured.

        What was built before is not built again. Raises KconfigError for a tree that knows no
        MMU_NOTIFIER or no KVM, and what BuildTree.become() raises.
        """
        found = self._store.entry("claims", self._key("tree"), self._select)
        said = json.loads(_text(found, "selection"))
        selected = Selection(tuple(said["chain"]), tuple(said["selectors"]))
        return selected, tuple(self._finding(case, build=build) for case in CASES)

    def _finding(self, case: Case, *, build: bool) -> Finding:
        def make(directory: Path) -> None:
            self._make(case, directory, build=build)

        key = self._key(case.name, build=build, requests=self._requests(case))
        entry = self._store.entry("claims", key, make)
        facts = json.loads(_text(entry, "facts"))
        symbols, calls = facts["symbols"], facts["calls"]
        finding = Finding(
            case,
            facts["kvm"],
            facts["notifier"],
            None if symbols is None else tuple(symbols),
            None if calls is None else {name: tuple(value) for name, value in calls.items()},
        )
        return dataclasses.replace(finding, problems=(*facts["problems"], *_problems(finding)))

    def _requests(self, case: Case) -> tuple[Request, ...]:
        return read_fragments((_FRAGMENTS / "tiny.config", _FRAGMENTS / case.fragment))

    def _key(
        self, what: str, *, build: bool = False, requests: Sequence[Request] = ()
    ) -> dict[str, object]:
        return {
            "recipe": _RECIPE,
            "what": what,
            "built": build,
            "source": self._source.digest,
            "patches": [patch.digest for patch in self._patches],
            "config": {request.symbol: request.value for request in requests},
            "compiler": self._tools.compiler,
            "linker": self._tools.linker,
        }

    def _tree(self) -> BuildTree:
        """A build tree apart from the one of the kernels, which would have to be built anew."""
        tree = BuildTree(self._store.directory(f"trees/{self._source.lineage}-claims"))
        check_path(tree.root)
        self._store.require_space(_BYTES, f"Checking {self._source.title}")
        tree.become(self._source, self._patches, self._progress)
        return tree

    def _select(self, directory: Path) -> None:
        with self._store.lock(f"tree-{self._source.lineage}-claims"):
            found = selection(self._tree().root)
        (directory / "selection.json").write_text(json.dumps(dataclasses.asdict(found)))

    def _make(self, case: Case, directory: Path, *, build: bool) -> None:
        require_tools()
        with self._store.lock(f"tree-{self._source.lineage}-claims"):
            tree = self._tree()
            log = self._store.directory("logs") / f"{self._source.lineage}-claims.log"
            log.unlink(missing_ok=True)
            with tree.being_made():
                make = Make(tree.root, log, self._tools)
                requested = tree.home / "requested.config"
                requests = self._requests(case)
                requested.write_text(merged(requests))
                with self._progress.phase(f"Configure {case.name}"):
                    make.configure(requested)
                    config = kconfig.check_kept(tree.root, requests, self._progress)
                facts: dict[str, object] = {
                    "kvm": config.get("KVM", "n"),
                    "notifier": config.get("MMU_NOTIFIER", "n"),
                    "symbols": None,
                    "calls": None,
                    "problems": [],
                }
                if build:
                    facts |= self._build(case, make, tree.root)
            shutil.copy(tree.root / ".config", directory / "config")
            (directory / "facts.json").write_text(json.dumps(facts))

    def _build(self, case: Case, make: Make, root: Path) -> dict[str, object]:
        try:
            with self._progress.phase(f"Build {self._source.title} with {case.name}"):
                make.build(self._jobs, self._progress)
        except BuildError as error:
            return {"problems": [f"it does not build: {error}"]}
        names = (line.split()[-1] for line in (root / "System.map").read_text().splitlines())
        return {
            "symbols": sorted({name for name in names if _NOTIFIER.search(name)}),
            "calls": {
                path: notifiers_called(root / path) for path in _PATHS if (root / path).exists()
            },
        }


def selection(tree: Path) -> Selection:
    """Who selects MMU_NOTIFIER, as the Kconfig files of ``tree`` say it for x86.

    Raises KconfigError for a tree without that symbol, with one that a user can set by hand, or
    in which no symbol of KVM leads to it.
    """
    known = KconfigTree(tree)
    definitions = known.definitions.get("MMU_NOTIFIER")
    if not definitions:
        raise KconfigError(
            "This source has no CONFIG_MMU_NOTIFIER; it came with commit cddb8a5c14aa "
            '("mmu-notifiers: core") (in v2.6.27), so give a later kernel, or that patch.'
        )
    if any(definition.prompt for definition in definitions):
        raise KconfigError(
            f"CONFIG_MMU_NOTIFIER can be set by hand at {definitions[0].place}, "
            "so it is not on for its users only."
        )
    chain = _chain(known, "MMU_NOTIFIER")
    if chain is None:
        raise KconfigError("No symbol of KVM selects CONFIG_MMU_NOTIFIER on x86 in this source.")
    users = sorted({name for name, _ in known.selectors.get("MMU_NOTIFIER", [])})
    return Selection(chain, tuple(users))


def table(findings: Sequence[Finding]) -> list[tuple[str, ...]]:
    """The findings as rows of text, the first of which has the titles."""
    rows: list[tuple[str, ...]] = [
        ("configuration", "KVM", "MMU_NOTIFIER", "builds", "System.map", "fork, munmap", "claim")
    ]
    for finding in findings:
        built = symbols = calls = "-"
        if finding.symbols is not None and finding.calls is not None:
            built, symbols = "yes", f"{len(finding.symbols)} symbols"
            count = sum(bool(called) for called in finding.calls.values())
            calls = f"{count} of {len(finding.calls)} objects call"
        claim = "; ".join(finding.problems) or "holds"
        rows.append(
            (finding.case.name, finding.kvm, finding.notifier, built, symbols, calls, claim)
        )
    return rows


def _chain(known: KconfigTree, target: str) -> tuple[str, ...] | None:
    """The shortest way by which KVM, for which x86 has two symbols, selects the target."""
    ways: list[tuple[str, ...]] = [(target,)]
    seen = {target}
    for way in ways:
        if way[0] in ("KVM", "KVM_X86"):
            return way
        for name, _ in known.selectors.get(way[0], []):
            if name not in seen:
                seen.add(name)
                ways.append((name, *way))
    return None


def notifiers_called(path: Path, nm: str = "nm", env: Mapping[str, str] | None = None) -> list[str]:
    """The symbols of MMU notifiers that an object leaves to be found elsewhere."""
    argv: list[str | Path] = [
        require(nm, "binutils"),
        "--undefined-only",
        "--format=just-symbols",
        path,
    ]
    told = run(argv, Deadline.after(_NM_SECONDS, f"nm {path.name}"), env=env)
    return sorted(name for name in told.stdout.split() if _NOTIFIER.search(name))


def _problems(finding: Finding) -> Iterator[str]:
    """In what a case is not as it is claimed to be."""
    case = finding.case
    wanted = "y" if case.notifiers else "n"
    if finding.notifier != wanted:
        yield f"CONFIG_MMU_NOTIFIER is {finding.notifier} instead of {wanted}"
    if finding.symbols is None or finding.calls is None:
        return
    called = sorted(name for name, symbols in finding.calls.items() if symbols)
    if not case.notifiers:
        if finding.symbols:
            yield f"System.map has {', '.join(finding.symbols[:3])}"
        yield from (f"{name} calls {finding.calls[name][0]}" for name in called)
        return
    if not finding.symbols:
        yield "System.map has no symbol of MMU notifiers"
    missing = {"kernel/fork.o", "mm/memory.o"} - set(called)
    yield from (f"{name} calls no MMU notifier" for name in sorted(missing))


def _text(entry: Path, name: str) -> str:
    try:
        return (entry / f"{name}.json").read_text()
    except OSError as error:
        raise HarnessError(f"The store's entry {entry} is incomplete; remove it.") from error
