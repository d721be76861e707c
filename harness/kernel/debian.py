# SPDX-License-Identifier: GPL-2.0-only
"""Fetch kernels and kernel sources from Debian with apt, which verifies them; needs no root.

The package lists of the machine are asked first. Where they do not know a package, or know one
that the archive has no more, lists of our own are fetched, from the same archives with the same
keys: a machine's lists are as old as its last ``apt-get update``, which only root can run.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from harness.command import Completed, require, run
from harness.deadline import Deadline
from harness.errors import InfrastructureError, MachineUnfitError, SourceError
from harness.kernel.answers import Answers
from harness.progress import Progress
from harness.store import Store

_RECIPE = 1
"""Part of the keys of unpacked packages; increase it when unpacking changes."""

_ASK_SECONDS = 60.0
_DOWNLOAD_SECONDS = 3600.0
_LISTS_SECONDS = 600.0
WEEK_SECONDS = 7 * 24 * 3600.0
"""Lists that are older name packages that the archive may have no more."""

FRESH_SECONDS = 3600.0
"""How old lists of our own may be before a package that they lack makes us fetch them again."""

_UNPACK_SECONDS = 600.0
_LONGEST_CHAIN = 4
"""How many metapackages may depend on each other until a kernel comes."""

_CONFIGURATION = (
    *(Path("/etc/apt") / name for name in ("", "sources.list.d", "preferences.d", "apt.conf.d")),
    Path("/var/lib/dpkg/status"),
)
"""What apt's answers depend on, besides its lists."""

_KERNEL_PACKAGE = re.compile(r"(?:^|(?<=[\s,|]))(linux-image-[a-z0-9][a-z0-9.+~-]*)")
_PART = re.compile(r"(?:^|(?<=[\s,]))(linux-(?:base|binary|modules)-[a-z0-9.+~-]+) \(= ([^)]+)\)")
_UPDATE = "check /etc/apt and the network"


@dataclasses.dataclass(frozen=True)
class Package:
    """One version of a package as apt's lists describe it; ``size`` is bytes."""

    name: str
    version: str
    architecture: str
    sha256: str
    size: int
    depends: str

    @property
    def title(self) -> str:
        """Name and version for people."""
        return f"{self.name} {self.version}"


