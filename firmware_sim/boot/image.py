"""Build what a slot holds: kernel, initrd, and a read-only root with Python, locked wheels and our code.

Rules
- Every input is named by its content: package list, wheel lock, sources, this builder. The same inputs are built once;
  the results lie under one cache directory, and anything there may be deleted at any time.
- Foreign packages are only unpacked, never run: no emulation, no binfmt, no root needed.
- Wheels come by hash from the lock file of the gateway; nothing of another program gets in.
- The root must fit a slot of the profile.

It does not sign images: firmware updates are the carrier's own role (design §5.1).
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path

import attrs

from firmware_sim.profile import MIB, Profile

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / "build" / "firmware"
DEBIAN_RELEASE = "bookworm"
OUR_PACKAGES = ("wire", "runtime", "hgwd")
STEP_TIMEOUT_S = 600
_BUILDER = "1"  # raise when the steps below change what they make
_PYTHON = "usr/lib/python3.11"
_SITE = "usr/lib/python3/dist-packages"
_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio-rng", "squashfs", "overlay")
_PLATFORMS = ("manylinux_2_17_aarch64", "manylinux2014_aarch64", "manylinux_2_28_aarch64")
_APPLETS = ("sh", "mount", "umount", "hostname", "date", "cat", "cut", "awk", "df", "su", "chown", "sync", "kill",
            "poweroff", "sleep", "ls", "id", "rm", "mkdir")  # fmt: skip
_TOOLS = ("mmdebstrap", "mksquashfs", "depmod", "cpio", "tar")


class ImageError(Exception):
    """The image could not be built; the text names the step and what its tool said."""


@attrs.frozen
class Image:
    """The files a machine starts from, and what the root takes of a slot."""

    kernel: Path
    initrd: Path
    root: Path
    key: str

    @property
    def root_bytes(self) -> int:
        """Return the size of the read-only root in bytes."""
        return self.root.stat().st_size


def build_image(profile: Profile, *, cache: Path = CACHE, lock: Path | None = None) -> Image:
    """Return the image for a profile, built now or taken from the cache.

    Args:
        profile: gives the slot's size.
        cache: where results lie; about 400 MB of scratch and results.
        lock: pip requirements with hashes; `requirements/gateway.txt` of this checkout when None.

    Raises:
        ImageError: a tool is missing or failed, or the root does not fit the slot.
    """
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        raise ImageError(f"image: {', '.join(missing)} not installed: see scripts/debian-packages-sim.txt")
    lock = lock or REPOSITORY / "requirements" / "gateway.txt"
    cache.mkdir(parents=True, exist_ok=True)
    base = _cached(cache, "base", [_data("packages.txt")], _make_base)
    wheels = _cached(cache, "wheels", [lock.read_bytes()], lambda out: _make_wheels(out, lock))
    kernel = _cached(
        cache, "kernel", [base.name.encode(), _data("guest/initrd.sh")], lambda out: _make_kernel(out, base)
    )
    inputs = [
        base.name.encode(),
        wheels.name.encode(),
        _data("left-out.txt"),
        _data("guest/init.sh"),
        *_sources(),
    ]
    root = _cached(cache, "root", inputs, lambda out: _make_root(out, base, wheels))
    image = Image(kernel / "vmlinuz", kernel / "initrd.gz", root / "root.sqfs", root.name)
    if image.root_bytes > profile.slot_mib.value * MIB:
        raise ImageError(
            f"image: {image.root_bytes} bytes do not fit the {profile.slot_mib.value} MiB slot of the {profile.title}"
        )
    return image


def _data(name: str) -> bytes:
    return (resources.files("firmware_sim.boot") / name).read_bytes()


def _sources() -> list[bytes]:
    """Return name and content of every file of ours that gets in, in a fixed order."""
    files = [path for package in OUR_PACKAGES for path in sorted((REPOSITORY / package).rglob("*"))]
    wanted = [path for path in files if path.is_file() and "__pycache__" not in path.parts]
    return [
        part for path in wanted for part in (str(path.relative_to(REPOSITORY)).encode(), path.read_bytes())
    ]


def _cached(cache: Path, kind: str, inputs: Iterable[bytes], make: Callable[[Path], None]) -> Path:
    """Return `cache/kind-<hash of inputs>`, made by `make(empty directory)` when it is not there yet."""
    digest = hashlib.sha256(f"{kind}/{_BUILDER}".encode())
    for part in inputs:
        digest.update(len(part).to_bytes(8, "big") + part)
    final = cache / f"{kind}-{digest.hexdigest()[:16]}"
    if final.is_dir():
        return final
    with tempfile.TemporaryDirectory(prefix=f".{kind}-", dir=cache) as scratch:
        out = Path(scratch) / "out"
        out.mkdir()
        make(out)
        try:
            out.rename(final)
        except OSError:
            if not final.is_dir():  # else another build made the same thing at the same time
                raise
    return final


def _run(step: str, argv: Sequence[str | Path], **options: Path | bytes) -> bytes:
    try:
        done = subprocess.run(  # type: ignore[call-overload]
            [str(word) for word in argv], capture_output=True, timeout=STEP_TIMEOUT_S, check=False, **options
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ImageError(f"image: {step}: {error}") from error
    if done.returncode != 0:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()[-5:]
        raise ImageError(f"image: {step} failed: {' | '.join(words)}")
    return bytes(done.stdout)


def _packages() -> str:
    lines = (line.partition("#")[0].strip() for line in _data("packages.txt").decode().splitlines())
    return ",".join(line for line in lines if line)


def _make_base(out: Path) -> None:
    options = ["--mode=auto", "--variant=extract", "--architectures=arm64", "--components=main"]
    hooks = ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", '--aptopt=APT::Install-Recommends "false"']
    _run(
        "unpacking Debian packages",
        ["mmdebstrap", *options, *hooks, f"--include={_packages()}", DEBIAN_RELEASE, out / "base.tar"],
    )


def _make_wheels(out: Path, lock: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", "3.11"]
    platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    _run("fetching locked wheels", [*pip, *target, *platforms, "--require-hashes", "-d", out, "-r", lock])


def _make_kernel(out: Path, base: Path) -> None:
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        tree, ram = Path(scratch) / "tree", Path(scratch) / "ram"
        tree.mkdir()
        wanted = ["./boot", "./usr/lib/modules", "./usr/bin/busybox", "./lib"]
        _run("unpacking the kernel", ["tar", "-xf", base / "base.tar", "-C", tree, *wanted])
        shutil.copy(next((tree / "boot").glob("vmlinuz-*")), out / "vmlinuz")
        for directory in ("bin", "dev", "root", "modules"):
            (ram / directory).mkdir(parents=True)
        shutil.copy(tree / "usr/bin/busybox", ram / "bin/busybox")
        order = _copy_modules(tree, ram / "modules")
        (ram / "modules/order").write_text("\n".join(order) + "\n", "ascii")
        (ram / "init").write_bytes(_data("guest/initrd.sh"))
        (ram / "init").chmod(0o755)
        names = "\n".join(sorted(str(path.relative_to(ram)) for path in ram.rglob("*")))
        archive = _run(
            "packing the initrd", ["cpio", "-o", "-H", "newc", "-R", "0:0"], input=names.encode(), cwd=ram
        )
        (out / "initrd.gz").write_bytes(gzip.compress(archive, mtime=0))


def _copy_modules(tree: Path, target: Path) -> list[str]:
    """Copy the modules that find the disks and their dependencies; return file names in loading order."""
    folder = next((tree / "usr/lib/modules").iterdir())
    _run("reading module dependencies", ["depmod", "-b", tree, folder.name])
    needs: dict[str, list[str]] = {}
    for line in (folder / "modules.dep").read_text("ascii").splitlines():
        module, _, dependencies = line.partition(":")
        needs[Path(module).stem] = [*reversed(dependencies.split()), module]
    order: list[str] = []
    for name in _MODULES:
        for module in needs.get(name, []):
            if Path(module).name not in order:
                shutil.copy(folder / module, target)
                order.append(Path(module).name)
    return order


def _make_root(out: Path, base: Path, wheels: Path) -> None:
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        tree = Path(scratch) / "tree"
        tree.mkdir()
        patterns = Path(scratch) / "left-out"
        lines = _data("left-out.txt").decode().splitlines()
        patterns.write_text("".join(f"{line}\n" for line in lines if not line.startswith("#")), "utf-8")
        _run("unpacking the root", ["tar", "-xf", base / "base.tar", "-C", tree, "-X", patterns, "--exclude=./boot/*",
                                    "--exclude=./usr/lib/modules/*"])  # fmt: skip
        for wheel in sorted(wheels.glob("*.whl")):
            _run(f"unpacking {wheel.name}", [sys.executable, "-m", "zipfile", "-e", wheel, tree / _SITE])
        for package in OUR_PACKAGES:
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / package, tree / _SITE / package, ignore=ignore)
        _add_system_files(tree)
        # A read-only root cannot cache bytecode at run time; without it an import takes five times as long.
        _run(
            "compiling",
            [sys.executable, "-m", "compileall", "-q", "-j2", "--invalidation-mode", "unchecked-hash", "-s", tree,
             tree / _PYTHON, tree / _SITE],
        )  # fmt: skip
        squash = ["-comp", "zstd", "-Xcompression-level", "6", "-noappend", "-all-root", "-no-progress"]
        _run("packing the root", ["mksquashfs", tree, out / "root.sqfs", *squash])


def _add_system_files(tree: Path) -> None:
    for directory in ("data", "dev", "proc", "sys", "run", "tmp", "root", "etc"):
        (tree / directory).mkdir(exist_ok=True)
    (tree / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nhgwd:x:900:900::/data:/bin/sh\n", "ascii")
    (tree / "etc/group").write_text("root:x:0:\nhgwd:x:900:\n", "ascii")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n", "ascii")
    init = tree / "usr/sbin/hgw-init"
    init.write_bytes(_data("guest/init.sh"))
    init.chmod(0o755)
    for applet in _APPLETS:
        if not (tree / "usr/bin" / applet).exists():
            (tree / "usr/bin" / applet).symlink_to("busybox")
