"""kill -9 of agent, gateway daemon and carrier server at random moments of real backups.

After each kill the killed program starts again, the backup is finished, and a restore must be byte-equal. What was
acknowledged stays; at most one pack is sent again per kill; no (key, nonce) pair occurs twice.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from firmware_sim.lab import has_rights
from nas_agent.core.packing import BUFFER_BYTES, PackBuilder, SessionKeys
from tests.scenario.kill_world import (
    CONTRACT,
    PACK_BYTES_MAX,
    PackAudit,
    change_source,
    kill_during_backup,
    open_world,
)
from wire.signing import SigningKey
from wire.vault.frame import Algorithm

KILLS = 42
SOAK_KILLS = 1000
FILES, FILE_BYTES = 10, 1_500_000
KILL_WITHIN_S = 2.0


def survive(root: Path, dice: random.Random, kills: int) -> None:
    with open_world(root) as world:
        change_source(world.source, dice, files=40, size_bytes=FILE_BYTES)
        result = world.finish_backup()
        world.assert_restores()
        audit = PackAudit(root)
        audit.look()
        while sum(world.kills.values()) < kills:
            change_source(world.source, dice, files=FILES, size_bytes=FILE_BYTES)
            killed = kill_during_backup(world, dice, within_s=KILL_WITHIN_S)
            sequence = int(str(result["sequence"]))
            result = world.finish_backup()
            # An acknowledged generation is never forgotten: the next one stands on it.
            assert int(str(result["sequence"])) > sequence
            world.assert_restores()
            assert audit.look() <= killed * PACK_BYTES_MAX
            # Nor is a pack that the gateway acknowledged.
            assert world.lost_packs() == 0
            print(f"survived {sum(world.kills.values())} kills", flush=True)
        print(f"kills {world.kills}, {audit.frames} frames, {audit.again_bytes} bytes sent again")
        total = sum(world.kills.values())
        for program in ("hgwd", "deliver"):
            taken_bytes = world.acknowledged_bytes(program)
            print(f"{program} took {taken_bytes} bytes, {audit.stored_bytes} are stored")
            # Nearly all of it is logged: a program may be killed between its answer and its log line.
            assert audit.stored_bytes // 2 < taken_bytes <= audit.stored_bytes + total * PACK_BYTES_MAX
        world.assert_generations_are_whole()
        print(f"{world.kills_under_way} times packs were under way")
        assert world.kills_under_way >= total // 5
        # Chance may spare one program in a short run, never all but one.
        assert sum(count > 0 for count in world.kills.values()) >= 2


@pytest.mark.skipif(not has_rights(), reason="the lab makes network namespaces: needs root")
@pytest.mark.timeout(900)
def test_nothing_is_lost_by_kills_at_random_moments(tmp_path: Path, seeded_random: random.Random) -> None:
    survive(tmp_path, seeded_random, KILLS)


@pytest.mark.soak
@pytest.mark.skipif(not has_rights(), reason="the lab makes network namespaces: needs root")
def test_nothing_is_lost_by_a_thousand_kills(tmp_path: Path, seeded_random: random.Random) -> None:
    survive(tmp_path, seeded_random, SOAK_KILLS)


def sealed_pack(folder: Path, salt: bytes, chunk: bytes, body: bytes) -> None:
    """Put a real pack of one session where the carrier keeps its packs."""
    keys = SessionKeys(b"s" * 16, b"k" * 32, Algorithm.AES_256_GCM, SigningKey(b"d" * 32))
    builder = PackBuilder(keys, salt, bytearray(BUFFER_BYTES))
    builder.add(chunk, body)
    pack = builder.finish()
    path = folder / pack.name[:2] / f"{pack.name}-0"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack.data)


def test_the_audit_of_the_packs_sees_a_nonce_twice_and_bytes_sent_again(tmp_path: Path) -> None:
    # The judge of the tests above is judged: with one salt twice it must fail, with one chunk twice it must count.
    folder = tmp_path / "carrier" / "state" / "blobs" / CONTRACT
    body = bytes(4096)
    sealed_pack(folder, b"1" * 32, b"a" * 32, body)
    audit = PackAudit(tmp_path)
    assert (audit.look(), audit.frames) == (0, 1)
    sealed_pack(folder, b"2" * 32, b"a" * 32, body)
    assert audit.look() > 4096
    assert audit.look() == 0
    sealed_pack(folder, b"2" * 32, b"b" * 32, body)
    with pytest.raises(AssertionError, match="share a key and a nonce"):
        audit.look()
