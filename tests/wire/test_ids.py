"""Identifiers are parsed or refused, never repaired (X-01)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import ids
from wire.errors import FormatError

ACCEPTED = [
    (ids.CustomerId, "CAF1234567890"),
    (ids.CustomerId, "CAF0000012573"),
    (ids.ContractId, "AZK0000000001"),
    (ids.OperatorId, "acme"),
    (ids.SoftwareId, "meter-reader"),
    (ids.VersionText, "1.0"),
    (ids.VersionText, "1.2.3-rc1"),
    (ids.GatewaySerial, "SIM0000001"),
    (ids.RandomId, "0" * 32),
    (ids.Sha256Hex, "f" * 64),
    (ids.BackupSetName, "photos_2026"),
]
REFUSED = [
    (ids.CustomerId, "CAF123456789"),
    (ids.CustomerId, "CAF12345678901"),
    (ids.CustomerId, "caf1234567890"),
    (ids.CustomerId, "ＣＡＦ1234567890"),
    (ids.CustomerId, "CAF１２３４５６７８９０"),
    (ids.CustomerId, "CAF1234567890\n"),
    (ids.CustomerId, ""),
    (ids.OperatorId, "Acme"),
    (ids.OperatorId, "ac/me"),
    (ids.OperatorId, "-acme"),
    (ids.OperatorId, "a" * 33),
    (ids.SoftwareId, ".."),
    (ids.VersionText, "1"),
    (ids.VersionText, "1.0/../.."),
    (ids.RandomId, "A" * 32),
    (ids.Sha256Hex, "f" * 63),
    (ids.BackupSetName, "../etc"),
    (ids.BackupSetName, "-rf"),
]


@pytest.mark.parametrize(("kind", "text"), ACCEPTED)
def test_documented_form_is_accepted_and_kept_as_it_is(kind, text) -> None:
    assert kind.parse(text).text == text == str(kind.parse(text))


@pytest.mark.parametrize(("kind", "text"), REFUSED)
def test_X_01_other_forms_are_refused_with_the_expected_form_named(kind, text) -> None:
    with pytest.raises(FormatError, match=f"{kind.__name__}: expected "):
        kind.parse(text)


@given(st.text(max_size=40))
def test_parse_gives_the_text_back_or_a_format_error(text: str) -> None:
    for kind in {kind for kind, _ in ACCEPTED}:
        try:
            assert kind.parse(text).text == text
        except FormatError as error:
            assert str(error).isascii()
