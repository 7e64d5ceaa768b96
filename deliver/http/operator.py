"""Operators' requests: quote a package, accept it, roll it out (protocols.md §4). A listener of its own.

Rules
- Every request carries a statement signed by the operator's API key that names the SHA-256 of the body.
- A package is written to the staging directory while it arrives, hashed and parsed on the way, then fsynced: no more
  than one chunk is in memory, and it is dropped unless quoted.
- No line is needed here: operators are not on a line of ours.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Final

import attrs
from prometheus_client import Counter

from carrier.engines.sql.database import Database
from carrier.worker import Worker
from deliver.domain.pricing import Measured, Refused, Registered
from deliver.http.statements import opened
from deliver.services.nonces import NonceBook
from deliver.services.operators import Operator, find_by_api_key
from deliver.services.rollout import RolloutService
from deliver.services.submit import Accepted, SubmitService
from deliver.signing.image_repository import METADATA_BYTES_MAX
from runtime.clock import Clock
from runtime.files import fsync_dir, remove_durably, write_all
from runtime.http import Request, Response, error_response, json_response
from runtime.http.limits import CHUNK_BYTES
from runtime.http.types import parse_json
from wire.errors import FormatError, UpgradeNeededError, WireError
from wire.ids import RandomId
from wire.joint import OperatorSubmit, RolloutRequest
from wire.package_archive import STORED_BYTES_MAX, FileStart, PackageReader, footprint_of
from wire.statement import Kind, from_header

HEADER_STATEMENT: Final = "hgw-statement"
ROLLOUT_BYTES_MAX: Final = 1 << 20

_STATUS: Final = {
    "conflict": 409,
    "metadata-version": 409,
    "not-found": 404,
    "wrong-operator": 403,
    "bad-hash": 400,
    "bad-format": 400,
}


@attrs.frozen
class OperatorHttp:
    """Handlers for operators."""

    database: Database
    submit: SubmitService
    rollout: RolloutService
    nonces: NonceBook
    worker: Worker
    clock: Clock
    requests: Counter

    async def post_quote(self, request: Request) -> Response:
        """`POST /operator/v1/quotes`: body = package → 201 quote, 200 when registered already, 422 with the rule."""
        given = await self._authenticate(request)
        if isinstance(given, Response):
            return self._answer(request, "quote", given)
        operator, order = given
        if request.content_length is not None and request.content_length >= STORED_BYTES_MAX:
            return self._answer(request, "quote", _refusal(_too_large(request.content_length)))
        quote = RandomId.from_bytes(secrets.token_bytes(16))
        package = await self._receive(request, self.submit.staged_path(quote))
        if isinstance(package, Refused):
            return self._answer(request, "quote", _refusal(package))
        outcome = await self.worker.run(
            self.submit.make_quote, operator, order, package, quote, now_s=int(self.clock.now_s())
        )
        match outcome:
            case Refused():
                response = _refusal(outcome)
            case Registered():
                response = json_response(200, {"state": "registered", "target_path": outcome.target_path})
            case _:
                response = json_response(201, outcome)
        return self._answer(request, "quote", response)

    async def post_accept(self, request: Request, quote: str) -> Response:
        """`POST /operator/v1/quotes/{q}/accept`: body = signed targets metadata → 201."""
        given = await self._authenticate(request)
        if isinstance(given, Response):
            return self._answer(request, "accept", given)
        operator, order = given
        body = await request.body.read(METADATA_BYTES_MAX)
        try:
            quote_id = RandomId.parse(quote)
        except FormatError as error:
            return self._answer(request, "accept", error_response(404, "not-found", str(error)))
        if order.quote_id != quote or hashlib.sha256(body).hexdigest() != order.body_sha256:
            message = "the signed order names another quote or other bytes than were sent"
            return self._answer(request, "accept", error_response(400, "bad-hash", message))
        outcome = await self.worker.run(
            self.submit.accept, operator, quote_id, body, now_s=int(self.clock.now_s())
        )
        match outcome:
            case Accepted():
                answer = {"target_path": outcome.target_path, "metadata_version": outcome.role_version}
                return self._answer(request, "accept", json_response(201, answer))
            case Refused():
                return self._answer(request, "accept", _refusal(outcome))

    async def post_rollout(self, request: Request) -> Response:
        """`POST /operator/v1/rollouts`: which lines get or lose a version → 200, one entry per line."""
        given = await self._authenticate(request)
        if isinstance(given, Response):
            return self._answer(request, "rollout", given)
        operator, order = given
        body = await request.body.read(ROLLOUT_BYTES_MAX)
        if order.change != "rollout" or hashlib.sha256(body).hexdigest() != order.body_sha256:
            message = "the signed order is for another request or names other bytes than were sent"
            return self._answer(request, "rollout", error_response(400, "bad-hash", message))
        wanted = parse_json(body, RolloutRequest)
        outcome = await self.worker.run(
            self.rollout.roll_out, operator, order, wanted, now_s=int(self.clock.now_s())
        )
        response = _refusal(outcome) if isinstance(outcome, Refused) else json_response(200, outcome)
        return self._answer(request, "rollout", response)

    async def _authenticate(self, request: Request) -> tuple[Operator, OperatorSubmit] | Response:
        """Return who orders what: signature, time, single use, API key. The body's hash is the handler's to check."""
        now_s = self.clock.now_s()
        try:
            blob = from_header(request.headers.get(HEADER_STATEMENT, ""))
        except FormatError:
            return error_response(403, "refused", "not allowed")
        statement = opened(blob, Kind.OPERATOR_SUBMIT, OperatorSubmit, now_s)
        if isinstance(statement, Response):
            return statement
        operator = await self.worker.run(self._find_operator, statement.signer)
        if operator is None or not await self.worker.run(
            self.nonces.spend, statement.signer, statement.nonce, now_s
        ):
            return error_response(403, "refused", "not allowed")
        request.trace.add(operator=operator.operator.text, software=statement.body.software)
        return operator, statement.body

    def _find_operator(self, api_key: bytes) -> Operator | None:
        with self.database.read() as connection:
            return find_by_api_key(connection, api_key)

    async def _receive(self, request: Request, path: Path) -> Measured | Refused:
        """Write the package to `path`, fsynced; the file is gone again when anything is wrong."""
        intake = _Intake(path)
        try:
            async for chunk in request.body.chunks(STORED_BYTES_MAX + CHUNK_BYTES):
                outcome = await self.worker.run(intake.take, chunk)
                if isinstance(outcome, Refused):
                    return outcome
            return await self.worker.run(intake.finish)
        finally:
            intake.close()

    def _answer(self, request: Request, kind: str, response: Response) -> Response:
        self.requests.labels(kind, str(response.status)).inc()
        request.trace.add(outcome=response.status)
        return response


class _Intake:
    """One package on its way in. Blocking: called in worker threads, one call at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._sha256 = hashlib.sha256()
        self._reader = PackageReader()
        self._sizes_bytes: list[int] = []
        self._stored_bytes = 0
        self._kept = False

    def take(self, chunk: bytes) -> Refused | None:
        """Hash, parse and write the next bytes."""
        self._stored_bytes += len(chunk)
        if self._stored_bytes >= STORED_BYTES_MAX:
            return _too_large(self._stored_bytes)
        self._sha256.update(chunk)
        try:
            for event in self._reader.feed(chunk):
                if isinstance(event, FileStart):
                    self._sizes_bytes.append(event.size_bytes)
        except WireError as error:
            return _bad_package(error)
        write_all(self._fd, chunk)
        return None

    def finish(self) -> Measured | Refused:
        """Return what was received once it is whole and on disk."""
        if not self._stored_bytes:
            return Refused("size-stored", "JNT-05", "stored file: a size of 0 is refused")
        try:
            manifest = self._reader.finish()
        except WireError as error:
            return _bad_package(error)
        os.fsync(self._fd)
        fsync_dir(self._path.parent)
        self._kept = True
        return Measured(
            manifest, self._sha256.hexdigest(), self._stored_bytes, footprint_of(self._sizes_bytes)
        )

    def close(self) -> None:
        """Close the file; remove it unless `finish` succeeded."""
        os.close(self._fd)
        if not self._kept:
            remove_durably(self._path)


def _too_large(size_bytes: int) -> Refused:
    message = (
        f"stored file: expected 1 to {STORED_BYTES_MAX - 1} bytes, got {size_bytes} or more: no menu holds it"
    )
    return Refused("size-stored", "JNT-05", message)


def _bad_package(error: WireError) -> Refused:
    code = "upgrade-needed" if isinstance(error, UpgradeNeededError) else "bad-package"
    return Refused(code, "JNT-50", str(error))


def _refusal(refusal: Refused) -> Response:
    status = _STATUS.get(refusal.code, 422)
    return error_response(status, refusal.code, refusal.message, rule=refusal.rule)
