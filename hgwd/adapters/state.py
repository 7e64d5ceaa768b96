"""What makes this gateway this gateway: its device key and the result of its enrolment (design §4, JNT-25).

Rules
- One directory, mode 0700. `device.key` holds the 32-byte Ed25519 seed, mode 0600, written once, never shown.
- Every write is atomic and fsynced: after a power cut either the old or the new content stands, never a part.
- A damaged file is an error, never quietly replaced: a second key for a serial raises an alarm at the carrier.
- It does not do: the enrolment protocol (`adapters/enrol.py`), slots, floors, the spool.
"""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import msgspec

from hgwd.errors import CorruptStateError
from runtime.files import write_atomic
from wire.errors import FormatError
from wire.ids import RandomId
from wire.signing import SEED_BYTES, SigningKey, generate_key

KEY_FILE = "device.key"
ENROLMENT_FILE = "enrolment.json"
_DIRECTOR_PATH = re.compile(r"(/?director/)?[0-9a-f]{32}")


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """The carrier's answer to `gateway-enrol` (protocols §4)."""

    v: int = 1
    gateway: str
    director_path: str  # as the carrier gave it: 32 random hex digits, with or without /director/ before them
    enrolled_at_s: int


@attrs.define
class GatewayState:
    """The open state directory. `key` never changes; `enrolment` is None until the carrier has accepted the key."""

    directory: Path
    key: SigningKey = attrs.field(repr=False)
    enrolment: Enrolment | None

    def save_enrolment(self, enrolment: Enrolment) -> None:
        """Persist `enrolment`; on return it survives a power cut. Blocking; the same value again is harmless."""
        _check(enrolment, "enrolment to save")
        write_atomic(self.directory / ENROLMENT_FILE, msgspec.json.encode(enrolment), mode=0o600)
        self.enrolment = enrolment

    def forget_enrolment(self) -> None:
        """Drop the enrolment, so that the next poll enrols anew (with the same key)."""
        (self.directory / ENROLMENT_FILE).unlink(missing_ok=True)
        self.enrolment = None


def open_state(directory: Path) -> GatewayState:
    """Open or create the state directory and the device key. Blocking; call before the listeners open.

    Raises `CorruptStateError` when a file exists with content of another form.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    return GatewayState(
        directory=directory, key=_load_or_make_key(directory), enrolment=_load_enrolment(directory)
    )


def _load_or_make_key(directory: Path) -> SigningKey:
    path = directory / KEY_FILE
    try:
        seed = path.read_bytes()
    except FileNotFoundError:
        key = generate_key()
        write_atomic(path, key.seed, mode=0o600)
        return key
    if len(seed) != SEED_BYTES:
        raise CorruptStateError(f"{KEY_FILE}: expected {SEED_BYTES} bytes, found {len(seed)}")
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)  # a restored backup may have widened it
    return SigningKey(seed)


def _load_enrolment(directory: Path) -> Enrolment | None:
    try:
        data = (directory / ENROLMENT_FILE).read_bytes()
    except FileNotFoundError:
        return None
    try:
        enrolment = msgspec.json.decode(data, type=Enrolment)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CorruptStateError(f"{ENROLMENT_FILE}: {error}") from error
    _check(enrolment, ENROLMENT_FILE)
    return enrolment


def _check(enrolment: Enrolment, what: str) -> None:
    if enrolment.v != 1:
        raise CorruptStateError(f"{what}: this program knows version 1, found {enrolment.v}")
    try:
        RandomId.parse(enrolment.gateway)
    except FormatError as error:
        raise CorruptStateError(f"{what}: {error}") from error
    if _DIRECTOR_PATH.fullmatch(enrolment.director_path) is None:
        raise CorruptStateError(f"{what}: director_path: expected [/director/] and 32 hex digits")
