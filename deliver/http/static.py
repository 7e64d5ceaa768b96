"""Serve the two repositories as static files (protocols.md §4): ETag, 304, one range, sendfile.

Rules
- Only names that the repositories write are served; everything else is 404, whatever lies in the directory.
- `timestamp.json` and `director.json` are replaced in place: they are read whole, so that ETag, length and bytes
  belong together. Every other file never changes once it has its name.
- No line is needed: the content is public or under a random path.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path
from typing import Final

import attrs

from runtime.http import Request, Response, error_response, file_response, not_modified

REPLACED_BYTES_MAX: Final = 256 * 1024
_METADATA: Final = re.compile(r"[0-9]{1,12}\.[a-z0-9-]{1,64}\.json")
_TARGET: Final = re.compile(
    r"[0-9a-f]{2}/[a-z0-9-]+/[a-z0-9-]+/[0-9a-z.-]+/[0-9a-f]{64}\.[A-Z]{2}-[0-9]{3}\.hgwpkg"
)
_HEX: Final = re.compile(r"[0-9a-f]{32}")
_JSON: Final = (("content-type", "application/json"),)
_OCTETS: Final = (
    ("content-type", "application/octet-stream"),
    ("cache-control", "public, max-age=31536000, immutable"),
)


@attrs.frozen
class StaticFiles:
    """Handlers over the public directories."""

    image_dir: Path
    director_dir: Path

    async def get_metadata(self, request: Request, name: str) -> Response:
        """`GET /image/metadata/{name}`."""
        if name == "timestamp.json":
            return _replaced(request, self.image_dir / "metadata" / name)
        if _METADATA.fullmatch(name) is None:
            return _not_found()
        return _fixed(request, self.image_dir / "metadata" / name, _JSON)

    async def get_target(self, request: Request, path: str) -> Response:
        """`GET /image/targets/{path}`: consistent-snapshot names only."""
        if _TARGET.fullmatch(path) is None:
            return _not_found()
        return _fixed(request, self.image_dir / "targets" / path, _OCTETS)

    async def get_director_root(self, request: Request, name: str) -> Response:
        """`GET /director/N.root.json`."""
        if _METADATA.fullmatch(name) is None:
            return _not_found()
        return _fixed(request, self.director_dir / name, _JSON)

    async def get_director(self, request: Request, path: str) -> Response:
        """`GET /director/<32 hex>/director.json`."""
        if _HEX.fullmatch(path) is None:
            return _not_found()
        return _replaced(request, self.director_dir / path / "director.json")


def _fixed(request: Request, path: Path, headers: tuple[tuple[str, str], ...]) -> Response:
    try:
        status = os.lstat(path)
    except OSError:
        return _not_found()
    if not stat.S_ISREG(status.st_mode):
        return _not_found()
    etag = f'"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"'
    return file_response(request, path, status.st_size, etag=etag, headers=headers)


def _replaced(request: Request, path: Path) -> Response:
    try:
        with path.open("rb") as file:
            data = file.read(REPLACED_BYTES_MAX)
    except OSError:
        return _not_found()
    etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = (*_JSON, ("cache-control", "no-cache"))
    return not_modified(request, etag, headers) or Response(200, (("etag", etag), *headers), data)


def _not_found() -> Response:
    return error_response(404, "not-found", "nothing is served under this path")
