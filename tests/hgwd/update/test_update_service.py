"""The service against a carrier in this process: enrolment, polls, reports, time, and what people are told.

Old software keeps running and the cause stands in status and report (issue 2, fault list).
"""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest
import trio
from update_kit import (
    DIR_ROOT,
    DIRECTOR,
    IDENTITY,
    NAME,
    NOW_S,
    PACKAGE,
    STRANGER,
    Kit,
    Source,
    entry,
    listed,
    make_kit,
    signed_by,
)

from hgwd.adapters.enrol import EnrolRequest
from hgwd.adapters.state import open_state
from hgwd.update_service import UpdateService, UpdateSettings
from runtime.clock import ManualClock
from runtime.errors import CertificateRefusedError
from runtime.http import Request, Response, error_response, json_response, open_listener, serve_http
from runtime.http_client import HttpClient
from runtime.logs import get_logger
from wire.joint import GatewayEnrol, GatewayReport, SignedTime, SoftwareReport
from wire.signing import Context, sign_blob
from wire.statement import Audience, Kind, open_statement

TARGET = listed(PACKAGE)
DOCUMENT_PATH = "cd" * 16
YEAR_S = 365 * 86_400


@attrs.define
class Carrier:
    """A carrier that says what a test puts into it, and remembers what it was asked."""

    kit: Kit = attrs.field(factory=make_kit)
    document: bytes = b""
    now_s: float = NOW_S
    busy: bool = False
    refuse_enrolment: bool = False
    time_key: Any = DIR_ROOT
    asked: list[str] = attrs.field(factory=list)
    reports: list[GatewayReport] = attrs.field(factory=list)

    async def __call__(self, request: Request) -> Response:
        self.asked.append(f"{request.method} {request.path}")
        if self.busy:
            return error_response(503, "unavailable", "later", retry_after_s=900)
        body = await request.body.read(1 << 20)
        match request.path:
            case "/joint/v1/time":
                payload = SignedTime(v=1, nonce=body.hex(), time=int(self.now_s))
                return Response(
                    200, (), sign_blob(self.time_key._key, Context.TIME, msgspec.json.encode(payload))
                )
            case "/joint/v1/enrol":
                if self.refuse_enrolment:
                    return error_response(403, "refused", "not allowed")
                self._open(body, Kind.GATEWAY_ENROL, GatewayEnrol)
                return json_response(201, {"gateway": IDENTITY.gateway.text, "director_path": DOCUMENT_PATH})
            case "/joint/v1/reports":
                self.reports.append(self._open(body, Kind.GATEWAY_REPORT, GatewayReport))
                return Response(204)
            case path if path == f"/director/{DOCUMENT_PATH}/director.json":
                return self._document(request)
        return self._static(request.path)

    def _open(self, body: bytes, kind: Kind, form: type[Any]) -> Any:
        return open_statement(body, kind=kind, audience=Audience.JOINT, now_s=self.now_s, body_type=form).body

    def _document(self, request: Request) -> Response:
        etag = f'"{len(self.document)}-{self.document[-40:].hex()}"'
        if request.headers.get("if-none-match") == etag:
            self.asked[-1] += " 304"
            return Response(304, (("etag", etag),))
        return Response(200, (("etag", etag),), self.document)

    def _static(self, path: str) -> Response:
        source = Source.IMAGE if path.startswith("/image/metadata/") else Source.DIRECTOR
        data = self.kit.served.get((source, path.rpartition("/")[2]))
        return Response(404) if data is None else Response(200, (), data)


@attrs.define
class Gateway:
    """A running service and what it logged."""

    service: UpdateService
    log: io.BytesIO

    async def until(self, holds: Callable[[dict[str, Any]], object], timeout_s: float = 10) -> dict[str, Any]:
        with trio.move_on_after(timeout_s):
            while True:
                status: dict[str, Any] = self.service.status()
                if holds(status):
                    return status
                await trio.sleep(0.02)
        raise AssertionError((self.service.status(), self.log.getvalue().decode()))

    async def until_condition(self, code: str) -> str:
        status = await self.until(lambda s: code in [c["code"] for c in s["conditions"]])
        return next(c["text"] for c in status["conditions"] if c["code"] == code)


