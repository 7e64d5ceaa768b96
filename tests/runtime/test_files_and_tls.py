"""Files that survive, secrets that are private, certificates that are what they say."""

from __future__ import annotations

import ssl
import stat
import subprocess
import sys

import pytest

from runtime import tls
from runtime.errors import LocalError
from runtime.files import load_secret, make_dirs, remove_durably, write_atomic


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_write_atomic_replaces_content_and_sets_the_mode(tmp_path):
    path = tmp_path / "state"
    write_atomic(path, b"old")
    write_atomic(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names_in(tmp_path) == ["state"]


def test_failed_write_leaves_the_old_content_and_no_litter(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").touch()
    with pytest.raises(OSError, match="directory"):
        write_atomic(tmp_path / "taken", b"new")
    assert names_in(tmp_path) == ["taken"]


def test_write_atomic_syncs_data_before_the_name_and_the_name_before_returning(tmp_path):
    """Read from the system calls themselves: fsync(file), rename, fsync(directory)."""
    program = "from runtime.files import write_atomic; import sys; write_atomic(sys.argv[1], b'data')"
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-qq", "-o", str(trace), "-e", "trace=fsync,rename,renameat,renameat2"]
    try:
        done = subprocess.run(
            [*command, sys.executable, "-c", program, str(tmp_path / "state")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("strace is not installed")
    if done.returncode and "PTRACE" in done.stderr.upper():
        pytest.skip("strace may not trace here")
    calls = [line.split()[1].split("(")[0] for line in trace.read_text().splitlines() if "(" in line]
    ordered = [call for call in calls if call.startswith(("fsync", "rename"))]
    assert [call[:6] for call in ordered[-3:]] == ["fsync", "rename", "fsync"]


def test_make_dirs_and_remove_are_idempotent(tmp_path):
    for _ in range(2):
        make_dirs(tmp_path / "a" / "b" / "c")
        remove_durably(tmp_path / "a" / "none")
    assert (tmp_path / "a" / "b" / "c").is_dir()


def test_secret_must_be_private_small_and_a_file(tmp_path):
    path = tmp_path / "secret"
    write_atomic(path, b"hunter2\n", mode=0o600)
    assert load_secret(path) == b"hunter2"
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "large").touch(mode=0o600)
    (tmp_path / "large").write_bytes(bytes(70_000))
    for bad in (tmp_path / "none", tmp_path / "link", tmp_path / "large"):
        with pytest.raises(LocalError, match=bad.name):
            load_secret(bad)
    path.chmod(0o640)
    with pytest.raises(LocalError, match="mode 0600, got 0640") as caught:
        load_secret(path)
    assert "hunter2" not in str(caught.value)


def test_self_signed_certificate_has_names_key_kind_and_a_private_key_file(tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    digest = tls.make_self_signed(cert, key, ["gw.home", "fe80::1", "192.168.1.1"])
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert names_in(tmp_path) == ["cert.pem", "key.pem"]
    text = subprocess.run(
        ["openssl", "x509", "-in", cert, "-noout", "-text"], capture_output=True, check=True
    ).stdout
    assert b"DNS:gw.home, IP Address:FE80:0:0:0:0:0:0:1, IP Address:192.168.1.1" in text
    assert b"NIST CURVE: P-256" in text
    assert text.count(b"CA:FALSE") == 1
    assert b"CA:TRUE" not in text
    shown = subprocess.run(
        ["openssl", "x509", "-in", cert, "-noout", "-fingerprint", "-sha256"], capture_output=True, check=True
    ).stdout
    assert shown.strip().split(b"=")[1].replace(b":", b"").lower().decode() == digest
    assert tls.server_context(cert, key).minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("names", [[], [""], ["a/b"], ["a,DNS:evil"], ["x" * 65]])
def test_certificate_names_cannot_inject_fields(names, tmp_path):
    with pytest.raises(LocalError, match="certificate"):
        tls.make_self_signed(tmp_path / "c", tmp_path / "k", names)
    assert names_in(tmp_path) == []


def test_contexts_name_the_file_they_cannot_use(tmp_path, certificate):
    other = tmp_path / "other"
    tls.make_self_signed(other.with_suffix(".pem"), other.with_suffix(".key"), ["a"])
    with pytest.raises(LocalError, match=r"other\.key"):
        tls.server_context(certificate.cert, other.with_suffix(".key"))
    with pytest.raises(LocalError, match="none"):
        tls.client_context(tmp_path / "none")
    with pytest.raises(LocalError, match="none"):
        tls.certificate_sha256(tmp_path / "none")


def test_client_context_trusts_nothing_of_the_machine(certificate):
    context = tls.client_context(certificate.cert)
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert len(context.get_ca_certs()) <= 1
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
