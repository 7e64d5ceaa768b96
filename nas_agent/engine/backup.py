"""One backup run from opening a session to a verified receipt (design §6.3 to §6.6).

Packs are acknowledged, then their chunks are known to the catalogue, then the run is committed (`committing.py`): a crash
anywhere leaves packs that the next run finds. Session keys exist in memory only: every run, also one that resumes, seals
a new one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, Literal

import attrs
import trio
from nacl import bindings

from nas_agent.adapters.catalogue import Catalogue, KnownGeneration
from nas_agent.core.packing import SessionKeys
from nas_agent.core.vault_keys import DeviceKeys
from nas_agent.engine.chunk_flow import ChunkFlow, FlowCounts
from nas_agent.engine.committing import Committer, Draft
from nas_agent.engine.pipeline import FILE_BYTES_MAX, Pipeline, RunCounts
from nas_agent.engine.retry import GIVE_UP_S, PatientStore
from nas_agent.engine.shipping import Shipper, cpu_has_aes
from nas_agent.errors import StoreRefusedError
from nas_agent.ports import (
    Head,
    Missing,
    Problem,
    Progress,
    Refusal,
    TreeSource,
    VaultStore,
)
from runtime.errors import RemoteError
from wire.storage import to_base64
from wire.vault.frame import Algorithm
from wire.vault.root import Manifest
from wire.vault.session import SESSION_KEY_BYTES, SessionHeader, SessionSecrets, seal_secrets, sign_header

ATTEMPTS_MAX: Final = 3
"""A run is repeated when the store lost chunks or the session; what was sent is not sent again."""
PROGRESS_EVERY_S: Final = 0.2


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
        self._committer = Committer(
            store=store,
            catalogue=catalogue,
            keys=keys,
            backup_set=options.backup_set,
            wait_for_drain=not options.detach,
            give_up_s=options.give_up_s,
            report=self._report,
        )

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
        if await self._committer.settle_pending(
            session.head
        ):  # the earlier run's generation exists: go on from there
            await self._store.close()
            session = await self._open()
            if isinstance(session, Refusal):
                return session
        manifest = await self._read_source(session)
        if isinstance(manifest, Refusal):
            return manifest
        outcome = await self._committer.commit(
            Draft(session.keys.session.hex(), session.sequence, session.head, manifest, self._counts)
        )
        return self._result("durable", durable=outcome) if isinstance(outcome, KnownGeneration) else outcome

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
                return _Session(keys, opened.head, sequence)
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
    ) -> BackupResult:
        return BackupResult(
            state=state,
            complete=self._counts.problems_total == 0,
            sequence=self._sequence,
            generation=durable.generation if durable else None,
            root_sha256=durable.root_sha256 if durable else None,
            receipt=durable.receipt_blob if durable else None,
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
