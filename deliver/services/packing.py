"""Turn a directory into a package, the same bytes every time (`deliver pack`).

Rules
- The directory holds `manifest.toml` or `manifest.json`; every other regular file below it becomes part of the package.
- Symbolic links, devices and odd names are refused, never skipped: what is packed is what is seen.
- Only content, name and the owner's execute bit count; times, owners and other modes do not.
"""

from __future__ import annotations

import json
import os
import stat
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from runtime.errors import LocalError
from wire.errors import WireError
from wire.package import Manifest, parse_manifest
from wire.package_archive import STORED_BYTES_MAX, PackageFile, build_package

MANIFEST_NAMES: Final = ("manifest.toml", "manifest.json")


def pack_directory(source: Path) -> tuple[Manifest, bytes]:
    """Return manifest and archive bytes of a directory.

    Raises `LocalError` for no or two manifests, a link or device, or a form the archive refuses.
    """
    try:
        manifest = _load_manifest(source)
        files = dict(_files(source))
        data = build_package(manifest, files)
    except (WireError, OSError) as error:
        raise LocalError(f"{source}: {error}") from error
    if len(data) >= STORED_BYTES_MAX:
        message = f"{source}: packs to {len(data)} bytes: expected less than {STORED_BYTES_MAX} (JNT-05)"
        raise LocalError(message)
    return manifest, data


def _load_manifest(source: Path) -> Manifest:
    found = [source / name for name in MANIFEST_NAMES if (source / name).exists()]
    if len(found) != 1:
        raise LocalError(f"{source}: expected one of {' and '.join(MANIFEST_NAMES)}, found {len(found)}")
    text = found[0].read_bytes()
    if found[0].suffix == ".toml":
        try:
            tree = tomllib.loads(text.decode())
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise LocalError(f"{found[0]}: expected TOML: {error}") from error
        text = json.dumps(tree).encode()
    return parse_manifest(text)


def _files(source: Path) -> Iterator[tuple[str, PackageFile]]:
    for folder, folders, names in os.walk(source):
        for name in folders:
            _check_kind(Path(folder, name), stat.S_ISDIR)
        for name in names:
            path = Path(folder, name)
            mode = _check_kind(path, stat.S_ISREG)
            inside = path.relative_to(source).as_posix()
            if inside not in MANIFEST_NAMES:
                yield inside, PackageFile(path.read_bytes(), executable=bool(mode & stat.S_IXUSR))


def _check_kind(path: Path, is_kind: Callable[[int], bool]) -> int:
    mode = path.lstat().st_mode
    if not is_kind(mode):
        raise LocalError(f"{path}: expected regular files and directories only, got {stat.filemode(mode)}")
    return mode
