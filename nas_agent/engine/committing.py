"""From "all packs handed over" to "durable": drain, root, commit, receipt (design §6.6).

Order, with the crash argument: root, references and entry cache are saved as *pending* → packs drained → commit → receipt
verified → *durable*. A crash before the commit costs nothing but the root; after it, the next run repeats the same
commit and gets the same receipt (`settle_pending`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import attrs
import trio

from nas_agent.adapters.catalogue import Catalogue, KnownGeneration, SortedRefs
from nas_agent.core.vault_keys import DeviceKeys, ReceiptTrust
from nas_agent.engine.pipeline import RunCounts
from nas_agent.errors import StoreRefusedError
from nas_agent.ports import (
    PACK_REJECTED,
    PACK_SPOOLED,
    Committed,
    Head,
    Missing,
    Refusal,
    VaultStore,
)
from runtime.errors import RemoteError
from wire.errors import WireError
from wire.storage import verify_receipt
from wire.vault.root import GenerationRoot, Manifest, next_history, root_hash, sign_root, unverified_root

STATES_PER_CALL: Final = 1024
DRAIN_POLL_S: Final = 0.5


@attrs.frozen
class Draft:
    """What a finished walk turned into, and the session it was sent in (32 hex)."""

    session: str
    sequence: int
    head: Head | None
    manifest: Manifest
    counts: RunCounts


class Committer:
    """Commits generations of one backup set; one run at a time."""

    def __init__(
        self,
        *,
        store: VaultStore,
        catalogue: Catalogue,
        keys: DeviceKeys,
        backup_set: str,
        wait_for_drain: bool,
        give_up_s: float,
        report: Callable[[str], None],
    ) -> None:
        """`report` is told the phases `drain` and `commit`; without `wait_for_drain` a full spool is `draining`."""
        self._store = store
        self._catalogue = catalogue
        self._keys = keys
        self._backup_set = backup_set
        self._wait_for_drain = wait_for_drain
        self._give_up_s = give_up_s
        self._report = report

    async def settle_pending(self, head: Head | None) -> bool:
        """Finish the commit of an earlier run whose receipt was never seen; forget it if the store will not have it.

        Returns True if that generation is durable now. Raises `StoreRefusedError` or `RemoteError` if the store has
        the generation but does not repeat its receipt.
        """
        pending = self._catalogue.pending
        if pending is None:
            return False
        exists = head is not None and head.root_sha256 == pending.root_sha256
        if exists or (head.sequence if head else 0) + 1 == pending.sequence:
            refs = await trio.to_thread.run_sync(self._catalogue.refs)
            answer = await self._store.commit(pending.root_blob, refs)
            if isinstance(answer, Committed):
                await self._accept(answer, pending, refs)
                return True
            if exists and isinstance(answer, Refusal):
                raise StoreRefusedError(answer.code, answer.message)
            if exists:
                raise RemoteError("the store has the last run's generation but says its chunks are missing")
        await trio.to_thread.run_sync(self._catalogue.drop_pending)
        return False

    async def commit(self, draft: Draft) -> KnownGeneration | Missing | Refusal:
        """Make the run a generation; returns it once its receipt was verified."""
        refs = await trio.to_thread.run_sync(self._catalogue.refs)
        blob = sign_root(self._keys.device, self._root(draft, refs))
        await trio.to_thread.run_sync(
            lambda: self._catalogue.save_pending(
                sequence=draft.sequence, root_sha256=root_hash(blob), root_blob=blob
            )
        )
        drained = await self._drain()
        if drained is not None:
            return drained
        self._report("commit")
        answer = await self._store.commit(blob, refs)
        if isinstance(answer, Missing | Refusal):
            return answer
        pending = self._catalogue.pending
        if pending is None:
            raise RuntimeError("commit: nothing is pending")
        await self._accept(answer, pending, refs)
        durable = self._catalogue.durable
        if durable is None:
            raise RuntimeError("commit: nothing is durable")
        return durable

    async def _drain(self) -> Refusal | None:
        """Wait until every pack that was only spooled is stored; a rejected one ends the run.

        It ends too when for `give_up_s` not one pack moved on; what was spooled is kept there for the next run.
        """
        deadline = trio.current_time() + self._give_up_s
        while names := self._catalogue.spooled_packs(STATES_PER_CALL):
            states = await self._store.pack_states(names)
            if isinstance(states, Refusal):
                return states
            pairs = tuple(zip(names, states, strict=True))
            # What the gateway no longer knows, or the service rejected, is no longer waited for: the commit of this
            # or the next run names its chunks as missing, and they are read again.
            settled = [name for name, state in pairs if state != PACK_SPOOLED]
            await trio.to_thread.run_sync(self._catalogue.forget_packs, settled)
            if PACK_REJECTED in states:
                return Refusal("rejected", "the service refused a pack for good; see the gateway's page")
            if settled:
                deadline = trio.current_time() + self._give_up_s
            if len(settled) < len(names):
                if not self._wait_for_drain or trio.current_time() >= deadline:
                    return Refusal("draining", "the gateway has everything and is passing it on")
                self._report("drain")
                await trio.sleep(DRAIN_POLL_S)
        return None

    def _root(self, draft: Draft, refs: SortedRefs) -> GenerationRoot:
        durable = self._catalogue.durable
        parent = draft.head.root_sha256 if draft.head else None
        known = durable is not None and durable.root_sha256 == parent
        return GenerationRoot(
            contract=self._keys.contract,
            backup_set=self._backup_set,
            device_key=self._keys.device.public.hex(),
            epoch=self._keys.epoch.epoch,
            sequence=draft.sequence,
            session=draft.session,
            created_at=int(time.time()),
            parent=parent,
            history=next_history(
                unverified_root(durable.root_blob) if durable is not None and known else None,
                parent,
                draft.sequence - 1,
            ),
            manifest=draft.manifest,
            files=draft.counts.files,
            logical_bytes=draft.counts.logical_bytes,
            complete=draft.counts.problems_total == 0,
            refs_count=refs.count,
            refs_sha256=refs.sha256,
        )

    async def _accept(self, answer: Committed, pending: KnownGeneration, refs: SortedRefs) -> None:
        """Verify the receipt, then make the generation the durable one."""
        trust = self._keys.receipt_trust
        if trust is not None:
            self._check_receipt(answer.receipt, trust, pending, refs)
        await trio.to_thread.run_sync(self._catalogue.promote, answer.generation, answer.receipt)

    def _check_receipt(
        self, blob: bytes | None, trust: ReceiptTrust, pending: KnownGeneration, refs: SortedRefs
    ) -> None:
        if blob is None:
            raise RemoteError("the service committed without a receipt")
        try:
            receipt = verify_receipt(blob, cert=trust.receipt_key_cert, service_root=trust.service_root)
        except WireError as error:
            raise RemoteError(f"the receipt does not verify: {error}") from error
        expected = {
            "contract": self._keys.contract,
            "backup_set": self._backup_set,
            "sequence": pending.sequence,
            "root_sha256": pending.root_sha256,
            "refs_sha256": refs.sha256,
        }
        for name, value in expected.items():
            if getattr(receipt, name) != value:
                message = (
                    f"the receipt is for another generation: {name} is {getattr(receipt, name)}, not {value}"
                )
                raise RemoteError(message)
