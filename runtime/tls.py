"""TLS contexts and self-signed certificates.

Rules: TLS 1.2 or newer, no early data (a decision never rests on a replayable first flight), no compression,
no renegotiation. Trust is either a CA file given by path or the SHA-256 of one certificate; never the
machine's store by accident. `openssl` makes keys; private keys are files of mode 0600, never in memory here.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import ssl
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import LocalError
from runtime.files import fsync_dir, write_atomic

OPENSSL_TIMEOUT_S = 30.0
CERTIFICATE_DAYS_DEFAULT = 3650
NO_CHECK_TIME_FLAG = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL; the ssl module has no name for it."""
_OPENSSL_CONFIG = "[req]\ndistinguished_name = name\n[name]\n"
"""Replaces the machine's own, whose default extensions would come on top of ours."""
DATE_FAULTS = frozenset({9, 10})
"""X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED."""


def server_context(cert_path: Path | str, key_path: Path | str) -> ssl.SSLContext:
    """Build a server's context from PEM files; HTTP/1.1 only, one session ticket, no early data.

    Raises:
        LocalError: a file is missing, or key and certificate do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.num_tickets = 1
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert_path, key_path)
    except (OSError, ssl.SSLError) as exc:
        raise LocalError(
            f"TLS files {cert_path}, {key_path}: expected a certificate and its key: {exc}"
        ) from exc
    return context


def client_context(ca_path: Path | str | None = None, *, ignore_dates: bool = False) -> ssl.SSLContext:
    """Build a client's context.

    Args:
        ca_path: PEM file of the accepted authorities; host names are checked. None: for a pinned peer only;
            the context itself then accepts any certificate, and HttpClient demands a pin with it.
        ignore_dates: accept validity periods that do not hold now; only for asking the time (design §5.6).

    Raises:
        LocalError: the CA file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    if ca_path is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    try:
        context.load_verify_locations(cafile=str(ca_path))
    except (OSError, ssl.SSLError) as exc:
        raise LocalError(f"CA file {ca_path}: expected PEM certificates: {exc}") from exc
    if ignore_dates:
        context.verify_flags |= NO_CHECK_TIME_FLAG
    return context


def certificate_sha256(cert_path: Path | str) -> str:
    """Return the SHA-256 (64 hex digits) of the first certificate of a PEM file, as DER: what a peer pins.

    Raises:
        LocalError: no certificate in the file.
    """
    try:
        text = Path(cert_path).read_text("ascii")
        start = text.index("-----BEGIN CERTIFICATE-----")
        end = text.index("-----END CERTIFICATE-----") + len("-----END CERTIFICATE-----")
        der = ssl.PEM_cert_to_DER_cert(text[start:end] + "\n")
    except (OSError, ValueError) as exc:
        raise LocalError(f"certificate file {cert_path}: expected a PEM certificate: {exc}") from exc
    return hashlib.sha256(der).hexdigest()


def make_self_signed(
    cert_path: Path | str,
    key_path: Path | str,
    names: Sequence[str],
    *,
    days: int = CERTIFICATE_DAYS_DEFAULT,
    authority: bool = False,
) -> str:
    """Make a P-256 key and a certificate signed by itself; blocks for some 20 ms.

    Either both files are in place afterwards or the key is missing: the certificate is written first, so a
    program that finds the key finds both. Existing files are replaced.

    Args:
        cert_path: PEM, mode 0644.
        key_path: PEM, mode 0600.
        names: DNS names and IP literals, the first is the common name; at least one.
        days: validity from now.
        authority: whether the certificate may sign others (a CA).

    Returns:
        The certificate's SHA-256 in hex, for pinning.

    Raises:
        LocalError: no name, `openssl` missing or failing.
    """
    if not names:
        raise LocalError("certificate: expected at least one name")
    with tempfile.TemporaryDirectory(dir=Path(key_path).parent, prefix=".tls-") as work:
        key, cert, config = Path(work, "key.pem"), Path(work, "cert.pem"), Path(work, "openssl.cnf")
        config.write_text(_OPENSSL_CONFIG)
        constraint = "critical,CA:TRUE" if authority else "critical,CA:FALSE"
        usage = "critical,keyCertSign,digitalSignature" if authority else "critical,digitalSignature"
        run_openssl(
            "req", "-config", str(config), "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-sha256",
            "-days", str(days), "-subj", f"/CN={_subject(names[0])}", "-keyout", str(key), "-out", str(cert),
            "-addext", f"basicConstraints={constraint}", "-addext", f"keyUsage={usage}",
            "-addext", f"subjectAltName={alternative_names(names)}",
        )  # fmt: skip
        write_atomic(cert_path, cert.read_bytes(), mode=0o644)
        write_atomic(key_path, key.read_bytes(), mode=0o600)
    fsync_dir(Path(key_path).parent)
    return certificate_sha256(cert_path)


def alternative_names(names: Sequence[str]) -> str:
    """Return names as a subjectAltName value: `IP:` for address literals, `DNS:` for the rest."""
    return ",".join(f"IP:{name}" if _is_address(name) else f"DNS:{_subject(name)}" for name in names)


def run_openssl(*arguments: str) -> bytes:
    """Run `openssl` with a time limit and an empty environment; returns its standard output.

    Raises:
        LocalError: missing, failed or too slow; the message carries its last line, never a key.
    """
    environment = {"PATH": os.environ.get("PATH", os.defpath)}
    command = ["openssl", *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, check=True, timeout=OPENSSL_TIMEOUT_S, env=environment
        )
    except FileNotFoundError as exc:
        raise LocalError("expected the program `openssl` (Debian package openssl)") from exc
    except subprocess.CalledProcessError as exc:
        last = exc.stderr.decode("utf-8", "replace").strip().rsplit("\n", 1)[-1]
        raise LocalError(f"openssl {arguments[0]} failed: {last}") from exc
    except subprocess.TimeoutExpired as exc:
        raise LocalError(f"openssl {arguments[0]} took longer than {OPENSSL_TIMEOUT_S:g} s") from exc
    return done.stdout


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _subject(name: str) -> str:
    if not name or set(name) & set("/,=\n\\") or len(name) > 64:
        raise LocalError(f"certificate name {name!r}: expected 1 to 64 characters without / , = or backslash")
    return name
