"""Backing up: what is read, sent and listed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import attrs
import pytest

from nas_agent.core.segments import SEGMENT_BYTES_MAX
from nas_agent.engine import list_generations, verify
from tests.nas_agent.engine_rig import (
    LONG_AGO_NS,
    OWNER,
    EngineRig,
    MemoryFile,
    MemorySink,
    MemorySource,
    make_rig,
    plain,
    some_tree,
    source_error,
)
from wire.vault.entry import Kind


@pytest.fixture
def rig(tmp_path: Path) -> EngineRig:
    return make_rig(tmp_path)


async def restored(rig: EngineRig, generation: str = "latest") -> MemorySink:
    sink = MemorySink()
    result = await rig.restore(sink, generation)
    assert result.complete
    return sink


async def test_every_byte_comes_back(rig: EngineRig) -> None:
    source = some_tree()
    result = await rig.backup(source)
    assert (result.state, result.complete, result.sequence) == ("durable", True, 1)
    assert result.counts.files == len(source.files)
    assert (await restored(rig)).files == plain(source)


async def test_chacha_packs_come_back_too(rig: EngineRig) -> None:
    source = some_tree(small=10, large=1)
    await rig.backup(source, cpu_has_aes=False)
    packs = list((rig.vault / "packs").glob("*/*"))
    assert {path.read_bytes()[25] for path in packs} == {2}
    assert (await restored(rig)).files == plain(source)


async def test_an_unchanged_tree_is_not_read_and_sends_only_a_manifest(rig: EngineRig) -> None:
    source = some_tree()
    await rig.backup(source)
    source.opened.clear()
    second = await rig.backup(source)
    assert source.opened == []
    assert second.counts.unchanged_files == len(source.files)
    assert second.flow.new_chunks <= 1
    assert (await restored(rig, "2")).files == plain(source)


@pytest.mark.parametrize("changed", ["ctime_ns", "mtime_ns", "inode"])
async def test_a_file_is_read_again_when_any_part_of_its_identity_changed(
    rig: EngineRig, changed: str
) -> None:
    source = some_tree(small=5, large=0)
    await rig.backup(source)
    source.opened.clear()
    path = b"dir1/sub/file001"
    source.files[path] = attrs.evolve(source.files[path], **{changed: LONG_AGO_NS + 1_000_000_000})
    await rig.backup(source)
    assert source.opened == [path]


async def test_a_file_written_in_the_instant_it_was_read_is_read_again(rig: EngineRig) -> None:
    import time

    source = some_tree(small=3, large=0)
    path = b"dir0/sub/file000"
    source.files[path].ctime_ns = time.time_ns() + 5_000_000_000  # still to come when it is read
    await rig.backup(source)
    source.opened.clear()
    await rig.backup(source)
    assert source.opened == [path]


async def test_one_changed_small_file_sends_about_one_segment(rig: EngineRig) -> None:
    source = some_tree(small=600, large=0)
    first = await rig.backup(source)
    path = b"dir2/sub/file302"
    source.files[path] = MemoryFile(b"another content", ctime_ns=LONG_AGO_NS + 5, inode=402)
    second = await rig.backup(source)
    assert second.counts.read_bytes == len(b"another content")
    assert second.flow.new_bytes < 100_000 < first.flow.new_bytes
    assert (await restored(rig)).files == plain(source)


async def test_bytes_inserted_into_a_large_file_move_few_chunks(rig: EngineRig) -> None:
    source = some_tree(small=0, large=1)
    await rig.backup(source)
    path = b"large/random0"
    data = source.files[path].data
    changed = data[:1_000_000] + b"inserted" + data[1_000_000:]
    source.files[path] = MemoryFile(changed, ctime_ns=LONG_AGO_NS + 5, inode=1000)
    second = await rig.backup(source)
    assert second.flow.reused_bytes > 1_000_000
    assert second.flow.new_bytes < len(data) * 2 / 3
    assert (await restored(rig)).files == plain(source)


async def test_the_same_content_twice_is_sent_once(rig: EngineRig) -> None:
    source = some_tree(small=0, large=1)
    source.files[b"large/copy"] = MemoryFile(source.files[b"large/random0"].data, inode=77)
    result = await rig.backup(source)
    assert result.flow.reused_bytes >= 3_000_000
    assert (await restored(rig)).files == plain(source)


async def test_all_names_of_a_hard_linked_file_are_kept_and_it_is_read_once(rig: EngineRig) -> None:
    data = b"shared between names" * 10_000
    files = {name: MemoryFile(data, inode=5, link_group=5) for name in (b"a", b"dir/b", b"z")}
    source = MemorySource(files)
    await rig.backup(source)
    assert source.opened == [b"a"]
    sink = await restored(rig)
    assert sink.files == plain(source)
    assert {entry.link_group for path, entry in sink.entries.items() if path in files} == {5}
    source.opened.clear()
    await rig.backup(source)
    assert source.opened == []
    assert (await restored(rig)).files == plain(source)


async def test_holes_are_recorded_and_not_read(rig: EngineRig) -> None:
    holes = ((0, 1 << 30), ((1 << 30) + 100_000, 1 << 20))
    source = MemorySource({b"sparse": MemoryFile(b"d" * 100_000, holes=holes, inode=3)})
    result = await rig.backup(source)
    assert result.counts.read_bytes == 100_000
    assert result.counts.logical_bytes == 100_000 + (1 << 30) + (1 << 20)
    assert (await restored(rig)).entries[b"sparse"].holes == holes


PROBLEMS = {
    "vanished": MemoryFile(b"x" * 100, open_error=FileNotFoundError(errno.ENOENT, "gone")),
    "unreadable": MemoryFile(b"x" * 100, open_error=PermissionError(errno.EACCES, "not allowed")),
    "unreadable-in-the-middle": MemoryFile(b"x" * 3_000_000, read_error=OSError(errno.EIO, "disk error")),
    "changed-while-reading": MemoryFile(b"x" * 100, open_error=source_error()),
    "changed-while-reading, shrank small": MemoryFile(b"x" * 1000, shrink_to=10),
    "changed-while-reading, shrank large": MemoryFile(b"x" * 3_000_000, shrink_to=2_500_000),
    "too-large": MemoryFile(b"", listed_size=(30 << 30) + 1),
}


@pytest.mark.parametrize("name", PROBLEMS)
async def test_a_file_that_cannot_be_had_is_listed_and_all_others_are_kept(rig: EngineRig, name: str) -> None:
    source = some_tree(small=20, large=1)
    good = plain(source)
    source.files[b"dir3/bad file"] = PROBLEMS[name]
    result = await rig.backup(source)
    assert (result.state, result.complete) == ("durable", False)
    (problem,) = result.problems
    assert problem.path == b"dir3/bad file"
    assert name.startswith(problem.reason)
    assert (await restored(rig)).files == good
    (view,), _ = await list_generations(rig.store(), OWNER, "set")
    assert view.root.complete is False
    # Mended, it is in the next generation.
    source.files[b"dir3/bad file"] = MemoryFile(b"good now", inode=9)
    assert (await rig.backup(source)).complete
    assert (await restored(rig)).files == good | {b"dir3/bad file": b"good now"}


async def test_exactly_30_gb_is_within_the_limit_azk_80(rig: EngineRig) -> None:
    limit = 30 << 30
    source = MemorySource(
        {b"at": MemoryFile(b"", holes=((0, limit),)), b"over": MemoryFile(b"", holes=((0, limit + 1),))}
    )
    result = await rig.backup(source)
    assert [(problem.path, problem.reason) for problem in result.problems] == [(b"over", "too-large")]
    assert (await restored(rig)).entries[b"at"].size == limit


async def test_a_file_that_changed_while_read_is_kept_listed_and_read_again(rig: EngineRig) -> None:
    source = some_tree(small=3, large=0)
    path = b"dir1/sub/file001"
    source.files[path].changes = True
    result = await rig.backup(source)
    assert [problem.reason for problem in result.problems] == ["changed-while-reading"]
    assert (await restored(rig)).files == plain(source)
    source.files[path].changes = False
    source.opened.clear()
    assert (await rig.backup(source)).complete
    assert source.opened == [path]


async def test_problems_of_the_walk_are_in_the_result(rig: EngineRig) -> None:
    from nas_agent.ports import Problem

    source = some_tree(small=2, large=0)
    source.problems.append(Problem(b"locked", "unreadable", "Permission denied"))
    result = await rig.backup(source)
    assert result.problems == tuple(source.problems)
    assert not result.complete


async def test_names_of_any_bytes_come_back(rig: EngineRig) -> None:
    names = [
        b"\xff\xfe",
        b"new\nline",
        b"a" * 255,
        b" ",
        b"-rf",
        "日本語".encode("shift_jis"),
        b"\x01\x02",
        b"*",
    ]
    source = MemorySource({name: MemoryFile(name * 3, inode=i) for i, name in enumerate(names)})
    await rig.backup(source)
    assert (await restored(rig)).files == plain(source)


async def test_entries_come_back_parents_first_in_byte_order(rig: EngineRig) -> None:
    source = MemorySource({p: MemoryFile(b"x", inode=1) for p in (b"a/b", b"a-", b"a", b"a.b/c", b"a!x")})
    del source.files[b"a"]
    await rig.backup(source)
    sink = await restored(rig)
    assert list(sink.entries) == [b"", b"a", b"a/b", b"a!x", b"a-", b"a.b", b"a.b/c"]
    assert sink.entries[b"a"].kind is Kind.DIRECTORY


async def test_a_selection_restores_those_paths_and_the_directories_above(rig: EngineRig) -> None:
    source = some_tree(small=20, large=1)
    await rig.backup(source)
    sink = MemorySink()
    await rig.restore(sink, selection=[b"dir2", b"large/text0"])
    expected = {p: d for p, d in plain(source).items() if p.startswith(b"dir2/") or p == b"large/text0"}
    assert sink.files == expected
    assert {p for p, e in sink.entries.items() if e.kind is Kind.DIRECTORY} == {
        b"",
        b"dir2",
        b"dir2/sub",
        b"large",
    }


async def test_older_generations_stay_as_they_were(rig: EngineRig) -> None:
    source = some_tree(small=10, large=0)
    before = plain(source)
    await rig.backup(source)
    source.files[b"dir0/sub/file000"] = MemoryFile(b"new", ctime_ns=LONG_AGO_NS + 1, inode=100)
    del source.files[b"dir1/sub/file001"]
    await rig.backup(source)
    assert (await restored(rig, "1")).files == before
    assert (await restored(rig, "2")).files == plain(source)


async def test_a_lost_catalogue_costs_reading_but_no_sending(rig: EngineRig) -> None:
    import shutil

    source = some_tree()
    await rig.backup(source)
    (catalogue,) = rig.base.glob("catalogue-*")
    shutil.rmtree(catalogue)
    source.opened.clear()
    result = await rig.backup(source)
    assert len(source.opened) == len(source.files)
    assert result.flow.new_chunks == 0
    assert result.sequence == 2
    catalogue = rig.catalogue()
    spans = [span for line in catalogue.parent_lines() for span in line.entry.content]
    assert all(catalogue.is_known(span.chunk) for span in spans)
    catalogue.close()
    assert (await restored(rig)).files == plain(source)


async def test_a_damaged_entry_cache_costs_reading_only(rig: EngineRig) -> None:
    source = some_tree()
    await rig.backup(source)
    (cache,) = rig.base.glob("catalogue-*/entries-*.cache")
    data = bytearray(cache.read_bytes())
    data[len(data) // 2] ^= 1
    cache.write_bytes(bytes(data))
    assert (await rig.backup(source)).complete
    assert (await restored(rig)).files == plain(source)


async def test_chunks_the_store_lost_are_read_and_sent_again_in_the_same_run(rig: EngineRig) -> None:
    source = some_tree(small=30, large=2)
    await rig.backup(source)
    for path in [*rig.vault.glob("index.sqlite*"), *sorted((rig.vault / "packs").glob("*/*"))[:1]]:
        path.unlink()
    result = await rig.backup(source)
    assert result.state == "durable"
    assert (await restored(rig)).files == plain(source)


@pytest.mark.parametrize("how", ["gone", "cut short"])
async def test_a_pack_that_disappeared_from_the_disk_is_made_again_and_never_called_durable(
    rig: EngineRig, how: str
) -> None:
    source = some_tree(small=30, large=2)
    await rig.backup(source)
    path = max((rig.vault / "packs").glob("*/*"), key=lambda path: path.stat().st_size)
    if how == "gone":
        path.unlink()
    else:
        path.chmod(0o600)
        os.truncate(path, path.stat().st_size - 1)
    result = await rig.backup(source)
    assert (result.state, result.complete) == ("durable", True)
    assert result.flow.new_chunks > 1
    assert (await restored(rig)).files == plain(source)


async def test_another_epoch_starts_over(rig: EngineRig) -> None:
    from tests.contract.vault_maker import make_device
    from tests.nas_agent.engine_rig import SECRET

    source = some_tree(small=10, large=0)
    first = await rig.backup(source)
    rig.device = make_device(SECRET, epoch=2)
    source.opened.clear()
    second = await rig.backup(source)
    assert len(source.opened) == len(source.files)
    assert second.flow.new_chunks >= first.flow.new_chunks - 1
    assert (await restored(rig)).files == plain(source)


async def test_verify_reads_everything_and_writes_nothing(rig: EngineRig) -> None:
    source = some_tree()
    await rig.backup(source)
    result = await verify(rig.store(), OWNER, "set", "latest")
    assert result.complete
    assert result.restored_bytes == sum(len(data) for data in plain(source).values())


async def test_many_tiny_files_are_few_chunks(rig: EngineRig) -> None:
    files = {b"d/%05d" % i: MemoryFile(b"tiny file %d" % i, inode=i) for i in range(3000)}
    result = await rig.backup(MemorySource(files))
    total = sum(len(file.data) for file in files.values())
    assert result.flow.new_chunks <= 3 + total // SEGMENT_BYTES_MAX + 2
    assert (await restored(rig)).files == {path: file.data for path, file in files.items()}
