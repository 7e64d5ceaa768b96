"""Pairing without I/O (design §4, protocols §5): digits, man in the middle, tries, expiry, replays."""

from __future__ import annotations

import hashlib

import pytest

from hgwd.core.pairing import (
    REVEAL_S,
    TRIES_MAX,
    WINDOW_S,
    Approved,
    Begun,
    Busy,
    Expired,
    Mismatch,
    Pairing,
    Pending,
    Refused,
    Revealed,
    TooManyTries,
    Unknown,
)
from wire.errors import FormatError
from wire.pairing import pair_commitment, pair_digits

CERTIFICATE = bytes(range(32))
DEVICE_KEY = b"k" * 32
NONCE_N = b"n" * 32
NONCE_G = b"g" * 32
PAIR = "0" * 32


def begin(pairing: Pairing, now_s: float, pair: str = PAIR) -> object:
    commitment = pair_commitment(DEVICE_KEY, NONCE_N)
    return pairing.begin(name="nas", commitment=commitment, pair=pair, nonce_g=NONCE_G, now_s=now_s)


def reveal(pairing: Pairing, now_s: float, pair: str = PAIR, nonce_n: bytes = NONCE_N) -> object:
    return pairing.reveal(pair=pair, device_key=DEVICE_KEY, nonce_n=nonce_n, now_s=now_s)


def revealed(now_s: float = 0.0) -> tuple[Pairing, str]:
    pairing = Pairing(CERTIFICATE)
    assert isinstance(begin(pairing, now_s), Begun)
    outcome = reveal(pairing, now_s)
    assert isinstance(outcome, Revealed)
    assert outcome.attempt.digits is not None
    return pairing, outcome.attempt.digits


def test_digits_are_the_hash_that_the_protocol_names():
    digest = hashlib.sha256(b"hgw/pair-digits/1" + CERTIFICATE + DEVICE_KEY + NONCE_G + NONCE_N).digest()
    assert revealed()[1] == f"{int.from_bytes(digest, 'big') % 10**6:06d}"


@pytest.mark.parametrize("place", range(4))
def test_any_value_a_man_in_the_middle_changes_changes_the_digits(place):
    values = [CERTIFICATE, DEVICE_KEY, NONCE_G, NONCE_N]
    honest = pair_digits(*values)
    values[place] = b"x" * 32
    assert pair_digits(*values) != honest


def test_values_of_another_length_are_refused_before_they_are_hashed():
    with pytest.raises(FormatError):
        pair_digits(CERTIFICATE, DEVICE_KEY + b"g", NONCE_G[1:], NONCE_N)


def test_a_human_approves_and_the_nas_gets_the_same_token_until_the_window_ends():
    pairing, digits = revealed()
    assert isinstance(pairing.poll(pair=PAIR, now_s=1), Pending)
    assert isinstance(pairing.approve(pair=PAIR, digits=digits, token="t", now_s=2), Approved)
    for now_s in (3.0, WINDOW_S - 1):
        outcome = pairing.poll(pair=PAIR, now_s=now_s)
        assert isinstance(outcome, Approved)
        assert outcome.token == "t"
    assert isinstance(pairing.poll(pair=PAIR, now_s=WINDOW_S), Expired)


def test_an_approval_counts_for_the_digits_that_the_human_saw_and_no_others():
    pairing, digits = revealed()
    other = f"{(int(digits) + 1) % 10**6:06d}"
    assert isinstance(pairing.approve(pair=PAIR, digits=other, token="t", now_s=1), Unknown)
    assert isinstance(pairing.approve(pair="1" * 32, digits=digits, token="t", now_s=1), Unknown)
    assert isinstance(pairing.poll(pair=PAIR, now_s=1), Pending)


def test_nothing_can_be_approved_before_the_reveal():
    pairing = Pairing(CERTIFICATE)
    begin(pairing, 0)
    assert pairing.waiting(1) is None
    assert isinstance(pairing.approve(pair=PAIR, digits="", token="t", now_s=1), Unknown)


def test_a_second_approval_gives_no_second_token():
    pairing, digits = revealed()
    pairing.approve(pair=PAIR, digits=digits, token="first", now_s=1)
    assert isinstance(pairing.approve(pair=PAIR, digits=digits, token="second", now_s=1), Unknown)
    outcome = pairing.poll(pair=PAIR, now_s=1)
    assert isinstance(outcome, Approved)
    assert outcome.token == "first"


def test_a_reveal_that_differs_from_the_commitment_ends_the_attempt():
    pairing = Pairing(CERTIFICATE)
    begin(pairing, 0)
    assert isinstance(reveal(pairing, 1, nonce_n=b"m" * 32), Mismatch)
    assert isinstance(pairing.poll(pair=PAIR, now_s=1), Refused)
    assert isinstance(reveal(pairing, 1), Unknown)


def test_a_replayed_reveal_changes_nothing_after_the_decision():
    pairing, _ = revealed()
    assert pairing.refuse(pair=PAIR, now_s=1)
    assert isinstance(reveal(pairing, 2), Unknown)
    assert isinstance(pairing.poll(pair=PAIR, now_s=2), Refused)
    assert not pairing.refuse(pair=PAIR, now_s=2)


def test_one_attempt_at_a_time():
    pairing, _ = revealed()
    outcome = begin(pairing, 10, pair="1" * 32)
    assert outcome == Busy(retry_after_s=WINDOW_S - 10)


@pytest.mark.parametrize("how", ["refused", "mismatch", "never revealed"])
def test_three_failed_tries_shut_the_door_for_five_minutes(how):
    pairing, now_s = Pairing(CERTIFICATE), 0.0
    first_failure_s = None
    for _ in range(TRIES_MAX):
        assert isinstance(begin(pairing, now_s), Begun)
        if how == "mismatch":
            reveal(pairing, now_s, nonce_n=b"m" * 32)
        elif how == "never revealed":
            now_s += REVEAL_S
        else:
            reveal(pairing, now_s)
            pairing.refuse(pair=PAIR, now_s=now_s)
        first_failure_s = now_s if first_failure_s is None else first_failure_s
    assert begin(pairing, now_s) == TooManyTries(first_failure_s + WINDOW_S - now_s)
    assert isinstance(begin(pairing, first_failure_s + WINDOW_S - 0.001), TooManyTries)
    assert isinstance(begin(pairing, first_failure_s + WINDOW_S), Begun)


def test_an_approval_is_not_a_failed_try():
    pairing = Pairing(CERTIFICATE)
    for round_s in range(TRIES_MAX + 1):
        assert isinstance(begin(pairing, round_s), Begun)
        outcome = reveal(pairing, round_s)
        pairing.approve(pair=PAIR, digits=outcome.attempt.digits, token="t", now_s=round_s)


def test_five_minutes_end_an_attempt_that_nobody_decided():
    pairing, digits = revealed()
    assert pairing.waiting(WINDOW_S - 1) is not None
    assert pairing.waiting(WINDOW_S) is None
    assert isinstance(pairing.approve(pair=PAIR, digits=digits, token="t", now_s=WINDOW_S), Expired)
    assert isinstance(pairing.poll(pair=PAIR, now_s=WINDOW_S), Expired)


def test_a_foreign_pairing_id_tells_nothing():
    pairing, digits = revealed()
    for stranger in ("", "1" * 32, "ä"):
        assert isinstance(pairing.poll(pair=stranger, now_s=1), Unknown)
        assert isinstance(reveal(pairing, 1, pair=stranger), Unknown)
        assert not pairing.refuse(pair=stranger, now_s=1)
    assert digits not in repr(pairing.poll(pair="1" * 32, now_s=1))