class RefusingClient(HttpClient):
    """A client whose certificate check fails on dates only: the machine's clock is wrong."""

    def stream(self, *arguments: Any, **named: Any) -> Any:
        raise CertificateRefusedError("certificate refused: not yet valid", dates_only=True)


@asynccontextmanager
async def running(
    directory: Path, carrier: Carrier, *, machine_s: float = NOW_S, wrong_dates: bool = False, **changes: Any
) -> AsyncIterator[Gateway]:
    log = io.BytesIO()
    settings = UpdateSettings(
        **{
            "software_dir": directory / "software",
            "launcher_socket": None,
            "image_root": carrier.kit.pinned[Source.IMAGE],
            "director_root": carrier.kit.pinned[Source.DIRECTOR],
            "claim": EnrolRequest(IDENTITY.serial, "PR-500", "KI", b"s" * 32),
            "build_time_s": NOW_S - 86_400,
            **changes,
        }
    )
    listener = open_listener("::1", 0, None)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_http, carrier, [listener])
        kind = RefusingClient if wrong_dates else HttpClient
        client, dateless = kind("::1", listener.port), HttpClient("::1", listener.port)
        clock = ManualClock(unix_s=machine_s)
        state = open_state(directory / "state")
        service = UpdateService(settings, state, client, dateless, clock, get_logger("hgwd", stream=log))
        await nursery.start(service.run)
        yield Gateway(service, log)
        nursery.cancel_scope.cancel()


def wants_target(carrier: Carrier) -> None:
    carrier.document = carrier.kit.direct(entry(TARGET), targets=(TARGET,))


def reported(carrier: Carrier) -> list[SoftwareReport]:
    return [item for report in carrier.reports for item in report.software]


async def test_enrols_polls_and_reports(tmp_path: Path) -> None:
    carrier = Carrier()
    carrier.document = carrier.kit.direct()
    async with running(tmp_path, carrier) as gateway:
        status = await gateway.until(lambda s: carrier.reports)
    assert status["gateway"] == IDENTITY.gateway.text
    assert status["conditions"] == []
    assert carrier.reports[0].director_version == 2
    assert carrier.asked[:3] == [
        "POST /joint/v1/time", "POST /joint/v1/enrol", f"GET /director/{DOCUMENT_PATH}/director.json",
    ]  # fmt: skip


async def test_a_later_start_polls_with_one_conditional_request_and_a_higher_counter(tmp_path: Path) -> None:
    carrier = Carrier()
    carrier.document = carrier.kit.direct()
    async with running(tmp_path, carrier) as gateway:
        await gateway.until(lambda s: carrier.reports)
        await trio.sleep(0.1)
    carrier.asked.clear()
    async with running(tmp_path, carrier) as gateway:
        await gateway.until(lambda s: s["last_contact_s"])
        await trio.sleep(0.2)
    assert carrier.asked == ["POST /joint/v1/time", f"GET /director/{DOCUMENT_PATH}/director.json 304"]
    carrier.document = carrier.kit.direct()
    async with running(tmp_path, carrier) as gateway:
        await gateway.until(lambda s: len(carrier.reports) == 2)
    assert carrier.reports[1].counter > carrier.reports[0].counter


async def test_a_forged_document_changes_nothing_and_is_told_everywhere(tmp_path: Path) -> None:
    carrier = Carrier()
    carrier.document = carrier.kit.direct()
    async with running(tmp_path, carrier) as gateway:
        await gateway.until(lambda s: carrier.reports)
        carrier.kit.direct(entry(TARGET), targets=(TARGET,))
        carrier.document = signed_by(carrier.kit.document, STRANGER)
        gateway.service.poll_now()
        assert "unsigned" in await gateway.until_condition("attack-suspected")
        await gateway.until(lambda s: len(carrier.reports) == 2)
        assert carrier.reports[1].attack is not None
        assert carrier.reports[1].attack.startswith("unsigned")
        assert carrier.reports[1].director_version == 2
        assert gateway.service.status()["director_version"] == 2
        carrier.document = signed_by(carrier.kit.document, DIRECTOR)
        gateway.service.poll_now()
        await gateway.until(lambda s: s["director_version"] == 3 and s["attack"] is None)


