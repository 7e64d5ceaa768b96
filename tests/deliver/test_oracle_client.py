"""python-tuf's own client against a real `deliver serve`: what we publish is plain TUF; and the thief table.

Thief rows (design §5.2): who holds some keys, and what a gateway's check does with what they can sign.
"""

from __future__ import annotations

import ssl
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import trio
from tuf.api.exceptions import DownloadHTTPError, RepositoryError
from tuf.ngclient import Updater
from tuf.ngclient.fetcher import FetcherInterface

from deliver.services.operator_metadata import make_target_file
from deliver.signing.image_repository import ImageKeys, OperatorKeys, expiry, make_shard
from deliver.signing.tuf import Metadata, MetaFile, Snapshot, Targets, Timestamp, encode, sign
from runtime.clock import SystemClock
from wire.director import shard_of, shard_role
from wire.ids import OperatorId
from wire.signing import generate_key


@pytest.fixture
def clock():
    return SystemClock()


class UrllibFetcher(FetcherInterface):
    """The oracle's transport: standard library, TLS with the carrier's authority."""

    def __init__(self, ca):
        self._context = ssl.create_default_context(cafile=str(ca))
        self._context.check_hostname = False

    def _fetch(self, url):
        try:
            with urllib.request.urlopen(url, context=self._context, timeout=10) as response:
                return iter([response.read()])
        except urllib.error.HTTPError as error:
            raise DownloadHTTPError(str(error), error.code) from error


class Oracle:
    """An Updater with a directory of its own, run in a thread beside the server."""

    def __init__(self, home, ready, directory):
        base = f"https://[::1]:{ready['gateway_port']}/image"
        directory.mkdir(exist_ok=True)
        self._make = lambda: Updater(
            str(directory),
            f"{base}/metadata/",
            str(directory),
            f"{base}/targets/",
            fetcher=UrllibFetcher(home.directory / "trust" / "tls-ca.pem"),
            bootstrap=(home.directory / "trust" / "image-root.json").read_bytes(),
        )
        self._directory = directory

    def get(self, path):
        """Refresh, look a target up, download and verify it; None when no role names it."""
        updater = self._make()
        updater.refresh()
        info = updater.get_targetinfo(path)
        if info is None:
            return None
        return Path(updater.download_target(info, str(self._directory / "package"))).read_bytes()


async def in_thread(call, *args):
    return await trio.to_thread.run_sync(call, *args)


@pytest.fixture
def published(acme):
    return acme.publish()[0]


async def test_the_oracle_verifies_and_downloads_a_package(home, program, acme, published, kit, tmp_path):
    async with kit.serving(home) as ready:
        oracle = Oracle(home, ready, tmp_path / "oracle")
        data = await in_thread(oracle.get, published.target_path)
        assert data == kit.package_bytes()
        assert await in_thread(oracle.get, published.target_path.replace("1.0", "1.1")) is None


async def test_the_oracle_follows_a_new_version_and_a_new_operator(
    home, program, acme, published, kit, tmp_path
):
    async with kit.serving(home) as ready:
        oracle = Oracle(home, ready, tmp_path / "oracle")
        assert await in_thread(oracle.get, published.target_path)
        data, second = acme.measure(b"new", version="2.0", release=2)
        quote = acme.quote(data, second, "change")
        acme.accept(quote.quote_id, acme.metadata([published, second], version=2))
        other = kit.add_operator_kit(program, "other-co")
        theirs, _ = other.publish()
        assert await in_thread(oracle.get, second.target_path) == data
        assert await in_thread(oracle.get, theirs.target_path)


def publish_as_thief(program, roles):
    """Publish a snapshot naming `roles`, as a holder of the online keys could, without our own checks."""
    keys = program.image_keys()
    image = program.image
    now_s = SystemClock().now_s()
    version = max(int(p.name.split(".")[0]) for p in image.metadata_dir.glob("*.snapshot.json")) + 1
    meta = {f"{role}.json": MetaFile(version=number) for role, number in roles.items()}
    snapshot = Snapshot(version=version, expires=expiry(now_s, 3600), meta=meta)
    image.add_metadata("snapshot", version, encode(sign(Metadata(snapshot), [keys.snapshot])))
    before = Metadata.from_bytes((image.metadata_dir / "timestamp.json").read_bytes()).signed.version
    timestamp = Timestamp(
        version=before + 1, expires=expiry(now_s, 3600), snapshot_meta=MetaFile(version=version)
    )
    (image.metadata_dir / "timestamp.json").write_bytes(encode(sign(Metadata(timestamp), [keys.timestamp])))


def forged_targets(acme, package, key, version):
    signed = Targets(
        version=version,
        expires=expiry(SystemClock().now_s(), 3600),
        targets={package.target_path: make_target_file(package)},
    )
    return encode(sign(Metadata(signed), [key]))


