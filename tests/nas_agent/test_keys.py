"""Contract and device keys: wrapping, the recovery sheet, the device file (design §6.4, AZK-22)."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import msgspec
import pytest

from nas_agent.adapters.state import StateDirectory, StateError
from nas_agent.keys.contract import KdfCost, generate_contract, unwrap_secret, wrap_secret
from nas_agent.keys.device import (
    certify_again,
    contract_public,
    decode_device,
    encode_device,
    make_device,
    owner_keys,
)
from nas_agent.keys.errors import KeyFileError, WrongPassphraseError
from nas_agent.keys.sheet import parse_sheet, recovery_sheet
from runtime.errors import LocalError
from wire.errors import SignatureError
from wire.vault.session import open_device_cert

CHEAP = KdfCost(passes=1, memory_bytes=8192)
PASSPHRASE = "正しい合言葉 correct"


def test_the_passphrase_opens_the_owners_copy() -> None:
    contract = generate_contract()
    assert unwrap_secret(wrap_secret(contract, PASSPHRASE, cost=CHEAP), PASSPHRASE) == contract


def test_a_passphrase_typed_in_full_width_is_the_same() -> None:
    contract = generate_contract()
    wrapped = wrap_secret(contract, "abcdefghij1", cost=CHEAP)
    assert unwrap_secret(wrapped, "ａｂｃｄｅｆｇｈｉｊ１") == contract


def test_another_passphrase_is_a_clear_error() -> None:
    wrapped = wrap_secret(generate_contract(), PASSPHRASE, cost=CHEAP)
    with pytest.raises(WrongPassphraseError, match="wrong passphrase"):
        unwrap_secret(wrapped, PASSPHRASE + "x")


def test_neither_copy_nor_repr_shows_the_secret() -> None:
    contract = generate_contract()
    keys = make_device(contract, contract_id="AZK0000000001", name="nas", now_s=1)
    text = (
        repr(contract)
        + repr(keys)
        + repr(owner_keys(contract, "AZK0000000001"))
        + wrap_secret(contract, PASSPHRASE, cost=CHEAP).decode()
    )
    for secret in (contract.secret, contract.box_secret, keys.device.seed, keys.epoch.id_key):
        assert secret.hex() not in text
        assert repr(secret) not in text


def test_the_device_file_cannot_open_backups() -> None:
    contract = generate_contract()
    data = encode_device(make_device(contract, contract_id="AZK0000000001", name="nas", now_s=1))
    for secret in (contract.secret, contract.box_secret, contract.signing_key.seed):
        assert secret.hex().encode() not in data


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("salt", "AAAA"),
        ("sealed", "AAAA"),
        ("memory_bytes", 1 << 40),
        ("passes", 0),
        ("v", 2),
        ("box_key", "00" * 32),
        ("extra", 1),
    ],
)
def test_an_altered_copy_is_refused(field: str, value: object) -> None:
    copy = msgspec.json.decode(wrap_secret(generate_contract(), PASSPHRASE, cost=CHEAP))
    copy[field] = value
    with pytest.raises(KeyFileError):
        unwrap_secret(msgspec.json.encode(copy), PASSPHRASE)


def test_the_sheet_brings_the_secret_back_however_it_is_typed() -> None:
    contract = generate_contract()
    sheet = recovery_sheet(contract)
    assert parse_sheet(sheet) == contract
    assert parse_sheet(sheet.lower().replace(" ", "")) == contract
    assert contract.public.fingerprint in sheet


@pytest.mark.parametrize("line", [1, 2, 3, 4])
def test_a_mistyped_line_of_the_sheet_is_named(line: int) -> None:
    sheet = recovery_sheet(generate_contract())
    found = re.search(rf"^  {line}: (.)", sheet, re.MULTILINE)
    assert found is not None
    other = "B" if found[1] == "A" else "A"
    broken = sheet[: found.start(1)] + other + sheet[found.end(1) :]
    with pytest.raises(KeyFileError, match=f"line {line} "):
        parse_sheet(broken)


def test_swapped_lines_of_the_sheet_are_noticed() -> None:
    sheet = recovery_sheet(generate_contract())
    swapped = sheet.replace("  1: ", "  9: ").replace("  2: ", "  1: ").replace("  9: ", "  2: ")
    with pytest.raises(KeyFileError, match="line 1 "):
        parse_sheet(swapped)


def test_a_missing_line_of_the_sheet_is_named() -> None:
    sheet = re.sub(r"(?m)^  3: .*$", "", recovery_sheet(generate_contract()))
    with pytest.raises(KeyFileError, match="line 3 of 4 is missing"):
        parse_sheet(sheet)


def test_device_keys_come_back_as_they_were() -> None:
    keys = make_device(generate_contract(), contract_id="AZK0000000001", name="nas", now_s=1)
    assert decode_device(encode_device(keys)) == keys


def test_a_device_file_with_a_foreign_certificate_is_refused() -> None:
    ours = make_device(generate_contract(), contract_id="AZK0000000001", name="nas", now_s=1)
    foreign = make_device(generate_contract(), contract_id="AZK0000000001", name="nas", now_s=1)
    with pytest.raises(KeyFileError, match="certificate does not hold"):
        decode_device(encode_device(attrs.evolve(ours, device_cert=foreign.device_cert)))
    with pytest.raises(KeyFileError, match="another device or contract"):
        decode_device(encode_device(attrs.evolve(ours, contract="AZK0000000002")))


def test_certifying_for_the_real_contract_number_keeps_the_keys() -> None:
    contract = generate_contract()
    keys = make_device(contract, contract_id="local-00", name="nas", now_s=1)
    again = certify_again(keys, contract, contract_id="AZK0000000001", name="nas", now_s=2)
    assert (again.device, again.epoch) == (keys.device, keys.epoch)
    cert = open_device_cert(again.device_cert, contract_sign_key=contract.public.sign_key)
    assert (cert.contract, cert.device_key) == ("AZK0000000001", keys.device.public.hex())
    with pytest.raises(SignatureError):
        open_device_cert(again.device_cert, contract_sign_key=generate_contract().public.sign_key)


def _state(tmp_path: Path) -> StateDirectory:
    state = StateDirectory(tmp_path / "state")
    contract = generate_contract()
    keys = make_device(contract, contract_id="AZK0000000001", name="nas", now_s=1)
    state.create(keys, contract, PASSPHRASE, cost=CHEAP)
    return state


def test_state_files_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    state = _state(tmp_path)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in state.path.iterdir()} == {
        "device.json": "0o600",
        "contract.json": "0o600",
    }
    assert oct(state.path.stat().st_mode & 0o777) == "0o700"
    assert contract_public(state.load_device()) == state.load_contract(PASSPHRASE).public


def test_a_key_file_open_to_others_is_refused(tmp_path: Path) -> None:
    state = _state(tmp_path)
    state.device_path.chmod(0o644)
    with pytest.raises(LocalError, match="0600"):
        state.load_device()


def test_a_second_init_changes_nothing(tmp_path: Path) -> None:
    state = _state(tmp_path)
    before = state.device_path.read_bytes()
    with pytest.raises(StateError, match="already holds a device"):
        _state(tmp_path)
    assert state.device_path.read_bytes() == before


def test_the_second_of_two_runs_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    import os

    state = _state(tmp_path)
    with state.lock(), pytest.raises(StateError, match=f"pid {os.getpid()}"):
        with StateDirectory(state.path).lock():
            pass
    with state.lock():
        pass
