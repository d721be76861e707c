# SPDX-License-Identifier: GPL-2.0-only
"""Compile what MMU notifiers touch for other architectures: mm/, fork and KVM.

The hooks lie in code that all architectures share, and what an x86 kernel includes by accident
another lacks. Each architecture is compiled twice: with KVM, where the objects must call notifiers,
and with no user of them, where they must not. Nothing is linked, so it costs a part of a build.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from harness.errors import BuildError, HarnessError
from harness.kernel import kconfig
from harness.kernel.architecture import Architecture, cross_toolchain
from harness.kernel.claims import notifiers_called
from harness.kernel.debian import Apt
from harness.kernel.fragments import Request, merged, read_fragments
from harness.kernel.make import Make, Toolchain, check_path, require_tools
from harness.kernel.series import Patch
from harness.kernel.source import Source
from harness.kernel.tree import BuildTree
from harness.progress import Progress
from harness.store import Store

_RECIPE = 1
_FRAGMENTS = Path(__file__).resolve().parents[2] / "kernel-config" / "cross"
_BYTES = 3 << 30

_FORK = "kernel/fork.o"
_MUST_CALL = (_FORK, "mm/memory.o", "mm/rmap.o")
"""Objects that call notifiers on every architecture: fork, munmap and COW, reclaim."""

_KVM = "virt/kvm"


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What came of one architecture in one configuration; ``kvm`` tells which.

    ``compiler`` is its version, ``notifier`` the value of CONFIG_MMU_NOTIFIER. ``objects`` counts
    the object files by directory (kernel/fork.o by itself), and ``calls`` has the notifiers that
    each of _MUST_CALL refers to. ``problems`` are clauses.
    """

    architecture: str
    kvm: bool
    compiler: str
    notifier: str
    objects: Mapping[str, int]
    calls: Mapping[str, tuple[str, ...]]
    problems: tuple[str, ...] = ()

    @property
    def configuration(self) -> str:
        """The configuration in a few words for people."""
        return "KVM=y" if self.kvm else "no user"


