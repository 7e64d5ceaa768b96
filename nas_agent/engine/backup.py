"""One backup run from opening a session to a verified receipt (design §6.3 to §6.6).

Order, with the crash argument: packs acknowledged → chunks known to the catalogue → root and references saved as
*pending* → commit → receipt verified → *durable*. A crash before the commit leaves packs the next run finds; after it,
the next run repeats the same commit and gets the same receipt. Session keys exist in memory only: every run, also one
that resumes, seals a new one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, Literal

import attrs
import trio
from nacl import bindings

from nas_agent.adapters.catalogue import Catalogue, KnownGeneration, SortedRefs
from nas_agent.core.packing import SessionKeys
from nas_agent.core.vault_keys import DeviceKeys
from nas_agent.engine.chunk_flow import ChunkFlow, FlowCounts
from nas_agent.engine.pipeline import FILE_BYTES_MAX, Pipeline, RunCounts
from nas_agent.engine.retry import GIVE_UP_S, PatientStore
from nas_agent.engine.shipping import Shipper, cpu_has_aes
from nas_agent.errors import StoreRefusedError
from nas_agent.ports import (
    PACK_REJECTED,
    PACK_SPOOLED,
    PACK_STORED,
    Committed,
    Head,
    Missing,
    Problem,
    Progress,
    Refusal,
    TreeSource,
    VaultStore,
)
from runtime.errors import RemoteError
from wire.errors import WireError
from wire.storage import to_base64, verify_receipt
from wire.vault.frame import Algorithm
from wire.vault.root import GenerationRoot, Manifest, next_history, root_hash, sign_root, unverified_root
from wire.vault.session import SESSION_KEY_BYTES, SessionHeader, SessionSecrets, seal_secrets, sign_header

ATTEMPTS_MAX: Final = 3
"""A run is repeated when the store lost chunks or the session; what was sent is not sent again."""
PROGRESS_EVERY_S: Final = 0.2
STATES_PER_CALL: Final = 1024
DRAIN_POLL_S: Final = 0.5


@attrs.frozen
class BackupOptions:
    """Settings of a run.

    Attributes:
        backup_set: its name at the store (`wire.ids.BackupSetName`).
        detach: return at *spooled* instead of waiting until the gateway has passed everything on.
        give_up_s: how long a store may be unavailable.
        file_bytes_max: larger files are listed, not read (AZK-80).
        cpu_has_aes: AES-256-GCM if true, else ChaCha20-Poly1305; None looks at the CPU.
    """

    backup_set: str
    detach: bool = False
    give_up_s: float = GIVE_UP_S
    file_bytes_max: int = FILE_BYTES_MAX
    cpu_has_aes: bool | None = None


@attrs.frozen
class BackupResult:
    """How a run ended.

    Attributes:
        state: `durable` (receipt verified), `spooled` (only with `detach`), `refused` (see `refusal`).
        complete: no file was left out or changed under us.
        problems: at most 10,000; `counts.problems_total` has the number.
        sent_bytes: bytes of all packs handed over; `flow` has what was new and what the target had already.
    """

    state: Literal["durable", "spooled", "refused"]
    complete: bool
    sequence: int
    generation: str | None
    root_sha256: str | None
    receipt: bytes | None
    refusal: Refusal | None
    problems: tuple[Problem, ...]
    counts: RunCounts
    flow: FlowCounts
    packs: int
    sent_bytes: int


@attrs.frozen
class _Session:
    keys: SessionKeys
    session: str
    head: Head | None
    sequence: int


async def backup(
    source: TreeSource,
    store: VaultStore,
    catalogue: Catalogue,
    keys: DeviceKeys,
    options: BackupOptions,
    *,
    progress: Progress | None = None,
) -> BackupResult:
    """Back up `source` as one new generation.

    Raises:
        Unavailable: the store stayed away for longer than `give_up_s`; run again, what was sent counts.
        RemoteError: the store broke the protocol or gave a receipt that does not verify.

    After cancellation the session is closed and nothing is half visible; the next run resumes.
    """
    patient = PatientStore(store, give_up_s=options.give_up_s, wait_for_drain=not options.detach)
    run = _Run(source, patient, catalogue, keys, options, progress)
    try:
        return await run.run()
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(catalogue.end_run)
            with trio.move_on_after(5):
                await store.close()


class _Run:
    def __init__(
        self,
        source: TreeSource,
        store: PatientStore,
        catalogue: Catalogue,
        keys: DeviceKeys,
        options: BackupOptions,
        progress: Progress | None,
    ) -> None:
        self._source = source
        self._store = store
        self._catalogue = catalogue
        self._keys = keys
        self._options = options
        self._progress = progress
        self._progress_at = 0.0
        self._sent_bytes = 0
        self._packs = 0
        self._counts = RunCounts()
        self._flow_counts = FlowCounts()
        self._problems: tuple[Problem, ...] = ()
        self._sequence = 0

    async def run(self) -> BackupResult:
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                outcome = await self._attempt()
            except StoreRefusedError as error:
                outcome = Refusal(error.refusal_code, str(error))
            again = isinstance(outcome, Missing) or (
                isinstance(outcome, Refusal) and outcome.code == "session-over"
            )
            if not again:
                break
            if isinstance(outcome, Missing):
                await trio.to_thread.run_sync(self._catalogue.distrust, outcome.chunks)
                outcome = Refusal("missing", f"the store lost chunks in each of {attempt} attempts")
            await self._store.close()
        if isinstance(outcome, BackupResult):
            return outcome
        if isinstance(outcome, Missing):
            outcome = Refusal("missing", "the store lost chunks")
        if outcome.code == "draining" and self._options.detach:
            return self._result("spooled")
        return self._result("refused", refusal=outcome)

    async def _attempt(self) -> BackupResult | Missing | Refusal:
        session = await self._open()
        if isinstance(session, Refusal):
            return session
        if await self._settle_pending(session):  # the earlier run's generation exists: go on from there
            await self._store.close()
            session = await self._open()
            if isinstance(session, Refusal):
                return session
        manifest = await self._read_source(session)
        if isinstance(manifest, Refusal):
            return manifest
        return await self._commit(session, manifest)

    async def _open(self) -> _Session | Refusal:
        """Open an append session whose header names the sequence after the store's head."""
        durable = self._catalogue.durable
        sequence = durable.sequence + 1 if durable else 1
        for _ in range(2):
            keys, header = self._new_session(sequence)
            opened = await self._store.open_session("append", self._options.backup_set, header)
            if isinstance(opened, Refusal):
                return opened
            expected = opened.head.sequence + 1 if opened.head else 1
            if expected == sequence:
                self._sequence = sequence
                return _Session(keys, keys.session.hex(), opened.head, sequence)
            sequence = expected
            await self._store.close()
        raise RemoteError("the store names another newest generation each time it is asked")

    def _new_session(self, sequence: int) -> tuple[SessionKeys, bytes]:
        session, session_key = bindings.randombytes(16), bindings.randombytes(SESSION_KEY_BYTES)
        epoch = self._keys.epoch
        secrets = SessionSecrets(session_key, epoch.id_key, epoch.chunk_seed)
        header = SessionHeader(
            contract=self._keys.contract,
            device_cert=to_base64(self._keys.device_cert),
            epoch=epoch.epoch,
            session=session.hex(),
            backup_set=self._options.backup_set,
            sequence=sequence,
            created_at=int(time.time()),
            box_key=self._keys.box_public.hex(),
            sealed=seal_secrets(secrets, box_key=self._keys.box_public),
        )
        has_aes = self._options.cpu_has_aes
        if has_aes is None:
            has_aes = cpu_has_aes()
        algorithm = Algorithm.AES_256_GCM if has_aes else Algorithm.CHACHA20_POLY1305
        keys = SessionKeys(session, session_key, algorithm, self._keys.device)
        return keys, sign_header(self._keys.device, header)

    async def _settle_pending(self, session: _Session) -> bool:
        """Finish the commit of an earlier run whose receipt was never seen; forget it if the store will not.

        Returns True if that generation is durable now.
        """
        pending = self._catalogue.pending
        if pending is None:
            return False
        head_sequence = session.head.sequence if session.head else 0
        exists = session.head is not None and session.head.root_sha256 == pending.root_sha256
        if not exists and head_sequence + 1 != pending.sequence:
            await trio.to_thread.run_sync(self._catalogue.drop_pending)
            return False
        refs = await trio.to_thread.run_sync(self._catalogue.refs)
        answer = await self._store.commit(pending.root_blob, refs)
        if isinstance(answer, Committed):
            await self._accept(answer, pending, refs)
            return True
        if exists:
            raise RemoteError("the store has the generation of the last run but does not repeat its receipt")
        await trio.to_thread.run_sync(self._catalogue.drop_pending)
        return False

    async def _read_source(self, session: _Session) -> Manifest | Refusal:
        asks = self._catalogue.durable is None or self._catalogue.unfinished
        await trio.to_thread.run_sync(self._catalogue.begin_run)
        unacknowledged: set[bytes] = set()
        shipper = Shipper(
            store=self._store,
            catalogue=self._catalogue,
            keys=session.keys,
            unacknowledged=unacknowledged,
        )
        flow = ChunkFlow(
            id_key=self._keys.epoch.id_key,
            catalogue=self._catalogue,
            packs=shipper,
            unacknowledged=unacknowledged,
            ask_have=self._ask_have if asks else None,
        )
        pipeline = Pipeline(
            source=self._source,
            catalogue=self._catalogue,
            flow=flow,
            chunk_seed=self._keys.epoch.chunk_seed,
            on_tick=lambda counts: self._tick("scan", counts, shipper),
            file_bytes_max=self._options.file_bytes_max,
        )
        try:
            manifest = await _in_parallel(pipeline.run, shipper)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(flow.close)
            self._counts, self._flow_counts = pipeline.counts, flow.counts
            self._problems = tuple(pipeline.problems)
            self._packs += shipper.packs
            self._sent_bytes += shipper.sent_bytes
        return manifest

    def _ask_have(self, ids: Sequence[bytes]) -> Sequence[bool]:
        answer = trio.from_thread.run(self._store.have, ids)
        if isinstance(answer, Refusal):
            raise StoreRefusedError(answer.code, answer.message)
        return answer

    async def _commit(self, session: _Session, manifest: Manifest) -> BackupResult | Missing | Refusal:
        refs = await trio.to_thread.run_sync(self._catalogue.refs)
        blob = sign_root(self._keys.device, self._root(session, manifest, refs))
        await trio.to_thread.run_sync(
            lambda: self._catalogue.save_pending(
                sequence=session.sequence, root_sha256=root_hash(blob), root_blob=blob
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
        return self._result("durable", durable=durable, receipt=answer.receipt)

    async def _drain(self) -> Refusal | None:
        """Wait until every pack that was only spooled is stored; a rejected one ends the run."""
        while names := self._catalogue.spooled_packs(STATES_PER_CALL):
            states = await self._store.pack_states(names)
            if isinstance(states, Refusal):
                return states
            if PACK_REJECTED in states:
                return Refusal("rejected", "the service refused a pack for good; see the gateway's page")
            stored = [name for name, state in zip(names, states, strict=True) if state == PACK_STORED]
            lost = [
                name
                for name, state in zip(names, states, strict=True)
                if state not in {PACK_STORED, PACK_SPOOLED}
            ]
            # A pack nobody knows any more shows as missing chunks in the commit, which names them.
            await trio.to_thread.run_sync(self._catalogue.forget_packs, [*stored, *lost])
            if len(stored) + len(lost) < len(names):
                if self._options.detach:
                    return Refusal("draining", "the gateway has everything and is passing it on")
                self._report("drain")
                await trio.sleep(DRAIN_POLL_S)
        return None

    def _root(self, session: _Session, manifest: Manifest, refs: SortedRefs) -> GenerationRoot:
        durable = self._catalogue.durable
        parent = session.head.root_sha256 if session.head else None
        known = None
        if durable is not None and durable.root_sha256 == parent:
            known = unverified_root(durable.root_blob)
        return GenerationRoot(
            contract=self._keys.contract,
            backup_set=self._options.backup_set,
            device_key=self._keys.device.public.hex(),
            epoch=self._keys.epoch.epoch,
            sequence=session.sequence,
            session=session.session,
            created_at=int(time.time()),
            parent=parent,
            history=next_history(known, parent, session.sequence - 1),
            manifest=manifest,
            files=self._counts.files,
            logical_bytes=self._counts.logical_bytes,
            complete=self._counts.problems_total == 0,
            refs_count=refs.count,
            refs_sha256=refs.sha256,
        )

    async def _accept(self, answer: Committed, pending: KnownGeneration, refs: SortedRefs) -> None:
        """Verify the receipt, then make the generation the durable one."""
        trust = self._keys.receipt_trust
        if trust is not None:
            if answer.receipt is None:
                raise RemoteError("the service committed without a receipt")
            try:
                receipt = verify_receipt(
                    answer.receipt, cert=trust.receipt_key_cert, service_root=trust.service_root
                )
            except WireError as error:
                raise RemoteError(f"the receipt does not verify: {error}") from error
            said = (
                receipt.contract,
                receipt.backup_set,
                receipt.sequence,
                receipt.root_sha256,
                receipt.refs_sha256,
            )
            meant = (
                self._keys.contract,
                self._options.backup_set,
                pending.sequence,
                pending.root_sha256,
                refs.sha256,
            )
            if said != meant:
                raise RemoteError(f"the receipt is for another generation: expected {meant}, got {said}")
        await trio.to_thread.run_sync(self._catalogue.promote, answer.generation, answer.receipt)

    def _tick(self, phase: str, counts: RunCounts, shipper: Shipper) -> None:
        if time.monotonic() < self._progress_at:
            return
        self._progress_at = time.monotonic() + PROGRESS_EVERY_S
        trio.from_thread.check_cancelled()
        if self._progress is None:
            return
        done = counts.files + counts.directories + counts.others
        self._progress(phase, done, counts.read_bytes, self._sent_bytes + shipper.sent_bytes)

    def _report(self, phase: str) -> None:
        if self._progress is not None:
            done = self._counts.files + self._counts.directories + self._counts.others
            self._progress(phase, done, self._counts.read_bytes, self._sent_bytes)

    def _result(
        self,
        state: Literal["durable", "spooled", "refused"],
        *,
        refusal: Refusal | None = None,
        durable: KnownGeneration | None = None,
        receipt: bytes | None = None,
    ) -> BackupResult:
        return BackupResult(
            state=state,
            complete=self._counts.problems_total == 0,
            sequence=self._sequence,
            generation=durable.generation if durable else None,
            root_sha256=durable.root_sha256 if durable else None,
            receipt=receipt,
            refusal=refusal,
            problems=self._problems,
            counts=self._counts,
            flow=self._flow_counts,
            packs=self._packs,
            sent_bytes=self._sent_bytes,
        )


async def _in_parallel(read: Callable[[], Manifest], shipper: Shipper) -> Manifest | Refusal:
    """Run the reading thread beside the sending task; return the manifest, or what the store refused with."""
    result: Manifest | Refusal = Refusal("unavailable", "the run was interrupted")
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shipper.run)
        try:
            result = await trio.to_thread.run_sync(read)
        except StoreRefusedError as error:
            result = Refusal(error.refusal_code, str(error))
        except Exception as error:  # noqa: BLE001 - raised again below, outside the nursery's exception group
            failure = error
        await shipper.finish()
    if failure is not None or shipper.failure is not None:
        raise shipper.failure or failure or RuntimeError("unreachable")
    return shipper.refusal or result
