# SPDX-License-Identifier: GPL-2.0-only
"""The store is atomic, makes a thing once, and explains what it cannot do."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import StoreError
from harness.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def _fill(directory: Path) -> None:
    (directory / "file").write_text("made")


def _leftovers(store: Store) -> list[str]:
    return [p.name for p in store.root.rglob("*") if p.name.endswith(".making")]


def test_default_root_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Store().root == tmp_path / "mmu-harness"


def test_digest_ignores_the_order_of_the_key() -> None:
    assert Store.digest({"a": 1, "b": [2]}) == Store.digest({"b": [2], "a": 1})
    assert Store.digest({"a": 1}) != Store.digest({"a": 2})


def test_entry_is_made_once_and_carries_its_key(store: Store) -> None:
    key = {"source": "x", "patches": ["p"]}
    first = store.entry("kernel", key, _fill)
    second = store.entry("kernel", key, lambda _: pytest.fail("made twice"))
    assert first == second == store.root / "kernel" / Store.digest(key)
    assert (first / "file").read_text() == "made"
    about = json.loads((first / "key.json").read_text())
    assert (about["kind"], about["key"]) == ("kernel", key)
    assert list(about["files"]) == ["file"]
    assert store.find("kernel", key) == first
    assert store.find("kernel", {"other": 1}) is None


def test_failing_make_leaves_nothing_and_can_be_repeated(store: Store) -> None:
    def fail(directory: Path) -> None:
        _fill(directory)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.entry("kernel", {"k": 1}, fail)
    assert _leftovers(store) == []
    assert store.find("kernel", {"k": 1}) is None
    assert (store.entry("kernel", {"k": 1}, _fill) / "file").exists()


def test_scratch_is_adopted_before_and_released_after(tmp_path: Path) -> None:
    told: list[tuple[str, bool]] = []
    store = Store(
        tmp_path,
        adopt=lambda path: told.append(("adopt", path.exists())),
        release=lambda path: told.append(("release", path.exists())),
    )
    store.entry("kernel", {}, _fill)
    assert told == [("adopt", False), ("release", False)]


def test_what_a_killed_process_left_is_replaced(store: Store) -> None:
    stale = store.root / "kernel" / f".{Store.digest({})}.making"
    stale.mkdir(parents=True)
    (stale / "half").write_text("")
    entry = store.entry("kernel", {}, _fill)
    assert sorted(p.name for p in entry.iterdir()) == ["file", "key.json"]
    assert _leftovers(store) == []


def test_two_processes_make_it_once(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from harness.store import Store

        root = Path(sys.argv[1])

        def make(directory):
            with (root / "made").open("a") as log:
                log.write("x")
            (root / f"started").touch()
            while not (root / "go").exists():
                time.sleep(0.01)
            (directory / "file").write_text("made")

        def waiting():
            (root / "go").touch()

        print(Store(root / "cache").entry("kernel", {"k": 1}, make, waiting=waiting))
    """)
    with (
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE
        ) as one,
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE
        ) as two,
    ):
        answers = {one.communicate(timeout=20)[0], two.communicate(timeout=20)[0]}
    assert one.returncode == two.returncode == 0
    assert len(answers) == 1
    assert (tmp_path / "made").read_text() == "x"


def test_lock_excludes_and_says_so(store: Store) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from harness.store import Store\n"
            "with Store(Path(sys.argv[1])).lock('trees/a b'):\n"
            "    print('held', flush=True); sys.stdin.read()",
            str(store.root),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == b"held\n"
    waited = []

    def waiting() -> None:
        waited.append(holder.poll())
        assert holder.stdin is not None
        holder.stdin.close()

    with store.lock("trees/a b", waiting=waiting):
        assert holder.wait(10) == 0
    assert waited == [None]
    holder.stdout.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_a_store_error_wherever_it_strikes(store: Store, number: int) -> None:
    def fail(directory: Path) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(StoreError, match=r"(space|quota).*XDG_CACHE_HOME"):
        store.entry("kernel", {}, fail)
    assert _leftovers(store) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_unwritable_store_is_a_store_error(store: Store, number: int) -> None:
    def fail(directory: Path) -> None:
        raise OSError(number, os.strerror(number), str(directory / "file"))

    with pytest.raises(StoreError, match=str(store.root)):
        store.entry("kernel", {}, fail)


def test_other_peoples_files_are_not_blamed_on_the_store(store: Store) -> None:
    def fail(directory: Path) -> None:
        raise PermissionError(errno.EACCES, "denied", "/somewhere/else")

    with pytest.raises(PermissionError):
        store.entry("kernel", {}, fail)


def test_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(StoreError, match="not a directory"):
        Store(tmp_path / "cache").directory("trees")


def test_root_that_cannot_be_made() -> None:
    with pytest.raises(StoreError, match="XDG_CACHE_HOME"):
        Store(Path("/proc/none/cache")).directory("trees")


def test_bugs_in_make_stay_bugs(store: Store) -> None:
    def fail(directory: Path) -> None:
        (directory / "a/b").write_text("")

    with pytest.raises(FileNotFoundError):
        store.entry("kernel", {}, fail)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="permission"):
        Store(tmp_path / "cache").directory("trees")


