"""The director: its own root, and one signed document per gateway (design §5.2, protocols.md §4).

Rules
- Director root: roles `root` (offline, 2 of 3), `targets` (the director key, online), `timestamp` (the time keys: one
  online, the second offline for steps above 30 days), `snapshot` (the director key; unused).
- A document lives at `<32 hex>/director.json` below the director's directory, replaced atomically.
- It does not do: deciding what a gateway gets (services/director_documents.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from deliver.signing.image_repository import ROOT_LIFE_S, ROOT_THRESHOLD, expiry
from deliver.signing.tuf import Metadata, Root, TargetFile, Targets, encode, sign, tuf_key
from wire.director import DIRECTOR_ROLE, DirectorBody, to_plain
from wire.signing import SigningKey

DIRECTOR_LIFE_S: Final = 3 * 86_400
"""Expiry of a document: it stops new installs, never running software."""


def make_director_root(
    root_keys: Sequence[SigningKey], director: bytes, time_keys: Sequence[bytes], *, now_s: float
) -> Metadata[Root]:
    """Return version 1 of the director's root; `director` and `time_keys` are raw public keys."""
    root = Root(version=1, expires=expiry(now_s, ROOT_LIFE_S), consistent_snapshot=True)
    for key in root_keys:
        root.add_key(tuf_key(key.public), "root")
    root.roles["root"].threshold = ROOT_THRESHOLD
    for role in (DIRECTOR_ROLE, "snapshot"):
        root.add_key(tuf_key(director), role)
    for public in time_keys:
        root.add_key(tuf_key(public), "timestamp")
    return sign(Metadata(root), root_keys)


def make_document(
    key: SigningKey, body: DirectorBody, targets: Sequence[TargetFile], *, version: int, now_s: float
) -> bytes:
    """Return the signed document of one gateway; `targets` are the files its entries name."""
    signed = Targets(
        version=version,
        expires=expiry(now_s, DIRECTOR_LIFE_S),
        targets={target.path: target for target in targets},
        unrecognized_fields={"hgw": to_plain(body)},
    )
    return encode(sign(Metadata(signed), [key]))
