"""The package archive `.hgwpkg`: xz over a canonical USTAR stream; one writer, one strict streaming reader.

Rules
- Entry 1 is `manifest.json`; then regular files below `files/`, in strictly ascending byte order of their names.
- Every header is exactly the one the writer makes for (name, size, executable): owner 0, time 0, mode 0644 or 0755,
  type "regular file". So links, devices, setuid bits, pax records and directory entries cannot be written at all.
- Two zero blocks end the stream; nothing follows them, inside or behind the xz stream.
- The reader needs a few MiB whatever the package holds: the xz dictionary is 2 MiB and the decoder refuses more;
  decoded bytes are handed on in blocks of at most `BLOCK_BYTES`.
- Same manifest and files, same liblzma: same bytes.
- It does not do: hashes or signatures (the caller has verified the bytes before), writing files (hgwd, deliver).
"""

from __future__ import annotations

import lzma
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import attrs

from wire.errors import FormatError
from wire.package import MANIFEST_BYTES_MAX, Manifest, check_package_path, encode_manifest, parse_manifest

STORED_BYTES_MAX: Final = 25 * 2**20
"""Archive size at which every menu ends (JNT-05); the reader stops there."""
UNPACKED_BYTES_MAX: Final = 32 * 2**20
FILE_COUNT_MAX: Final = 4096
BLOCK_BYTES: Final = 64 * 1024

_MANIFEST_NAME: Final = "manifest.json"
_FILES_PREFIX: Final = "files/"
_TAR_BLOCK: Final = 512
_DICT_BYTES: Final = 2 * 2**20
_DECODER_BYTES_MAX: Final = 8 * 2**20
_MODE_PLAIN: Final = 0o644
_MODE_EXECUTABLE: Final = 0o755
_FILTERS: Final = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": _DICT_BYTES}]


@attrs.frozen
class PackageFile:
    """One file of a package: content and whether it may be executed."""

    data: bytes
    executable: bool = False


@attrs.frozen
class ManifestRead:
    """First event of a package."""

    manifest: Manifest


@attrs.frozen
class FileStart:
    """A file begins; exactly `size_bytes` bytes follow in `FileData` events."""

    path: str
    size_bytes: int
    executable: bool


@attrs.frozen
class FileData:
    """The next 1 to `BLOCK_BYTES` bytes of the file that began last."""

    data: bytes


@attrs.frozen
class FileEnd:
    """The file that began last is complete."""

    path: str


PackageEvent = ManifestRead | FileStart | FileData | FileEnd


def build_package(manifest: Manifest, files: Mapping[str, PackageFile]) -> bytes:
    """Return the archive of `manifest` and `files` (path inside the package → file).

    Raises `FormatError` for an unsafe path, a missing entry point, too many files or too many bytes.
    """
    _check_content(manifest, files)
    compressor = lzma.LZMACompressor(format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=_FILTERS)
    parts = [compressor.compress(chunk) for chunk in _tar_chunks(manifest, files)]
    parts.append(compressor.flush())
    return b"".join(parts)


def footprint_of(sizes_bytes: Iterable[int]) -> int:
    """Return the footprint on a gateway: the bytes of all installed files, manifest not counted (JNT-06)."""
    return sum(sizes_bytes)


def _check_content(manifest: Manifest, files: Mapping[str, PackageFile]) -> None:
    total_bytes = sum(len(item.data) for item in files.values())
    if len(files) > FILE_COUNT_MAX or total_bytes > UNPACKED_BYTES_MAX:
        message = (
            f"package: expected at most {FILE_COUNT_MAX} files and {UNPACKED_BYTES_MAX} bytes, "
            f"got {len(files)} files and {total_bytes} bytes"
        )
        raise FormatError(message)
    if manifest.entry not in files:
        message = f"package: entry {manifest.entry} is not among its files"
        raise FormatError(message)
    seen: set[str] = set()
    for path in sorted(files):
        _check_place(check_package_path(path), seen)


def _check_place(path: str, seen: set[str]) -> None:
    """Refuse a path that stands twice or lies below a file; then remember it."""
    parents = {path[:index] for index, char in enumerate(path) if char == "/"}
    if path in seen or parents & seen:
        message = f"package: {path} stands twice or lies below a file"
        raise FormatError(message)
    seen.add(path)


