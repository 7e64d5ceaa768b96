"""Signed blobs: the signature covers context and payload, and nothing else opens them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import FormatError, SignatureError
from wire.signing import Context, SigningKey, generate_key, sign_blob, verify_blob

KEY = SigningKey(bytes(range(32)))


@given(st.binary(max_size=200), st.sampled_from(list(Context)))
def test_blob_opens_under_its_key_and_context(payload: bytes, context: Context) -> None:
    assert verify_blob(sign_blob(KEY, context, payload), context, KEY.public) == payload


@pytest.mark.parametrize("other", [c for c in Context if c is not Context.STATEMENT])
def test_signature_of_one_context_never_serves_another(other: Context) -> None:
    blob = sign_blob(KEY, Context.STATEMENT, b"payload")
    with pytest.raises(SignatureError):
        verify_blob(blob, other, KEY.public)


def test_another_key_does_not_open_a_blob() -> None:
    with pytest.raises(SignatureError):
        verify_blob(sign_blob(KEY, Context.PACK, b"x"), Context.PACK, generate_key().public)


@given(st.integers(min_value=0, max_value=8 * 100 - 1))
def test_every_flipped_bit_is_noticed(bit: int) -> None:
    blob = bytearray(sign_blob(KEY, Context.RECEIPT, b"p" * 36))
    blob[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(SignatureError):
        verify_blob(bytes(blob), Context.RECEIPT, KEY.public)


@pytest.mark.parametrize("length", [0, 1, 63])
def test_shorter_than_a_signature_is_refused(length: int) -> None:
    with pytest.raises(SignatureError, match="expected 64"):
        verify_blob(bytes(length), Context.PACK, KEY.public)


def test_seed_of_another_length_is_refused_and_never_shown() -> None:
    with pytest.raises(FormatError, match="expected 32 bytes, got 31"):
        SigningKey(bytes(31))
    assert KEY.seed.hex() not in repr(KEY)
    assert str(list(KEY.seed)) not in repr(KEY)
    assert repr(KEY.seed) not in repr(KEY)


def test_known_answer_of_rfc_8032_section_7_1_test_1() -> None:
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    key = SigningKey(seed)
    assert key.public.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert key.sign(b"").hex().startswith("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974")
