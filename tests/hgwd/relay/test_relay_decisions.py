"""Pure decisions of the relay as tables: routes, headers, verdicts, admission, addresses, log-in gate."""

from __future__ import annotations

import ipaddress

import pytest

from hgwd.core import admin_login
from hgwd.core.addresses import is_lan_address, parse_address, why_not_listen
from hgwd.core.admin_login import LoginGate, csrf_matches
from hgwd.core.relay import (
    LINE_HOLD_S,
    LINE_RETRY_MAX_S,
    CheckLocal,
    Hold,
    Reject,
    Retry,
    Route,
    ServiceError,
    SessionOver,
    Stored,
    backoff_s,
    headers_to_pass,
    headers_to_return,
    hold_s,
    judge_upload,
    match_storage_request,
    parse_retry_after_s,
    parse_service_error,
)
from hgwd.core.spool import Admitted, Full, SpoolLimits, TooLarge, decide_admission
from hgwd.core.status import LineStatus, QueueStatus, advance_line, find_conditions
from hgwd.errors import CorruptStateError
from hgwd.passwords import hash_password, parse_password_hash

S, P = "a" * 32, "b" * 64


@pytest.mark.parametrize(
    ("method", "path", "route"),
    [
        ("POST", "/devices", Route.SIGNED),
        ("POST", "/sessions", Route.OPEN_SESSION),
        ("POST", f"/sessions/{S}/have", Route.RELAY),
        ("PUT", f"/sessions/{S}/packs/{P}", Route.PUT_PACK),
        ("GET", f"/sessions/{S}/packs/{P}", Route.READ_PACK),
        ("POST", f"/sessions/{S}/state", Route.STATE),
        ("POST", f"/sessions/{S}/commit", Route.COMMIT),
        ("GET", f"/sessions/{S}/generations", Route.RELAY),
        ("GET", f"/sessions/{S}/generations/{S}/root", Route.RELAY),
        ("GET", f"/sessions/{S}/generations/{S}/receipt", Route.RELAY),
        ("POST", f"/sessions/{S}/generations/{S}/locate", Route.RELAY),
        ("GET", f"/sessions/{S}/header/{S}", Route.RELAY),
        ("DELETE", f"/sessions/{S}", Route.CLOSE),
    ],
)
def test_every_request_of_the_protocol_passes_and_is_treated_by_its_route(method, path, route):
    matched = match_storage_request(method, path)
    assert matched is not None
    assert matched.route is route


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", f"/sessions/{S}/packs/{P}"),
        ("GET", "/sessions"),
        ("POST", "/admin"),
        ("POST", "/devices/x"),
        ("PUT", f"/sessions/{S}/packs/{P[:-1]}"),
        ("PUT", f"/sessions/{S}/packs/{P.upper()}"),
        ("GET", f"/sessions/{S}/generations/{S}/other"),
        ("POST", f"/sessions/{S}/commit/../packs"),
        ("POST", f"/sessions/{S}/state\n"),
    ],
)
def test_anything_else_does_not_pass(method, path):
    assert match_storage_request(method, path) is None


def test_only_named_headers_travel_so_nobody_can_speak_of_lines_or_gateways():
    spoofed = {
        "x-forwarded-for": "2001:db8::1",
        "forwarded": "for=2001:db8::1",
        "x-real-ip": "2001:db8::1",
        "hgw-gateway": "statement",
        "authorization": "Bearer secret",
        "cookie": "a=b",
        "host": "other",
        "via": "x",
    }
    assert headers_to_pass({**spoofed, "hgw-session": "t", "range": "bytes=0-1"}) == {
        "hgw-session": "t",
        "range": "bytes=0-1",
    }
    assert headers_to_return({"set-cookie": "a=b", "content-range": "bytes 0-1/2"}) == (
        ("content-range", "bytes 0-1/2"),
    )


def error(code):
    return ServiceError(code=code, message="m")


