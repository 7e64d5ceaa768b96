"""Gateways' requests: enrol, report, ask the time (protocols.md §4).

Rules
- The line comes from the socket's peer only. No valid device signature: one answer for every cause.
- A statement counts once: its nonce is kept until it could no longer be accepted.
- It does not do: static files (`static.py`), operators (`operator.py`).
"""

from __future__ import annotations

import attrs
from prometheus_client import Counter

from carrier.lines.domain import Line, Refusal, RefusalCode
from carrier.lines.outcomes import GatewayEnrolled
from carrier.lines.ports import GatewayClaim
from carrier.lines.services import LineDirectory
from carrier.worker import Worker
from deliver.http.statements import opened
from deliver.services.gateways import GatewayService, ReportStored, answer_time
from deliver.services.nonces import NonceBook
from runtime.clock import Clock
from runtime.http import Request, Response, error_response, json_response
from wire.errors import WireError
from wire.ids import GatewaySerial
from wire.joint import TIME_NONCE_BYTES, GatewayEnrol, GatewayReport
from wire.joint import GatewayEnrolled as EnrolAnswer
from wire.signing import SigningKey
from wire.statement import STATEMENT_BYTES_MAX, Kind


@attrs.frozen
class JointHttp:
    """Handlers for gateways."""

    gateways: GatewayService
    lines: LineDirectory
    nonces: NonceBook
    time_key: SigningKey
    worker: Worker
    clock: Clock
    requests: Counter

    async def post_enrol(self, request: Request) -> Response:
        """`POST /joint/v1/enrol`: statement `gateway-enrol`."""
        now_s = self.clock.now_s()
        blob = await request.body.read(STATEMENT_BYTES_MAX)
        statement = opened(blob, Kind.GATEWAY_ENROL, GatewayEnrol, now_s)
        if isinstance(statement, Response):
            return self._answer(request, "enrol", statement)
        line = self._line(request)
        if isinstance(line, Response):
            return self._answer(request, "enrol", line)
        if not await self.worker.run(self.nonces.spend, statement.signer, statement.nonce, now_s):
            return self._answer(request, "enrol", refused())
        try:
            claim = GatewayClaim(
                serial=GatewaySerial.parse(statement.body.serial),
                model=statement.body.model,
                maker=statement.body.maker,
                proof=bytes.fromhex(statement.body.proof),
                key=statement.signer,
                nonce=bytes.fromhex(statement.nonce.text),
            )
        except WireError:
            return self._answer(request, "enrol", refused())
        outcome = await self.worker.run(self.gateways.enrol, line, claim, now_s=int(now_s))
        if not isinstance(outcome, GatewayEnrolled):
            request.trace.add(alarm=outcome.alarm)
            return self._answer(request, "enrol", refused())
        answer = EnrolAnswer(gateway=outcome.gateway.text, director_path=outcome.director_path.text)
        return self._answer(request, "enrol", json_response(201, answer))

    async def post_report(self, request: Request) -> Response:
        """`POST /joint/v1/reports`: statement `gateway-report`."""
        now_s = self.clock.now_s()
        blob = await request.body.read(STATEMENT_BYTES_MAX)
        statement = opened(blob, Kind.GATEWAY_REPORT, GatewayReport, now_s)
        if isinstance(statement, Response):
            return self._answer(request, "report", statement)
        line = self._line(request)
        known = isinstance(line, Line) or self.lines.knows_gateway(statement.signer)
        if isinstance(line, Response) and not known:
            return self._answer(request, "report", line)
        if not await self.worker.run(self.nonces.spend, statement.signer, statement.nonce, now_s):
            return self._answer(request, "report", refused())
        if isinstance(line, Response):
            return self._answer(request, "report", line_unknown() if line.status == 403 else line)
        outcome = await self.worker.run(
            self.gateways.report, statement.signer, line, statement.body, blob, now_s=int(now_s)
        )
        match outcome:
            case ReportStored():
                return self._answer(request, "report", Response(204))
            case _:
                status = 409 if outcome.code == "conflict" else 403
                unknown = outcome.code == "gateway-ended"
                answer = refused() if unknown else error_response(status, outcome.code, outcome.message)
                return self._answer(request, "report", answer)

    async def post_time(self, request: Request) -> Response:
        """`POST /joint/v1/time`: 32-byte nonce → signed time."""
        nonce = await request.body.read(TIME_NONCE_BYTES)
        if len(nonce) != TIME_NONCE_BYTES:
            message = f"nonce: expected {TIME_NONCE_BYTES} bytes, got {len(nonce)}"
            return self._answer(request, "time", error_response(400, "bad-format", message))
        line = self._line(request)
        if isinstance(line, Response):
            return self._answer(request, "time", line)
        blob = answer_time(self.time_key, nonce, now_s=self.clock.now_s())
        octets = (("content-type", "application/octet-stream"), ("cache-control", "no-store"))
        return self._answer(request, "time", Response(200, octets, blob))

    def _line(self, request: Request) -> Line | Response:
        line = self.lines.authenticate(request.peer.host)
        if not isinstance(line, Refusal):
            request.trace.add(line_id=line.line_id)
            return line
        request.trace.add(refusal=line.code.value)
        if line.code is RefusalCode.MAP_STALE:
            return error_response(503, "unavailable", "lines cannot be checked now", retry_after_s=30)
        return refused()

    def _answer(self, request: Request, kind: str, response: Response) -> Response:
        self.requests.labels(kind, str(response.status)).inc()
        request.trace.add(outcome=response.status)
        return response


def line_unknown() -> Response:
    """Return the answer to an enrolled gateway whose address belongs to no line: only its signature earns a reason."""
    message = "no access line is known for this address; IPv6 from the registered line is needed"
    return error_response(403, "line-unknown", message)


def refused() -> Response:
    """Return the one answer to every caller without a valid credential (protocols.md §2)."""
    return error_response(403, "refused", "not allowed")
