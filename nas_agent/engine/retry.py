"""Waiting for a store that is not available now: a decorator over the port.

Rules: only `Unavailable` and refusals with `retry_after_s` are waited for; the wait is what the store asked, bounded;
nothing is retried for longer than `give_up_s` since the last success. Everything in the port may be repeated.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal, TypeVar

import trio

from nas_agent.ports import (
    Committed,
    GenerationInfo,
    Location,
    Missing,
    Opened,
    PackAccepted,
    Refs,
    Refusal,
    VaultStore,
)
from runtime.errors import Unavailable

WAIT_S_MIN: Final = 0.2
WAIT_S_MAX: Final = 15.0
GIVE_UP_S: Final = 900.0
_T = TypeVar("_T")


class PatientStore:
    """A `VaultStore` that waits for another one."""

    def __init__(
        self, inner: VaultStore, *, give_up_s: float = GIVE_UP_S, wait_for_drain: bool = True
    ) -> None:
        """Wrap `inner`; with `wait_for_drain` False the refusal `draining` is returned at once."""
        self._inner = inner
        self._give_up_s = give_up_s
        self._wait_for_drain = wait_for_drain

    async def _wait(self, call: Callable[[], Awaitable[_T]]) -> _T:
        deadline = trio.current_time() + self._give_up_s
        wait_s = WAIT_S_MIN
        while True:
            asked: float | None
            try:
                answer = await call()
            except Unavailable as error:
                if trio.current_time() >= deadline:
                    raise
                asked = error.retry_after_s
            else:
                if not self._should_wait(answer) or trio.current_time() >= deadline:
                    return answer
                asked = answer.retry_after_s if isinstance(answer, Refusal) else None
            await trio.sleep(min(max(wait_s, asked or 0.0), WAIT_S_MAX))
            wait_s = min(wait_s * 2, WAIT_S_MAX)

    def _should_wait(self, answer: object) -> bool:
        if not isinstance(answer, Refusal):
            return False
        if answer.code == "draining":
            return self._wait_for_drain
        return answer.retry_after_s is not None

    async def open_session(
        self, mode: Literal["append", "read"], backup_set: str, session_header: bytes | None
    ) -> Opened | Refusal:
        """See `VaultStore`."""
        return await self._wait(lambda: self._inner.open_session(mode, backup_set, session_header))

    async def have(self, ids: Sequence[bytes]) -> Sequence[bool] | Refusal:
        """See `VaultStore`."""
        return await self._wait(lambda: self._inner.have(ids))

    async def put_pack(self, name: str, data: memoryview) -> PackAccepted | Refusal:
        """See `VaultStore`."""
        return await self._wait(lambda: self._inner.put_pack(name, data))

    async def pack_states(self, names: Sequence[str]) -> Sequence[int] | Refusal:
        """See `VaultStore`."""
        return await self._wait(lambda: self._inner.pack_states(names))

    async def commit(self, root_blob: bytes, refs: Refs) -> Committed | Missing | Refusal:
        """See `VaultStore`."""
        return await self._wait(lambda: self._inner.commit(root_blob, refs))

    async def list_generations(self) -> tuple[GenerationInfo, ...] | Refusal:
        """See `VaultStore`."""
        return await self._wait(self._inner.list_generations)

    async def read_root(self, generation: str) -> bytes | Refusal:
        """See `VaultStore`."""
        return await self._wait(lambda: self._inner.read_root(generation))

    async def read_receipt(self, generation: str) -> bytes | Refusal | None:
        """See `VaultStore`."""
        return await self._wait(lambda: self._inner.read_receipt(generation))

    async def locate(self, generation: str, ids: Sequence[bytes]) -> Sequence[Location | None] | Refusal:
        """See `VaultStore`."""
        return await self._wait(lambda: self._inner.locate(generation, ids))

    async def read_pack_range(self, name: str, offset: int, length: int) -> bytes | Refusal:
        """See `VaultStore`."""
        return await self._wait(lambda: self._inner.read_pack_range(name, offset, length))

    async def read_session_header(self, session: str) -> bytes | Refusal:
        """See `VaultStore`."""
        return await self._wait(lambda: self._inner.read_session_header(session))

    async def close(self) -> None:
        """See `VaultStore`."""
        await self._inner.close()
