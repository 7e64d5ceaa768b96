"""The commands, as typed (`deliver admin …`, `key pack sign cosign`)."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest

from deliver.cli import main
from deliver.services.operator_signing import measure_package
from deliver.services.packing import pack_directory
from deliver.signing.tuf import Metadata
from runtime.errors import LocalError
from wire.package_archive import read_package

MANIFEST = """
v = 1
operator = "acme-home"
software = "lights"
version = "1.0"
release = 1
series = ["PR-500"]
makers = ["KI"]
runtime = "python-zipapp"
entry = "bin/app.pyz"
description = "lights"
[resources]
memory_bytes = 16777216
[health]
kind = "exit"
"""


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    (folder / "bin").mkdir(parents=True)
    (folder / "manifest.toml").write_text(MANIFEST)
    (folder / "bin" / "app.pyz").write_text("print(1)")
    (folder / "bin" / "app.pyz").chmod(0o755)
    (folder / "data.txt").write_text("data")
    return folder


@pytest.fixture
def admin(home, capsys):
    def run(*arguments):
        code = main(["admin", "--config", str(home.directory), *arguments])
        return code, capsys.readouterr()

    return run


def test_packing_twice_anywhere_any_time_gives_the_same_bytes(source, tmp_path):
    _, first = pack_directory(source)
    copied = tmp_path / "copy"
    shutil.copytree(source, copied, copy_function=shutil.copyfile)
    (copied / "bin" / "app.pyz").chmod(0o711)
    (copied / "data.txt").chmod(0o666)
    assert pack_directory(copied)[1] == first
    manifest, files = read_package(first)
    assert manifest.description == "lights"
    assert {path: item.executable for path, item in files.items()} == {"bin/app.pyz": True, "data.txt": False}
    (copied / "data.txt").write_text("DATA")
    assert pack_directory(copied)[1] != first


def test_a_json_manifest_packs_to_the_same_bytes(source):
    import tomllib

    _, first = pack_directory(source)
    tree = tomllib.loads((source / "manifest.toml").read_text())
    (source / "manifest.toml").unlink()
    (source / "manifest.json").write_text(json.dumps(tree))
    assert pack_directory(source)[1] == first


@pytest.mark.parametrize(
    "kind", ["symlink to file", "symlink to directory", "fifo", "odd name", "no manifest", "bad toml"]
)
def test_what_cannot_be_packed_is_named_and_never_skipped(source, kind):
    import os

    match kind:
        case "symlink to file":
            (source / "link").symlink_to("/etc/passwd")
        case "symlink to directory":
            (source / "link").symlink_to("/etc")
        case "fifo":
            os.mkfifo(source / "pipe")
        case "odd name":
            (source / "a b").write_text("x")
        case "no manifest":
            (source / "manifest.toml").unlink()
        case "bad toml":
            (source / "manifest.toml").write_text("= 1")
    with pytest.raises(LocalError, match="source"):
        pack_directory(source)


def test_key_pack_sign_and_cosign(source, tmp_path, capsys):
    for name in ("a", "b"):
        assert main(["key", str(tmp_path / f"{name}.key")]) == 0
    package = tmp_path / "lights.hgwpkg"
    assert main(["pack", str(source), "-o", str(package)]) == 0
    assert hashlib.sha256(package.read_bytes()).hexdigest() in capsys.readouterr().out
    assert main(["sign", str(package), "--key", str(tmp_path / "a.key"), "--state", str(tmp_path)]) == 0
    waiting = tmp_path / "acme-home.targets.new.json"
    assert main(["cosign", str(waiting), "--key", str(tmp_path / "b.key")]) == 0
    metadata = Metadata.from_bytes(waiting.read_bytes())
    assert len(metadata.signatures) == 2
    target = metadata.signed.targets[measure_package(package).target_path]
    assert target.unrecognized_fields["custom"]["hgw"]["footprint_bytes"] == len("print(1)") + len("data")


def test_lines_gateways_contracts_and_the_bill(admin, home, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("00" * 16)
    secret.chmod(0o600)
    assert admin("line", "add", "CAF0000000001")[0] == 0
    code, shown = admin("line", "add", "CAF0000000001")
    assert (code, "CustomerIdTaken" in shown.err) == (3, True)
    assert admin("prefix", "add", "CAF0000000001", "2001:db8:1:100::/56")[0] == 0
    gateway = ("gateway", "add", "CAF0000000001", "PR500KI00001", "--model", "PR-500", "--maker", "KI")
    assert admin(*gateway, "--secret", str(secret))[0] == 0
    contract = ("storage-contract", "add", "AZK0000000001", "--customer", "CAF0000000001", "--plan", "100 GB")
    code, shown = admin(*contract, "--json")
    assert code == 0
    assert (
        json.loads(shown.out)["service_root"]
        == (home.directory / "trust" / "service-root.pub").read_text().strip()
    )
    assert admin(*contract)[0] == 3
    bill = ("bill", "--payer", "CAF0000000001", "--month")
    code, shown = admin(*bill, "2099-01", "--json")
    assert json.loads(shown.out)["total_yen"] == 5_280
    code, shown = admin(*bill, "2099-01", "--close")
    assert (code, "MonthNotOver" in shown.err) == (3, True)
    assert "5,280 yen" in admin(*bill, "2099-01")[1].out
    assert admin("line", "end", "CAF0000000001")[0] == 0


def test_operators_and_the_ceremony(admin, tmp_path):
    for name in ("sign", "api"):
        main(["key", str(tmp_path / name)])
    add = (
        "operator",
        "add",
        "acme-home",
        "--api-key",
        str(tmp_path / "api.pub"),
        "--key",
        str(tmp_path / "sign.pub"),
    )
    code, shown = admin(*add)
    assert (code, "waits for the shard ceremony" in shown.out) == (0, True)
    code, shown = admin("ceremony", "shard")
    assert (code, "1 shard(s) signed" in shown.out) == (0, True)
    assert "0 shard(s) signed" in admin("ceremony", "shard")[1].out
    assert "delegated" in admin(*add)[1].out
    main(["key", str(tmp_path / "other")])
    changed = (*add[:-1], str(tmp_path / "other.pub"))
    code, shown = admin(*changed)
    assert (code, "conflict" in shown.err) == (3, True)
    code, shown = admin(
        *add[:3], "--api-key", str(tmp_path / "sign.pub"), "--key", str(tmp_path / "sign.pub")
    )
    assert code == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("line", "add", "CAF1"),
        ("prefix", "add", "CAF0000000001", "10.0.0.0/8"),
        ("bill", "--payer", "x", "--month", "2026-13"),
        ("storage-contract", "add", "AZK0000000001", "--customer", "CAF0000000001", "--plan", "3gb"),
        ("operator", "add", "acme-home", "--api-key", "zz", "--key", "00"),
    ],
)
def test_a_malformed_argument_is_a_usage_error(admin, arguments):
    with pytest.raises(SystemExit) as caught:
        admin(*arguments)
    assert caught.value.code == 2
