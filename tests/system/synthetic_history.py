# SPDX-License-Identifier: GPL-2.0-only
"""Makes a git history over a real 6.12 tree, for bisections with a known answer.

``python tests/system/synthetic_history.py TREE DIR [PERCENT]`` copies the source in TREE, a
directory or a tarball, to DIR and puts 64 commits on top. Each changes the KVM module. One of them
begins to leak a page reference with every 64th page that a guest faults in, in PERCENT of the
boots; two do not build, one does not boot, and one has MADV_DONTNEED do nothing, each until the
next commit. The tags ``good``, ``bad`` and ``culprit`` say where.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

COMMITS = 64
LEAKS = 41
DO_NOT_BUILD = (32, 37)
DOES_NOT_BOOT = 48
UNRELATED = 16

HEADER = """\
/* SPDX-License-Identifier: GPL-2.0-only */
#include <linux/random.h>
#include <linux/stringify.h>

static const char history[] __used = "history " __stringify({number});
{error}
static bool history_leaks(gfn_t gfn)
{{
	static int leaks = -1;

	if (leaks < 0)
		leaks = get_random_u32_below(100) < {percent};
	return leaks && !(gfn & 63);
}}
"""
_MMU = "arch/x86/kvm/mmu/mmu.c"
_RELEASE = "\tkvm_release_pfn_clean(orig_pfn);\n"
_ZAP = "\tzap_page_range_single(vma, start, end - start, NULL);\n\treturn 0;\n"
_STARTING = "\trcu_scheduler_starting();\n"


class Tree:
    """The repository that is made."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def git(self, *arguments: str) -> None:
        who = {f"GIT_{role}_NAME": "A. Developer" for role in ("AUTHOR", "COMMITTER")}
        who |= {f"GIT_{role}_EMAIL": "a@example.org" for role in ("AUTHOR", "COMMITTER")}
        subprocess.run(
            ["git", "-c", "gc.auto=0", *arguments],
            cwd=self.path,
            check=True,
            env={**os.environ, **who, "GIT_CONFIG_GLOBAL": "/dev/null"},
        )

    def replace(self, name: str, old: str, new: str) -> None:
        """Replace text that must be there."""
        path = self.path / name
        text = path.read_text()
        if old not in text:
            raise SystemExit(f"{path} has no {old!r}; this is made for 6.12.")
        path.write_text(text.replace(old, new))

    def commit(self, number: int, percent: int) -> None:
        error = '#error "on purpose"\n' if number in DO_NOT_BUILD else ""
        text = HEADER.format(number=number, error=error, percent=percent)
        (self.path / "arch/x86/kvm/mmu/history.h").write_text(text)
        # Debian's tarball ignores everything that is new.
        self.git("add", "-A", "-f")
        self.git("commit", "-q", "-m", f"Change {number} of the history")


def make(source: Path, target: Path, percent: int = 100) -> None:
    """Make the repository."""
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns(".git"))
    else:
        target.mkdir(parents=True)
        tar = ["tar", "-xf", str(source), "--strip-components=1", "-C", str(target)]
        subprocess.run(tar, check=True)
    tree = Tree(target)
    tree.git("init", "-q", "-b", "main")
    tree.replace(_MMU, '#include "spte.h"\n', '#include "spte.h"\n#include "history.h"\n')
    tree.replace(_MMU, _RELEASE, f"\tif (!history_leaks(fault->gfn))\n\t{_RELEASE}")
    tree.commit(0, 0)
    tree.git("tag", "good")
    for number in range(1, COMMITS + 1):
        with_zap = ("mm/madvise.c", _ZAP, "\treturn 0;\n")
        with_panic = ("init/main.c", _STARTING, f'\tpanic("on purpose");\n{_STARTING}')
        for at, (name, old, new) in ((UNRELATED, with_zap), (DOES_NOT_BOOT, with_panic)):
            if number == at:
                tree.replace(name, old, new)
            elif number == at + 1:
                subprocess.run(
                    ["git", "checkout", "-q", "good", "--", name], cwd=target, check=True
                )
        tree.commit(number, percent if number >= LEAKS else 0)
        if number == LEAKS:
            tree.git("tag", "culprit")
    tree.git("tag", "bad")


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
