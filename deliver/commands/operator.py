"""Commands of a service operator: `deliver pack | sign | cosign | submit | rollout | key`."""

from __future__ import annotations

import argparse
import hashlib
import secrets
import sys
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import attrs
import msgspec
import trio

from deliver.services.operator_signing import OperatorState, cosign, measure_package, sign_package
from deliver.services.packing import pack_directory
from deliver.signing.keystore import create_key_file, load_key_file
from runtime.clock import SystemClock
from runtime.errors import LocalError, RemoteError
from runtime.files import write_atomic
from runtime.http import FileBody
from runtime.http_client import HttpClient
from runtime.tls import client_context
from wire.joint import OperatorSubmit, Quote, RolloutAnswer, RolloutRequest
from wire.signing import SigningKey
from wire.statement import Audience, Kind, make_statement, to_header
from wire.units import format_bytes

EXIT_OK: Final = 0
EXIT_REFUSED: Final = 3


def add_operator_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the commands."""
    key = commands.add_parser("key", help="make an Ed25519 key file and its public half FILE.pub")
    key.add_argument("file", type=Path)
    key.add_argument("--role", default="operator", help="a word for people (default: operator)")
    key.set_defaults(run=run_key)
    pack = commands.add_parser(
        "pack", help="turn a directory into a package, byte for byte the same each time"
    )
    pack.add_argument("source", type=Path)
    pack.add_argument("-o", "--output", type=Path, required=True)
    pack.set_defaults(run=run_pack)
    sign = commands.add_parser("sign", help="sign metadata that lists a package, with your own keys")
    sign.add_argument("package", type=Path)
    sign.add_argument("--key", type=Path, action="append", required=True)
    sign.add_argument("--state", type=Path, default=Path(), help="where your metadata files are kept")
    sign.set_defaults(run=run_sign)
    second = commands.add_parser("cosign", help="add a further signature to signed metadata")
    second.add_argument("metadata", type=Path)
    second.add_argument("--key", type=Path, required=True)
    second.set_defaults(run=run_cosign)
    submit = commands.add_parser("submit", help="show the price of a package, then submit it")
    submit.add_argument("package", type=Path)
    submit.add_argument("--change", choices=["new", "change"], default="new", help="class of work (JNT-13)")
    submit.add_argument("--state", type=Path, default=Path())
    submit.add_argument("--yes", action="store_true", help="accept the price without asking")
    submit.add_argument("--quote-only", action="store_true", help="show the price and stop")
    _add_server(submit)
    submit.set_defaults(run=run_submit)
    rollout = commands.add_parser(
        "rollout", help="deliver a version to lines, or remove the software from them"
    )
    rollout.add_argument("software", help="OPERATOR/SOFTWARE")
    rollout.add_argument("version")
    rollout.add_argument("customers", nargs="+", help="customer IDs (CAF and 10 digits)")
    rollout.add_argument("--remove", action="store_true")
    _add_server(rollout)
    rollout.set_defaults(run=run_rollout)


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", required=True, help="https://[address]:port of the operator listener")
    parser.add_argument("--ca", type=Path, required=True, help="the carrier's tls-ca.pem")
    parser.add_argument("--api-key", type=Path, required=True)
    parser.add_argument("--json", action="store_true")


def run_key(arguments: argparse.Namespace) -> int:
    """Make a key."""
    key = create_key_file(arguments.file, arguments.role)
    public = Path(f"{arguments.file}.pub")
    write_atomic(public, key.public.hex().encode() + b"\n")
    _say(f"{arguments.file}: secret, keep it\n{public}: {key.public.hex()}")
    return EXIT_OK


def run_pack(arguments: argparse.Namespace) -> int:
    """Pack a directory."""
    manifest, data = pack_directory(arguments.source)
    write_atomic(arguments.output, data)
    digest = hashlib.sha256(data).hexdigest()
    _say(
        f"{arguments.output}: {manifest.operator}/{manifest.software} {manifest.version} (release {manifest.release})"
    )
    _say(f"  {len(data)} bytes, SHA-256 {digest}")
    return EXIT_OK


def run_sign(arguments: argparse.Namespace) -> int:
    """Sign metadata that lists a package."""
    package = measure_package(arguments.package)
    keys = [load_key_file(path) for path in arguments.key]
    state = OperatorState(arguments.state, package.manifest.operator)
    path = sign_package(state, package, keys, now_s=SystemClock().now_s())
    _say(f"{path}: lists {package.target_path}, {len(keys)} signature(s)")
    return EXIT_OK


def run_cosign(arguments: argparse.Namespace) -> int:
    """Add a signature."""
    count = cosign(arguments.metadata, load_key_file(arguments.key))
    _say(f"{arguments.metadata}: {count} signature(s)")
    return EXIT_OK


def run_submit(arguments: argparse.Namespace) -> int:
    """Quote, show, ask, submit."""
    return trio.run(_submit, arguments)


def run_rollout(arguments: argparse.Namespace) -> int:
    """Roll out a version."""
    return trio.run(_rollout, arguments)


@attrs.frozen
class _Portal:
    """The operator listener, with our API key."""

    client: HttpClient
    key: SigningKey

    async def post(self, path: str, order: OperatorSubmit, body: bytes | FileBody) -> tuple[int, bytes]:
        """Send a signed order with its body; returns status and answer."""
        nonce = secrets.token_bytes(16)
        statement = make_statement(
            self.key,
            Kind.OPERATOR_SUBMIT,
            Audience.JOINT,
            now_s=SystemClock().now_s(),
            nonce=nonce,
            body=order,
        )
        headers = {"hgw-statement": to_header(statement)}
        response = await self.client.request("POST", path, headers=headers, body=body)
        return response.status, response.body


def _portal(arguments: argparse.Namespace) -> _Portal:
    url = urlsplit(arguments.server)
    if url.scheme != "https" or url.hostname is None or url.port is None:
        raise LocalError(f"--server: expected https://host:port, got {arguments.server!r}")
    client = HttpClient(url.hostname, url.port, client_context(arguments.ca))
    return _Portal(client, load_key_file(arguments.api_key))


async def _submit(arguments: argparse.Namespace) -> int:
    package = measure_package(arguments.package)
    manifest = package.manifest
    portal = _portal(arguments)
    order = OperatorSubmit(
        operator=manifest.operator,
        software=manifest.software,
        version=manifest.version,
        change=arguments.change,
        body_sha256=package.sha256,
    )
    async with portal.client:
        body = FileBody(arguments.package, 0, package.stored_bytes)
        status, answer = await portal.post("/operator/v1/quotes", order, body)
        if status == 200:
            _say("registered already: nothing to do, nothing to pay")
            return EXIT_OK
        if status != 201:
            return _refused(status, answer)
        quote = msgspec.json.decode(answer, type=Quote)
        _show_quote(quote, as_json=arguments.json)
        if arguments.quote_only or not (arguments.yes or _ask()):
            return EXIT_OK
        state = OperatorState(arguments.state, manifest.operator)
        metadata = _read(state.waiting)
        order = msgspec.structs.replace(
            order, quote_id=quote.quote_id, body_sha256=hashlib.sha256(metadata).hexdigest()
        )
        status, answer = await portal.post(f"/operator/v1/quotes/{quote.quote_id}/accept", order, metadata)
    if status != 201:
        return _refused(status, answer)
    state.mark_accepted()
    _say(answer.decode() if arguments.json else f"accepted: {quote.target_path}")
    return EXIT_OK


async def _rollout(arguments: argparse.Namespace) -> int:
    operator, _, software = arguments.software.partition("/")
    action = "remove" if arguments.remove else "install"
    body = msgspec.json.encode({"customers": arguments.customers, "action": action})
    msgspec.json.decode(body, type=RolloutRequest)
    order = OperatorSubmit(
        operator=operator,
        software=software,
        version=arguments.version,
        change="rollout",
        body_sha256=hashlib.sha256(body).hexdigest(),
    )
    portal = _portal(arguments)
    async with portal.client:
        status, answer = await portal.post("/operator/v1/rollouts", order, body)
    if status != 200:
        return _refused(status, answer)
    targets = msgspec.json.decode(answer, type=RolloutAnswer).targets
    if arguments.json:
        _say(answer.decode())
    else:
        for target in targets:
            reason = f": {target.rule}: {target.message}" if target.rule else ""
            _say(f"{target.customer} {target.state}{reason}")
    return EXIT_REFUSED if any(target.state == "refused" for target in targets) else EXIT_OK


def _show_quote(quote: Quote, *, as_json: bool) -> None:
    if as_json:
        _say(msgspec.json.encode(quote).decode())
        return
    _say(f"{quote.target_path}")
    _say(f"  stored     {quote.stored_bytes:>12,} B ({format_bytes(quote.stored_bytes)}), {quote.menu}")
    _say(f"  per target {quote.footprint_bytes:>12,} B ({format_bytes(quote.footprint_bytes)}), {quote.plan}")
    _say(
        f"  monthly    {quote.basic_fee_yen:>12,} yen, and {quote.target_fee_yen:,} yen per target (tax included)"
    )
    _say(f"  one-off    {quote.one_off_yen:>12,} yen, work class {quote.change!r} ({quote.rule})")


def _ask() -> bool:
    sys.stdout.write("submit at this price? [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _refused(status: int, answer: bytes) -> int:
    try:
        body = msgspec.json.decode(answer, type=dict[str, object])
    except msgspec.DecodeError as error:
        raise RemoteError(f"the server answered {status} without a reason") from error
    rule = f" ({body['rule']})" if "rule" in body else ""
    sys.stderr.write(f"refused: {body.get('code')}{rule}: {body.get('message')}\n")
    return EXIT_REFUSED


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LocalError(f"{path}: {error.strerror}: run `deliver sign` first") from error


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
