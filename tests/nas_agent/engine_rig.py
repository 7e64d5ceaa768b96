"""A vault in a directory, a source and a sink in memory: what tests of the backup engine stand on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from nas_agent.adapters.catalogue import Catalogue
from nas_agent.adapters.directory_files import create_vault
from nas_agent.adapters.directory_store import DirectoryStore
from nas_agent.core.vault_keys import DeviceKeys
from nas_agent.engine import BackupOptions, BackupResult, RestoreResult, backup, restore
from nas_agent.errors import SourceChangedError
from nas_agent.keys.contract import ContractSecret
from nas_agent.ports import Observed, Problem, VaultStore
from runtime.clock import SystemClock
from tests.contract.vault_maker import CONTRACT, make_device, make_owner
from wire.vault.entry import Entry, Kind, data_bytes, sort_key

SECRET = ContractSecret(b"\x11" * 32)
OWNER = make_owner(SECRET)
LONG_AGO_NS = 1_600_000_000_123_456_789


@attrs.define
class MemoryFile:
    """One file; the hooks make it misbehave."""

    data: bytes
    ctime_ns: int = LONG_AGO_NS
    mtime_ns: int = LONG_AGO_NS
    inode: int = 0
    link_group: int = 0
    holes: tuple[tuple[int, int], ...] = ()
    open_error: Exception | None = None
    read_error: OSError | None = None
    shrink_to: int | None = None
    changes: bool = False
    listed_size: int | None = None


class OpenMemoryFile:
    """A `SourceFile` over bytes; `data` holds the bytes outside the holes."""

    def __init__(self, file: MemoryFile) -> None:
        self._file = file
        self._data = memoryview(file.data)[: file.shrink_to]
        self.size = len(file.data) + sum(length for _, length in file.holes)
        self.holes = file.holes
        self._position = 0

    def readinto(self, buffer: memoryview) -> int:
        if self._file.read_error is not None and self._position >= len(self._data) // 2:
            raise self._file.read_error
        part = self._data[self._position : self._position + min(len(buffer), 1 << 19)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)

    def changed(self) -> bool:
        return self._file.changes

    def close(self) -> None:
        pass


class MemorySource:
    """A `TreeSource` over a dict of path → file; directories follow from the paths."""

    def __init__(self, files: dict[bytes, MemoryFile]) -> None:
        self.files = files
        self.opened: list[bytes] = []
        self.on_open: Callable[[bytes], None] = lambda _: None
        self.problems: list[Problem] = []

    def walk(self) -> Iterator[Observed | Problem]:
        directories = {b""}
        for name in self.files:
            parts = name.split(b"/")
            directories.update(b"/".join(parts[:count]) for count in range(1, len(parts)))
        yield from self.problems
        for number, path in enumerate(sorted({*self.files, *directories}, key=sort_key)):
            file = self.files.get(path)
            if file is None:
                entry = Entry(path=path, kind=Kind.DIRECTORY, mode=0o755, uid=0, gid=0, mtime_ns=LONG_AGO_NS)
                yield Observed(entry=entry, ctime_ns=LONG_AGO_NS, inode=10_000 + number)
                continue
            size = len(file.data) + sum(length for _, length in file.holes)
            entry = Entry(
                path=path,
                kind=Kind.FILE,
                mode=0o644,
                uid=0,
                gid=0,
                mtime_ns=file.mtime_ns,
                size=size if file.listed_size is None else file.listed_size,
                link_group=file.link_group,
            )
            yield Observed(entry=entry, ctime_ns=file.ctime_ns, inode=file.inode)

    def open(self, observed: Observed) -> OpenMemoryFile:
        path = observed.entry.path
        self.opened.append(path)
        self.on_open(path)
        file = self.files[path]
        if file.open_error is not None:
            raise file.open_error
        return OpenMemoryFile(file)


class MemorySink:
    """A `TreeSink` into dicts; like a real one it drops a file whose bytes cannot be had."""

    def __init__(self) -> None:
        self.files: dict[bytes, bytes] = {}
        self.entries: dict[bytes, Entry] = {}
        self.groups: dict[int, bytes] = {}
        self.touched = 0

    def put(self, entry: Entry, pieces: Iterator[bytes | memoryview]) -> tuple[Problem, ...]:
        self.touched += 1
        if entry.kind is Kind.FILE:
            first = self.groups.get(entry.link_group) if entry.link_group else None
            data = self.files[first] if first is not None else b"".join(pieces)
            if first is None:
                assert len(data) == data_bytes(entry)
            self.files[entry.path] = data
            if entry.link_group:
                self.groups.setdefault(entry.link_group, entry.path)
        self.entries[entry.path] = entry
        return ()

    def finish(self) -> tuple[Problem, ...]:
        return ()


@attrs.define
class EngineRig:
    """One NAS (device and catalogue) and one vault."""

    base: Path
    device: DeviceKeys = attrs.field(factory=lambda: make_device(SECRET))
    wrap: Callable[[VaultStore], VaultStore] = lambda store: store

    @property
    def vault(self) -> Path:
        return self.base / "vault"

    def store(self) -> VaultStore:
        return self.wrap(
            DirectoryStore(
                self.vault, contract=CONTRACT, contract_sign_key=SECRET.public.sign_key, clock=SystemClock()
            )
        )

    def catalogue(self) -> Catalogue:
        directory = self.base / f"catalogue-{self.device.device.public.hex()[:8]}"
        directory.mkdir(exist_ok=True)
        return Catalogue.open(directory, epoch=self.device.epoch.epoch)

    async def backup(self, source: MemorySource, **options: object) -> BackupResult:
        catalogue = self.catalogue()
        try:
            return await backup(
                source,
                self.store(),
                catalogue,
                self.device,
                BackupOptions("set", **options),  # type: ignore[arg-type]
            )
        finally:
            catalogue.close()

    async def restore(self, sink: MemorySink, generation: str = "latest", **options: object) -> RestoreResult:
        return await restore(self.store(), OWNER, "set", generation, sink, **options)  # type: ignore[arg-type]


def make_rig(base: Path) -> EngineRig:
    create_vault(base / "vault", contract=CONTRACT, owner_copy=b"{}")
    return EngineRig(base)


def plain(source: MemorySource) -> dict[bytes, bytes]:
    return {path: file.data for path, file in source.files.items()}


def some_tree(seed: int = 1, *, small: int = 60, large: int = 2) -> MemorySource:
    """Small files of both kinds of compressibility, large random and text files, an empty one."""
    import random

    rng = random.Random(seed)
    files: dict[bytes, MemoryFile] = {b"empty": MemoryFile(b"", inode=1)}
    for number in range(small):
        size = rng.randrange(1, 30_000)
        data = rng.randbytes(size) if number % 3 == 0 else (b"line %d of a text\n" % number * size)[:size]
        files[b"dir%d/sub/file%03d" % (number % 5, number)] = MemoryFile(data, inode=100 + number)
    for number in range(large):
        files[b"large/random%d" % number] = MemoryFile(rng.randbytes(3_000_000), inode=1000 + number)
        text = b"".join(b"%d %x some log text\n" % (i, rng.getrandbits(40)) for i in range(12_000))
        files[b"large/text%d" % number] = MemoryFile(text, inode=2000 + number)
    return MemorySource(files)


def frames_of(path: Path) -> list[tuple[bytes, bytes, int, bytes]]:
    """(session, salt, counter, chunk) of every whole frame header in a pack file, finished or not."""
    import struct

    data, position, found = path.read_bytes(), 24, []
    while position + 96 <= len(data):
        version, algorithm, zero, length, session, salt, counter, chunk = struct.unpack_from(
            ">BBHI16s32sQ32s", data, position
        )
        if version != 0 or algorithm not in (1, 2) or zero or len(session) != 16 or session != data[8:24]:
            break
        found.append((session, salt, counter, chunk))
        position += 96 + length
    return found


def source_error(text: str = "replaced") -> SourceChangedError:
    return SourceChangedError(text)


def vault_bytes(vault: Path) -> int:
    return sum(path.stat().st_size for path in vault.rglob("*") if path.is_file() and "packs" in path.parts)
