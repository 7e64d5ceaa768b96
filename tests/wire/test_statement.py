"""Statements: signed, short-lived, for one audience and one use."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import FormatError, SignatureError, UpgradeNeededError, WireError
from wire.signing import Context, generate_key, sign_blob
from wire.statement import (
    LIFE_S,
    SKEW_S,
    Audience,
    Kind,
    StatementClockError,
    from_header,
    make_statement,
    open_statement,
    to_header,
)

KEY = generate_key()
NONCE = bytes(range(16))
NOW = 1_790_000_000


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    word: str


def made(**changes):
    fields = {"kind": Kind.SESSION_OPEN, "audience": Audience.STORAGE, "now_s": NOW, "nonce": NONCE}
    return make_statement(KEY, body=Body(word="hello"), **(fields | changes))


def opened(blob: bytes, **changes):
    fields = {"kind": Kind.SESSION_OPEN, "audience": Audience.STORAGE, "now_s": NOW, "body_type": Body}
    return open_statement(blob, **(fields | changes))


def test_statement_tells_signer_nonce_time_and_body() -> None:
    statement = opened(made())
    assert (statement.signer, statement.nonce.text, statement.issued_at) == (KEY.public, NONCE.hex(), NOW)
    assert statement.body == Body(word="hello")


@pytest.mark.parametrize("age_s", [-SKEW_S, 0, LIFE_S + SKEW_S])
def test_statement_inside_its_window_is_accepted(age_s: int) -> None:
    assert opened(made(now_s=NOW - age_s)).issued_at == NOW - age_s


@pytest.mark.parametrize("age_s", [-SKEW_S - 1, LIFE_S + SKEW_S + 1, NOW])
def test_statement_outside_its_window_is_a_clock_error(age_s: int) -> None:
    with pytest.raises(StatementClockError):
        opened(made(now_s=NOW - age_s))


@pytest.mark.parametrize("changes", [{"audience": Audience.JOINT}, {"kind": Kind.GATEWAY_RELAY}])
def test_statement_for_another_audience_or_of_another_kind_is_refused(changes) -> None:
    with pytest.raises(FormatError, match="expected session-open for storage"):
        opened(made(**changes))


def envelope(**changes) -> bytes:
    fields = {
        "v": 1,
        "kind": "session-open",
        "audience": "storage",
        "nonce": NONCE.hex(),
        "issued_at": NOW,
        "signer": KEY.public.hex(),
        "body": {"word": "hello"},
    }
    return sign_blob(KEY, Context.STATEMENT, msgspec.json.encode(fields | changes))


def test_newer_version_asks_for_an_upgrade() -> None:
    with pytest.raises(UpgradeNeededError):
        opened(envelope(v=2))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"signer": generate_key().public.hex()}, SignatureError),
        ({"signer": KEY.public.hex().upper()}, FormatError),
        ({"signer": "xy"}, FormatError),
        ({"nonce": "00"}, FormatError),
        ({"body": {"word": 1}}, FormatError),
        ({"body": {"word": "a", "extra": 1}}, FormatError),
        ({"extra": 1}, FormatError),
        ({"issued_at": "now"}, FormatError),
    ],
)
def test_malformed_envelope_is_refused_by_name(changes, error) -> None:
    with pytest.raises(error):
        opened(envelope(**changes))


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_wire_error(data: bytes) -> None:
    with pytest.raises(WireError):
        opened(data)
    with pytest.raises(WireError):
        opened(sign_blob(KEY, Context.STATEMENT, data))


@given(st.binary(max_size=300))
def test_header_form_gives_the_same_bytes_back(blob: bytes) -> None:
    assert from_header(to_header(blob)) == blob


@pytest.mark.parametrize("text", ["a b", "a+b/", "日本", "abcde", "a\n"])
def test_other_header_text_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        from_header(text)
