"""Chunks on their way into packs: hashed and compressed by two threads, packed in order.

Rules
- One thread (the pipeline) submits and collects; results are collected in the order of submission, so the same source
  gives the same packs. Bytes in flight are bounded (`IN_FLIGHT_BYTES_MAX`).
- A chunk the target has, or that is in a pack not yet acknowledged, is not sent again.
- Where the catalogue cannot know (first run, interrupted run), the store is asked before a chunk is packed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Protocol

import attrs

from nas_agent.adapters.catalogue import Catalogue
from nas_agent.core.chunking import Compressor
from nas_agent.core.packing import PackBuilder
from wire.vault.frame import chunk_id

IN_FLIGHT_BYTES_MAX: Final = 3 << 20
ASK_CHUNKS_MAX: Final = 16
THREADS: Final = 2


@attrs.define
class Piece:
    """A chunk whose ID is not known before it was hashed."""

    chunk: bytes | None = None


class Buffer(Protocol):
    """Where a chunk's bytes lie until it is collected."""

    def release(self) -> None:
        """Give up one hold."""


class PackSink(Protocol):
    """Takes full packs away and gives new ones."""

    def begin(self) -> PackBuilder:
        """Return an empty pack; waits for a free buffer."""

    def ship(self, pack: PackBuilder) -> None:
        """Hand over a pack; waits while another is under way."""


@attrs.define
class FlowCounts:
    """Totals of one run, in chunks and bytes; `sent_bytes` are frame bytes of new chunks."""

    new_chunks: int = 0
    reused_chunks: int = 0
    new_bytes: int = 0
    reused_bytes: int = 0
    sent_bytes: int = 0


@attrs.frozen
class _Hashed:
    chunk: bytes
    length: int
    body: bytes | None


@attrs.define
class _Job:
    future: Future[_Hashed]
    piece: Piece
    length: int
    buffer: Buffer | None


class ChunkFlow:
    """See the module."""

    def __init__(
        self,
        *,
        id_key: bytes,
        catalogue: Catalogue,
        packs: PackSink,
        unacknowledged: set[bytes],
        ask_have: Callable[[Sequence[bytes]], Sequence[bool]] | None,
    ) -> None:
        """Start the two threads.

        Chunks put into packs are added to `unacknowledged`. `ask_have` is None when the catalogue knows all that
        the target has.
        """
        self._id_key = id_key
        self._catalogue = catalogue
        self._packs = packs
        self._ask_have = ask_have
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="chunk")
        self._local = threading.local()
        self._jobs: deque[_Job] = deque()
        self._in_flight_bytes = 0
        self._asking: dict[bytes, _Hashed] = {}
        self._pack: PackBuilder | None = None
        self._unacknowledged = unacknowledged
        self.counts = FlowCounts()

    def submit(
        self, data: bytes | memoryview, *, buffer: Buffer | None = None, piece: Piece | None = None
    ) -> Piece:
        """Take one chunk (1 byte to CHUNK_MAX); its bytes must stay until `buffer` is released."""
        piece = piece or Piece()
        self._jobs.append(_Job(self._executor.submit(self._work, data), piece, len(data), buffer))
        self._in_flight_bytes += len(data)
        while self._in_flight_bytes > IN_FLIGHT_BYTES_MAX:
            self.collect()
        return piece

    def collect(self) -> bool:
        """Finish the oldest chunk; False if there is none."""
        if not self._jobs:
            return False
        job = self._jobs.popleft()
        hashed = job.future.result()
        self._in_flight_bytes -= job.length
        if job.buffer is not None:
            job.buffer.release()
        job.piece.chunk = hashed.chunk
        self._place(hashed)
        return True

    def drain(self) -> None:
        """Finish every chunk submitted so far."""
        while self.collect():
            pass
        self._ask()

    def flush(self) -> None:
        """Finish every chunk and ship the last pack."""
        self.drain()
        if self._pack is not None and self._pack.items:
            self._packs.ship(self._pack)
        self._pack = None

    def close(self) -> None:
        """Stop the threads; queued work is dropped."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _work(self, data: bytes | memoryview) -> _Hashed:
        chunk = chunk_id(self._id_key, data)
        if self._is_known(chunk):
            return _Hashed(chunk, len(data), None)
        compressor = getattr(self._local, "compressor", None)
        if compressor is None:
            compressor = self._local.compressor = Compressor()
        return _Hashed(chunk, len(data), compressor.body(data))

    def _is_known(self, chunk: bytes) -> bool:
        return chunk in self._unacknowledged or self._catalogue.is_known(chunk)

    def _place(self, hashed: _Hashed) -> None:
        if hashed.body is None or hashed.chunk in self._asking or self._is_known(hashed.chunk):
            self.counts.reused_chunks += 1
            self.counts.reused_bytes += hashed.length
        elif self._ask_have is None:
            self._add(hashed)
        else:
            self._asking[hashed.chunk] = hashed
            if len(self._asking) >= ASK_CHUNKS_MAX:
                self._ask()

    def _ask(self) -> None:
        if self._ask_have is None or not self._asking:
            return
        asked, self._asking = self._asking, {}
        answers = self._ask_have(tuple(asked))
        present = [chunk for chunk, there in zip(asked, answers, strict=True) if there]
        self._catalogue.add_chunks(present)
        for chunk, hashed in asked.items():
            if chunk in present:
                self.counts.reused_chunks += 1
                self.counts.reused_bytes += hashed.length
            else:
                self._add(hashed)

    def _add(self, hashed: _Hashed) -> None:
        body = hashed.body
        assert body is not None  # noqa: S101 - narrows the type: callers checked
        if self._pack is not None and not self._pack.has_room(body):
            self._packs.ship(self._pack)
            self._pack = None
        if self._pack is None:
            self._pack = self._packs.begin()
        self._unacknowledged.add(hashed.chunk)
        self.counts.sent_bytes += self._pack.add(hashed.chunk, body)
        self.counts.new_chunks += 1
        self.counts.new_bytes += hashed.length
