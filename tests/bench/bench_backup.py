"""nas-agent against restic and borg on the same data in the same run: a directory vault, encrypted, compressed.

Prints markdown. Rounds are interleaved (order reversed every round), the figure is the median. CPU and peak memory are
those of the process tree (wait4). Stored bytes are the repository's files after the step. The page cache is warm for all.
Data are made from a seed: SCALE (default 1) times 128 MiB random, 64 MiB log text, 4,000 small files.
Environment: HGW_BENCH_DIR (where to work; default a temporary directory), HGW_BENCH_SCALE, HGW_BENCH_ROUNDS (default 3),
HGW_BENCH_BORG (another borg program, e.g. 1.4 from PyPI, measured beside the one in PATH).
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

SEED = 20_250_401
PASSPHRASE = "bench passphrase"
STEPS = ("first", "unchanged", "1 % changed", "restore")
WORDS = [
    "GET",
    "POST",
    "/index.html",
    "/api/v1/items",
    "200",
    "404",
    "500",
    "timeout",
    "retry",
    "INFO",
    "WARN",
    "ERROR",
    "opened",
    "closed",
    "from",
    "session",
]


@attrs.frozen
class Cost:
    wall_s: float
    cpu_s: float
    peak_mib: float
    stored_mib: float


@attrs.define
class Tool:
    """One program: how to make its repository, back up and restore."""

    name: str
    version: str
    env: dict[str, str]
    init: Callable[[Path], list[list[str]]]
    backup: Callable[[Path, Path], list[str]]
    restore: Callable[[Path, Path, Path], list[str]]
    repository: Callable[[Path], Path]


def run(command: list[str], env: dict[str, str], cwd: Path) -> tuple[float, float, float]:
    """Run to the end; return wall seconds, CPU seconds and peak RSS in MiB."""
    started = time.perf_counter()
    with (cwd / "log").open("ab") as log:
        process = subprocess.Popen(command, env={**os.environ, **env}, cwd=cwd, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.perf_counter() - started
    if process.returncode != 0:
        tail = (cwd / "log").read_text(errors="replace")[-2000:]
        raise SystemExit(f"{command}: exit {process.returncode}\n{tail}")
    return wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def size_mib(path: Path) -> float:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) / 2**20


def nas_agent() -> Tool:
    program = [sys.executable, "-m", "nas_agent.cli"]
    secret = ["--passphrase-file", "pass"]
    return Tool(
        name="nas-agent",
        version=f"checkout, Python {sys.version.split()[0]}",
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        init=lambda w: [[*program, "init", "--quiet", "--state", "state", *secret, "--kdf-memory-mib", "8"]],
        backup=lambda w, src: [
            *program,
            "backup",
            str(src),
            "--quiet",
            "--state",
            "state",
            "--to",
            f"file://{w}/repo",
        ],
        restore=lambda w, src, out: [
            *program,
            "restore",
            "latest",
            "--from",
            f"file://{w}/repo",
            "--to",
            str(out),
            "--quiet",
            "--state",
            "state",
            *secret,
        ],
        repository=lambda w: w / "repo",
    )


def restic() -> Tool:
    return Tool(
        name="restic",
        version=first_line(["restic", "version"]),
        env={"RESTIC_PASSWORD": PASSPHRASE, "RESTIC_CACHE_DIR": "cache"},
        init=lambda w: [["restic", "-q", "-r", "repo", "init"]],
        backup=lambda w, src: ["restic", "-q", "-r", "repo", "backup", str(src)],
        restore=lambda w, src, out: ["restic", "-q", "-r", "repo", "restore", "latest", "--target", str(out)],
        repository=lambda w: w / "repo",
    )


def borg(program: str) -> Tool:
    counter = iter(range(1_000_000))
    last: list[str] = []

    def backup(w: Path, src: Path) -> list[str]:
        last[:] = [f"repo::a{next(counter)}"]
        return [program, "create", "--compression", "zstd,3", last[0], str(src)]

    def restore(w: Path, src: Path, out: Path) -> list[str]:
        out.mkdir()
        return ["sh", "-c", f"cd '{out}' && exec '{program}' extract '{w}/{last[0]}'"]

    return Tool(
        name=first_line([program, "--version"]).replace(" ", " "),
        version=first_line([program, "--version"]),
        env={
            "BORG_PASSPHRASE": PASSPHRASE,
            "BORG_BASE_DIR": "base",
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        },
        init=lambda w: [[program, "init", "--encryption", "repokey-blake2", "repo"]],
        backup=backup,
        restore=restore,
        repository=lambda w: w / "repo",
    )


def first_line(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0]


def make_random(root: Path, rng: random.Random, scale: float) -> None:
    for number in range(4):
        (root / f"random{number}").write_bytes(rng.randbytes(int(scale * (32 << 20))))


def log_text(rng: random.Random, size: int) -> bytes:
    lines, length, moment = [], 0, 1_700_000_000.0
    while length < size:
        moment += rng.random()
        host = f"10.0.{rng.randrange(256)}.{rng.randrange(256)}"
        lines.append(
            f"{moment:.3f} {rng.choice(WORDS)} {rng.choice(WORDS)} {host} {rng.randrange(100_000)} {rng.getrandbits(32):x}\n"
        )
        length += len(lines[-1])
    return "".join(lines).encode()


def make_text(root: Path, rng: random.Random, scale: float) -> None:
    for number in range(2):
        (root / f"log{number}").write_bytes(log_text(rng, int(scale * (32 << 20))))


def make_small(root: Path, rng: random.Random, scale: float) -> None:
    text = log_text(rng, 4 << 20)
    for number in range(int(scale * 4000)):
        directory = root / f"d{number % 40}" / f"e{number % 7}"
        directory.mkdir(parents=True, exist_ok=True)
        size, start = int(rng.expovariate(1 / 8200)), rng.randrange(len(text) // 2)
        data = rng.randbytes(size) if number % 4 == 0 else text[start : start + size]
        (directory / f"file{number}").write_bytes(data)


SETS = {"random": make_random, "log text": make_text, "small files": make_small}


def change_one_percent(root: Path, rng: random.Random) -> None:
    """Rewrite 1 % of the bytes of large files in place (64 KiB runs), or replace 1 % of many small ones."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    if len(files) > 100:
        for path in rng.sample(files, max(1, len(files) // 100)):
            path.write_bytes(rng.randbytes(path.stat().st_size + 1))
        return
    for path in files:
        size = path.stat().st_size
        with path.open("r+b") as file:
            for _ in range(max(1, size // 100 // 65_536)):
                file.seek(rng.randrange(size))
                file.write(rng.randbytes(65_536))


def one_round(
    tools: list[Tool], base: Path, make: Callable[[Path, random.Random, float], None], scale: float
) -> Iterator[tuple[str, str, Cost]]:
    rng = random.Random(SEED)
    source = base / "source"
    source.mkdir()
    # In a process of its own: a child's peak memory (wait4) counts from the size its parent had.
    maker = multiprocessing.get_context("spawn").Process(target=make, args=(source, rng, scale))
    maker.start()
    maker.join()
    for tool in tools:
        work = base / tool.name.replace(" ", "-")
        work.mkdir()
        (work / "pass").write_text(PASSPHRASE + "\n")
        (work / "pass").chmod(0o600)
        for command in tool.init(work):
            run(command, tool.env, work)
    for step in STEPS:
        if step == "1 % changed":
            change_one_percent(source, rng)
        time.sleep(1.1)  # files younger than a clock tick would be read again by every careful tool
        for tool in tools:
            work = base / tool.name.replace(" ", "-")
            command = (
                tool.restore(work, source, work / "out") if step == "restore" else tool.backup(work, source)
            )
            cost = run(command, tool.env, work)
            yield tool.name, step, Cost(*cost, size_mib(tool.repository(work)))
    check_restores(tools, base, source)


def check_restores(tools: list[Tool], base: Path, source: Path) -> None:
    for tool in tools:
        out = base / tool.name.replace(" ", "-") / "out"
        nested = out / str(source).lstrip("/")
        target = nested if nested.is_dir() else out
        judge = ["rsync", "-rcn", "--delete", "-i", f"{source}/", f"{target}/"]
        different = subprocess.run(judge, check=True, capture_output=True, text=True).stdout
        if different:
            raise SystemExit(f"{tool.name}: restored tree differs:\n{different[:1000]}")


def main() -> int:
    scale = float(os.environ.get("HGW_BENCH_SCALE", "1"))
    rounds = int(os.environ.get("HGW_BENCH_ROUNDS", "3"))
    programs = [
        program
        for program in ("borg", os.environ.get("HGW_BENCH_BORG", ""))
        if program and shutil.which(program)
    ]
    tools = [
        nas_agent(),
        *([restic()] if shutil.which("restic") else []),
        *(borg(program) for program in programs),
    ]
    print("## Backup: first, unchanged, 1 % changed, restore\n")
    print(
        "; ".join(f"{tool.name}: {tool.version}" for tool in tools)
        + ". Repository in a local directory, encrypted; borg with"
    )
    print(
        f"zstd,3, the others as shipped. Median of {rounds} interleaved rounds; every restore compared with the source."
    )
    for name, make in SETS.items():
        costs: dict[tuple[str, str], list[Cost]] = {}
        for number in range(rounds):
            with tempfile.TemporaryDirectory(
                dir=os.environ.get("HGW_BENCH_DIR"), prefix="hgw-bench-"
            ) as base:
                order = tools if number % 2 == 0 else tools[::-1]
                for tool, step, cost in one_round(order, Path(base), make, scale):
                    costs.setdefault((tool, step), []).append(cost)
        print_table(name, tools, costs)
    return 0


def print_table(name: str, tools: list[Tool], costs: dict[tuple[str, str], list[Cost]]) -> None:
    print(
        f"\n### {name}\n\n| step | program | wall s | × nas-agent | CPU s | peak MiB | stored MiB |\n|---|---|--:|--:|--:|--:|--:|"
    )
    for step in STEPS:
        ours = statistics.median(cost.wall_s for cost in costs[tools[0].name, step])
        for tool in tools:
            mine = costs[tool.name, step]
            wall, cpu, peak, stored = (
                statistics.median(getattr(cost, field) for cost in mine)
                for field in ("wall_s", "cpu_s", "peak_mib", "stored_mib")
            )
            print(
                f"| {step} | {tool.name} | {wall:.2f} | {wall / ours:.2f} | {cpu:.2f} | {peak:.0f} | {stored:.1f} |"
            )


if __name__ == "__main__":
    sys.exit(main())
