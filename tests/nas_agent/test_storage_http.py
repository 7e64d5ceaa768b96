"""Patience with the gateway, and the HTTPS store's own decisions, against a scripted peer and a mock clock."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import attrs
import pytest
import trio

from nas_agent.adapters.https_store import HttpsStore
from nas_agent.adapters.storage_http import MOVED_LINE_S, Denied, StorageHttp
from nas_agent.core.retry import WAIT_S_MAX, Patience
from nas_agent.ports import Committed, Missing, Opened, PackAccepted, Refusal
from runtime.client_types import ClientResponse
from runtime.errors import RemoteError, Unavailable
from tests.contract.vault_maker import ListRefs
from wire.signing import SigningKey, generate_key
from wire.statement import Audience, Kind, StatementClockError, open_statement
from wire.storage import Receipt, SessionOpen, sign_receipt

DEVICE = SigningKey(b"d" * 32)
OPENED = {
    "session": "5e55", "token": "tok", "lease_until": 1, "limit_bytes": 9, "used_bytes": 3, "reserved_bytes": 0,
    "head": {"sequence": 4, "root_sha256": "ab" * 32},
}  # fmt: skip


def answer(status: int, body: bytes | dict = b"", **headers: str) -> ClientResponse:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ClientResponse(status, {name.replace("_", "-"): value for name, value in headers.items()}, data)


def no(status: int, code: str, **extra: object) -> ClientResponse:
    retry = {"retry_after": str(extra.pop("retry_after"))} if "retry_after" in extra else {}
    return answer(status, {"code": code, "message": f"said {code}", **extra}, **retry)


@attrs.define
class Peer:
    """Gives the scripted answers in turn and keeps what was asked."""

    script: list[ClientResponse | Exception | Callable[[bytes], ClientResponse]]
    asked: list[tuple[str, str, dict[str, str], bytes]] = attrs.field(factory=list)
    times: list[float] = attrs.field(factory=list)

    async def request(
        self, method, path, *, headers=None, body=b"", content_length=None, max_response_bytes=0
    ):
        data = body if isinstance(body, bytes) else b"".join([part async for part in body])
        assert content_length in {None, len(data)}
        self.asked.append((method, path, dict(headers or {}), data))
        self.times.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        return step if isinstance(step, ClientResponse) else step(data)

    async def aclose(self):
        pass


class TrioClock:
    """Both readings follow trio's mock clock."""

    def now_s(self) -> float:
        return 1_800_000_000 + trio.current_time()

    def monotonic_s(self) -> float:
        return trio.current_time()


def make_http(peer: Peer, *, keep_trying_s: float = 3600, waits: list | None = None) -> StorageHttp:
    def waiting(code: str, message: str, wait_s: float) -> None:
        if waits is not None:
            waits.append((code, wait_s))

    return StorageHttp(
        peer, "/lan/v1/storage/v1", headers={"authorization": "Bearer t"}, clock=TrioClock(),
        patience=Patience(keep_trying_s), waiting=waiting,
    )  # fmt: skip


def make_store(peer: Peer, **options) -> HttpsStore:
    return HttpsStore(make_http(peer, **options), contract="AZK0000000001", device=DEVICE, clock=TrioClock())


async def opened(peer: Peer, **options) -> HttpsStore:
    peer.script.insert(0, answer(201, OPENED))
    store = make_store(peer, **options)
    assert isinstance(await store.open_session("append", "set", b"header"), Opened)
    return store


async def test_not_now_is_tried_again_after_what_the_peer_asked(autojump_clock) -> None:
    waits: list = []
    peer = Peer(
        [Unavailable("cut"), no(429, "spool-full", retry_after=7), no(503, "line-down"), answer(200, b"ok")]
    )
    done = await make_http(peer, waits=waits).call("GET", "/x")
    assert isinstance(done, ClientResponse)
    assert done.body == b"ok"
    assert [code for code, _ in waits] == ["unavailable", "spool-full", "line-down"]
    assert waits[1][1] >= 7
    gaps = [later - sooner for sooner, later in zip(peer.times, peer.times[1:], strict=False)]
    assert gaps == pytest.approx([wait for _, wait in waits])


async def test_patience_ends_with_the_last_cause(autojump_clock) -> None:
    peer = Peer([no(503, "line-down") for _ in range(50)])
    denied = await make_http(peer, keep_trying_s=100).call("GET", "/x")
    assert isinstance(denied, Denied)
    assert denied.refusal.code == "line-down"
    assert 100 <= trio.current_time() <= 100 + WAIT_S_MAX
    with pytest.raises(Unavailable, match="cut"):
        await make_http(Peer([Unavailable("cut")] * 50), keep_trying_s=10).call("GET", "/x")