def _tar_chunks(manifest: Manifest, files: Mapping[str, PackageFile]) -> Iterator[bytes]:
    encoded = encode_manifest(manifest)
    yield from _tar_entry(_MANIFEST_NAME, encoded, executable=False)
    for path in sorted(files):
        yield from _tar_entry(_FILES_PREFIX + path, files[path].data, executable=files[path].executable)
    yield bytes(2 * _TAR_BLOCK)


def _tar_entry(name: str, data: bytes, *, executable: bool) -> Iterator[bytes]:
    yield _header(name, len(data), executable=executable)
    yield data
    yield bytes(-len(data) % _TAR_BLOCK)


def _header(name: str, size_bytes: int, *, executable: bool) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size_bytes
    info.mode = _MODE_EXECUTABLE if executable else _MODE_PLAIN
    try:
        return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
    except (ValueError, UnicodeError) as error:
        message = f"package: name {ascii(name)[:120]} does not fit a USTAR header"
        raise FormatError(message) from error


class PackageReader:
    """Reads one archive as bytes come; call `feed` for each piece, then `finish` once.

    Both return events to be consumed at once, in order. After a `FormatError` the reader is of no further use, and
    what it gave before must not be used: nothing counts until `finish` has returned.
    """

    def __init__(self) -> None:
        self._xz = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_DECODER_BYTES_MAX)
        self._buffer = bytearray()
        self._stored_bytes = 0
        self._unpacked_bytes = 0
        self._seen: set[str] = set()
        self._last_name = ""
        self._manifest: Manifest | None = None
        self._path: str | None = None
        self._left_bytes = 0
        self._padding_bytes = 0
        self._zero_blocks = 0

    def feed(self, data: bytes) -> Iterator[PackageEvent]:
        """Yield what `data`, the next bytes of the archive, completes. Raises `FormatError`."""
        self._stored_bytes += len(data)
        if self._stored_bytes >= STORED_BYTES_MAX:
            message = f"package: expected less than {STORED_BYTES_MAX} bytes (JNT-05)"
            raise FormatError(message)
        while data or not (self._xz.needs_input or self._xz.eof):
            if self._xz.eof:
                message = "package: bytes behind the end of the xz stream"
                raise FormatError(message)
            self._buffer += self._decode(data)
            data = b""
            yield from self._parse()

    def finish(self) -> Manifest:
        """Return the manifest once the archive is complete and consistent; raises `FormatError`."""
        whole = self._xz.eof and self._zero_blocks == 2 and not self._buffer
        if not whole or self._manifest is None:
            message = f"package: ends too early, after {self._stored_bytes} bytes"
            raise FormatError(message)
        if self._manifest.entry not in self._seen:
            message = f"package: entry {self._manifest.entry} is not among its files"
            raise FormatError(message)
        return self._manifest

    def _decode(self, data: bytes) -> bytes:
        try:
            decoded = self._xz.decompress(data, BLOCK_BYTES)
        except (lzma.LZMAError, EOFError) as error:
            message = f"package: not a readable xz stream: {error}"
            raise FormatError(message) from error
        if self._xz.unused_data:
            message = "package: bytes behind the end of the xz stream"
            raise FormatError(message)
        self._unpacked_bytes += len(decoded)
        if self._unpacked_bytes > UNPACKED_BYTES_MAX + (FILE_COUNT_MAX + 4) * 2 * _TAR_BLOCK:
            message = f"package: unpacks to more than {UNPACKED_BYTES_MAX} bytes"
            raise FormatError(message)
        return decoded

    def _parse(self) -> Iterator[PackageEvent]:
        while True:
            if self._path is not None:
                yield from self._parse_content()
                if self._path is not None:
                    return
            if len(self._buffer) < self._padding_bytes + _TAR_BLOCK:
                return
            self._skip_padding()
            block = bytes(self._buffer[:_TAR_BLOCK])
            del self._buffer[:_TAR_BLOCK]
            yield from self._start_entry(block)

    def _parse_content(self) -> Iterator[PackageEvent]:
        """Hand on the bytes of the open entry. The manifest is kept back until it is whole."""
        if self._path == _MANIFEST_NAME:
            if len(self._buffer) < self._left_bytes:
                return
            self._manifest = parse_manifest(bytes(self._buffer[: self._left_bytes]))
            del self._buffer[: self._left_bytes]
            self._path = None
            yield ManifestRead(self._manifest)
            return
        while self._left_bytes and self._buffer:
            data = bytes(self._buffer[: min(self._left_bytes, BLOCK_BYTES)])
            del self._buffer[: len(data)]
            self._left_bytes -= len(data)
            yield FileData(data)
        if not self._left_bytes and self._path is not None:
            path, self._path = self._path, None
            yield FileEnd(path)

    def _skip_padding(self) -> None:
        if any(self._buffer[: self._padding_bytes]):
            message = "package: padding between entries is not zero"
            raise FormatError(message)
        del self._buffer[: self._padding_bytes]
        self._padding_bytes = 0

    def _start_entry(self, block: bytes) -> Iterator[PackageEvent]:
        if not any(block):
            self._zero_blocks += 1
        if self._zero_blocks > 2 or (self._zero_blocks and any(block)):
            message = "package: bytes behind the end of the archive"
            raise FormatError(message)
        if self._zero_blocks:
            return
        name, size_bytes, executable = _parse_header(block)
        self._padding_bytes = -size_bytes % _TAR_BLOCK
        self._left_bytes = size_bytes
        if self._manifest is None:
            self._open_manifest(name, size_bytes)
            return
        self._path = self._open_file(name)
        yield FileStart(self._path, size_bytes, executable)

    def _open_manifest(self, name: str, size_bytes: int) -> None:
        if name != _MANIFEST_NAME or size_bytes > MANIFEST_BYTES_MAX:
            message = (
                f"package: expected {_MANIFEST_NAME} first, got {ascii(name)[:80]} of {size_bytes} bytes"
            )
            raise FormatError(message)
        self._path = _MANIFEST_NAME

    def _open_file(self, name: str) -> str:
        if not name.startswith(_FILES_PREFIX) or name <= self._last_name:
            message = f"package: expected an entry below {_FILES_PREFIX} in ascending order, got {ascii(name)[:120]}"
            raise FormatError(message)
        path = check_package_path(name.removeprefix(_FILES_PREFIX))
        _check_place(path, self._seen)
        if len(self._seen) > FILE_COUNT_MAX:
            message = f"package: more than {FILE_COUNT_MAX} files"
            raise FormatError(message)
        self._last_name = name
        return path