def test_space_is_asked_for_with_figures(store: Store) -> None:
    store.require_space(1, "Nothing much")
    with pytest.raises(StoreError, match=r"A moon needs about 1048576\.0 GiB .* GiB are free"):
        store.require_space(1 << 50, "A moon")


def test_what_a_process_was_given_is_not_removed(store: Store) -> None:
    path = store.entry("kernel", {"k": 1}, _fill)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from harness.store import Store\n"
            "store = Store(Path(sys.argv[1]))\n"
            "print(store.find('kernel', {'k': 1}), flush=True); sys.stdin.read()",
            str(store.root),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline().decode().strip() == str(path)
    # Not ours either: what made it holds it.
    other = Store(store.root)
    assert not other.remove(path)
    for mark in store._held.values():
        os.close(mark)
    assert not other.remove(path)
    assert (path / "file").exists()
    holder.kill()
    holder.communicate(timeout=20)
    assert other.remove(path)
    assert list((store.root / "kernel").iterdir()) == []
    assert not other.remove(path)
    assert other.find("kernel", {"k": 1}) is None


def test_an_entry_that_lost_its_key_is_made_again(store: Store) -> None:
    path = store.entry("kernel", {}, lambda p: (p / "old").touch())
    (path / "key.json").unlink()
    again = Store(store.root)
    assert again.find("kernel", {}) is None
    assert again.entry("kernel", {}, _fill) == path
    assert sorted(p.name for p in path.iterdir()) == ["file", "key.json"]


def test_finding_an_entry_marks_the_time(store: Store) -> None:
    path = store.entry("kernel", {}, _fill)
    os.utime(path / "key.json", (1, 1))
    assert Store(store.root).find("kernel", {}) == path
    assert (path / "key.json").stat().st_mtime > 1


def test_a_directory_in_use_is_not_removed(store: Store) -> None:
    path = store.directory("trees/linux")
    (path / "source").mkdir()
    other = Store(store.root)
    with store.lock("tree-linux"):
        assert not other.remove_directory(path, "tree-linux")
    assert path.is_dir()
    assert other.remove_directory(path, "tree-linux")
    assert not path.exists()
    assert not other.remove_directory(path, "tree-linux")


# Damage.


def _fill_much(directory: Path) -> None:
    (directory / "deep").mkdir()
    (directory / "deep" / "image").write_bytes(bytes(3 << 20) + b"data" + bytes(3 << 20))
    (directory / "small").write_bytes(b"0123456789")
    (directory / "link").symlink_to("nowhere")


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    times = path.stat()
    path.write_bytes(data)
    # As a disk does it, which tells nobody.
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit": lambda path: _flip(path / "small"),
    "a bit in a hole": lambda path: _flip(path / "deep" / "image"),
    "an end": lambda path: os.truncate(path / "small", 9),
    "an end of a hole": lambda path: os.truncate(path / "deep" / "image", 4 << 20),
    "a file": lambda path: (path / "small").unlink(),
    "the key": lambda path: (path / "key.json").write_text("{"),
    "all of the key": lambda path: os.truncate(path / "key.json", 0),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_an_entry_that_is_damaged_is_made_again_and_it_is_said(store: Store, name: str) -> None:
    entry = store.entry("kernel", {"k": 1}, _fill_much)
    DAMAGES[name](entry)
    said: list[str] = []
    later = Store(store.root, warn=said.append)
    assert later.find("kernel", {"k": 1}) is None
    assert later.entry("kernel", {"k": 1}, _fill_much) == entry
    assert (entry / "small").read_bytes() == b"0123456789"
    (told,) = said
    assert str(entry) in told
    assert "is damaged" in told
    assert Store(store.root, warn=pytest.fail).find("kernel", {"k": 1}) == entry


def test_an_entry_is_looked_at_once_in_a_process(store: Store) -> None:
    entry = store.entry("kernel", {"k": 1}, _fill)
    later = Store(store.root, warn=pytest.fail)
    assert later.find("kernel", {"k": 1})
    (entry / "file").write_text("changed meanwhile")
    assert later.find("kernel", {"k": 1})


def test_where_a_file_has_holes_does_not_matter(store: Store) -> None:
    entry = store.entry("kernel", {"k": 1}, _fill_much)
    image = entry / "deep" / "image"
    whole = image.read_bytes()
    with image.open("r+b") as file:
        file.truncate(0)
        file.truncate(len(whole))
        file.seek(3 << 20)
        file.write(b"data")
    assert image.stat().st_blocks * 512 < len(whole)
    assert Store(store.root, warn=pytest.fail).find("kernel", {"k": 1}) == entry


def test_an_entry_from_before_there_were_checksums_is_taken(store: Store) -> None:
    entry = store.entry("kernel", {"k": 1}, _fill)
    (entry / "key.json").write_text('{"kind": "kernel", "key": {"k": 1}}')
    assert Store(store.root, warn=pytest.fail).find("kernel", {"k": 1}) == entry