async def test_thief_of_snapshot_and_timestamp_brings_no_new_bytes(
    home, program, acme, published, kit, tmp_path
):
    """Holder of {snapshot, timestamp}: operator metadata under a key of the thief's own."""
    async with kit.serving(home) as ready:
        oracle = Oracle(home, ready, tmp_path / "oracle")
        assert await in_thread(oracle.get, published.target_path)
        _, evil = acme.measure(b"evil", version="6.6", release=6)
        program.image.add_metadata("operator-acme-home", 2, forged_targets(acme, evil, generate_key(), 2))
        publish_as_thief(program, {**program.image.published(), "operator-acme-home": 2})
        with pytest.raises(RepositoryError):
            await in_thread(oracle.get, evil.target_path)


async def test_thief_of_snapshot_and_timestamp_cannot_redelegate(
    home, program, acme, published, kit, tmp_path
):
    """Holder of {snapshot, timestamp}: a shard of the thief's own that names the thief's key for the operator."""
    thief = generate_key()
    shard = shard_role(shard_of(acme.operator_id))
    async with kit.serving(home) as ready:
        oracle = Oracle(home, ready, tmp_path / "oracle")
        _, evil = acme.measure(b"evil", version="6.6", release=6)
        now_s = SystemClock().now_s()
        own = make_shard(thief, [OperatorKeys(acme.operator_id, (thief.public,), 1)], version=9, now_s=now_s)
        program.image.add_metadata(shard, 9, encode(own))
        program.image.add_metadata("operator-acme-home", 2, forged_targets(acme, evil, thief, 2))
        publish_as_thief(program, {**program.image.published(), shard: 9, "operator-acme-home": 2})
        with pytest.raises(RepositoryError):
            await in_thread(oracle.get, evil.target_path)


async def test_thief_of_snapshot_and_timestamp_cannot_bring_back_older_metadata(
    home, program, acme, published, kit, tmp_path
):
    """Holder of {snapshot, timestamp}: the operator's own first metadata, still well signed, after the second."""
    data, second = acme.measure(b"new", version="2.0", release=2)
    quote = acme.quote(data, second, "change")
    acme.accept(quote.quote_id, acme.metadata([published, second], version=2))
    async with kit.serving(home) as ready:
        oracle = Oracle(home, ready, tmp_path / "oracle")
        assert await in_thread(oracle.get, second.target_path) == data
        publish_as_thief(program, {**program.image.published(), "operator-acme-home": 1})
        with pytest.raises(RepositoryError):
            await in_thread(oracle.get, second.target_path)


async def test_an_operator_cannot_name_targets_of_another(home, program, acme, published, kit, tmp_path):
    """Holder of {the key of an operator of the same shard, snapshot, timestamp}: a path of its neighbour is not found."""
    shard = shard_of(acme.operator_id)
    names = (f"aa-{number}" for number in range(100_000))
    neighbour = next(name for name in names if shard_of(OperatorId.parse(name)) == shard)
    other = kit.add_operator_kit(program, neighbour)
    other.publish()
    _, evil = acme.measure(b"evil", version="6.6", release=6)
    async with kit.serving(home) as ready:
        oracle = Oracle(home, ready, tmp_path / "oracle")
        forged = forged_targets(other, evil, other.keys[0], 2)
        program.image.add_metadata(f"operator-{neighbour}", 2, forged)
        publish_as_thief(program, {**program.image.published(), f"operator-{neighbour}": 2})
        assert await in_thread(oracle.get, evil.target_path) is None


async def test_a_changed_package_is_refused_by_its_hash(home, program, acme, published, kit, tmp_path):
    folder, _, name = published.target_path.rpartition("/")
    path = home.image_dir / "targets" / folder / f"{published.sha256}.{name}"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    async with kit.serving(home) as ready:
        oracle = Oracle(home, ready, tmp_path / "oracle")
        with pytest.raises(RepositoryError):
            await in_thread(oracle.get, published.target_path)


def test_publish_never_lowers_a_role_and_writes_nothing_when_nothing_changed(program, acme, published):
    image, keys, now_s = program.image, program.image_keys(), program.clock.now_s()
    roles = image.published()
    stamp = (image.metadata_dir / "timestamp.json").read_bytes()
    image.publish(roles, keys, now_s=now_s)
    image.publish({**roles, "operator-acme-home": 0}, keys, now_s=now_s)
    assert (image.metadata_dir / "timestamp.json").read_bytes() == stamp
    image.publish(roles, keys, now_s=now_s + 2 * 86_400)
    assert (image.metadata_dir / "timestamp.json").read_bytes() != stamp
    assert isinstance(keys, ImageKeys)


def test_two_programs_publishing_at_once_lose_nothing(program, acme, published):
    image, keys = program.image, program.image_keys()
    names = [f"shard-{number:02x}" for number in range(16)]

    def raise_role(name):
        data = (image.metadata_dir / f"1.{name}.json").read_bytes()
        image.add_metadata(name, 5, data)
        image.publish({name: 5}, keys, now_s=program.clock.now_s())

    threads = [threading.Thread(target=raise_role, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {image.published()[name] for name in names} == {5}
