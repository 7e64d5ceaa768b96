"""The storage service: what a NAS can ask for, as calls with typed answers (protocols.md §3).

Rules
- Never a key, never a plaintext: packs and roots are opaque but for their signed, clear parts.
- Each call checks authority first (`authority.py`), then works; what is refused changes nothing.
- The bytes of a pack are in `packs.py`, commits and reading back here; HTTP is in `http.py`.
"""

from __future__ import annotations

import hashlib
import secrets

import attrs

from carrier.storage import facts
from carrier.storage import outcomes as out
from carrier.storage.authority import Authority, Caller, RelayedRequest, refused, stopped
from carrier.storage.outcomes import Code, Refused
from carrier.storage.ports import BlobStore, LinePort, StorageStores
from carrier.storage.receipts import ReceiptSigner
from carrier.storage.tables import LEASE_RENEW_S, LEASE_S
from carrier.worker import Worker
from runtime.clock import Clock
from wire.errors import FormatError, UpgradeNeededError, WireError
from wire.ids import BackupSetName, ContractId, RandomId
from wire.statement import Kind
from wire.storage import (
    DeviceEnrol,
    DeviceEnrolled,
    GenerationItem,
    Head,
    SessionOpen,
    SessionOpened,
    from_base64,
    split_commit,
    to_base64,
    unverified_receipt,
)
from wire.vault.root import GenerationRoot, open_root
from wire.vault.session import VerifiedHeader, open_device_cert, open_header

DEVICES_PATH = "/storage/v1/devices"
SESSIONS_PATH = "/storage/v1/sessions"
TOKEN_BYTES = 32


