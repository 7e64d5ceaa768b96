"""The state directory: device key and enrolment survive, are private, and are never quietly replaced (design §4)."""

from __future__ import annotations

import pytest

from hgwd.adapters.state import Enrolment, open_state
from hgwd.errors import CorruptStateError

ENROLMENT = Enrolment(gateway="a" * 32, director_path="b" * 32, enrolled_at_s=1_790_000_000)


def test_the_device_key_is_made_once_and_kept_private(tmp_path):
    directory = tmp_path / "state"
    first = open_state(directory)
    (directory / "device.key").chmod(0o644)  # as after a careless restore
    assert open_state(directory).key.public == first.key.public
    assert (directory / "device.key").stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    assert first.key.seed.hex() not in repr(first)


def test_an_enrolment_survives_and_can_be_forgotten(tmp_path):
    state = open_state(tmp_path)
    assert state.enrolment is None
    state.save_enrolment(ENROLMENT)
    assert open_state(tmp_path).enrolment == ENROLMENT
    state.forget_enrolment()
    assert open_state(tmp_path).enrolment is None
    assert open_state(tmp_path).key.public == state.key.public


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b'{"v":2,"gateway":"' + b"a" * 32 + b'","director_path":"' + b"b" * 32 + b'","enrolled_at_s":1}',
        b'{"v":1,"gateway":"x","director_path":"' + b"b" * 32 + b'","enrolled_at_s":1}',
        b'{"v":1,"gateway":"' + b"a" * 32 + b'","director_path":"../../etc","enrolled_at_s":1}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_enrolment_is_an_error_and_stays_as_it_is(tmp_path, content):
    open_state(tmp_path)
    (tmp_path / "enrolment.json").write_bytes(content)
    with pytest.raises(CorruptStateError):
        open_state(tmp_path)
    assert (tmp_path / "enrolment.json").read_bytes() == content


def test_an_enrolment_of_another_form_is_not_even_saved(tmp_path):
    state = open_state(tmp_path)
    with pytest.raises(CorruptStateError):
        state.save_enrolment(Enrolment(gateway="short", director_path="b" * 32, enrolled_at_s=1))
    assert state.enrolment is None
    assert not (tmp_path / "enrolment.json").exists()
