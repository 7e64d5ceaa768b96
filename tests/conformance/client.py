"""The command line that the public TUF conformance suite drives (tuf-conformance, CLIENT-CLI.md), over hgwd's core.

    client.py --metadata-dir D init ROOT
    client.py --metadata-dir D --metadata-url U refresh
    client.py --metadata-dir D --metadata-url U --target-name P --target-base-url T --target-dir X download

Exit code 0: everything asked for was done; 1: anything failed. The suite signs with ECDSA and RSA as well, so it needs
`cryptography`, which a gateway does not have: it is imported before hgwd hides it.
"""

from __future__ import annotations

import argparse
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import cryptography.hazmat.primitives.asymmetric.ec
import securesystemslib.signer  # noqa: F401

from hgwd.core.tuf_keys import RepositoryError, Root, TargetFile
from hgwd.core.update_images import ImageRepository
from hgwd.core.update_types import Cause, Load, Need, RefusedError, Steps, Store
from runtime.files import write_atomic

assert cryptography
_ResultT = TypeVar("_ResultT")
TIMEOUT_S = 20


def fetch(url: str, max_bytes: int) -> bytes | None:
    """GET; None for 403 and 404. Raises RefusedError over `max_bytes`, OSError otherwise."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            data: bytes = answer.read(max_bytes + 1)
    except urllib.error.HTTPError as error:
        with error:
            if error.code in {403, 404}:
                return None
            raise
    if len(data) > max_bytes:
        raise RefusedError(Cause.TOO_LARGE, f"{url}: more than {max_bytes} bytes")
    return data


class Driver:
    """Answers the core from a metadata directory and a server."""

    def __init__(self, directory: Path, url: str) -> None:
        self._directory = directory
        self._url = url.rstrip("/")

    def path(self, name: str) -> Path:
        return self._directory / f"{quote(name, safe='')}.json"

    def run(self, steps: Steps[_ResultT]) -> _ResultT:
        answer: bytes | None = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as stop:
                result: _ResultT = stop.value
                return result
            match step:
                case Need():
                    answer = fetch(f"{self._url}/{step.path}", step.max_bytes)
                case Load():
                    path = self.path(step.name)
                    answer = path.read_bytes() if path.exists() else None
                case Store():
                    write_atomic(self.path(step.name), step.data)
                    answer = None


def refreshed(driver: Driver) -> ImageRepository:
    repository = ImageRepository(driver.path(Root.type).read_bytes(), time.time())
    driver.run(repository.refresh())
    return repository


def download(driver: Driver, names: Sequence[str], base_url: str, directory: Path) -> None:
    repository = refreshed(driver)
    for name in names:
        target = driver.run(repository.find_target(name))
        if target is None:
            raise RefusedError(Cause.MISSING, f"{name}: not listed")
        path = directory / quote(name, safe="")
        if path.exists() and is_whole(target, path.read_bytes()):
            continue
        data = fetch(f"{base_url.rstrip('/')}/{repository.target_url_path(target)}", target.length)
        if data is None or not is_whole(target, data):
            raise RefusedError(Cause.BAD_HASH, f"{name}: not the listed bytes")
        write_atomic(path, data)


def is_whole(target: TargetFile, data: bytes) -> bool:
    try:
        target.verify_length_and_hashes(data)
    except RepositoryError:
        return False
    return True


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url", default="")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-base-url", default="")
    parser.add_argument("--target-dir", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    options = parser.parse_args(arguments)
    driver = Driver(options.metadata_dir, options.metadata_url)
    try:
        if options.command == "init":
            write_atomic(driver.path(Root.type), options.root.read_bytes())
        elif options.command == "refresh":
            refreshed(driver)
        else:
            download(driver, options.target_name, options.target_base_url, options.target_dir)
    except (RefusedError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