@attrs.frozen
class StorageService:
    """All that the HTTP edge calls but for pack bytes. Safe to share between tasks."""

    stores: StorageStores
    blobs: BlobStore
    lines: LinePort
    receipts: ReceiptSigner
    clock: Clock
    worker: Worker

    @property
    def authority(self) -> Authority:
        """The checks in front of every call."""
        return Authority(self.stores, self.lines, self.clock, self.worker)

    async def enrol_device(self, caller: Caller, blob: bytes) -> DeviceEnrolled | Refused:  # noqa: PLR0911 - one per refusal
        """Enrol a NAS with the code of the opening notice (AZK-18b). One answer for every refusal but the clock."""
        statement = await self.authority.open_statement(blob, Kind.DEVICE_ENROL, DeviceEnrol)
        if isinstance(statement, Refused):
            return statement
        claim = _read_device_claim(statement.signer, statement.body)
        if isinstance(claim, Refused):
            return claim
        line = self.authority.find_line(caller)
        if isinstance(line, Refused):
            return line if line.code is Code.UNAVAILABLE else refused(line.reason)
        request = RelayedRequest("POST", DEVICES_PATH, blob)
        gateway = await self.authority.check_gateway(caller, line, request)
        if isinstance(gateway, Refused):
            return gateway if gateway.code is Code.UNAVAILABLE else refused(gateway.reason)
        replay = await self.authority.spend(statement)
        if replay is not None:
            return replay
        enrolled = await self.worker.run(self.stores.contracts.enrol_device, claim, line.line_id, self._now())
        if isinstance(enrolled, out.DeviceRefused):
            return refused(enrolled.reason)
        return DeviceEnrolled(
            device=claim.device.hex(),
            receipt_key_cert=to_base64(self.receipts.cert),
            service_root=self.receipts.service_root.hex(),
        )

    async def open_session(self, caller: Caller, blob: bytes) -> SessionOpened | Refused:  # noqa: PLR0911 - one per refusal
        """Open an append or read session: device signature, then line, then gateway, each with its own code."""
        statement = await self.authority.open_statement(blob, Kind.SESSION_OPEN, SessionOpen)
        if isinstance(statement, Refused):
            return statement
        device = await self.worker.run(self.stores.contracts.find_device, statement.signer, self._now())
        if device is None or device.contract.text != statement.body.contract:
            return refused("device is not enrolled in this contract")
        replay = await self.authority.spend(statement)
        if replay is not None:
            return replay
        gateway = await self._check_opening(caller, device, blob)
        if isinstance(gateway, Refused):
            return gateway
        token = secrets.token_bytes(TOKEN_BYTES)
        new = self._new_session(device, statement.body, gateway, token)
        if isinstance(new, Refused):
            return new
        opened = await self.worker.run(self.stores.sessions.open_session, new, self._now())
        match opened:
            case out.SessionGranted():
                return _opened(opened, token)
            case out.SessionConflict():
                return Refused(Code.CONFLICT, f"session {new.session} was used before: begin another")
            case out.ContractOver():
                return stopped(Code.CONTRACT_ENDED)

    async def check(
        self, caller: Caller, session: str, token: str | None, mode: facts.Mode | None
    ) -> facts.SessionFacts | Refused:
        """Return the session behind a token if it may act in `mode` now; renews its lease."""
        given = await self.authority.check_token(caller, session, token, mode)
        if isinstance(given, Refused):
            return given
        lease_until = self._now() + LEASE_S
        if given.lease_until < lease_until - LEASE_RENEW_S:
            await self.worker.run(self.stores.sessions.renew_session, given.session, lease_until)
            return attrs.evolve(given, lease_until=lease_until)
        return given

    async def have(self, given: facts.SessionFacts, chunks: tuple[bytes, ...]) -> bytes:
        """Return one byte per chunk ID: 1 = live in this device and epoch, and protected by the session."""
        return await self.worker.run(self.stores.packs.protect_chunks, given, chunks, self._now())

    async def pack_states(self, given: facts.SessionFacts, packs: tuple[bytes, ...]) -> bytes:
        """Return one byte per pack name: 2 = stored, 0 = unknown."""
        stored = await self.worker.run(self.stores.packs.protect_packs, given, packs, self._now())
        return bytes(2 * state for state in stored)

    async def commit(self, given: facts.SessionFacts, body: bytes) -> out.Committed | Refused:
        """Make a generation durable; the same commit again returns the same receipt."""
        claim = await self.worker.run(_read_commit, given, body)
        if isinstance(claim, Refused):
            return claim
        done = await self.worker.run(
            self.stores.generations.commit, given, claim, self.receipts.sign, self._now()
        )
        match done:
            case out.Committed():
                return done
            case out.ChunksMissing():
                chunks = [name.hex() for name in done.chunks]
                text = f"{done.count} referenced chunks are not stored: send them again"
                return Refused(Code.MISSING, text, extra={"chunks": chunks})
            case out.ParentMismatch():
                head = None if done.root_sha256 is None else done.root_sha256.hex()
                text = f"expected to continue sequence {done.sequence}, root {head}"
                return Refused(
                    Code.PARENT_MISMATCH, text, extra={"sequence": done.sequence, "root_sha256": head}
                )
            case out.CommitConflict():
                return Refused(Code.CONFLICT, "this root was committed with other references")
            case out.SessionStopped():
                return await self.why_stopped(given)

    async def why_stopped(self, given: facts.SessionFacts) -> Refused:
        """Name the reason why a session that was good a moment ago may not write any more."""
        device = await self.worker.run(self.stores.contracts.find_device, given.device, self._now())
        if device is None or device.state is not facts.DeviceState.ACTIVE:
            return stopped(Code.DEVICE_REVOKED)
        if not device.contract_runs:
            return stopped(Code.CONTRACT_ENDED)
        return Refused(Code.SESSION_OVER, "the session was closed or its lease is over: open a new one")

    async def list_generations(self, given: facts.SessionFacts) -> list[GenerationItem]:
        """Return the generations of the session's backup set, oldest first, those in the trash marked."""
        rows = await self.worker.run(
            self.stores.generations.list_generations, given.contract, given.backup_set
        )
        return [_item(row) for row in rows]

    async def read_generation(
        self, given: facts.SessionFacts, generation: str
    ) -> facts.GenerationRow | Refused:
        """Return one generation of the contract."""
        try:
            name = RandomId.parse(generation)
        except WireError as error:
            return Refused(Code.NOT_FOUND, str(error))
        row = await self.worker.run(self.stores.generations.find_generation, given.contract, name)
        return row or Refused(Code.NOT_FOUND, f"no generation {name}")

    async def read_header(self, given: facts.SessionFacts, session: str) -> bytes | Refused:
        """Return the signed header of a past append session of the contract."""
        try:
            name = RandomId.parse(session)
        except WireError as error:
            return Refused(Code.NOT_FOUND, str(error))
        header = await self.worker.run(self.stores.generations.find_header, given.contract, name)
        return header or Refused(Code.NOT_FOUND, f"no session {name}")

    async def locate(
        self, given: facts.SessionFacts, generation: str, chunks: tuple[bytes, ...]
    ) -> list[tuple[bytes, int, int] | None] | Refused:
        """Return (pack, offset, length) of each chunk in the generation's device and epoch, None where unknown.

        So no other device of the contract can stand in the way of a restore by storing frames under foreign IDs.
        """
        try:
            name = RandomId.parse(generation)
        except WireError as error:
            return Refused(Code.NOT_FOUND, str(error))
        places = await self.worker.run(self.stores.packs.locate, given.contract, name, chunks)
        return Refused(Code.NOT_FOUND, f"no generation {name}") if places is None else places

    async def close_session(self, given: facts.SessionFacts) -> None:
        """End lease and reservation."""
        await self.worker.run(self.stores.sessions.close_session, given.session, self._now())

    async def _check_opening(self, caller: Caller, device: facts.DeviceFacts, blob: bytes) -> bytes | Refused:
        if device.state is not facts.DeviceState.ACTIVE:
            return stopped(Code.DEVICE_REVOKED)
        if not device.contract_runs:
            return stopped(Code.CONTRACT_ENDED)
        line = self.authority.check_line(caller, device.lines)
        if isinstance(line, Refused):
            return line
        return await self.authority.check_gateway(caller, line, RelayedRequest("POST", SESSIONS_PATH, blob))

    def _new_session(
        self, device: facts.DeviceFacts, body: SessionOpen, gateway: bytes, token: bytes
    ) -> facts.NewSession | Refused:
        try:
            backup_set = BackupSetName.parse(body.backup_set)
            header = _read_header(device, body) if body.mode == "append" else None
        except UpgradeNeededError as error:
            return Refused(Code.UPGRADE_NEEDED, str(error))
        except WireError as error:
            return Refused(Code.BAD_FORMAT, str(error))
        fresh = RandomId.from_bytes(secrets.token_bytes(16))
        return facts.NewSession(
            session=fresh if header is None else RandomId.parse(header.header.session),
            token_sha256=hashlib.sha256(token).digest(),
            contract=device.contract,
            device=device.device,
            backup_set=backup_set,
            mode=facts.Mode(body.mode),
            epoch="" if header is None else header.header.epoch,
            header=from_base64(body.session_header or ""),
            gateway_key=gateway,
            lease_until=self._now() + LEASE_S,
        )

    def _now(self) -> int:
        return int(self.clock.now_s())


