"""What operators do to storage: contracts, codes, devices, collection, scrubbing, rebuilding. Synchronous.

Rules: nothing here is reachable with a NAS or gateway credential. Each call is one transaction, or a loop of small ones
that may stop anywhere and be started again (`gc`, `scrub`, `rebuild_index`).
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

import attrs

from carrier.errors import CorruptDataError
from carrier.lines.domain import FOREVER_S
from carrier.storage import facts
from carrier.storage import outcomes as out
from carrier.storage.inspect import PIECE_BYTES, inspect_pack
from carrier.storage.ports import BlobInfo, BlobStore, StorageStores
from carrier.storage.tables import CODE_LIFE_S, ORPHAN_AGE_S, PLANS, TIERS
from runtime.clock import Clock
from wire.errors import WireError
from wire.ids import ContractId, CustomerId

CODE_BYTES: Final = 16


@attrs.frozen
class StorageAdmin:
    """Operators' side of the storage service."""

    stores: StorageStores
    blobs: BlobStore
    clock: Clock
    service_root: bytes

    def add_contract(
        self, contract: ContractId, plan: str, customer_id: CustomerId
    ) -> out.OpeningNotice | out.ContractTaken | out.LineMissing | out.PlanUnknown:
        """Open a contract on a running line and return its opening notice (開通のご案内)."""
        if plan not in PLANS or not TIERS[PLANS[plan].tier].sold:
            return out.PlanUnknown(plan)
        code_text, code = self._draw_code()
        added = self.stores.contracts.add_contract(contract, plan, customer_id, code, self._now())
        if not isinstance(added, out.ContractAdded):
            return added
        return out.OpeningNotice(
            contract=contract,
            customer_id=customer_id,
            plan=plan,
            capacity_bytes=PLANS[plan].capacity_bytes,
            enrolment_code=code_text,
            code_valid_to=code.valid_to,
            service_root=self.service_root.hex(),
        )

    def add_code(self, contract: ContractId) -> str | None:
        """Issue a further enrolment code for another NAS; None when no such contract runs."""
        code_text, code = self._draw_code()
        return code_text if self.stores.contracts.add_code(contract, code) else None

    def end_contract(self, contract: ContractId) -> bool:
        """End a contract; its data stays until an operator's decision."""
        return self.stores.contracts.end_contract(contract, self._now())

    def bind_line(self, contract: ContractId, customer_id: CustomerId) -> bool:
        """Let a further line reach the contract."""
        return self.stores.contracts.bind_line(contract, customer_id, self._now())

    def unbind_line(self, customer_id: CustomerId) -> int:
        """End all contracts' bindings to a line; returns how many."""
        return self.stores.contracts.unbind_line(customer_id, self._now())

    def set_entitlement(
        self,
        contract: ContractId,
        service: str,
        category: str = "",
        *,
        valid_from: int | None = None,
        valid_to: int = FOREVER_S,
    ) -> bool:
        """Record a service that may give the bonus (AZK-04, -05)."""
        start = self._now() if valid_from is None else valid_from
        return self.stores.contracts.set_entitlement(contract, service, category, start, valid_to)

    def lock_device(self, device: bytes) -> bool:
        """Remote access lock (AZK-15): refused from the next request on; transfers stop within a second."""
        return self.stores.contracts.set_device_state(device, facts.DeviceState.LOCKED, self._now())

    def unlock_device(self, device: bytes) -> bool:
        """Undo a lock; False for a revoked device."""
        return self.stores.contracts.set_device_state(device, facts.DeviceState.ACTIVE, self._now())

    def revoke_device(self, device: bytes) -> bool:
        """Revoke a device for good; its backups stay readable for the contract's other devices."""
        return self.stores.contracts.set_device_state(device, facts.DeviceState.REVOKED, self._now())

    def read_usage(self, contract: ContractId) -> out.Usage | None:
        """Return bytes and counts of a contract."""
        return self.stores.contracts.read_usage(contract, self._now())

    def gc(self, *, dry_run: bool = False, remove_orphans: bool = False) -> out.GcReport:
        """Expire the trash, condemn what nothing needs, delete what was condemned long enough.

        Args:
            dry_run: change nothing, say what would happen now.
            remove_orphans: also remove blobs without any row that are older than a day. Not by itself: after the
                database was restored from an older backup such blobs are what `rebuild_index` needs.
        """
        now_s = self._now()
        gc = self.stores.gc
        expired = gc.expire_trash(now_s, dry_run=dry_run)
        condemned = gc.condemn(now_s, dry_run=dry_run)
        deleting = gc.claim_condemned(now_s, dry_run=dry_run)
        orphans = self._orphans(now_s)
        if not dry_run:
            for pack in deleting:
                self.blobs.delete(pack.key)
                gc.mark_gone(pack.pack_id, now_s)
            gc.drop_stale(now_s)
            for blob in orphans if remove_orphans else ():
                self.blobs.delete(blob.key)
        return out.GcReport(
            generations_expired=expired,
            packs_condemned=len(condemned),
            packs_deleted=len(deleting),
            bytes_deleted=sum(pack.size_bytes for pack in deleting),
            orphans=len(orphans),
            orphans_deleted=len(orphans) if remove_orphans and not dry_run else 0,
        )

    def scrub(self) -> tuple[out.Damage, ...]:
        """Read every live pack, compare its SHA-256, and name the damaged ones with the generations that need them."""
        damages = []
        for pack in self.stores.gc.live_packs():
            cause = self._damage(pack)
            if cause is not None:
                names = tuple(name.text for name in self.stores.gc.generations_of(pack.pack_id))
                damages.append(out.Damage(pack.sha256.hex(), pack.contract, cause, names))
        return tuple(damages)

    def rebuild_index(self) -> out.RebuildReport:
        """Write pack and index rows again from the clear trailers of all blobs; needs no key. May be repeated."""
        counts = dict.fromkeys(out.Rebuilt, 0)
        damaged = []
        for blob in self.blobs.list_blobs():
            contract, _, name = blob.key.partition("/")
            sha256, _, incarnation = name.partition("-")
            try:
                pack = self._inspect(blob, sha256)
            except (WireError, CorruptDataError) as error:
                damaged.append(f"{blob.key}: {error}")
                continue
            done = self.stores.gc.rebuild_pack(
                ContractId.parse(contract), incarnation, bytes.fromhex(sha256), pack, self._now()
            )
            counts[done] += 1
        return out.RebuildReport(
            refreshed=counts[out.Rebuilt.REFRESHED],
            added=counts[out.Rebuilt.ADDED],
            skipped=counts[out.Rebuilt.ON_ITS_WAY_OUT] + counts[out.Rebuilt.DEVICE_UNKNOWN],
            damaged=tuple(damaged),
        )

    def _inspect(self, blob: BlobInfo, sha256: str) -> facts.PackFacts:
        if self._sha256(blob.key, blob.size_bytes) != sha256:
            raise CorruptDataError(f"blob {blob.key}: its bytes have another SHA-256")
        return inspect_pack(lambda offset, length: self.blobs.read(blob.key, offset, length), blob.size_bytes)

    def _damage(self, pack: facts.StoredPack) -> str | None:
        size_bytes = self.blobs.size(pack.key)
        if size_bytes != pack.size_bytes:
            return "missing" if size_bytes is None else f"has {size_bytes} of {pack.size_bytes} bytes"
        try:
            same = self._sha256(pack.key, pack.size_bytes) == pack.sha256.hex()
        except CorruptDataError as error:
            return str(error)
        return None if same else "other bytes than were stored"

    def _sha256(self, key: str, size_bytes: int) -> str:
        digest = hashlib.sha256()
        for start in range(0, size_bytes, PIECE_BYTES):
            digest.update(self.blobs.read(key, start, min(PIECE_BYTES, size_bytes - start)))
        return digest.hexdigest()

    def _orphans(self, now_s: int) -> list[BlobInfo]:
        """Blobs without a row. Listed before the rows are read: a row that comes later cannot be missed."""
        old = [blob for blob in self.blobs.list_blobs() if blob.modified_at + ORPHAN_AGE_S <= now_s]
        known = self.stores.gc.known_incarnations()
        return [blob for blob in old if blob.key.rpartition("-")[2] not in known]

    def _draw_code(self) -> tuple[str, facts.Code]:
        drawn = secrets.token_bytes(CODE_BYTES)
        return drawn.hex(), facts.Code(hashlib.sha256(drawn).digest(), self._now() + CODE_LIFE_S)

    def _now(self) -> int:
        return int(self.clock.now_s())
