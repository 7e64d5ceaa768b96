"""What the engine does with each answer of a store: spooled, draining, full, away, over, receipts good and bad."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import pytest
import trio

from nas_agent.core.vault_keys import ReceiptTrust
from nas_agent.ports import (
    PACK_REJECTED,
    PACK_SPOOLED,
    Committed,
    Missing,
    PackAccepted,
    Refs,
    Refusal,
    VaultStore,
)
from runtime.errors import RemoteError, Unavailable
from tests.nas_agent.engine_rig import (
    EngineRig,
    MemorySink,
    MemorySource,
    frames_of,
    make_rig,
    plain,
    some_tree,
)
from wire.signing import SigningKey
from wire.storage import Receipt, sign_receipt, sign_receipt_key
from wire.vault.root import root_hash, unverified_root

SERVICE_ROOT, RECEIPT_KEY = SigningKey(b"\x31" * 32), SigningKey(b"\x32" * 32)


class Scripted:
    """A directory store whose `put_pack`, `pack_states` and `commit` are replaced by a test."""

    def __init__(self, inner: VaultStore, script: Script) -> None:
        self._inner = inner
        self._script = script

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    async def put_pack(self, name: str, data: memoryview) -> PackAccepted | Refusal:
        self._script.puts += 1
        answer = self._script.on_put(self._script.puts)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Refusal):
            return answer
        accepted = await self._inner.put_pack(name, data)
        return attrs.evolve(accepted, state=answer) if isinstance(accepted, PackAccepted) else accepted

    async def pack_states(self, names: Sequence[str]) -> Sequence[int] | Refusal:
        self._script.polls += 1
        states = await self._inner.pack_states(names)
        assert not isinstance(states, Refusal)
        return self._script.on_states(self._script.polls, states)

    async def commit(self, root_blob: bytes, refs: Refs) -> Committed | Missing | Refusal:
        self._script.commits += 1
        answer = await self._inner.commit(root_blob, refs)
        return self._script.on_commit(self._script.commits, root_blob, refs, answer)


@attrs.define
class Script:
    puts: int = 0
    polls: int = 0
    commits: int = 0
    on_put: Callable[[int], str | Refusal | Exception] = lambda number: "stored"
    on_states: Callable[[int, Sequence[int]], Sequence[int]] = lambda number, states: states
    on_commit: Callable[[int, bytes, Refs, object], object] = lambda number, blob, refs, answer: answer


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def rig(tmp_path: Path, script: Script) -> EngineRig:
    rig = make_rig(tmp_path)
    rig.wrap = lambda store: Scripted(store, script)  # type: ignore[assignment,return-value]
    return rig


async def check_restored(rig: EngineRig, source: MemorySource) -> None:
    sink = MemorySink()
    assert (await rig.restore(sink)).complete
    assert sink.files == plain(source)


def frame_counts(rig: EngineRig) -> dict[bytes, int]:
    counts: dict[bytes, int] = {}
    for path in (rig.vault / "packs").glob("*/*"):
        for _, _, _, chunk in frames_of(path):
            counts[chunk] = counts.get(chunk, 0) + 1
    return counts


async def test_spooled_is_not_durable_before_every_pack_is_stored(rig: EngineRig, script: Script) -> None:
    script.on_put = lambda number: "spooled"
    script.on_states = lambda number, states: [PACK_SPOOLED] * len(states) if number < 3 else states
    result = await rig.backup(some_tree())
    assert result.state == "durable"
    assert script.polls == 3
    assert script.commits == 1


async def test_packs_that_do_not_move_on_end_the_run_in_time_and_count_in_the_next(
    rig: EngineRig, script: Script
) -> None:
    source = some_tree()
    script.on_put = lambda number: "spooled"
    script.on_states = lambda number, states: [PACK_SPOOLED] * len(states)
    with trio.fail_after(20):
        result = await rig.backup(source, give_up_s=1.0)
    assert result.refusal is not None
    assert (result.state, result.refusal.code, script.commits) == ("refused", "draining", 0)
    script.on_states = lambda number, states: states
    assert (await rig.backup(source)).state == "durable"
    assert set(frame_counts(rig).values()) == {1}
    await check_restored(rig, source)


async def test_detached_a_run_ends_as_spooled_and_the_next_one_makes_it_durable(
    rig: EngineRig, script: Script
) -> None:
    source = some_tree()
    script.on_put = lambda number: "spooled"
    script.on_states = lambda number, states: [PACK_SPOOLED] * len(states)
    first = await rig.backup(source, detach=True)
    assert (first.state, first.generation, script.commits) == ("spooled", None, 0)
    script.on_states = lambda number, states: states
    sent = script.puts
    second = await rig.backup(source)
    assert (second.state, second.sequence) == ("durable", 2)
    assert script.commits == 2  # the detached run's generation, then this one
    assert script.puts - sent <= 1
    await check_restored(rig, source)


async def test_a_rejected_pack_ends_the_run_with_the_reason(rig: EngineRig, script: Script) -> None:
    script.on_put = lambda number: "spooled"
    script.on_states = lambda number, states: [PACK_REJECTED] * len(states)
    result = await rig.backup(some_tree(small=5, large=0))
    assert result.state == "refused"
    assert result.refusal is not None
    assert result.refusal.code == "rejected"
    assert script.commits == 0
    script.on_put = lambda number: "stored"
    script.on_states = lambda number, states: states
    assert (await rig.backup(some_tree(small=5, large=0))).state == "durable"


async def test_a_full_quota_ends_the_run_and_what_was_sent_counts_next_time(
    rig: EngineRig, script: Script
) -> None:
    source = some_tree(large=4)
    full = Refusal("quota-full", "full", needed_bytes=1, limit_bytes=2, used_bytes=3)
    script.on_put = lambda number: full if number == 3 else "stored"
    result = await rig.backup(source)
    assert (result.state, result.refusal, result.packs) == ("refused", full, 2)
    script.on_put = lambda number: "stored"
    assert (await rig.backup(source)).state == "durable"
    assert set(frame_counts(rig).values()) == {1}
    await check_restored(rig, source)


async def test_a_full_spool_is_waited_for(rig: EngineRig, script: Script) -> None:
    source = some_tree(large=2)
    script.on_put = lambda number: (
        Refusal("spool-full", "wait", retry_after_s=0.1) if number in {1, 2} else "stored"
    )
    assert (await rig.backup(source)).state == "durable"
    await check_restored(rig, source)


async def test_a_store_that_is_away_for_a_moment_is_waited_for(rig: EngineRig, script: Script) -> None:
    source = some_tree(large=2)
    script.on_put = lambda number: Unavailable("line down") if number == 2 else "stored"
    assert (await rig.backup(source)).state == "durable"
    await check_restored(rig, source)


async def test_a_store_that_stays_away_ends_the_run_and_the_next_one_resumes(
    rig: EngineRig, script: Script
) -> None:
    source = some_tree(large=4)
    script.on_put = lambda number: Unavailable("line down") if number >= 3 else "stored"
    with pytest.raises(Unavailable):
        await rig.backup(source, give_up_s=0.5)
    script.on_put = lambda number: "stored"
    before = script.puts
    result = await rig.backup(source)
    assert result.state == "durable"
    assert result.flow.reused_chunks > 0
    assert set(frame_counts(rig).values()) == {1}
    assert script.puts > before
    await check_restored(rig, source)


async def test_a_session_that_is_over_is_replaced_by_a_new_one(rig: EngineRig, script: Script) -> None:
    source = some_tree(large=4)
    script.on_put = lambda number: Refusal("session-over", "lease lapsed") if number == 3 else "stored"
    result = await rig.backup(source)
    assert result.state == "durable"
    assert set(frame_counts(rig).values()) == {1}
    sessions = {frame[0] for path in (rig.vault / "packs").glob("*/*") for frame in frames_of(path)}
    assert len(sessions) == 2
    await check_restored(rig, source)


async def test_a_cancelled_run_resumes(rig: EngineRig, script: Script) -> None:
    source = some_tree(large=4)
    with trio.CancelScope() as scope:

        def cancel(number: int) -> str:
            if number == 3:
                scope.cancel()
            return "stored"

        script.on_put = cancel
        await rig.backup(source)
    assert scope.cancelled_caught
    script.on_put = lambda number: "stored"
    assert (await rig.backup(source)).state == "durable"
    assert set(frame_counts(rig).values()) == {1}
    await check_restored(rig, source)


def receipted(
    rig: EngineRig,
    script: Script,
    change: Callable[[Receipt], Receipt | None],
    *,
    key: SigningKey = RECEIPT_KEY,
) -> None:
    """Let the store give receipts, as changed by a test."""
    cert = sign_receipt_key(SERVICE_ROOT, RECEIPT_KEY.public, not_after=2_000_000_000)
    rig.device = attrs.evolve(rig.device, receipt_trust=ReceiptTrust(SERVICE_ROOT.public, cert))

    def on_commit(number: int, blob: bytes, refs: Refs, answer: object) -> object:
        if not isinstance(answer, Committed):
            return answer
        root = unverified_root(blob)
        receipt = change(
            Receipt(
                contract=root.contract,
                device="d",
                backup_set=root.backup_set,
                epoch=root.epoch,
                sequence=root.sequence,
                generation=answer.generation,
                root_sha256=root_hash(blob),
                refs_sha256=refs.sha256,
                packs=1,
                stored_bytes=1,
                received_at=1_700_000_000,
                keep_until=1_800_000_000,
                receipt_key=key.public.hex(),
            )
        )
        return Committed(answer.generation, None if receipt is None else sign_receipt(key, receipt))

    script.on_commit = on_commit


async def test_a_verified_receipt_makes_a_generation_durable(rig: EngineRig, script: Script) -> None:
    receipted(rig, script, lambda receipt: receipt)
    result = await rig.backup(some_tree(small=5, large=0))
    assert result.state == "durable"
    assert result.receipt is not None


@pytest.mark.parametrize(
    "field",
    ["contract", "backup_set", "root_sha256", "refs_sha256", "sequence"],
)
async def test_a_receipt_for_something_else_is_not_taken(rig: EngineRig, script: Script, field: str) -> None:
    import msgspec

    value: object = 99 if field == "sequence" else "0" * 64
    receipted(rig, script, lambda receipt: msgspec.structs.replace(receipt, **{field: value}))
    with pytest.raises(RemoteError, match="another generation"):
        await rig.backup(some_tree(small=5, large=0))
    catalogue = rig.catalogue()
    assert catalogue.durable is None
    catalogue.close()


async def test_a_receipt_by_a_key_the_root_did_not_delegate_is_not_taken(
    rig: EngineRig, script: Script
) -> None:
    receipted(rig, script, lambda receipt: receipt, key=SigningKey(b"\x41" * 32))
    with pytest.raises(RemoteError, match="does not verify"):
        await rig.backup(some_tree(small=5, large=0))


async def test_a_service_that_gives_no_receipt_is_not_believed(rig: EngineRig, script: Script) -> None:
    receipted(rig, script, lambda receipt: None)
    with pytest.raises(RemoteError, match="without a receipt"):
        await rig.backup(some_tree(small=5, large=0))


async def test_a_receipt_lost_on_the_way_is_fetched_by_the_next_run(rig: EngineRig, script: Script) -> None:
    source = some_tree(small=5, large=0)
    receipted(rig, script, lambda receipt: receipt)
    give = script.on_commit

    def lose(number: int, blob: bytes, refs: Refs, answer: object) -> object:
        if number == 1:
            raise Unavailable("answer lost")
        return give(number, blob, refs, answer)

    script.on_commit = lose
    with pytest.raises(Unavailable):
        await rig.backup(source, give_up_s=0.0)
    result = await rig.backup(source)
    assert (result.state, result.sequence) == ("durable", 2)
    assert result.counts.unchanged_files == len(source.files)