def _read_device_claim(signer: bytes, body: DeviceEnrol) -> facts.DeviceClaim | Refused:
    try:
        contract = ContractId.parse(body.contract)
        cert = from_base64(body.device_cert)
        sign_key = bytes.fromhex(body.contract_sign_key)
        named = open_device_cert(cert, contract_sign_key=sign_key)
        code = bytes.fromhex(body.enrolment_code)
    except UpgradeNeededError as error:
        return Refused(Code.UPGRADE_NEEDED, str(error))
    except (WireError, ValueError) as error:
        return refused(f"device-enrol: {error}")
    if (named.contract, named.device_key) != (contract.text, signer.hex()):
        return refused("device-enrol: the certificate is for another contract or device")
    return facts.DeviceClaim(
        contract=contract,
        device=signer,
        cert=cert,
        code_sha256=hashlib.sha256(code).digest(),
        box_key=bytes.fromhex(body.contract_box_key),
        sign_key=sign_key,
    )


def _read_header(device: facts.DeviceFacts, body: SessionOpen) -> VerifiedHeader:
    """Return the session header if it is this device's, for this contract and backup set; else `WireError`."""
    if body.session_header is None:
        raise FormatError("append needs a session header")
    verified = open_header(from_base64(body.session_header), contract_sign_key=device.sign_key)
    names = (verified.device_key, verified.header.contract, verified.header.backup_set)
    if names != (device.device, device.contract.text, body.backup_set):
        raise FormatError("the session header is for another device, contract or backup set")
    return verified


def _read_commit(given: facts.SessionFacts, body: bytes) -> facts.CommitClaim | Refused:
    try:
        blob, refs = split_commit(body)
        root = open_root(blob, device_key=given.device)
    except UpgradeNeededError as error:
        return Refused(Code.UPGRADE_NEEDED, str(error))
    except WireError as error:
        return Refused(Code.BAD_FORMAT, str(error))
    refs_sha256 = hashlib.sha256(refs).digest()
    problem = _root_problem(given, root, refs, refs_sha256)
    if problem is not None:
        return problem
    return facts.CommitClaim(
        root=blob,
        root_sha256=hashlib.sha256(blob).digest(),
        sequence=root.sequence,
        parent_sha256=None if root.parent is None else bytes.fromhex(root.parent),
        refs=refs,
        refs_sha256=refs_sha256,
    )


def _root_problem(
    given: facts.SessionFacts, root: GenerationRoot, refs: bytes, refs_sha256: bytes
) -> Refused | None:
    if root.epoch != given.epoch:
        return Refused(Code.STALE_EPOCH, f"the session is of epoch {given.epoch}, the root of {root.epoch}")
    if (root.contract, root.backup_set) != (given.contract.text, given.backup_set.text):
        return Refused(Code.BAD_FORMAT, "the root is for another contract or backup set")
    if (root.refs_sha256, root.refs_count * 32) != (refs_sha256.hex(), len(refs)):
        return Refused(Code.BAD_HASH, "the references are not those the root was signed for")
    return None


def _opened(granted: out.SessionGranted, token: bytes) -> SessionOpened:
    head = granted.head
    return SessionOpened(
        session=granted.session.text,
        token=token.hex(),
        lease_until=granted.lease_until,
        limit_bytes=granted.limit_bytes,
        used_bytes=granted.used_bytes,
        reserved_bytes=granted.reserved_bytes,
        head=None if head is None else Head(sequence=head[0], root_sha256=head[1].hex()),
    )


def _item(row: facts.GenerationRow) -> GenerationItem:
    return GenerationItem(
        generation=row.generation.text,
        sequence=row.sequence,
        root_sha256=row.root_sha256.hex(),
        received_at=row.received_at,
        keep_until=unverified_receipt(row.receipt).keep_until,
        stored_bytes=row.stored_bytes,
        in_trash=row.in_trash,
    )