async def test_progress_in_between_renews_the_patience(autojump_clock) -> None:
    http = make_http(
        Peer([Unavailable("cut")] * 3 + [answer(200)] + [Unavailable("cut")] * 3 + [answer(200)]),
        keep_trying_s=10,
    )
    for _ in range(2):
        assert isinstance(await http.call("GET", "/x"), ClientResponse)
        await trio.sleep(100)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "bad-hash"),
        (403, "device-revoked"),
        (404, "not-found"),
        (413, "too-large"),
        (426, "upgrade-needed"),
        (507, "quota-full"),
    ],
)
async def test_what_is_final_is_not_tried_again(autojump_clock, status: int, code: str) -> None:
    peer = Peer([no(status, code, needed_bytes=5, limit_bytes=10, used_bytes=9)])
    denied = await make_http(peer).call("PUT", "/x")
    assert isinstance(denied, Denied)
    assert (denied.refusal.code, denied.refusal.needed_bytes, denied.refusal.limit_bytes) == (code, 5, 10)
    assert len(peer.asked) == 1


@pytest.mark.parametrize(
    "broken", [answer(302), answer(500, b"<html>"), answer(403, b"{}"), answer(400, b"[]")]
)
async def test_an_answer_outside_the_protocol_is_the_peers_fault(
    autojump_clock, broken: ClientResponse
) -> None:
    with pytest.raises(RemoteError):
        await make_http(Peer([broken])).call("GET", "/x")


async def test_a_wrong_clock_is_corrected_by_the_services_own(autojump_clock) -> None:
    service_now = 1_600_000_000

    def judge(blob: bytes) -> ClientResponse:
        try:
            said = open_statement(
                blob,
                kind=Kind.SESSION_OPEN,
                audience=Audience.STORAGE,
                now_s=service_now,
                body_type=SessionOpen,
            )
        except StatementClockError:
            return no(401, "clock", server_time=service_now)
        assert said.signer == DEVICE.public
        return answer(201, OPENED)

    peer = Peer([judge, judge])
    head = await make_store(peer).open_session("append", "set", b"header")
    assert isinstance(head, Opened)
    assert (head.head.sequence, head.limit_bytes, head.used_bytes) == (4, 9, 3)
    assert peer.asked[0][3] != peer.asked[1][3]


async def test_each_attempt_carries_a_statement_of_its_own(autojump_clock) -> None:
    peer = Peer([Unavailable("answer lost"), answer(201, OPENED)])
    await make_store(peer).open_session("read", "set", None)
    assert peer.asked[0][3] != peer.asked[1][3]


async def test_a_session_that_is_over_is_opened_again_with_the_same_header(autojump_clock) -> None:
    peer = Peer(
        [
            no(410, "session-over"),
            answer(201, {**OPENED, "session": "new", "token": "tok2"}),
            answer(200, b"\1\0"),
        ]
    )
    store = await opened(peer)
    assert list(await store.have([b"a" * 32, b"b" * 32])) == [True, False]
    assert [path.rsplit("/v1/")[-1] for _, path, _, _ in peer.asked] == [
        "sessions", "sessions/5e55/have", "sessions", "sessions/new/have",
    ]  # fmt: skip
    assert peer.asked[3][2]["hgw-session"] == "tok2"


async def test_a_session_that_stays_over_is_refused(autojump_clock) -> None:
    peer = Peer([no(410, "session-over"), answer(201, OPENED), no(410, "session-over")])
    store = await opened(peer)
    refused = await store.have([b"a" * 32])
    assert isinstance(refused, Refusal)
    assert refused.code == "session-over"


async def test_with_the_line_down_nothing_is_taken_for_stored(autojump_clock) -> None:
    store = await opened(Peer([no(503, "line-down", retry_after=5)]))
    assert list(await store.have([b"a" * 32])) == [False]
    assert trio.current_time() < 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (answer(201, {"state": "stored", "lease_until": 1}), PackAccepted("stored", new=True)),
        (answer(200, {"state": "stored", "lease_until": 1}), PackAccepted("stored", new=False)),
        (answer(202, {"state": "spooled"}), PackAccepted("spooled", new=True)),
    ],
)
async def test_a_pack_is_spooled_or_stored_as_the_peer_says(autojump_clock, given, expected) -> None:
    store = await opened(Peer([given]))
    assert await store.put_pack("00" * 32, memoryview(b"pack")) == expected


async def test_a_full_quota_comes_back_with_its_bytes(autojump_clock) -> None:
    store = await opened(Peer([no(507, "quota-full", needed_bytes=100, limit_bytes=1000, used_bytes=950)]))
    refused = await store.put_pack("00" * 32, memoryview(b"pack"))
    assert isinstance(refused, Refusal)
    assert (refused.code, refused.needed_bytes, refused.limit_bytes, refused.used_bytes) == (
        "quota-full",
        100,
        1000,
        950,
    )


@attrs.frozen
class ListedRefs:
    ids: tuple[bytes, ...]

    @property
    def count(self) -> int:
        return len(self.ids)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(b"".join(self.ids)).hexdigest()

    def blocks(self):
        yield from self.ids


