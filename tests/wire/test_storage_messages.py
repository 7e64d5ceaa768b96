"""Messages of the storage protocol: commit bodies, ID lists, receipts (protocols.md §3)."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import FormatError, SignatureError, UpgradeNeededError, WireError
from wire.signing import Context, generate_key, sign_blob
from wire.storage import (
    COMMIT_BYTES_MAX,
    IDS_PER_REQUEST_MAX,
    ROOT_BYTES_MAX,
    DeviceEnrol,
    Receipt,
    from_base64,
    join_commit,
    sign_receipt,
    sign_receipt_key,
    split_commit,
    split_ids,
    to_base64,
    unverified_receipt,
    verify_receipt,
    verify_receipt_key,
)

IDS = st.lists(st.binary(min_size=32, max_size=32), max_size=20)


@given(st.binary(min_size=1, max_size=200), IDS)
def test_commit_body_reads_back(root, refs):
    again, joined = split_commit(join_commit(root, tuple(refs)))
    assert again == root
    assert joined == b"".join(sorted(set(refs)))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0\0\0",
        b"\0\0\0\0",
        b"\0\0\0\2x",
        (ROOT_BYTES_MAX + 1).to_bytes(4, "big") + bytes(ROOT_BYTES_MAX + 1),
        b"\0\0\0\1x" + b"a" * 31,
        b"\0\0\0\1x" + b"b" * 32 + b"a" * 32,
        b"\0\0\0\1x" + b"a" * 32 + b"a" * 32,
        b"\0\0\0\1x" + b"a" * 32 + b"b" * 32 + b"b" * 31,
    ],
)
def test_commit_body_of_another_form_is_refused(body):
    with pytest.raises(FormatError):
        split_commit(body)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_commit_body_or_a_format_error(body):
    try:
        root, refs = split_commit(body)
    except FormatError:
        return
    assert len(root).to_bytes(4, "big") + root + refs == body


@pytest.mark.parametrize(
    ("length", "count"), [(0, 0), (32, 1), (IDS_PER_REQUEST_MAX * 32, IDS_PER_REQUEST_MAX)]
)
def test_id_list_reads_back(length, count):
    assert len(split_ids(bytes(length))) == count


@pytest.mark.parametrize("length", [1, 31, 33, (IDS_PER_REQUEST_MAX + 1) * 32])
def test_id_list_of_another_length_is_refused(length):
    with pytest.raises(FormatError):
        split_ids(bytes(length))


@given(st.binary(max_size=100))
def test_base64_reads_back(data):
    assert from_base64(to_base64(data)) == data


@pytest.mark.parametrize("text", ["a", "ab==c", "a b=", "é", "____"])
def test_text_that_is_not_base64_is_refused(text):
    with pytest.raises(FormatError):
        from_base64(text)


@pytest.fixture(scope="module")
def keys():
    return generate_key(), generate_key()


def receipt(key, **changes):
    fields = {
        "contract": "AZK0000000001",
        "device": "ab" * 32,
        "backup_set": "home",
        "epoch": "cd" * 16,
        "sequence": 1,
        "generation": "ef" * 16,
        "root_sha256": "01" * 32,
        "refs_sha256": "02" * 32,
        "packs": 1,
        "stored_bytes": 100,
        "received_at": 1000,
        "keep_until": 2000,
        "receipt_key": key.public.hex(),
    }
    return Receipt(**{**fields, **changes})


def test_receipt_under_the_pinned_root_is_accepted(keys):
    root, key = keys
    cert = sign_receipt_key(root, key.public, not_after=1000)
    blob = sign_receipt(key, receipt(key))
    assert verify_receipt(blob, cert=cert, service_root=root.public) == receipt(key)
    assert unverified_receipt(blob) == receipt(key)


@pytest.mark.parametrize("wrong", ["root", "key", "named key", "time", "context", "flipped"])
def test_receipt_that_is_not_the_services_is_refused(keys, wrong):
    root, key = keys
    other = generate_key()
    cert = sign_receipt_key(
        other if wrong == "root" else root, key.public, not_after=999 if wrong == "time" else 1000
    )
    given_by = other if wrong == "key" else key
    named = receipt(other if wrong == "named key" else key)
    context = Context.GENERATION_ROOT if wrong == "context" else Context.RECEIPT
    blob = sign_blob(given_by, context, msgspec.json.encode(named))
    if wrong == "flipped":
        blob = blob[:-1] + bytes([blob[-1] ^ 1])
    with pytest.raises(SignatureError):
        verify_receipt(blob, cert=cert, service_root=root.public)


def test_delegation_does_not_serve_as_a_receipt_and_the_other_way_round(keys):
    root, key = keys
    cert = sign_receipt_key(root, key.public, not_after=1)
    with pytest.raises(SignatureError):
        verify_receipt(cert, cert=cert, service_root=root.public)
    with pytest.raises(SignatureError):
        verify_receipt_key(sign_receipt(root, receipt(key)), service_root=root.public)


def test_newer_version_says_upgrade_needed(keys):
    root, key = keys
    cert = sign_receipt_key(root, key.public, not_after=1000)
    with pytest.raises(UpgradeNeededError):
        verify_receipt(sign_receipt(key, receipt(key, v=2)), cert=cert, service_root=root.public)


@given(st.binary(max_size=400))
def test_any_signed_bytes_are_a_receipt_or_a_wire_error(payload):
    root = generate_key()
    cert = sign_receipt_key(root, root.public, not_after=1000)
    with pytest.raises(WireError):
        verify_receipt(sign_blob(root, Context.RECEIPT, payload), cert=cert, service_root=root.public)


def test_request_refuses_unknown_fields():
    body = b'{"contract":"x","enrolment_code":"y","device_cert":"","contract_box_key":"%s","contract_sign_key":"%s"%s}'
    key = b"ab" * 32
    assert msgspec.json.decode(body % (key, key, b""), type=DeviceEnrol).contract == "x"
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(body % (key, key, b',"admin":true'), type=DeviceEnrol)


def test_limits_fit_each_other():
    """A commit holds a root and two million references."""
    assert COMMIT_BYTES_MAX // 32 == 2**21