class Apt:
    """What apt knows on this machine, and its downloads unpacked in the store.

    ``lists`` is the directory of the machine's package lists, of which only the age is looked at;
    ``home`` is the directory of our own in the store.
    """

    def __init__(
        self, store: Store, lists: Path = Path("/var/lib/apt/lists"), home: str = "apt"
    ) -> None:
        self._store = store
        self._lists = lists
        self._home = home
        self._ours = False

    def source(self, series: str) -> Package:
        """The package linux-source-``series``; raises SourceError if apt does not know it."""
        name = f"linux-source-{series}"
        return self._known(lambda: self._candidate(name, r"linux-source-[0-9.]+"))

    def package(self, name: str) -> Package:
        """The package of this very name; raises SourceError if apt does not know it."""
        return self._known(lambda: self._candidate(name, re.escape(name)))

    def image(self, version: str) -> Package:
        """The package with the kernel that ``deb:linux-image-version`` means.

        Of a series (6.12) the newest kernel is taken: signed, not -rt, not -dbg, and -cloud only
        where there is no other. Anything else ends a package's name; metapackages are followed.
        Raises SourceError if there is none.
        """
        return self._known(lambda: self._image(version))

    def _image(self, version: str) -> Package:
        if re.fullmatch(r"[0-9]+(\.[0-9]+)+", version):
            package = self._newest(version)
        else:
            package = self._candidate(
                f"linux-image-{version}", r"linux-image-[0-9][a-z0-9.+~-]*-amd64"
            )
        for _ in range(_LONGEST_CHAIN):
            following = re.search(
                r"(?:^|[\s,|])(linux-image-[a-z0-9][a-z0-9.+~-]*)", package.depends
            )
            if following is None:
                return package
            package = self._candidate(following[1], r"linux-image-.*")
        raise SourceError(f"linux-image-{version} leads to no kernel, only to more metapackages.")

    def parts(self, package: Package) -> tuple[Package, ...]:
        """A kernel's package, and those of the same build that have its image and modules.

        Debian's kernels from 6.19 on are split into several packages. Raises SourceError if apt
        knows one of them not in that version.
        """
        wanted = _PART.findall(package.depends)
        return (
            package,
            *(self._known(functools.partial(self._part, package, *one)) for one in wanted),
        )

    def _part(self, whole: Package, name: str, version: str) -> Package:
        part = self._candidate(name, r"linux-(?:base|binary|modules)-.*")
        if part.version != version:
            raise SourceError(
                f"{whole.title} belongs to {name} {version}, but apt knows that in version "
                f"{part.version}; {_UPDATE}."
            )
        return part

    def unpacked(self, package: Package, progress: Progress) -> Path:
        """The store entry with the package's files, downloaded and verified if it is new.

        Raises CommandError when the download fails.
        """
        key = {
            "recipe": _RECIPE,
            "package": package.name,
            "version": package.version,
            "architecture": package.architecture,
            "sha256": package.sha256,
        }

        def make(directory: Path) -> None:
            with progress.phase(f"Fetch {package.title}"):
                # Room for the archive and what it unpacks to.
                self._store.require_space(package.size * 6, f"Fetching {package.title}")
                progress.update(f"{package.size / 1e6:.0f} MB with apt-get download")
                archive = self._download(package, directory)
                progress.update("unpacking")
                self._run(["dpkg-deb", "-x", archive, directory], _UNPACK_SECONDS)
                archive.unlink()

        return self._store.entry(
            "debian",
            key,
            make,
            waiting=lambda: progress.note(f"Another run fetches {package.title}; waiting for it."),
        )

    def _download(self, package: Package, directory: Path) -> Path:
        # The fixed version makes apt verify just what the lists said a moment ago.
        wanted = f"{package.name}:{package.architecture}={package.version}"
        wanted = wanted.replace(":all=", "=")
        self._run(
            ["apt-get", *self._options(), "-q", "download", wanted],
            _DOWNLOAD_SECONDS,
            cwd=directory,
            hint=f"{package.title} could not be downloaded; {_UPDATE}, and whether the "
            "archive has a newer version by now.",
        )
        archives = list(directory.glob("*.deb"))
        if len(archives) != 1:
            raise InfrastructureError(f"apt-get download brought no archive of {package.title}.")
        with archives[0].open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != package.sha256:
                raise InfrastructureError(
                    f"The archive of {package.title} is not the one that apt's lists promise; "
                    f"{_UPDATE} and try again."
                )
        return archives[0]

    def _known(self, find: Callable[[], Package]) -> Package:
        """What ``find`` finds in the machine's lists, or else in lists of our own."""
        if not self._ours and _age(self._lists.glob("*Packages*")) > WEEK_SECONDS:
            self._fetch_lists(WEEK_SECONDS)
        try:
            return find()
        except (SourceError, MachineUnfitError):
            if not self._fetch_lists(FRESH_SECONDS):
                raise
        return find()

    def _fetch_lists(self, oldest: float) -> bool:
        """Use lists of our own from now on, fetched if they are older; whether that is news."""
        fetched = False
        with self._store.lock(f"{self._home}-lists"):
            lists = self._store.directory(f"{self._home}/lists")
            mark = lists / "fetched"
            if _age([mark]) > oldest:
                (lists / "partial").mkdir(exist_ok=True)
                fetched = self._update().status == 0
                if fetched:
                    mark.touch()
            news = fetched or (mark.exists() and not self._ours)
        self._ours = self._ours or news
        return news

    def _update(self) -> Completed:
        """Fetch lists of our own; a status of 0 says that they came."""
        # As root, apt would fetch as its own user, who may not write to our cache.
        argv = ["apt-get", *self._options(ours=True), "-o", "APT::Sandbox::User=root"]
        return self._run([*argv, "-q", "update"], _LISTS_SECONDS, check=False)

    def _candidate(self, name: str, alike: str) -> Package:
        """The version of a package that apt would install."""
        found = self._records([name])
        if found:
            return found[0]
        self._require_lists()
        known = [other for other in self._names("linux-") if re.fullmatch(alike, other)]
        offer = ", ".join(package.name for package in self._newest_first(known)[:6]) or "none"
        raise SourceError(
            f"apt knows no package {name} that can be downloaded; it knows {offer}. "
            f"If it should know more, {_UPDATE}."
        )

    def _newest(self, series: str) -> Package:
        pattern = rf"linux-image-{re.escape(series)}(?![0-9])(?:[.+~-][a-z0-9.+~-]*)?-amd64"
        unwanted = re.compile(r"-(rt|dbg|unsigned)\b")
        names = [
            name
            for name in self._names("linux-image-")
            if re.fullmatch(pattern, name) and not unwanted.search(name)
        ]
        plain = [name for name in names if "-cloud-" not in name]
        newest = [
            package
            for package in self._newest_first(plain or names)
            if not _KERNEL_PACKAGE.search(package.depends)
        ]
        if not newest:
            self._require_lists()
            raise SourceError(
                f"apt knows no kernel image of series {series} for amd64; "
                f"if it should know one, {_UPDATE}."
            )
        return newest[0]

    def _newest_first(self, names: Sequence[str]) -> list[Package]:
        """The candidates among ``names``, in the order of their versions."""

        def compare(one: str, other: str) -> int:
            argv = ["dpkg", "--compare-versions", one, "gt", other]
            return 1 if self._run(argv, _ASK_SECONDS, check=False).status == 0 else -1

        found = self._records(names)
        versions = sorted({package.version for package in found}, key=functools.cmp_to_key(compare))
        return sorted(found, key=lambda package: versions.index(package.version), reverse=True)

    def _names(self, prefix: str) -> list[str]:
        return sorted(self._ask("pkgnames", prefix).split())

    def _records(self, names: Sequence[str]) -> list[Package]:
        """The candidates of the packages; what apt does not know, or cannot fetch, is left out."""
        if not names:
            return []
        told = self._ask("show", "--no-all-versions", *names)
        records = [_fields(record) for record in told.split("\n\n") if record.strip()]
        # apt takes a name that it does not know for a regular expression, and answers for all
        # that match. An installed package that the lists have not has no checksum.
        return [
            _package(fields)
            for fields in records
            if fields.get("Package") in names and "SHA256" in fields
        ]

    def _ask(self, *words: str) -> str:
        """What apt-cache says, remembered while lists and configuration are the same."""
        lists = self._store.directory(f"{self._home}/lists") if self._ours else self._lists
        remembered = Answers(
            self._store.directory(self._home) / f"{'ours' if self._ours else 'machine'}.json",
            (lists, *_CONFIGURATION, Path(os.environ.get("APT_CONFIG", "/etc/apt/apt.conf"))),
        )
        argv = ["apt-cache", *self._options(), *words]
        return remembered.ask(argv, lambda: self._run(argv, _ASK_SECONDS, check=False).stdout)

    def _require_lists(self) -> None:
        argv = ["apt-get", *self._options(), "indextargets", "Created-By: Packages"]
        if not self._run(argv, _ASK_SECONDS, check=False).stdout.strip():
            raise MachineUnfitError(
                f"apt has no package lists on this machine, and could fetch none; {_UPDATE}."
            )

    def _options(self, *, ours: bool | None = None) -> tuple[str, ...]:
        # apt's own cache file is switched off in containers and cannot be written by plain users;
        # with one of ours an answer takes 0.2 s instead of 0.7 s. apt renews it when it must.
        ours = self._ours if ours is None else ours
        directory = self._store.directory(self._home)
        lists = self._store.directory(f"{self._home}/lists")
        caches = directory / "ours" if ours else directory
        caches.mkdir(exist_ok=True)
        settings = [
            f"Dir::Cache::pkgcache={caches}/pkgcache.bin",
            f"Dir::Cache::srcpkgcache={caches}/srcpkgcache.bin",
            *([f"Dir::State::Lists={lists}"] if ours else []),
        ]
        return tuple(word for setting in settings for word in ("-o", setting))

    def _run(
        self,
        argv: Sequence[str | Path],
        seconds: float,
        *,
        cwd: Path | None = None,
        check: bool = True,
        hint: str = "",
    ) -> Completed:
        program = str(argv[0])
        path = require(program, "apt" if program.startswith("apt") else "dpkg")
        return run(
            [path, *argv[1:]],
            Deadline.after(seconds, " ".join(str(word) for word in argv[:2])),
            cwd=cwd,
            env={"LC_ALL": "C.UTF-8"},
            check=check,
            hint=hint,
        )


def _age(files: Iterable[Path]) -> float:
    """Seconds since the newest of the files that exist was written; infinite for none."""
    times = [path.stat().st_mtime for path in files if path.exists()]
    return time.time() - max(times) if times else math.inf


def _fields(record: str) -> dict[str, str]:
    """The fields of one record of a package list; lines that continue a field are joined."""
    fields: dict[str, str] = {}
    name = ""
    for line in record.splitlines():
        if line[:1].isspace():
            fields[name] = f"{fields.get(name, '')} {line.strip()}"
        else:
            name, _, value = line.partition(":")
            fields[name] = value.strip()
    return fields


def _package(fields: dict[str, str]) -> Package:
    return Package(
        name=fields["Package"],
        version=fields["Version"],
        architecture=fields["Architecture"],
        sha256=fields["SHA256"],
        size=int(fields.get("Size", "0")),
        depends=fields.get("Depends", ""),
    )
