"""The synchronous heart of a backup run: walk, compare with the parent, read, cut, and write the manifest.

Rules
- Runs in one thread; nothing of the source is read twice; entries leave in manifest order.
- A file that cannot be read or changes under us is listed as a `Problem`, and the run goes on. One that shrank while it
  was read is left out; one that changed otherwise is kept as read and read again in the next run.
- Memory: three read buffers, two segments, a bounded number of drafts waiting for their chunk IDs.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

import attrs
import msgspec

from nas_agent.adapters.catalogue import Catalogue
from nas_agent.core.buffers import make_buffer
from nas_agent.core.change import NEVER_CTIME, Parent, Remembered, is_unchanged, trusted_ctime
from nas_agent.core.chunking import cut, make_chunker
from nas_agent.core.segments import SMALL_FILE_MAX, Segment, looks_random
from nas_agent.engine.chunk_flow import ChunkFlow, Piece
from nas_agent.errors import SourceChangedError
from nas_agent.ports import Observed, Problem, SourceFile, TreeSource
from wire.vault.entry import Entry, Kind, Span
from wire.vault.manifest import LIST_CHUNK_ITEMS, ManifestWriter, encode_items, fits_root
from wire.vault.root import Manifest

READ_BUFFER_BYTES: Final = 3 << 19
"""More than CHUNK_MAX: a buffer must hold the carry of the one before and new bytes."""
READ_BUFFERS: Final = 3
DRAFTS_MAX: Final = 2048
FILE_BYTES_MAX: Final = 30 << 30
"""AZK-80: 30 GB per file, 1 GB = 2^30 bytes; larger files are refused and listed."""
PROBLEMS_MAX: Final = 10_000


@attrs.define
class ReadBuffer:
    """A buffer that chunks under way point into; free again when nobody holds it."""

    view: memoryview
    holds: int = 0

    def release(self) -> None:
        """Give up one hold."""
        self.holds -= 1


@attrs.define
class RunCounts:
    """What the walk saw. `logical_bytes` counts every name's size, holes included; `read_bytes` what was read."""

    files: int = 0
    directories: int = 0
    others: int = 0
    unchanged_files: int = 0
    logical_bytes: int = 0
    read_bytes: int = 0
    problems_total: int = 0


@attrs.define
class _Draft:
    """An entry whose chunks may not have an ID yet. The last part is always the last to get one."""

    observed: Observed
    size: int
    holes: tuple[tuple[int, int], ...]
    ctime_ns: int
    content: tuple[Span, ...] = ()
    parts: list[tuple[Piece, int, int]] = attrs.field(factory=list)

    def is_ready(self) -> bool:
        return not self.parts or self.parts[-1][0].chunk is not None

    def spans(self) -> tuple[Span, ...]:
        if not self.parts:
            return self.content
        return tuple(Span(piece.chunk or b"", offset, length) for piece, offset, length in self.parts)


