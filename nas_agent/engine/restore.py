"""Restoring and verifying a generation (vault-format.md §9).

Order: chain and root verified → the whole manifest fetched, opened and checked into an unlinked temporary file → only
then the first byte goes to the target. A damaged data chunk costs the files that need it, each named; the rest goes on.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Final, Literal

import attrs
import trio

from nas_agent.core.vault_keys import OwnerKeys
from nas_agent.engine.fetching import Fetcher, PlannedEntry, PlannedSpan
from nas_agent.engine.retry import PatientStore
from nas_agent.engine.vault_reader import Anchor, GenerationView, VaultReader, pick
from nas_agent.errors import DamagedChunkError, VaultRefusedError
from nas_agent.ports import Problem, Progress, TreeSink, VaultStore
from runtime.errors import CorruptDataError
from wire.errors import FormatError
from wire.vault.entry import Entry, Kind, data_bytes
from wire.vault.manifest import ManifestReader

READ_BYTES: Final = 256 << 10
PROGRESS_EVERY_S: Final = 0.2
PROBLEMS_MAX: Final = 10_000


@attrs.frozen
class RestoreResult:
    """How a restore or verification ended.

    Attributes:
        complete: every selected object is there with all its bytes and metadata.
        problems: at most 10,000, see `problems_total`.
        absent: sequences before this generation that the store does not list (expired, or withheld).
        restored_bytes: file bytes written or checked, holes left out.
    """

    view: GenerationView
    complete: bool
    files: int
    others: int
    restored_bytes: int
    problems: tuple[Problem, ...]
    problems_total: int
    absent: tuple[int, ...]


async def restore(
    store: VaultStore,
    keys: OwnerKeys,
    backup_set: str,
    generation: str,
    sink: TreeSink,
    *,
    selection: Sequence[bytes] = (),
    anchor: Anchor | None = None,
    progress: Progress | None = None,
) -> RestoreResult:
    """Restore a generation, or the selected paths of it, into `sink`.

    Args:
        store: where to read; closed at the end.
        keys: the owner's.
        backup_set: its name.
        generation: its ID, its sequence number, or `latest`.
        sink: receives the objects in manifest order.
        selection: paths relative to the backup root; empty for everything. Directories above them are made too.
        anchor: what the reader knows to exist; a store that shows less is refused.
        progress: called now and then.

    Raises:
        VaultRefusedError: something does not verify; nothing was written.
        DamagedChunkError: the manifest cannot be read; nothing was written.
        StoreRefusedError: the store will not serve this, or there is no such generation.
        Unavailable: the store stayed away.
    """
    return await _walk("restore", store, keys, backup_set, generation, sink, selection, anchor, progress)


async def verify(
    store: VaultStore,
    keys: OwnerKeys,
    backup_set: str,
    generation: str,
    *,
    anchor: Anchor | None = None,
    progress: Progress | None = None,
) -> RestoreResult:
    """Read and check every byte of a generation without writing; arguments and errors as `restore`."""
    return await _walk("verify", store, keys, backup_set, generation, _Nowhere(), (), anchor, progress)


class _Nowhere:
    """A sink that only draws the bytes."""

    def put(self, entry: Entry, pieces: Iterator[bytes | memoryview]) -> tuple[Problem, ...]:
        for _ in pieces:
            pass
        return ()

    def finish(self) -> tuple[Problem, ...]:
        return ()


async def _walk(
    phase: Literal["restore", "verify"],
    store: VaultStore,
    keys: OwnerKeys,
    backup_set: str,
    generation: str,
    sink: TreeSink,
    selection: Sequence[bytes],
    anchor: Anchor | None,
    progress: Progress | None,
) -> RestoreResult:
    reader = VaultReader(PatientStore(store), keys, backup_set)
    try:
        await reader.open()
        views, verdict = await reader.generations(anchor)
        view = pick(views, generation)
        with tempfile.TemporaryFile(prefix="hgw-manifest-") as spool:
            await _fetch_manifest(reader, view, spool)
            writer = _Writer(phase, sink, Fetcher(reader, view), progress)
            await writer.run(lambda: _selected(_read_entries(spool), selection))
        return RestoreResult(
            view=view,
            complete=writer.problems_total == 0,
            files=writer.files,
            others=writer.others,
            restored_bytes=writer.restored_bytes,
            problems=tuple(writer.problems),
            problems_total=writer.problems_total,
            absent=verdict.absent,
        )
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(5):
            await store.close()


async def _fetch_manifest(reader: VaultReader, view: GenerationView, spool: IO[bytes]) -> None:
    """Fetch and check the whole manifest into `spool`; raises `VaultRefusedError` or `DamagedChunkError`."""
    parser = ManifestReader()
    for chunk, length in await reader.manifest_chunks(view):
        data = await reader.chunk(chunk, view)
        if len(data) != length:
            raise VaultRefusedError(
                "manifest-format", f"chunk {chunk.hex()[:16]}… has another length than listed"
            )
        await trio.to_thread.run_sync(_check_piece, parser, data, spool)
    try:
        parser.finish()
    except FormatError as error:
        raise VaultRefusedError("manifest-format", str(error)) from error
    if parser.total_bytes != view.root.manifest.bytes:
        raise VaultRefusedError("manifest-format", "the manifest has another length than the root says")


def _check_piece(parser: ManifestReader, data: bytes, spool: IO[bytes]) -> None:
    try:
        for _ in parser.feed(data):
            pass
    except FormatError as error:
        raise VaultRefusedError("manifest-format", str(error)) from error
    spool.write(data)


def _read_entries(spool: IO[bytes]) -> Iterator[Entry]:
    spool.seek(0)
    parser = ManifestReader()
    while data := spool.read(READ_BYTES):
        yield from parser.feed(data)


def _selected(entries: Iterable[Entry], selection: Sequence[bytes]) -> Iterator[Entry]:
    wanted = tuple(path.strip(b"/") for path in selection)
    for entry in entries:
        if not wanted or _is_wanted(entry, wanted):
            yield entry


def _is_wanted(entry: Entry, wanted: Sequence[bytes]) -> bool:
    path = entry.path
    for each in wanted:
        if not each or path == each or path.startswith(each + b"/"):
            return True
        if entry.kind is Kind.DIRECTORY and (not path or each.startswith(path + b"/")):
            return True
    return False


class _Writer:
    """Feeds the sink from the fetcher in one thread and keeps count."""

    def __init__(
        self, phase: Literal["restore", "verify"], sink: TreeSink, fetcher: Fetcher, progress: Progress | None
    ) -> None:
        self._phase = phase
        self._sink = sink
        self._fetcher = fetcher
        self._progress = progress
        self._progress_at = 0.0
        self._spans: Iterator[PlannedSpan] = iter(())
        self.files = 0
        self.others = 0
        self.restored_bytes = 0
        self.problems: list[Problem] = []
        self.problems_total = 0

    async def run(self, entries: Callable[[], Iterator[Entry]]) -> None:
        """Plan and fetch in one thread, write in another; the first fault ends both."""
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, self._fetcher.plan, _Lazy(entries))
            try:
                await trio.to_thread.run_sync(self._write)
            except Exception as error:  # noqa: BLE001 - raised again below, outside the nursery's exception group
                failure = error
            finally:
                self._fetcher.stop()
        if failure is not None:
            raise failure

    def _write(self) -> None:
        items = self._fetcher.items()
        for item in items:
            if isinstance(item, PlannedEntry):
                self._put(item, items)
        for problem in self._sink.finish():
            self._report(problem)

    def _put(self, planned: PlannedEntry, items: Iterator[PlannedEntry | PlannedSpan]) -> None:
        entry = planned.entry
        spans = self._planned_spans(len(entry.content), items) if planned.with_content else None
        try:
            problems = self._sink.put(entry, self._pieces(entry, spans))
        except DamagedChunkError as error:
            problems = (Problem(entry.path, "damaged-chunk", str(error)),)
        except OSError as error:
            problems = (Problem(entry.path, "write-failed", str(error.strerror or error)),)
        else:
            self._count(entry)
        for problem in problems:
            self._report(problem)
        for _ in spans or ():  # what the sink did not draw must not be taken for the next entry's
            pass
        self._tick()

    def _planned_spans(
        self, count: int, items: Iterator[PlannedEntry | PlannedSpan]
    ) -> Iterator[PlannedSpan]:
        for _ in range(count):
            item = next(items)
            if not isinstance(item, PlannedSpan):
                raise CorruptDataError("restore plan: expected a span")
            yield item

    def _pieces(self, entry: Entry, spans: Iterator[PlannedSpan] | None) -> Iterator[memoryview]:
        if spans is None:
            for span in entry.content:
                yield _slice(span.chunk, self._fetcher.one(span.chunk), span.offset, span.length)
            return
        for planned in spans:
            span = planned.span
            yield _slice(span.chunk, planned.chunk.result(), span.offset, span.length)

    def _count(self, entry: Entry) -> None:
        if entry.kind is Kind.FILE:
            self.files += 1
            self.restored_bytes += data_bytes(entry)
        else:
            self.others += 1

    def _report(self, problem: Problem) -> None:
        self.problems_total += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)

    def _tick(self) -> None:
        if time.monotonic() < self._progress_at:
            return
        self._progress_at = time.monotonic() + PROGRESS_EVERY_S
        trio.from_thread.check_cancelled()
        if self._progress is not None:
            self._progress(self._phase, self.files + self.others, self.restored_bytes, 0)


class _Lazy:
    """Entries that are read from the spool only in the planning thread."""

    def __init__(self, make: Callable[[], Iterator[Entry]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Entry]:
        return self._make()


def _slice(chunk: bytes, data: bytes, offset: int, length: int) -> memoryview:
    if offset + length > len(data):
        raise DamagedChunkError(chunk, f"has {len(data)} bytes, the manifest needs {offset + length}")
    return memoryview(data)[offset : offset + length]
