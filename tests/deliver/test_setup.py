"""`deliver init`: everything once, quickly, offline and online keys apart (design §5.1)."""

from __future__ import annotations

import stat
import time

import pytest

from deliver.app import online_keys, open_program, parse_roles
from deliver.cli import main
from deliver.config import DeliverConfig, load_home, parse_listen
from deliver.services.setup import OFFLINE_ROLES, ONLINE_ROLES, make_carrier
from deliver.signing.keystore import KeyStore, create_key_file, load_key_file
from deliver.signing.tuf import Metadata
from runtime.errors import ConfigError, LocalError
from wire.storage import verify_receipt_key


def test_init_takes_less_than_five_seconds_and_refuses_to_run_twice(tmp_path):
    started_s = time.process_time()  # not wall time: other tests may share the processor
    make_carrier(tmp_path / "c", DeliverConfig(), ["::1"], now_s=time.time())
    assert time.process_time() - started_s < 5
    before = {p: p.read_bytes() for p in (tmp_path / "c").rglob("*") if p.is_file()}
    with pytest.raises(LocalError, match="runs once"):
        make_carrier(tmp_path / "c", DeliverConfig(), ["::1"], now_s=time.time())
    assert {p: p.read_bytes() for p in (tmp_path / "c").rglob("*") if p.is_file()} == before


def test_offline_and_online_keys_lie_apart_and_no_key_is_in_both(home):
    offline = {
        load_key_file(p).public for p in (home.directory / "offline").glob("*.key") if p.name != "tls-ca.key"
    }
    online = {load_key_file(p).public for p in (home.directory / "online").glob("*.key")}
    assert len(offline) == len(OFFLINE_ROLES)
    assert len(online) == len(ONLINE_ROLES)
    assert not offline & online
    for path in [*home.directory.glob("*/*.key")]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_roots_name_offline_keys_and_need_two_of_three(home):
    offline = KeyStore(home.directory / "offline")
    for name, prefix in (("image-root.json", "root"), ("director-root.json", "director-root")):
        root = Metadata.from_bytes((home.directory / "trust" / name).read_bytes())
        role = root.signed.roles["root"]
        publics = {root.signed.keys[keyid].keyval["public"] for keyid in role.keyids}
        assert role.threshold == 2
        assert publics == {offline.load(f"{prefix}-{number}").public.hex() for number in (1, 2, 3)}
        root.signed.verify_delegate("root", root.signed_bytes, root.signatures)


def test_the_director_root_names_director_and_two_time_keys(home):
    root = Metadata.from_bytes((home.directory / "trust" / "director-root.json").read_bytes()).signed
    publics = [root.keys[keyid].keyval["public"] for keyid in root.roles["timestamp"].keyids]
    assert publics == [
        online_keys(home).load("time").public.hex(),
        KeyStore(home.directory / "offline").load("time-2").public.hex(),
    ]
    (director,) = root.roles["targets"].keyids
    assert root.keys[director].keyval["public"] == online_keys(home).load("director").public.hex()


def test_the_receipt_key_is_delegated_by_the_service_root(home):
    root = bytes.fromhex((home.directory / "trust" / "service-root.pub").read_text())
    cert = (home.directory / "trust" / "receipt-key.cert").read_bytes()
    assert (
        verify_receipt_key(cert, service_root=root).receipt_key
        == online_keys(home).load("receipt").public.hex()
    )


def test_256_shards_are_delegated_and_published(home, program):
    roles = program.image.published()
    assert len([role for role in roles if role.startswith("shard-")]) == 256
    targets = program.image.load("targets", 1).signed
    assert {tuple(role.paths) for role in targets.delegations.roles.values()} == {
        (f"{number:02x}/*/*/*/*",) for number in range(256)
    }
    assert all(role.terminating for role in targets.delegations.roles.values())


def test_a_key_file_is_never_replaced_and_must_be_private(tmp_path):
    key = create_key_file(tmp_path / "a.key", "x")
    with pytest.raises(LocalError, match="never replaced"):
        create_key_file(tmp_path / "a.key", "x")
    assert load_key_file(tmp_path / "a.key").public == key.public
    (tmp_path / "a.key").chmod(0o644)
    with pytest.raises(LocalError, match="0600"):
        load_key_file(tmp_path / "a.key")


@pytest.mark.parametrize("content", [b"", b"{}", b'{"v":1,"role":"x","seed":"00","public":"00"}'])
def test_a_damaged_key_file_is_named_and_shows_no_secret(tmp_path, content):
    path = tmp_path / "a.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(LocalError, match=r"a\.key"):
        load_key_file(path)


@pytest.mark.parametrize(
    ("line", "word"),
    [("colour = 1", "colour"), ("poll_s = 1", "poll_s"), ('gateway_listen = "0.0.0.0:1"', "gateway_listen")],
)
def test_a_bad_configuration_is_one_line_naming_the_key_and_exit_2(home, capsys, line, word):
    path = home.directory / "deliver.toml"
    kept = [text for text in path.read_text().splitlines() if not text.startswith(line.split(" ")[0])]
    path.write_text("\n".join([*kept, line]))
    assert main(["serve", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert word in error
    assert error.count("\n") == 1


def test_roles_and_listeners_have_one_form():
    assert parse_roles("joint, storage") == {"joint", "storage"}
    for text in ("", "joint,web"):
        with pytest.raises(ConfigError, match="--roles"):
            parse_roles(text)
    assert parse_listen("[::]:8443") == ("::", 8443)
    with pytest.raises(ConfigError):
        parse_listen("[::1]:99999")


def test_a_copied_home_works_elsewhere(home, tmp_path):
    moved = home.directory.rename(tmp_path / "moved")
    opened = open_program(load_home(moved / "deliver.toml"))
    opened.close()
