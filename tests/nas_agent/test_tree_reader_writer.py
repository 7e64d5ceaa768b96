"""The file-system side without an engine between: read a tree, write it again, let rsync judge (AZK-83)."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from nas_agent.adapters import directories
from nas_agent.adapters.directories import OPEN_MAX, DirectoryChain, sorted_names
from nas_agent.adapters.excludes import Excludes
from nas_agent.adapters.measure import measure_sources
from nas_agent.adapters.source_file import OpenFile, data_ranges
from nas_agent.adapters.tree_reader import TreeReader, source_roots
from nas_agent.adapters.tree_writer import TargetNotEmptyError, TreeWriter
from nas_agent.errors import SourceChangedError
from nas_agent.ports import Observed, Problem
from runtime.errors import CorruptDataError, LocalError
from tests.nas_agent.nas_tree import IS_ROOT, make_tree, rsync_differences
from wire.vault.entry import Entry, Kind, sort_key


def _pieces(file: OpenFile, step: int = 100_003) -> Iterator[memoryview]:
    buffer = bytearray(step)
    while count := file.readinto(memoryview(buffer)):
        yield memoryview(buffer)[:count]


def _copy(reader: TreeReader, writer: TreeWriter) -> list[Problem]:
    problems: list[Problem] = []
    for found in reader.walk():
        if isinstance(found, Problem):
            problems.append(found)
        elif found.entry.kind is Kind.FILE:
            file = reader.open(found)
            problems += writer.put(msgspec.structs.replace(found.entry, holes=file.holes), _pieces(file))
            file.close()
        else:
            problems += writer.put(found.entry, iter(()))
    problems += writer.finish()
    reader.close()
    writer.close()
    return problems


def _reader(source: Path, **options: object) -> TreeReader:
    return TreeReader(source_roots([str(source)]), **options)  # type: ignore[arg-type]


def _paths(reader: TreeReader) -> list[bytes]:
    return [found.entry.path for found in reader.walk() if isinstance(found, Observed)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for missing in make_tree(tmp_path / "src"):
        print(f"not in this tree, for we are not root: {missing}")
    return tmp_path / "src"


def test_a_tree_with_every_kind_of_entry_is_written_as_rsync_sees_it(tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert _copy(_reader(tree), TreeWriter(str(target))) == []
    assert rsync_differences(tree, target) == ""


@pytest.mark.parametrize("name", ["sparse.img", "only-a-hole"])
def test_holes_take_no_blocks_after_a_restore(tree: Path, tmp_path: Path, name: str) -> None:
    _copy(_reader(tree), TreeWriter(str(tmp_path / "out")))
    assert (tmp_path / "out" / name).stat().st_blocks == (tree / name).stat().st_blocks
    assert (tmp_path / "out" / name).stat().st_blocks * 512 < 1 << 20


def test_the_judge_notices_a_changed_attribute(tree: Path, tmp_path: Path) -> None:
    _copy(_reader(tree), TreeWriter(str(tmp_path / "out")))
    os.setxattr(tmp_path / "out" / "plain.txt", "user.more", b"x")
    assert "plain.txt" in rsync_differences(tree, tmp_path / "out")


def test_entries_come_in_manifest_order_and_each_once(tree: Path) -> None:
    keys = [sort_key(path) for path in _paths(_reader(tree))]
    assert keys == sorted(set(keys))
    assert keys[0] == b""


def test_a_tree_deeper_than_path_max_and_than_our_descriptors_is_copied(tmp_path: Path) -> None:
    depth = 300
    (tmp_path / "src").mkdir()
    here = os.open(tmp_path / "src", os.O_DIRECTORY)
    for level in range(depth):
        os.mkdir(b"directory-%04d" % level, dir_fd=here)
        deeper = os.open(b"directory-%04d" % level, os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = deeper
        with os.fdopen(os.open(b"zz", os.O_CREAT | os.O_WRONLY, dir_fd=here), "wb") as file:
            file.write(b"%d" % level)
    os.close(here)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_MAX * 4 + 60, hard))
    try:
        assert _copy(_reader(tmp_path / "src"), TreeWriter(str(tmp_path / "out"))) == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert rsync_is_content_at_depth(tmp_path / "out", depth) == b"%d" % (depth - 1)
    for name in ("src", "out"):
        shutil.rmtree(tmp_path / name)


def rsync_is_content_at_depth(top: Path, depth: int) -> bytes:
    chain = DirectoryChain(os.fsencode(top))
    here = chain.open([b"directory-%04d" % level for level in range(depth)])
    with os.fdopen(os.open(b"zz", os.O_RDONLY, dir_fd=here), "rb") as file:
        content = file.read()
    chain.close()
    return content


def test_a_directory_with_more_names_than_fit_in_memory_is_listed_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(
        b"%06d\xff" % (number * 7919 % 100_000) for number in range(directories.NAMES_IN_MEMORY_MAX + 50)
    )
    root = os.fsencode(tmp_path)
    for name in names:
        os.close(os.open(root + b"/" + name, os.O_CREAT | os.O_WRONLY))
    fd = os.open(tmp_path, os.O_DIRECTORY)
    assert list(sorted_names(fd)) == names
    os.close(fd)


def test_an_unreadable_directory_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    """Runs as another uid, for root may read everything."""
    if not IS_ROOT:
        pytest.skip("needs root, to become another user")
    source = tmp_path / "src"
    (source / "closed").mkdir(parents=True)
    (source / "closed" / "inside").write_bytes(b"")
    (source / "open").write_bytes(b"")
    (source / "closed").chmod(0)
    for parent in (source, tmp_path, *tmp_path.parents):
        if str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    program = (
        "import os, sys\n"
        "from nas_agent.adapters.tree_reader import TreeReader, source_roots\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "for found in TreeReader(source_roots([sys.argv[1]])).walk():\n"
        "    print(type(found).__name__, getattr(found, 'path', None) or found.entry.path, getattr(found, 'reason', ''))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(source)], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.splitlines() == [
        "Observed b'' ",
        "Observed b'closed' ",
        "Problem b'closed' unreadable",
        "Observed b'open' ",
    ]


def test_a_file_replaced_after_the_listing_is_not_taken_for_the_listed_one(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"secret")
    source = tmp_path / "src"
    source.mkdir()
    (source / "file").write_bytes(b"1")
    reader = _reader(source)
    listed = next(found for found in reader.walk() if isinstance(found, Observed) and found.entry.path)
    (source / "file").unlink()
    (source / "file").symlink_to("../victim")
    with pytest.raises(SourceChangedError):
        reader.open(listed)
    (source / "file").unlink()
    (source / "other").write_bytes(b"2")
    (source / "keep-inode-busy").write_bytes(b"")
    (source / "other").rename(source / "file")
    with pytest.raises(SourceChangedError):
        reader.open(msgspec.structs.replace(listed, inode=listed.inode + 10_000_000))
    (source / "file").unlink()
    with pytest.raises(FileNotFoundError):
        reader.open(listed)
    reader.close()


def test_a_symlink_to_the_very_file_is_not_taken_for_it(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    (source / "file").write_bytes(b"1")
    reader = _reader(source)
    listed = next(found for found in reader.walk() if isinstance(found, Observed) and found.entry.path)
    (source / "file").rename(tmp_path / "moved")
    (source / "file").symlink_to("../moved")
    with pytest.raises(SourceChangedError, match="symlink"):
        reader.open(listed)
    reader.close()


def test_a_deep_directory_moved_away_does_not_lead_the_chain_with_it(tmp_path: Path) -> None:
    """Parents closed for want of descriptors come back through `..`, which is elsewhere after a move."""
    parts = [b"d%d" % level for level in range(OPEN_MAX + 10)]
    deep = tmp_path.joinpath(*(os.fsdecode(part) for part in parts))
    deep.mkdir(parents=True)
    chain = DirectoryChain(os.fsencode(tmp_path))
    chain.open(parts)
    cut = 5  # a level that the chain has closed
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path.joinpath(*(os.fsdecode(part) for part in parts[: cut + 1]))
    parent = moved.parent
    moved.rename(tmp_path / "elsewhere" / moved.name)
    fd = chain.open(parts[:cut])
    assert os.fstat(fd).st_ino == parent.stat().st_ino
    chain.close()


def test_a_directory_replaced_by_a_symlink_leads_nowhere(tmp_path: Path) -> None:
    source = tmp_path / "src"
    (source / "d").mkdir(parents=True)
    (source / "d" / "file").write_bytes(b"1")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_bytes(b"secret")
    reader = _reader(source)
    listed = [found for found in reader.walk() if isinstance(found, Observed)][-1]
    shutil.rmtree(source / "d")
    (source / "d").symlink_to("../elsewhere")
    with pytest.raises(FileNotFoundError):
        reader.open(listed)
    reader.close()


@pytest.mark.parametrize("change", ["append", "shrink", "touch", "rewrite"])
def test_a_file_that_changes_while_it_is_read_says_so(tmp_path: Path, change: str) -> None:
    (tmp_path / "file").write_bytes(b"x" * 10_000)
    reader = _reader(tmp_path)
    listed = [found for found in reader.walk() if isinstance(found, Observed)][-1]
    file = reader.open(listed)
    assert not file.changed()
    file.readinto(memoryview(bytearray(10)))
    if change == "append":
        with (tmp_path / "file").open("ab") as more:
            more.write(b"y")
    elif change == "shrink":
        os.truncate(tmp_path / "file", 5)
    elif change == "touch":
        os.utime(tmp_path / "file")
    else:
        status = (tmp_path / "file").stat()
        (tmp_path / "file").write_bytes(b"z" * 10_000)
        os.utime(tmp_path / "file", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.changed()
    if change == "shrink":
        assert file.readinto(memoryview(bytearray(10))) == 0
    file.close()
    reader.close()


def test_excluded_paths_are_left_out_and_not_entered(tmp_path: Path) -> None:
    for path in ("cache/x", "keep/cache/y", "keep/a.tmp", "keep/b.txt", "build/z", "deep/build"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    found = _paths(_reader(tmp_path, excludes=Excludes(["/cache", "*.tmp", "build/"])))
    assert found == [b"", b"deep", b"deep/build", b"keep", b"keep/b.txt", b"keep/cache", b"keep/cache/y"]


@pytest.mark.parametrize(
    ("pattern", "path", "is_directory", "expected"),
    [
        ("*.o", b"a/b/c.o", False, True),
        ("*.o", b"a/b/c.o/d", False, False),
        ("/a/*.o", b"a/c.o", False, True),
        ("/a/*.o", b"a/b/c.o", False, False),
        ("a/**/c", b"a/x/y/c", False, True),
        ("a/**/c", b"a/c", False, True),
        ("x?z", b"xyz", False, True),
        ("x?z", b"x/z", False, False),
        ("[ab].txt", b"b.txt", False, True),
        ("[!ab].txt", b"b.txt", False, False),
        ("日本*", "日本語".encode(), False, True),
        ("a.b", b"aXb", False, False),
    ],
)
def test_exclude_patterns(pattern: str, path: bytes, is_directory: bool, expected: bool) -> None:
    assert Excludes([pattern]).excludes(path, is_directory=is_directory) is expected


def test_a_later_pattern_takes_a_path_back_in() -> None:
    rules = Excludes(["*.log", "!keep.log"])
    assert rules.excludes(b"x.log", is_directory=False)
    assert not rules.excludes(b"keep.log", is_directory=False)


def test_an_empty_pattern_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a name"):
        Excludes(["!/"])


def test_several_sources_stand_side_by_side_under_their_last_names(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "f").write_bytes(b"1")
    (tmp_path / "two.txt").write_bytes(b"2")
    reader = TreeReader(source_roots([str(tmp_path / "two.txt"), str(tmp_path / "one")]))
    assert _copy(reader, TreeWriter(str(tmp_path / "out"))) == []
    assert (tmp_path / "out" / "one" / "f").read_bytes() == b"1"
    assert (tmp_path / "out" / "two.txt").read_bytes() == b"2"


def test_sources_with_the_same_last_name_are_refused(tmp_path: Path) -> None:
    for path in ("a/same", "b/same"):
        (tmp_path / path).mkdir(parents=True)
    with pytest.raises(LocalError, match="different last names"):
        source_roots([str(tmp_path / "a/same"), str(tmp_path / "b/same")])


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="nothing-here"):
        source_roots([str(tmp_path / "nothing-here")])


def test_another_file_system_is_not_entered_when_asked(tmp_path: Path) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("needs /proc")
    reader = TreeReader(source_roots(["/"]), excludes=Excludes(["/*", "!/proc"]), one_file_system=True)
    assert _paths(reader) == [b"", b"proc"]


def test_a_target_that_holds_something_is_refused_unless_asked(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_bytes(b"mine")
    with pytest.raises(TargetNotEmptyError, match="--overwrite"):
        TreeWriter(str(tmp_path / "out"))
    TreeWriter(str(tmp_path / "out"), overwrite=True).close()


def test_overwriting_replaces_files_whole_and_keeps_what_is_not_in_the_backup(
    tree: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    _copy(_reader(tree), TreeWriter(str(out)))
    (out / "plain.txt").unlink()
    (out / "plain.txt").write_bytes(b"older")
    (out / "mine").write_bytes(b"mine")
    assert _copy(_reader(tree), TreeWriter(str(out), overwrite=True)) == []
    assert rsync_differences(tree, out).split() == ["*deleting", "mine"]


def _file(path: bytes, data: bytes = b"data") -> tuple[Entry, Iterator[bytes]]:
    entry = Entry(
        path=path, kind=Kind.FILE, mode=0o644, uid=os.geteuid(), gid=os.getegid(), mtime_ns=0, size=len(data)
    )
    return entry, iter([data])


def test_a_symlink_in_the_target_is_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "d").symlink_to(outside)
    (tmp_path / "out" / "f").symlink_to(outside / "f")
    writer = TreeWriter(str(tmp_path / "out"), overwrite=True)
    with pytest.raises(OSError) as caught:
        writer.put(*_file(b"d/x"))
    assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
    assert writer.put(*_file(b"f")) == ()
    writer.finish()
    writer.close()
    assert list(outside.iterdir()) == []
    assert not (tmp_path / "out" / "f").is_symlink()


def test_a_symlink_of_the_backup_itself_leads_no_later_entry_outside(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    writer = TreeWriter(str(tmp_path / "out"))
    link = Entry(
        path=b"d",
        kind=Kind.SYMLINK,
        mode=0o777,
        uid=os.geteuid(),
        gid=os.getegid(),
        mtime_ns=0,
        target=b"../outside",
    )
    writer.put(link, iter(()))
    with pytest.raises(OSError):
        writer.put(*_file(b"d/x"))
    writer.close()
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("pieces", [[b"too little"], [b"x" * 200]])
def test_a_file_whose_content_does_not_fill_its_size_is_refused_and_removed(
    tmp_path: Path, pieces: list[bytes]
) -> None:
    writer = TreeWriter(str(tmp_path / "out"))
    entry, _ = _file(b"f", b"x" * 100)
    with pytest.raises(CorruptDataError, match="expected 100"):
        writer.put(entry, iter(pieces))
    writer.close()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_fault_in_the_middle_of_a_file_leaves_nothing_of_it(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise CorruptDataError("chunk damaged")

    writer = TreeWriter(str(tmp_path / "out"))
    with pytest.raises(CorruptDataError, match="chunk damaged"):
        writer.put(_file(b"f", b"x" * 8)[0], broken())
    writer.close()
    assert list((tmp_path / "out").iterdir()) == []


def test_parents_outside_the_selection_are_made(tmp_path: Path) -> None:
    writer = TreeWriter(str(tmp_path / "out"))
    writer.put(*_file(b"a/b/c"))
    writer.finish()
    writer.close()
    assert (tmp_path / "out/a/b/c").read_bytes() == b"data"


def test_another_user_is_told_what_it_could_not_set_and_gets_no_foreign_setuid(tmp_path: Path) -> None:
    """Runs as another uid: ownership and setuid of root must not be turned into setuid of that user."""
    if not IS_ROOT:
        pytest.skip("needs root, to become another user")
    for parent in (tmp_path, *tmp_path.parents):
        if str(parent).startswith("/tmp/"):
            parent.chmod(0o777)
    program = (
        "import os, sys\n"
        "from nas_agent.adapters.tree_writer import TreeWriter\n"
        "from wire.vault.entry import Entry, Kind\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "writer = TreeWriter(sys.argv[1])\n"
        "entry = Entry(path=b'f', kind=Kind.FILE, mode=0o4755, uid=0, gid=0, mtime_ns=7, xattrs=((b'trusted.x', b'1'),))\n"
        "print(*(problem.reason + ': ' + problem.detail for problem in writer.put(entry, iter(()))))\n"
        "print(oct(os.stat(sys.argv[1] + '/f').st_mode & 0o7777))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    listed, mode = done.stdout.splitlines()
    assert listed.startswith("metadata: owner 0:0 (Operation not permitted; restore as root to keep it)")
    assert "setuid and setgid dropped" in listed
    assert "trusted.x" in listed
    assert mode == "0o755"


def test_a_full_target_is_an_error_of_that_file_and_leaves_no_part_of_it(tmp_path: Path) -> None:
    if not IS_ROOT:
        pytest.skip("needs root, to mount a small file system")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(small)], check=True, timeout=10)
    try:
        writer = TreeWriter(str(small / "out"))
        with pytest.raises(OSError) as caught:
            writer.put(*_file(b"big", b"x" * 200_000))
        assert caught.value.errno == errno.ENOSPC
        assert writer.put(*_file(b"little")) == ()
        writer.finish()
        writer.close()
        assert [path.name for path in (small / "out").iterdir()] == ["little"]
    finally:
        subprocess.run(["umount", str(small)], check=True, timeout=10)


@pytest.mark.parametrize(
    ("size", "holes", "expected"),
    [
        (10, (), [(0, 10)]),
        (10, ((0, 10),), []),
        (10, ((0, 2), (5, 5)), [(2, 3)]),
        (10, ((3, 2),), [(0, 3), (5, 5)]),
        (0, (), []),
    ],
)
def test_data_lies_between_the_holes(
    size: int, holes: tuple[tuple[int, int], ...], expected: list[tuple[int, int]]
) -> None:
    assert list(data_ranges(size, holes)) == expected


def test_the_quick_count_finds_what_the_walk_finds(tree: Path, tmp_path: Path) -> None:
    (tree / "left-out").mkdir()
    (tree / "left-out" / "x").write_bytes(b"x")
    (tree / "own").mkdir()
    (tree / "own" / "y").write_bytes(b"y")
    excludes, own = Excludes(["left-out/", "*.bin"]), [str(tree / "own")]
    reader = _reader(tree, excludes=excludes, own_directories=own)
    sizes = [
        found.entry.size
        for found in reader.walk()
        if isinstance(found, Observed) and found.entry.kind is Kind.FILE
    ]
    visited: list[None] = []
    counted = measure_sources(
        source_roots([str(tree)]),
        excludes,
        one_file_system=True,
        own_directories=own,
        on_directory=lambda: visited.append(None),
    )
    assert counted == (len(sizes), sum(sizes))
    assert (
        len(visited) == len([path for path in tree.rglob("*") if path.is_dir() and not path.is_symlink()]) - 1
    )
