"""From manifest entries to plaintext in the right order: what to fetch, together, ahead of the writer.

Rules
- One thread plans and fetches, two open frames, the writer's thread consumes; the order is fixed by the plan, so
  nothing is guessed about what the writer will need.
- Neighbouring frames of a pack are read in one range. Memory: WINDOWS_AHEAD windows of FETCH_CHUNKS_MAX chunks, and
  CHUNKS_KEPT chunks that small files share.
- A chunk that cannot be had fails where it is used: the file that needs it, not the run.
"""

from __future__ import annotations

import queue
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import attrs
import trio

from nas_agent.engine.vault_reader import (
    RANGE_BYTES_MAX,
    GenerationView,
    VaultReader,
    open_checked,
    plausible,
)
from nas_agent.errors import DamagedChunkError
from nas_agent.ports import Location
from wire.vault.entry import Entry, Span

FETCH_CHUNKS_MAX: Final = 8
WINDOW_ITEMS_MAX: Final = 512
WINDOWS_AHEAD: Final = 2
CHUNKS_KEPT: Final = 6
LINK_GROUPS_KEPT: Final = 100_000
THREADS: Final = 2


@attrs.frozen
class PlannedEntry:
    """An entry whose pieces follow if `with_content`; else it is a further name of a file already written."""

    entry: Entry
    with_content: bool


@attrs.frozen
class PlannedSpan:
    """A piece of the entry before it."""

    span: Span
    chunk: Future[bytes]


Item = PlannedEntry | PlannedSpan
_END: Final = None


class Fetcher:
    """Plans and fetches in its own thread; iterate `items` in another."""

    def __init__(self, reader: VaultReader, view: GenerationView) -> None:
        """Start the threads that open frames."""
        self._reader = reader
        self._view = view
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="open")
        self._kept: OrderedDict[bytes, Future[bytes]] = OrderedDict()
        self._groups: OrderedDict[int, None] = OrderedDict()
        self._queue: queue.Queue[list[Item] | BaseException | None] = queue.Queue(WINDOWS_AHEAD)
        self._stopped = False

    def plan(self, entries: Iterable[Entry]) -> None:
        """Fetch for all entries, in order; call in a thread of its own. Failures reach the consumer."""
        last: BaseException | None = _END
        try:
            for window in _windows(self._flatten(entries)):
                for batch in self._fetch(window):
                    if not self._put(batch):
                        return
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer
            last = error
        self._put(last)

    def items(self) -> Iterator[Item]:
        """Yield entries and their spans in order, as they become available."""
        while (batch := self._queue.get()) is not None:
            if isinstance(batch, BaseException):
                raise batch
            yield from batch

    def one(self, chunk: bytes) -> bytes:
        """Fetch a chunk that was not planned (a first link could not be written); for the consumer's thread."""
        return trio.from_thread.run(self._reader.chunk, chunk, self._view)

    def stop(self) -> None:
        """Let the planning thread end soon; its results are dropped."""
        self._stopped = True
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _put(self, batch: list[Item] | BaseException | None) -> bool:
        while not self._stopped:
            try:
                self._queue.put(batch, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def _flatten(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, bool] | Span]:
        for entry in entries:
            with_content = not entry.link_group or entry.link_group not in self._groups
            yield entry, with_content
            if with_content:
                yield from entry.content
                if entry.link_group:
                    self._groups[entry.link_group] = None
                    if len(self._groups) > LINK_GROUPS_KEPT:
                        self._groups.popitem(last=False)

    def _fetch(self, window: list[tuple[Entry, bool] | Span]) -> Iterator[list[Item]]:
        ids = dict.fromkeys(item.chunk for item in window if isinstance(item, Span))
        order = {chunk: position for position, chunk in enumerate(ids)}
        wanted = tuple(ids)
        places = trio.from_thread.run(self._reader.locate, self._view, wanted) if wanted else {}
        batch: list[Item] = []
        fetched = 0
        # Chunks needed next, in order; a whole run of neighbours is read when the first of them is reached.
        ahead: dict[bytes, Future[bytes]] = {}
        for item in window:
            if not isinstance(item, Span):
                batch.append(PlannedEntry(*item))
                continue
            chunk = item.chunk
            if chunk not in self._kept:
                if chunk not in ahead:
                    if fetched >= FETCH_CHUNKS_MAX:
                        yield batch
                        batch, fetched = [], 0
                    run = self._run_from(wanted[order[chunk] :], places)
                    ahead.update(self._read_run(run, places))
                    fetched += len(run)
                self._keep(chunk, ahead.pop(chunk))
            self._kept.move_to_end(chunk)
            batch.append(PlannedSpan(item, self._kept[chunk]))
        yield batch

    def _keep(self, chunk: bytes, future: Future[bytes]) -> None:
        self._kept[chunk] = future
        if len(self._kept) > CHUNKS_KEPT:
            self._kept.popitem(last=False)

    def _run_from(self, wanted: Sequence[bytes], places: dict[bytes, Location]) -> list[bytes]:
        """Return the first chunk of `wanted` and those behind it whose frames follow it in the same pack."""
        at = places.get(wanted[0])
        if at is None or not plausible(at):
            return [wanted[0]]
        run, end, size = [wanted[0]], at.offset + at.length, at.length
        for following in wanted[1:FETCH_CHUNKS_MAX]:
            place = places.get(following)
            if place is None or (place.pack, place.offset) != (at.pack, end) or not plausible(place):
                break
            size += place.length
            if size > RANGE_BYTES_MAX or following in self._kept:
                break
            run.append(following)
            end += place.length
        return run

    def _read_run(self, run: list[bytes], places: dict[bytes, Location]) -> dict[bytes, Future[bytes]]:
        first = places.get(run[0])
        if first is None or not plausible(first):
            return {run[0]: _failed(DamagedChunkError(run[0], "not in the store"))}
        last = places[run[-1]]
        length = last.offset + last.length - first.offset
        data = trio.from_thread.run(self._reader.read_range, first.pack, first.offset, length)
        if data is None and len(run) > 1:  # one damaged end must not cost its neighbours
            parts = [self._read_run([chunk], places) for chunk in run]
            return {chunk: future for part in parts for chunk, future in part.items()}
        if data is None:
            text = f"pack {first.pack[:16]}… is missing or too short"
            return {run[0]: _failed(DamagedChunkError(run[0], text))}
        view = memoryview(data)
        results: dict[bytes, Future[bytes]] = {}
        for chunk in run:
            start = places[chunk].offset - first.offset
            results[chunk] = self._open(chunk, view[start : start + places[chunk].length])
        return results

    def _open(self, chunk: bytes, data: memoryview) -> Future[bytes]:
        try:
            frame = trio.from_thread.run(self._reader.frame, chunk, data, self._view.root)
        except DamagedChunkError as error:
            return _failed(error)
        return self._executor.submit(open_checked, frame)


def _windows(items: Iterator[tuple[Entry, bool] | Span]) -> Iterator[list[tuple[Entry, bool] | Span]]:
    window: list[tuple[Entry, bool] | Span] = []
    for item in items:
        window.append(item)
        if len(window) >= WINDOW_ITEMS_MAX:
            yield window
            window = []
    if window:
        yield window


def _failed(error: DamagedChunkError) -> Future[bytes]:
    future: Future[bytes] = Future()
    future.set_exception(error)
    return future