async def test_without_a_launcher_nothing_is_started_and_the_reason_is_told(tmp_path: Path) -> None:
    carrier = Carrier()
    wants_target(carrier)
    async with running(tmp_path, carrier) as gateway:
        text = await gateway.until_condition("software-7809")
        assert "update.launcher_socket is not set" in text
        await gateway.until(lambda s: any(item.fault for item in reported(carrier)))
    software = next(item for item in reported(carrier) if item.fault)
    assert software.software == NAME.text
    assert software.state == "Uninstalled"
    assert software.fault is not None
    assert software.fault.startswith("7809")
    assert not any("targets" in line.partition("/image/")[2] and ".hgwpkg" in line for line in carrier.asked)


async def test_with_a_barrier_missing_nothing_is_even_fetched(tmp_path: Path) -> None:
    path = tmp_path / "launcher.sock"
    command = [
        sys.executable,
        "-m",
        "hgwd.launcher_main",
        "--socket",
        str(path),
        "--cgroup-root",
        str(tmp_path),
    ]
    command += ["--software-dir", str(tmp_path / "software"), "--state-dir", str(tmp_path / "launcher")]
    launcher = subprocess.Popen(command, cwd=Path(__file__).parents[3])
    try:
        with trio.fail_after(20):
            while not path.exists():
                await trio.sleep(0.05)
        carrier = Carrier()
        wants_target(carrier)
        async with running(tmp_path, carrier, launcher_socket=path) as gateway:
            assert "cgroup" in await gateway.until_condition("software-7801")
    finally:
        launcher.terminate()
        launcher.wait(20)
    assert not any(".hgwpkg" in line for line in carrier.asked)


async def test_a_package_no_operator_signed_is_refused_by_name(tmp_path: Path) -> None:
    carrier = Carrier()
    evil = listed(b"evil", version="6.6.6")
    carrier.document = carrier.kit.direct(entry(evil), targets=(evil,))
    async with running(tmp_path, carrier) as gateway:
        text = await gateway.until_condition("software-7805")
        assert "not-in-image-repository" in text
        await gateway.until(lambda s: any(report.attack for report in carrier.reports))


async def test_refused_enrolment_is_a_condition_and_no_poll_follows(tmp_path: Path) -> None:
    carrier = Carrier(refuse_enrolment=True)
    async with running(tmp_path, carrier) as gateway:
        await gateway.until_condition("enrolment-refused")
    assert not any("director.json" in line for line in carrier.asked)


async def test_a_busy_carrier_is_left_alone_as_long_as_it_says(tmp_path: Path) -> None:
    carrier = Carrier(busy=True)
    async with running(tmp_path, carrier) as gateway:
        await gateway.until_condition("carrier-unavailable")
        status = await gateway.until(lambda s: s["next_poll_s"])
    assert len(carrier.asked) == 1
    assert status["next_poll_s"] - gateway.service.now_s() < 3600 + 1


@pytest.mark.parametrize("machine_s", [0.0, NOW_S + 10 * YEAR_S], ids=["1970", "ten years ahead"])
async def test_a_wrong_machine_clock_is_found_out_by_the_one_allowed_request(
    tmp_path: Path, machine_s: float
) -> None:
    carrier = Carrier()
    carrier.document = carrier.kit.direct()
    async with running(tmp_path, carrier, machine_s=machine_s, wrong_dates=True) as gateway:
        await gateway.until(lambda s: s["director_version"] == 2)
        assert abs(gateway.service.now_s() - NOW_S) < 60
    assert carrier.asked[0] == "POST /joint/v1/time"


async def test_a_certificate_that_really_expired_is_not_passed_over(tmp_path: Path) -> None:
    carrier = Carrier()
    carrier.document = carrier.kit.direct()
    async with running(tmp_path, carrier, wrong_dates=True) as gateway:
        await gateway.until_condition("certificate-refused")
        await trio.sleep(0.2)
    assert carrier.asked == ["POST /joint/v1/time"]


async def test_a_thief_of_the_time_key_moves_nothing(tmp_path: Path) -> None:
    carrier = Carrier(now_s=NOW_S + 10 * YEAR_S)
    async with running(tmp_path, carrier) as gateway:
        await gateway.until_condition("refused-unsigned")
        assert gateway.service.now_s() < NOW_S + 86_400


async def test_time_signed_by_another_key_is_refused(tmp_path: Path) -> None:
    carrier = Carrier(time_key=STRANGER)
    async with running(tmp_path, carrier) as gateway:
        await gateway.until_condition("refused-unsigned")