@pytest.mark.parametrize(
    ("status", "code", "verdict"),
    [
        (200, None, Stored()),
        (201, None, Stored()),
        (202, None, Retry("status-202")),
        (500, None, Retry("status-500")),
        (503, "unavailable", Retry("unavailable")),
        (429, "busy", Retry("busy")),
        (502, None, Retry("status-502")),
        (404, None, Retry("status-404")),
        (403, None, Retry("status-403")),
        (403, "refused", SessionOver("refused")),
        (403, "line-unknown", Hold("line-unknown", error("line-unknown"))),
        (403, "line-not-contract", Hold("line-not-contract", error("line-not-contract"))),
        (507, "quota-full", Hold("quota-full", error("quota-full"))),
        (426, "upgrade-needed", Hold("upgrade-needed", error("upgrade-needed"))),
        (410, "session-over", SessionOver("session-over")),
        (404, "not-found", SessionOver("not-found")),
        (400, "bad-hash", CheckLocal()),
        (400, "bad-format", Reject("bad-format")),
        (403, "device-revoked", Reject("device-revoked")),
        (403, "gateway-ended", Reject("gateway-ended")),
        (409, "stale-epoch", Reject("stale-epoch")),
        (413, "too-large", Reject("too-large")),
    ],
)
def test_what_an_answer_means_for_a_pack(status, code, verdict):
    assert judge_upload(status, error(code) if code else None, None) == verdict


def test_a_page_that_is_no_error_of_ours_never_costs_a_pack():
    for body in (b"<html>captive portal</html>", b"", b"{}", b"\xff", b"[" * 100_000):
        assert parse_service_error(body) is None
        assert isinstance(judge_upload(403, parse_service_error(body), None), Retry)


def test_a_line_that_is_not_taken_is_asked_about_sooner_than_a_full_quota():
    assert hold_s("line-unknown") == hold_s("line-not-contract") == LINE_HOLD_S < hold_s("quota-full")


def test_retry_after_is_kept_within_bounds():
    assert parse_retry_after_s({"retry-after": "7"}) == 7.0
    for text in ("", "-1", "1e9", "Fri, 01 Jan 2027 00:00:00 GMT", "9" * 20, "٣"):
        assert parse_retry_after_s({"retry-after": text}) is None
    assert judge_upload(503, error("unavailable"), 1e6) == Retry("unavailable", after_s=600.0)


def test_pauses_double_to_a_minute_and_are_spread():
    assert [backoff_s(attempt, 1.0) for attempt in (1, 2, 3, 4, 5, 6, 7, 100)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert backoff_s(3, 0.0) == 2.0


LIMITS = SpoolLimits(bytes_max=1000, pack_bytes_max=400, high_water_percent=80)


@pytest.mark.parametrize(
    ("size", "used", "wanting", "free", "outcome"),
    [
        (100, {}, {"a"}, 1 << 30, Admitted),
        (400, {}, {"a"}, 1 << 30, Admitted),
        (401, {}, {"a"}, 1 << 30, TooLarge),
        (100, {"a": 799}, {"a"}, 1 << 30, Admitted),
        (100, {"a": 800}, {"a"}, 1 << 30, Full),
        (100, {"b": 800}, {"a"}, 1 << 30, Full),
        (300, {"a": 701}, {"a"}, 1 << 30, Full),
        (100, {}, {"a"}, 100, Full),
        (100, {"a": 350}, {"a", "b"}, 1 << 30, Full),
        (100, {"a": 300}, {"a", "b"}, 1 << 30, Admitted),
        (400, {"b": 100}, {"a", "b"}, 1 << 30, Admitted),
        (100, {"a": 350, "b": 100}, {"a"}, 1 << 30, Admitted),
    ],
)
def test_admission(size, used, wanting, free, outcome):
    decided = decide_admission(
        size_bytes=size,
        device="a",
        used_bytes=used,
        wanting=frozenset(wanting),
        free_bytes=free,
        line_up=True,
        limits=LIMITS,
    )
    assert isinstance(decided, outcome)


def test_a_full_spool_on_a_dead_line_says_wait_longer():
    waits = [
        decide_admission(
            size_bytes=1,
            device="a",
            used_bytes={"a": 900},
            wanting=frozenset(),
            free_bytes=1 << 30,
            line_up=line_up,
            limits=LIMITS,
        ).retry_after_s
        for line_up in (True, False)
    ]
    assert waits[0] < waits[1] <= LINE_RETRY_MAX_S


WAN = (ipaddress.ip_network("2001:db8:ffff::/64"), ipaddress.ip_network("192.168.99.0/24"))
LAN = (ipaddress.ip_network("2001:db8:1::/64"),)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("::1", True),
        ("127.0.0.1", True),
        ("192.168.1.1", True),
        ("10.0.0.1", True),
        ("172.31.0.1", True),
        ("fd00::1", True),
        ("fe80::1%br0", True),
        ("2001:db8:1::1", True),
        ("2001:db8:2::1", False),
        ("2001:db8:ffff::1", False),
        ("192.168.99.1", False),
        ("0.0.0.0", False),
        ("::", False),
        ("172.32.0.1", False),
        ("203.0.113.1", False),
        ("::ffff:192.168.1.1", False),
        ("64:ff9b::c0a8:101", False),
        ("2002:c0a8:101::1", False),
        ("gateway.local", False),
        ("", False),
    ],
)
def test_listeners_stand_on_the_lan_side_only(host, allowed):
    """CVE-2024-47044: the settings page of like gateways answered to the WAN over IPv6."""
    assert (why_not_listen(host, lan_prefixes=LAN, wan_prefixes=WAN) is None) == allowed