async def test_a_commit_sends_root_and_references_and_returns_the_receipt(autojump_clock) -> None:
    receipt = sign_receipt(
        generate_key(),
        Receipt(
            contract="c", device="d", backup_set="set", epoch="e", sequence=5, generation="g5", root_sha256="r",
            refs_sha256="s", packs=1, stored_bytes=1, received_at=1, keep_until=1, receipt_key="00" * 32,
        ),
    )  # fmt: skip
    peer = Peer([Unavailable("answer lost"), answer(201, receipt)])
    store = await opened(peer)
    refs = ListedRefs((b"a" * 32, b"b" * 32))
    assert await store.commit(b"root", refs) == Committed("g5", receipt)
    assert peer.asked[1][3] == peer.asked[2][3] == b"\0\0\0\4root" + b"a" * 32 + b"b" * 32


async def test_missing_chunks_of_a_commit_are_named(autojump_clock) -> None:
    store = await opened(Peer([no(409, "missing", chunks=["aa" * 32])]))
    assert await store.commit(b"root", ListedRefs((b"\xaa" * 32,))) == Missing((b"\xaa" * 32,))


async def test_draining_is_told_to_the_engine_at_once(autojump_clock) -> None:
    store = await opened(Peer([no(409, "draining", retry_after=2)]))
    refused = await store.commit(b"root", ListedRefs((b"a" * 32,)))
    assert isinstance(refused, Refusal)
    assert (refused.code, refused.retry_after_s) == ("draining", 2)


@pytest.mark.parametrize("status", [200, 206])
async def test_a_range_is_exact_also_from_a_peer_that_sends_the_whole_pack(
    autojump_clock, status: int
) -> None:
    body = bytes(range(100)) if status == 200 else bytes(range(10, 20))
    peer = Peer([answer(status, body)])
    store = await opened(peer)
    assert await store.read_pack_range("00" * 32, 10, 10) == bytes(range(10, 20))
    assert peer.asked[-1][2]["range"] == "bytes=10-19"


@pytest.mark.parametrize("body", [b"", b"\1", b"\1\0\1"])
async def test_an_answer_of_another_length_is_the_peers_fault(autojump_clock, body: bytes) -> None:
    store = await opened(Peer([answer(200, body)]))
    with pytest.raises(RemoteError, match="expected 2 bytes"):
        await store.have([b"a" * 32, b"b" * 32])


async def test_a_session_with_packs_and_no_generation_is_left_to_its_lease(autojump_clock) -> None:
    peer = Peer([answer(201, {"state": "stored", "lease_until": 1})])
    store = await opened(peer)
    await store.put_pack("00" * 32, memoryview(b"pack"))
    await store.close()
    assert [method for method, *_ in peer.asked] == ["POST", "PUT"]


async def test_a_session_without_packs_is_ended_and_a_peer_that_is_gone_does_not_matter(
    autojump_clock,
) -> None:
    peer = Peer([Unavailable("gone")])
    store = await opened(peer)
    await store.close()
    assert [method for method, *_ in peer.asked] == ["POST", "DELETE"]
    await store.close()


async def test_a_line_that_moved_inside_a_session_is_waited_for_a_while(autojump_clock) -> None:
    """A renumbered line is unknown until the carrier's registry follows (AZK-91b); the run goes on by itself then."""
    waits: list = []
    store = await opened(Peer([no(403, "line-unknown")] * 4 + [answer(200, b"\1")]), waits=waits)
    assert list(await store.have([b"a" * 32])) == [True]
    assert [code for code, _ in waits] == ["line-unknown"] * 4
    assert max(wait_s for _, wait_s in waits) <= 15


async def test_a_line_that_stays_unknown_is_refused_in_the_end(autojump_clock) -> None:
    store = await opened(Peer([no(403, "line-unknown")] * 100), keep_trying_s=10**6)
    refused = await store.commit(b"root", ListRefs([]))
    assert isinstance(refused, Refusal)
    assert refused.code == "line-unknown"
    assert MOVED_LINE_S <= trio.current_time() <= MOVED_LINE_S + 2 * WAIT_S_MAX


async def test_an_unknown_line_opens_no_session_and_is_told_at_once(autojump_clock) -> None:
    refused = await make_store(Peer([no(403, "line-unknown")])).open_session("append", "set", b"header")
    assert isinstance(refused, Refusal)
    assert refused.code == "line-unknown"


@pytest.mark.parametrize("jitter", [0.0, 0.999])
@pytest.mark.parametrize("attempt", [1, 12])
def test_a_peer_that_says_when_is_asked_then_and_a_little_later(attempt: int, jitter: float) -> None:
    """The gateway knows how long the line has been down; many NAS do not come back in the same moment."""
    wait = Patience(10**6).wait_s(attempt, failing_for_s=40, asked_s=4, jitter=jitter)
    assert wait == pytest.approx(4 + 2 * jitter)


@pytest.mark.parametrize("attempt", range(1, 40))
@pytest.mark.parametrize("jitter", [0.0, 0.999])
def test_waits_grow_but_stay_bounded_and_jittered(attempt: int, jitter: float) -> None:
    wait = Patience(10**6).wait_s(attempt, failing_for_s=0, asked_s=None, jitter=jitter)
    assert wait is not None
    assert 0.25 <= wait <= WAIT_S_MAX


def test_a_peer_cannot_make_us_wait_for_ever() -> None:
    assert Patience(10**6).wait_s(1, failing_for_s=0, asked_s=10**9, jitter=0) == WAIT_S_MAX