class Portability:
    """The code of one source with patches on other architectures; ``jobs`` is for make."""

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

    def check(self, architectures: Sequence[Architecture]) -> tuple[Compiled, ...]:
        """What comes of each architecture, with KVM and without; made once, then remembered.

        Raises MachineUnfitError where there is no compiler, KconfigError for a tree that cannot
        be configured so, and what BuildTree.become() raises.
        """
        require_tools()
        apt = Apt(self._store)
        tools = [cross_toolchain(one, apt, self._store, self._progress) for one in architectures]
        return tuple(
            self._compiled(one, tool, kvm)
            for one, tool in zip(architectures, tools, strict=True)
            for kvm in (True, False)
        )

    def _compiled(self, architecture: Architecture, tools: Toolchain, kvm: bool) -> Compiled:
        requests = _requests(architecture, kvm)

        def make(directory: Path) -> None:
            facts = self._make(architecture, tools, requests, kvm, directory)
            (directory / "facts.json").write_text(json.dumps(facts))

        key = {
            "recipe": _RECIPE,
            "what": f"{architecture.name} {'KVM=y' if kvm else 'no user'}",
            "source": self._source.digest,
            "patches": [patch.digest for patch in self._patches],
            "config": {request.symbol: request.value for request in requests},
            "compiler": tools.compiler,
            "linker": tools.linker,
        }
        entry = self._store.entry("cross", key, make)
        try:
            facts = json.loads((entry / "facts.json").read_text())
        except OSError as error:
            raise HarnessError(f"The store's entry {entry} is incomplete; remove it.") from error
        compiled = Compiled(
            architecture.name,
            kvm,
            tools.compiler,
            facts["notifier"],
            facts["objects"],
            {name: tuple(value) for name, value in facts["calls"].items()},
        )
        problems = (*facts["problems"], *_problems(compiled, built=not facts["problems"]))
        return dataclasses.replace(compiled, problems=problems)

    def _make(
        self,
        architecture: Architecture,
        tools: Toolchain,
        requests: Sequence[Request],
        kvm: bool,
        directory: Path,
    ) -> dict[str, object]:
        """Compile in a directory of its own, which leaves the tree clean for the next."""
        lineage = f"{self._source.lineage}-cross"
        what = f"{architecture.name} {'with KVM' if kvm else 'without a user'}"
        with self._store.lock(f"tree-{lineage}"):
            tree = BuildTree(self._store.directory(f"trees/{lineage}"))
            objects = directory / "objects"
            check_path(objects)
            self._store.require_space(_BYTES, f"Compiling {self._source.title} for {what}")
            tree.become(self._source, self._patches, self._progress)
            log = self._store.directory("logs") / f"{lineage}-{what.replace(' ', '-')}.log"
            log.unlink(missing_ok=True)
            objects.mkdir()
            make = Make(tree.root, log, tools, objects)
            requested = directory / "requested.config"
            requested.write_text(merged(requests))
            with self._progress.phase(f"Configure {what}"):
                make.configure(requested)
                config = kconfig.check_kept(
                    tree.root,
                    requests,
                    self._progress,
                    objects=objects,
                    architecture=architecture.kernel,
                )
            targets = ["mm/", _FORK, *([f"arch/{architecture.kernel}/kvm/"] if kvm else [])]
            problems = []
            with self._progress.phase(f"Compile {self._source.title} for {what}"):
                try:
                    make.compile(targets, self._jobs, self._progress)
                except BuildError as error:
                    problems.append(str(error).rstrip("."))
            facts: dict[str, object] = {
                "notifier": config.get("MMU_NOTIFIER", "n"),
                "objects": {place: _count(objects, place) for place in ("mm", _FORK, _KVM)},
                "calls": {
                    path: notifiers_called(objects / path, f"{tools.prefix}nm", tools.environment)
                    for path in _MUST_CALL
                    if (objects / path).exists()
                },
                "problems": problems,
            }
            shutil.move(objects / ".config", directory / "config")
            shutil.rmtree(objects)
            return facts


def table(found: Sequence[Compiled]) -> list[tuple[str, ...]]:
    """What was found as rows of text, the first of which has the titles."""
    rows: list[tuple[str, ...]] = [
        (
            *("architecture", "configuration", "MMU_NOTIFIER"),
            *("mm/", "fork", "virt/kvm", "calls", "result"),
        )
    ]
    for one in found:
        counts = [f"{one.objects[place]}" for place in ("mm", _FORK, _KVM)]
        called = sum(bool(names) for names in one.calls.values())
        rows.append(
            (
                *(one.architecture, one.configuration, one.notifier, *counts),
                f"{called} of {len(one.calls)}",
                "; ".join(one.problems) or "compiles",
            )
        )
    return rows


def _requests(architecture: Architecture, kvm: bool) -> tuple[Request, ...]:
    names = ("common", architecture.name, *([f"{architecture.name}-kvm"] if kvm else []))
    return read_fragments(_FRAGMENTS / f"{name}.config" for name in names)


def _count(objects: Path, place: str) -> int:
    """How many object files there are at a place: a file, or a directory and what is below."""
    path = objects / place
    return int(path.exists()) if path.suffix else sum(1 for _ in path.rglob("*.o"))


def _problems(found: Compiled, *, built: bool) -> Iterator[str]:
    """In what the objects are not as they should be."""
    wanted = "y" if found.kvm else "n"
    if found.notifier != wanted:
        yield f"CONFIG_MMU_NOTIFIER is {found.notifier} instead of {wanted}"
    if not built:
        return
    for place, count in found.objects.items():
        if not count and (found.kvm or place != _KVM):
            yield f"nothing was compiled of {place}"
    for path in _MUST_CALL:
        called = found.calls.get(path, ())
        if found.kvm and not called:
            yield f"{path} calls no MMU notifier"
        if not found.kvm and called:
            yield f"{path} calls {called[0]}"