class Pipeline:
    """One run over one source."""

    def __init__(
        self,
        *,
        source: TreeSource,
        catalogue: Catalogue,
        flow: ChunkFlow,
        chunk_seed: int,
        on_tick: Callable[[RunCounts], None],
        file_bytes_max: int = FILE_BYTES_MAX,
    ) -> None:
        """Prepare buffers; `on_tick` is called after every entry."""
        self._source = source
        self._catalogue = catalogue
        self._flow = flow
        self._on_tick = on_tick
        self._file_bytes_max = file_bytes_max
        self._chunker = make_chunker(chunk_seed)
        self._buffers = [ReadBuffer(make_buffer(READ_BUFFER_BYTES)) for _ in range(READ_BUFFERS)]
        self._segments = {kind: (Segment(), [Piece()]) for kind in (True, False)}
        self._drafts: deque[_Draft] = deque()
        self._open_links: dict[int, _Draft] = {}
        self._manifest = ManifestWriter()
        self._manifest_pieces: list[tuple[Piece, int]] = []
        self.counts = RunCounts()
        self.problems: list[Problem] = []

    def run(self) -> Manifest:
        """Read the whole source and return where its manifest is; all packs are shipped."""
        parent = Parent(self._catalogue.parent_lines())
        for found in self._source.walk():
            if isinstance(found, Problem):
                self._report(found)
                continue
            draft = self._draft(found, parent.find(found.entry.path))
            if draft is not None:
                self._drafts.append(draft)
                self._emit_ready()
            self._on_tick(self.counts)
        self._close_segments()
        self._flow.drain()
        self._emit_ready()
        for data in self._manifest.finish():
            self._add_manifest_chunk(data)
        manifest = self._finish_manifest()
        self._flow.flush()
        return manifest

    def _draft(self, found: Observed, remembered: Remembered | None) -> _Draft | None:
        entry = found.entry
        if entry.kind is not Kind.FILE:
            return _Draft(found, 0, (), found.ctime_ns)
        if remembered is not None and is_unchanged(found, remembered):
            old = remembered.entry
            if self._catalogue.is_trusted(old.content):
                self.counts.unchanged_files += 1
                return _Draft(found, old.size, old.holes, found.ctime_ns, content=old.content)
        if entry.size > self._file_bytes_max:
            detail = f"{entry.size} bytes; at most {self._file_bytes_max} bytes per file (AZK-80)"
            self._report(Problem(entry.path, "too-large", detail))
            return None
        linked = self._linked(found)
        return linked or self._read(found)

    def _linked(self, found: Observed) -> _Draft | None:
        """Return a draft that takes its content from another name of the same inode, read in this run."""
        group = found.entry.link_group
        if not group:
            return None
        first = self._open_links.get(group)
        if first is not None:
            return _Draft(found, first.size, first.holes, first.ctime_ns, first.content, first.parts)
        known = self._catalogue.get_link(group)
        if known is None:
            return None
        size, holes, ctime_ns, content = known
        return _Draft(found, size, holes, ctime_ns, content)

    def _read(self, found: Observed) -> _Draft | None:
        path = found.entry.path
        try:
            file = self._source.open(found)
        except FileNotFoundError as error:
            self._report(Problem(path, "vanished", str(error.strerror)))
            return None
        except OSError as error:
            self._report(Problem(path, "unreadable", str(error.strerror or error)))
            return None
        except SourceChangedError as error:
            self._report(Problem(path, "changed-while-reading", str(error)))
            return None
        try:
            return self._read_open(found, file)
        except OSError as error:
            self._report(Problem(path, "unreadable", str(error.strerror or error)))
            return None
        finally:
            file.close()

    def _read_open(self, found: Observed, file: SourceFile) -> _Draft | None:
        size, holes = file.size, file.holes
        wanted = size - sum(length for _, length in holes) if holes else size
        ctime_ns = trusted_ctime(found, time.time_ns())
        draft = _Draft(found, size, holes, ctime_ns)
        if wanted > self._file_bytes_max:
            detail = f"grew beyond {self._file_bytes_max} bytes (AZK-80)"
            self._report(Problem(found.entry.path, "too-large", detail))
            return None
        if wanted > SMALL_FILE_MAX:
            got = self._read_large(file, draft)
        elif wanted:
            got = self._read_small(file, draft, wanted)
        else:
            got = 0
        if got != wanted:
            detail = f"shrank while it was read: got {got} of {wanted} bytes; left out"
            self._report(Problem(found.entry.path, "changed-while-reading", detail))
            return None
        if file.changed():
            draft.ctime_ns = NEVER_CTIME
            detail = "changed while it was read; kept as read, read again next time"
            self._report(Problem(found.entry.path, "changed-while-reading", detail))
        if found.entry.link_group:
            self._open_links[found.entry.link_group] = draft
        return draft

    def _read_small(self, file: SourceFile, draft: _Draft, wanted: int) -> int:
        segment, pieces = self._segments[True]
        room = segment.room(wanted)
        got = _fill(file, room)
        self.counts.read_bytes += got
        if got != wanted:
            return got
        compresses = not looks_random(room)
        if not compresses:
            segment, pieces = self._segments[False]
            segment.room(wanted)[:] = room
        draft.parts.append((pieces[0], segment.append(wanted), wanted))
        if segment.is_complete(draft.observed.entry.path):
            self._close_segment(compresses)
        return got

    def _read_large(self, file: SourceFile, draft: _Draft) -> int:
        total, carry, previous = 0, memoryview(b""), None
        at_end = False
        while not at_end:
            buffer = self._take_buffer()
            buffer.view[: len(carry)] = carry
            filled = len(carry)
            if previous is not None:
                previous.release()
            got = _fill(file, buffer.view[filled:])
            total += got
            self.counts.read_bytes += got
            self._on_tick(self.counts)
            at_end = filled + got < len(buffer.view)
            carry = self._cut_buffer(buffer, buffer.view[: filled + got], draft, at_end=at_end)
            previous = buffer
        if previous is not None:
            previous.release()
        return total

    def _cut_buffer(self, buffer: ReadBuffer, data: memoryview, draft: _Draft, *, at_end: bool) -> memoryview:
        position = 0
        for length in cut(self._chunker, data, at_end=at_end):
            buffer.holds += 1
            piece = self._flow.submit(data[position : position + length], buffer=buffer)
            draft.parts.append((piece, 0, length))
            position += length
        return data[position:]

    def _take_buffer(self) -> ReadBuffer:
        while True:
            for buffer in self._buffers:
                if buffer.holds == 0:
                    buffer.holds = 1
                    return buffer
            self._flow.collect()

    def _close_segment(self, compresses: bool) -> None:  # noqa: FBT001 - the key of the two segments
        segment, pieces = self._segments[compresses]
        if segment.length:
            self._flow.submit(segment.take(), piece=pieces[0])
            pieces[0] = Piece()

    def _close_segments(self) -> None:
        for compresses in (True, False):
            self._close_segment(compresses)

    def _emit_ready(self) -> None:
        if (
            len(self._drafts) >= DRAFTS_MAX
        ):  # e.g. one small photo among thousands of texts waits for its segment
            self._close_segments()
            self._flow.drain()
        while self._drafts and self._drafts[0].is_ready():
            self._emit(self._drafts.popleft())

    def _emit(self, draft: _Draft) -> None:
        entry = draft.observed.entry
        if entry.kind is Kind.FILE:
            spans = draft.spans()
            entry = msgspec.structs.replace(entry, size=draft.size, holes=draft.holes, content=spans)
            for span in spans:
                self._catalogue.add_ref(span.chunk)
            self._keep_link(draft, spans)
        self._count(entry)
        self._catalogue.remember(Remembered(draft.ctime_ns, draft.observed.inode, entry))
        for data in self._manifest.add(entry):
            self._add_manifest_chunk(data)

    def _keep_link(self, draft: _Draft, spans: tuple[Span, ...]) -> None:
        group = draft.observed.entry.link_group
        if group and self._open_links.get(group) is draft:
            del self._open_links[group]
            self._catalogue.put_link(group, (draft.size, draft.holes, draft.ctime_ns, spans))

    def _count(self, entry: Entry) -> None:
        if entry.kind is Kind.FILE:
            self.counts.files += 1
            self.counts.logical_bytes += entry.size
        elif entry.kind is Kind.DIRECTORY:
            self.counts.directories += 1
        else:
            self.counts.others += 1

    def _add_manifest_chunk(self, data: bytes) -> None:
        self._manifest_pieces.append((self._flow.submit(data), len(data)))

    def _finish_manifest(self) -> Manifest:
        total, depth = self._manifest.total_bytes, 0
        items = self._resolve(self._manifest_pieces)
        while not fits_root(items):
            step = LIST_CHUNK_ITEMS
            blocks = [encode_items(items[start : start + step]) for start in range(0, len(items), step)]
            items = self._resolve([(self._flow.submit(block), len(block)) for block in blocks])
            depth += 1
        listed = tuple((chunk.hex(), length) for chunk, length in items)
        return Manifest(depth=depth, items=listed, bytes=total)

    def _resolve(self, pieces: list[tuple[Piece, int]]) -> list[tuple[bytes, int]]:
        self._flow.drain()
        items = [(piece.chunk or b"", length) for piece, length in pieces]
        for chunk, _ in items:
            self._catalogue.add_ref(chunk)
        return items

    def _report(self, problem: Problem) -> None:
        self.counts.problems_total += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)


def _fill(file: SourceFile, view: memoryview) -> int:
    """Read until `view` is full or the data end; return the bytes read."""
    filled = 0
    while filled < len(view):
        got = file.readinto(view[filled:])
        if got == 0:
            break
        filled += got
    return filled