def test_a_peer_with_an_address_inside_another_one_is_no_lan_peer():
    for text in ("::ffff:192.168.1.5", "64:ff9b::c0a8:105", "2002:c0a8:105::1", "2001:db8:9::1"):
        address = parse_address(text)
        assert address is not None
        assert not is_lan_address(address, LAN)
    assert parse_address("not an address") is None


def test_log_in_tries_are_counted_per_peer_and_for_all():
    gate = LoginGate(idle_s=900)
    for _ in range(admin_login.PEER_TRIES_MAX):
        assert gate.wait_s("a", 0) == 0
        gate.note_try("a", 0)
    assert gate.wait_s("a", 1) == admin_login.WINDOW_S - 1
    assert gate.wait_s("b", 1) == 0
    for place in range(admin_login.ALL_TRIES_MAX - admin_login.PEER_TRIES_MAX):
        gate.note_try(f"peer-{place}", 1)
    assert gate.wait_s("fresh", 2) > 0
    assert gate.wait_s("a", admin_login.WINDOW_S + 1) == 0


def test_a_session_ends_by_idleness_log_out_and_number():
    gate = LoginGate(idle_s=100)
    gate.log_in("a", "token", "csrf", 0)
    session = gate.find("token", 99)
    assert session is not None
    assert csrf_matches(session, "csrf")
    assert not csrf_matches(session, "")
    assert gate.find("token", 198) is not None
    assert gate.find("token", 298) is None
    assert gate.find("", 0) is None
    for place in range(admin_login.SESSIONS_MAX + 1):
        gate.log_in("a", f"t{place}", "c", place)
    assert gate.find("t0", 10) is None
    assert gate.find("t1", 10) is not None
    gate.log_out("t1")
    assert gate.find("t1", 10) is None


def test_passwords_match_by_scrypt_and_hostile_parameters_are_refused():
    line = hash_password("correct horse")
    parsed = parse_password_hash(line + "\n")
    assert parsed.matches("correct horse")
    assert not parsed.matches("Correct horse")
    assert "correct" not in line
    fields = line.split("$")
    for place, value in (
        (0, "bcrypt"),
        (1, "1048576"),
        (1, "8191"),
        (1, "0"),
        (3, "1000"),
        (4, "c2hvcnQ="),
        (5, ""),
    ):
        with pytest.raises(CorruptStateError):
            parse_password_hash("$".join([*fields[:place], value, *fields[place + 1 :]]))


def queue(**values):
    empty = dict.fromkeys(
        [
            "spooled_packs",
            "spooled_bytes",
            "rejected_packs",
            "rejected_bytes",
            "lost_packs",
            "limit_bytes",
            "forwarded_packs",
            "forwarded_bytes",
        ],
        0,
    )
    return QueueStatus(
        **{
            **empty,
            "oldest_age_s": None,
            "last_stored_at_s": None,
            "last_problem": None,
            "held": {},
            **values,
        }
    )


def codes(**values):
    line = values.pop("line", LineStatus())
    failure = values.pop("failure", None)
    found = find_conditions(line=line, queue=queue(**values), enrolled=True, spool_failure=failure)
    return [condition.code for condition in found]


def test_conditions_say_what_is_wrong_worst_first():
    assert codes() == []
    down = advance_line(LineStatus(), code="unavailable", reached=False, now_s=1)
    assert codes(line=down) == ["line-down"]
    refused = advance_line(down, code="line-not-contract", reached=True, now_s=2)
    assert codes(line=refused) == ["line-not-contract"]
    assert codes(held={S: "quota-full"}, lost_packs=1) == ["spool-lost", "held-quota-full"]
    assert codes(failure="EIO", rejected_packs=2) == ["spool-failed", "packs-rejected"]
    assert codes(oldest_age_s=90_000) == ["queue-old"]


def test_the_line_keeps_the_time_of_its_last_change():
    up = advance_line(LineStatus(), code=None, reached=True, now_s=5)
    assert (up.state, up.since_s) == ("up", 5)
    assert advance_line(up, code="quota-full", reached=True, now_s=9) is up
    assert advance_line(up, code=None, reached=False, now_s=9).since_s == 9
