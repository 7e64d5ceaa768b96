"""Trusted time and the poll's timing: every row of design §5.6 converges or is refused with its reason."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from hgwd.core.poll import PollPlan
from hgwd.core.trusted_time import STEP_S_MAX, start_clock, verify_time
from hgwd.core.update_types import Cause, RefusedError
from wire.joint import SignedTime
from wire.signing import Context, SigningKey, sign_blob

BUILD_S = 1_790_000_000.0
TRUE_S = BUILD_S + 20 * 86_400
ONLINE, OFFLINE, STRANGER = (
    SigningKey(hashlib.sha256(word).digest()) for word in (b"on", b"off", b"strange")
)
KEYS = (ONLINE.public, OFFLINE.public)
NONCE = bytes(range(32))


def signed(
    time_s: float,
    *,
    key: SigningKey = ONLINE,
    nonce: bytes = NONCE,
    context: Context = Context.TIME,
    v: int = 1,
) -> bytes:
    return sign_blob(key, context, msgspec.json.encode(SignedTime(v=v, nonce=nonce.hex(), time=int(time_s))))


def ask(*answers: bytes, now_s: float = BUILD_S, machine_s: float = 0.0) -> float:
    return verify_time(answers, NONCE, KEYS, now_s=now_s, machine_s=machine_s)


def refused(*answers: bytes, **changes: float) -> Cause:
    with pytest.raises(RefusedError) as caught:
        ask(*answers, **changes)
    return caught.value.cause


@pytest.mark.parametrize("machine_s", [0.0, BUILD_S + 10 * 365 * 86_400, TRUE_S - 3600, TRUE_S])
def test_converges_in_one_answer_whatever_the_machine_thinks(machine_s: float) -> None:
    clock = start_clock(BUILD_S, None, 5.0)
    clock = clock.advanced_to(ask(signed(TRUE_S), now_s=clock.now_s(5.0), machine_s=machine_s), 5.0)
    assert clock.now_s(5.0) == TRUE_S
    assert clock.now_s(65.0) == TRUE_S + 60


def test_starts_from_the_later_of_build_time_and_last_signed_time() -> None:
    assert start_clock(BUILD_S, None, 0).now_s(0) == BUILD_S
    assert start_clock(BUILD_S, TRUE_S, 0).now_s(0) == TRUE_S
    assert start_clock(TRUE_S, BUILD_S, 0).now_s(0) == TRUE_S


def test_never_goes_back() -> None:
    clock = start_clock(TRUE_S, None, 0)
    assert clock.advanced_to(ask(signed(TRUE_S - 3600), now_s=TRUE_S), 10.0).now_s(10.0) == TRUE_S + 10
    assert clock.now_s(-5.0) == TRUE_S


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (signed(TRUE_S, key=STRANGER), Cause.UNSIGNED),
        (signed(TRUE_S, context=Context.STATEMENT), Cause.UNSIGNED),
        (signed(TRUE_S, nonce=bytes(32)), Cause.ROLLBACK),
        (signed(TRUE_S, v=2), Cause.ROLLBACK),
        (sign_blob(ONLINE, Context.TIME, b"no json"), Cause.BAD_FORMAT),
        (b"", Cause.UNSIGNED),
        (signed(TRUE_S)[:-1], Cause.UNSIGNED),
    ],
    ids=["stranger's key", "another use of the key", "replayed", "newer version", "no JSON", "empty", "cut"],
)
def test_refuses(answer: bytes, cause: Cause) -> None:
    assert refused(answer) is cause


def test_a_stolen_time_key_alone_cannot_jump() -> None:
    assert refused(signed(BUILD_S + STEP_S_MAX + 60)) is Cause.UNSIGNED


def test_a_large_step_needs_a_second_key_and_goes_to_the_earlier_time() -> None:
    far_s = BUILD_S + 10 * STEP_S_MAX
    assert ask(signed(far_s), signed(far_s - 5, key=OFFLINE)) == far_s - 5
    assert refused(signed(far_s), signed(far_s)) is Cause.UNSIGNED
    assert ask(signed(far_s), signed(BUILD_S + 60, key=OFFLINE)) == BUILD_S + 60


def test_a_large_step_is_witnessed_by_the_machines_own_clock() -> None:
    far_s = BUILD_S + 10 * STEP_S_MAX
    assert ask(signed(far_s), machine_s=far_s + 3600) == far_s
    assert refused(signed(far_s), machine_s=far_s + 2 * 86_400) is Cause.UNSIGNED


def test_no_answer_is_no_time() -> None:
    assert refused() is Cause.MISSING


def test_polls_at_the_interval_with_jitter() -> None:
    plan = PollPlan(3600.0, 0.2)
    assert plan.delay_s(0.0) == pytest.approx(2880)
    assert plan.delay_s(0.5) == pytest.approx(3600)
    assert plan.delay_s(0.999) == pytest.approx(4320, rel=0.01)


def test_backs_off_to_the_interval_and_recovers() -> None:
    plan, delays = PollPlan(3600.0), []
    for _ in range(20):
        plan = plan.after_failure()
        delays.append(plan.delay_s(0.999999))
    assert delays[0] == pytest.approx(5, rel=0.01)
    assert delays == sorted(delays)
    assert delays[-1] == pytest.approx(3600, rel=0.01)
    assert plan.after_success(60, 0.0).delay_s(0.7) == 60


def test_obeys_retry_after_up_to_a_day() -> None:
    assert PollPlan(60.0).after_failure().delay_s(0.5, 900.0) == 900
    assert PollPlan(60.0).after_failure().delay_s(0.5, 1e9) == 86_400
