"""Lines and prefixes in the database: overlap, quarantine, renumbering, freshness (X-01…X-03b, L3–L5)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from carrier.engines.sql.database import open_database
from carrier.engines.sql.lines_store import SqlLineStore
from carrier.engines.sql.migrate import migrate
from carrier.errors import UnavailableError
from carrier.lines import outcomes as out
from carrier.lines.addresses import Prefix
from carrier.lines.domain import FOREVER_S, Line, Refusal, RefusalCode
from carrier.lines.services import LineDirectory, LineRegistry
from carrier.lines.tables import MAP_AGE_S_MAX, QUARANTINE_S, AccessType, Region
from carrier.worker import Worker
from runtime.clock import ManualClock
from wire.ids import CustomerId

A, B = CustomerId.parse("CAF0000000001"), CustomerId.parse("CAF0000000002")
P56 = Prefix.parse("2001:db8:1:100::/56")
INSIDE = "2001:db8:1:142::7"


@pytest.fixture
def clock():
    return ManualClock(unix_s=1_000_000)


@pytest.fixture
def store(tmp_path):
    database = open_database(f"sqlite:///{tmp_path}/lines.db")
    migrate(database)
    yield SqlLineStore(database)
    database.close()


@pytest.fixture
def registry(store, clock):
    registry = LineRegistry(store, clock)
    for customer in (A, B):
        registry.add_line(customer, Region.EAST, AccessType.HIKARI_NEXT)
    return registry


@pytest.fixture
def directory(store, clock):
    return LineDirectory(store, clock, Worker())


def who(directory, peer=INSIDE):
    directory.refresh()
    answer = directory.authenticate(peer)
    return answer.customer_id if isinstance(answer, Line) else answer.code


def test_X_03_line_is_known_by_its_prefix_now(registry, directory):
    assert who(directory) is RefusalCode.LINE_UNKNOWN
    assert registry.add_prefix(A, P56) == out.PrefixAdded(P56, 1_000_000)
    assert who(directory) == A


def test_X_03b_line_may_hold_several_prefixes(registry, directory):
    registry.add_prefix(A, P56)
    registry.add_prefix(A, Prefix.parse("2408::/64"))
    assert who(directory, "2408::9") == A
    assert who(directory) == A


def test_customer_id_is_never_given_twice(registry):
    registry.end_line(A)
    again = registry.add_line(A, Region.WEST, AccessType.COLLABORATION)
    assert again == out.CustomerIdTaken(A)


@pytest.mark.parametrize("text", ["2001:db8:1:100::/56", "2001:db8:1::/48", "2001:db8:1:1ab::/64"])
@pytest.mark.parametrize("customer", [A, B])
def test_L5_overlap_in_prefix_and_time_is_refused_and_changes_nothing(registry, store, text, customer):
    registry.add_prefix(A, P56)
    before = store.read_map(0)
    assert registry.add_prefix(customer, Prefix.parse(text)) == out.PrefixOverlaps(Prefix.parse(text), P56, A)
    assert store.read_map(0) == before


def test_L3_prefix_of_another_customer_is_quarantined(registry, directory, clock):
    registry.add_prefix(A, P56)
    clock.advance(100)
    registry.end_prefix(A, P56)
    assert who(directory) is RefusalCode.LINE_UNKNOWN
    free_at = 1_000_100 + QUARANTINE_S
    assert registry.add_prefix(B, P56) == out.PrefixQuarantined(P56, free_at)
    clock.advance(QUARANTINE_S - 1)
    assert registry.add_prefix(B, P56) == out.PrefixQuarantined(P56, free_at)
    clock.advance(1)
    assert registry.add_prefix(B, P56) == out.PrefixAdded(P56, free_at)
    assert who(directory) == B


def test_L3_quarantine_also_covers_a_prefix_held_for_an_instant(registry, clock):
    registry.add_prefix(A, P56)
    registry.end_prefix(A, P56)
    assert isinstance(registry.add_prefix(B, P56), out.PrefixQuarantined)


def test_L3_quarantine_outlasts_a_stale_map_and_the_longest_session():
    assert QUARANTINE_S >= MAP_AGE_S_MAX + 14 * 86_400


def test_L4_same_line_may_take_its_own_prefix_again_at_once(registry, directory):
    registry.add_prefix(A, P56)
    registry.end_prefix(A, P56)
    assert isinstance(registry.add_prefix(A, P56), out.PrefixAdded)
    assert who(directory) == A


def test_L4_two_prefixes_of_a_line_are_valid_during_change_over(registry, directory, clock):
    new = Prefix.parse("2001:db8:2:100::/56")
    registry.add_prefix(A, P56)
    registry.add_prefix(A, new)
    registry.end_prefix(A, P56, at=int(clock.now_s()) + 60)
    assert (who(directory), who(directory, "2001:db8:2:100::1")) == (A, A)
    clock.advance(60)
    assert (who(directory), who(directory, "2001:db8:2:100::1")) == (RefusalCode.LINE_UNKNOWN, A)


def test_end_of_a_prefix_that_has_not_begun_removes_it(registry, directory, clock):
    registry.add_prefix(A, P56, valid_from=int(clock.now_s()) + 1000)
    registry.end_prefix(A, P56)
    assert isinstance(registry.add_prefix(B, P56), out.PrefixAdded)


def test_unknown_customer_and_prefix_are_named(registry):
    stranger = CustomerId.parse("CAF0000000009")
    assert registry.add_prefix(stranger, P56) == out.CustomerUnknown(stranger)
    assert registry.end_prefix(A, P56) == out.PrefixUnknown(P56)
    assert registry.end_line(stranger) == out.CustomerUnknown(stranger)


def test_map_too_long_without_contact_refuses_everyone(registry, directory, clock):
    registry.add_prefix(A, P56)
    directory.refresh()
    clock.advance(MAP_AGE_S_MAX)
    assert isinstance(directory.authenticate(INSIDE), Line)
    clock.advance(1)
    assert directory.authenticate(INSIDE).code is RefusalCode.MAP_STALE


def test_map_never_read_refuses_everyone(directory):
    assert directory.authenticate(INSIDE).code is RefusalCode.MAP_STALE


async def test_change_in_one_process_reaches_another_within_a_second(registry, store, clock):
    """The server's directory sees what the operator's CLI wrote, by the change counter."""
    directory = LineDirectory(store, clock, Worker())
    directory.refresh()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(directory.run)
        registry.add_prefix(A, P56)
        with trio.fail_after(1):
            while isinstance(directory.authenticate(INSIDE), Refusal):
                await trio.sleep(0.02)
        nursery.cancel_scope.cancel()


async def test_directory_outlives_a_database_that_is_gone_for_a_while(store, clock, autojump_clock):
    class Flaky(SqlLineStore):
        fail = False

        def read_change(self):
            if self.fail:
                raise UnavailableError("gone")
            return super().read_change()

    flaky = Flaky(store.database)
    directory = LineDirectory(flaky, clock, Worker())
    directory.refresh()
    flaky.fail = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(directory.run)
        await trio.sleep(2)
        clock.advance(100)
        assert directory.age_s == 100
        flaky.fail = False
        await trio.sleep(2)
        nursery.cancel_scope.cancel()
    assert directory.age_s == 0


def test_access_key_opens_only_from_its_own_line_and_locks_after_five_tries(registry, clock):
    """LIN-16: tries from elsewhere neither open nor lock; five from the line lock it for 15 minutes."""
    a, b = registry.find_line(A), registry.find_line(B)
    assert registry.set_access_key(A, "key of line A")
    assert registry.check_access_key(a, A, "key of line A")
    registry.set_access_key(B, "key of line B")
    assert not registry.check_access_key(b, A, "key of line A")
    assert not registry.check_access_key(b, A, "key of line B")
    for _ in range(9):
        registry.check_access_key(b, A, "wrong")
    assert registry.check_access_key(a, A, "key of line A")
    for _ in range(5):
        assert not registry.check_access_key(a, A, "wrong")
    assert not registry.check_access_key(a, A, "key of line A")
    clock.advance(15 * 60)
    assert registry.check_access_key(a, A, "key of line A")


def test_access_key_is_stored_as_argon2id_only(registry, store):
    registry.set_access_key(A, "key of line A")
    stored = store.read_access_key(registry.find_line(A).line_id)[0]
    assert stored.startswith("$argon2id$")
    assert "key of line A" not in stored


class PrefixModel(RuleBasedStateMachine):
    """Rows of the registry against a list: same answers, and never two lines for one address at one time."""

    prefixes = st.sampled_from(
        [
            Prefix.parse(text)
            for text in (
                "2001:db8::/46",
                "2001:db8:1::/48",
                "2001:db8:1:100::/56",
                "2001:db8:1:101::/64",
                "2001:db8:2::/64",
            )
        ]
    )
    customers = st.sampled_from([A, B])
    times = st.integers(0, 8)
    quarantine_s = 3

    @initialize()
    def begin(self):
        self.directory = tempfile.TemporaryDirectory()
        self.database = open_database(f"sqlite:///{Path(self.directory.name)}/lines.db")
        migrate(self.database)
        self.store = SqlLineStore(self.database)
        self.rows: list[list] = []
        for customer in (A, B):
            self.store.add_line(customer, Region.EAST, AccessType.HIKARI_NEXT, 0)

    @rule(customer=customers, prefix=prefixes, start=times, life=st.one_of(st.none(), st.integers(1, 6)))
    def add(self, customer, prefix, start, life):
        end = FOREVER_S if life is None else start + life
        answer = self.store.add_prefix(customer, prefix, start, end, quarantine_s=self.quarantine_s)
        same_place = [row for row in self.rows if row[1].key <= prefix.last and prefix.key <= row[1].last]
        overlap = any(row[2] < end and start < row[3] for row in same_place)
        too_near = any(
            row[0] != customer and row[2] < end + self.quarantine_s and start < row[3] + self.quarantine_s
            for row in same_place
        )
        expected = out.PrefixOverlaps if overlap else out.PrefixQuarantined if too_near else out.PrefixAdded
        assert type(answer) is expected
        if expected is out.PrefixAdded:
            self.rows.append([customer, prefix, start, end])

    @rule(customer=customers, prefix=prefixes, at=times)
    def end_any(self, customer, prefix, at):
        self.end(customer, prefix, at)

    def end(self, customer, prefix, at):
        self.store.end_prefix(customer, prefix, at)
        mine = [row for row in self.rows if row[:2] == [customer, prefix] and row[3] > at]
        for row in mine:
            if row[2] > at:
                self.rows.remove(row)
            else:
                row[3] = at

    @rule(pick=st.integers(0, 9), after_start=st.sampled_from([-1, 0, 1]))
    def end_near_its_start(self, pick, after_start):
        if self.rows:
            customer, prefix, start, _ = self.rows[pick % len(self.rows)]
            self.end(customer, prefix, start + after_start)

    @rule(low=st.integers(0, 2**20), now_s=st.integers(0, 16))
    def look_up(self, low, now_s):
        key = 0x2001_0DB8_0000_0000 + (low << 8)
        holding = {
            row[0] for row in self.rows if row[1].key <= key <= row[1].last and row[2] <= now_s < row[3]
        }
        assert len(holding) <= 1
        found = self.store.read_map(now_s).find(key, now_s)
        assert ({found.customer_id} if found else set()) == holding

    def teardown(self):
        if hasattr(self, "database"):
            self.database.close()
            self.directory.cleanup()


TestPrefixModel = PrefixModel.TestCase
TestPrefixModel.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