def _parse_header(block: bytes) -> tuple[str, int, bool]:
    """Return (name, size in bytes, executable) of a canonical header; raise `FormatError` for every other one."""
    try:
        info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    except (tarfile.TarError, ValueError) as error:
        message = f"package: not a tar header: {error}"
        raise FormatError(message) from error
    shown = ascii(info.name)[:120]
    if block[156:157] != tarfile.REGTYPE:
        message = f"package: {shown}: only regular files are allowed, got entry type {block[156:157]!a}"
        raise FormatError(message)
    if info.mode not in {_MODE_PLAIN, _MODE_EXECUTABLE}:
        message = f"package: {shown}: mode must be 0644 or 0755, got {info.mode:04o}"
        raise FormatError(message)
    if info.size < 0:
        message = f"package: {shown}: negative size"
        raise FormatError(message)
    executable = info.mode == _MODE_EXECUTABLE
    if _header(info.name, info.size, executable=executable) != block:
        message = f"package: {shown}: header is not in canonical form (owner, time or unused fields are set)"
        raise FormatError(message)
    return info.name, info.size, executable


def read_package(data: bytes) -> tuple[Manifest, dict[str, PackageFile]]:
    """Return manifest and files of a whole archive held in memory. Raises `FormatError`."""
    reader = PackageReader()
    files: dict[str, PackageFile] = {}
    content = bytearray()
    executable = False
    for event in reader.feed(data):
        match event:
            case FileStart():
                content, executable = bytearray(), event.executable
            case FileData():
                content += event.data
            case FileEnd():
                files[event.path] = PackageFile(bytes(content), executable)
            case ManifestRead():
                pass
    return reader.finish(), files
