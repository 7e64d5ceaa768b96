"""Wrong configurations, by every program as a process: one line that names key and range, exit code 2, nothing started.

(issue 2, fault list; style §10; docs/faults.md, Config)
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ANY_PORTS = ("--gateway-listen", "[::1]:0", "--operator-listen", "[::1]:0", "--metrics-listen", "[::1]:0")
HGWD = """
[gateway]
serial = "PR500KI00001"
model = "PR-500"
maker = "KI"
device_secret_file = "{directory}/device-secret"
state_dir = "{directory}/state"
[carrier]
host = "::1"
port = 9
ca_file = "{trust}/tls-ca.pem"
image_root_file = "{trust}/image-root.json"
director_root_file = "{trust}/director-root.json"
[lan]
host = "127.0.0.1"
port = 0
[admin]
host = "127.0.0.1"
port = 0
password_file = "{directory}/password"
[spool]
directory = "{directory}/spool"
"""


def run(*command: object, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", *map(str, command)]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A carrier's home as `deliver init` makes it."""
    directory = tmp_path_factory.mktemp("config") / "carrier"
    assert run("deliver.cli", "init", directory, *ANY_PORTS).returncode == 0
    return directory


Start = Callable[[Path, Path, str, str], subprocess.CompletedProcess[str]]


def with_line(text: str, table: str, line: str) -> str:
    """Return the TOML with `line` in `table` ("": the top), in place of a line of the same key."""
    key = line.partition(" ")[0]
    head, mark, rest = ("", "", text) if not table else text.partition(f"[{table}]\n")
    body, bracket, tail = rest.partition("\n[")
    kept = [old for old in body.splitlines() if not old.startswith(f"{key} ")]
    return head + mark + "\n".join([line, *kept]) + bracket + tail


def start_hgwd(home: Path, directory: Path, table: str, line: str) -> subprocess.CompletedProcess[str]:
    (directory / "device-secret").write_text("ab" * 32)
    (directory / "device-secret").chmod(0o600)
    (directory / "password").touch()
    text = with_line(HGWD.format(directory=directory, trust=home / "trust"), table, line)
    (directory / "hgwd.toml").write_text(text)
    done = run("hgwd.cli", "--config", directory / "hgwd.toml", "run")
    assert not (directory / "state").exists()
    return done


def start_deliver(home: Path, directory: Path, table: str, line: str) -> subprocess.CompletedProcess[str]:
    path = home / "other.toml"
    path.write_text(with_line((home / "deliver.toml").read_text(), table, line))
    return run("deliver.cli", "serve", "--config", path)


def start_agent(home: Path, directory: Path, table: str, line: str) -> subprocess.CompletedProcess[str]:
    (directory / "nas-agent.toml").write_text(f"[{table}]\n{line}\n" if table else f"{line}\n")
    return run("nas_agent.cli", "status", "--state", directory)


HGWD_FAULTS = [
    ("lan", "colour = 1", r"lan\.colour: unknown key, expected one of host, port"),
    ("spool", "bytes_max = 1", r"spool\.bytes_max: expected an integer ≥ 262144, ≤ \d+, got 1"),
    ("spool", 'bytes_max = "x"', r"spool\.bytes_max: expected an integer .*, got 'x'"),
    ("gateway", 'model = "RV-400"', r"gateway\.model: expected one of 'PR-400', .*, got 'RV-400'"),
    ("carrier", "port = 70000", r"carrier\.port: expected an integer ≥ 1, ≤ 65535, got 70000"),
    (
        "carrier",
        'ca_file = "/nowhere/ca.pem"',
        r"carrier\.ca_file: expected a readable file, got .*: /nowhere/ca\.pem",
    ),
    (
        "gateway",
        'device_secret_file = "/nowhere/s"',
        r"gateway\.device_secret_file: expected a readable file",
    ),
    ("admin", 'password_file = "/nowhere/p"', r"admin\.password_file: expected a readable file"),
    ("lan", 'host = "0.0.0.0"', r"lan\.host: refused to listen"),
]
DELIVER_FAULTS = [
    ("", "colour = 1", r"colour: unknown key, expected one of database, blobs"),
    ("", "poll_s = 1", r"poll_s: expected an integer ≥ 5, ≤ 604800 \(seconds\), got 1"),
    ("", 'gateway_listen = "0.0.0.0:1"', r"gateway_listen: expected text matching .*, got '0\.0\.0\.0:1'"),
    ("", 'metrics_listen = "[::1]:99999"', r"metrics_listen: expected .* a port of 0 to 65535, got"),
    ("", 'database = "mysql://x"', r"database: expected text matching .*sqlite.*, got 'mysql://x'"),
    ("", 'tls_key_file = "nowhere.key"', r"tls_key_file: expected a readable file"),
    ("", 'online_keys_dir = "nowhere"', r"online_keys_dir: expected a directory"),
]
AGENT_FAULTS = [
    ("", "colour = 1", r"colour: unknown key, expected one of target, keep_trying_s, sets"),
    ("", "keep_trying_s = -1", r"keep_trying_s: expected an integer ≥ 0, ≤ 2592000 \(seconds\), got -1"),
    ("sets.photos", "sources = []", r"sets\[\.\.\.\]\.sources: expected a list of 1 to 100 items"),
    (
        "sets.photos",
        'sources = ["/x"]\ncolour = 1',
        r"sets\[\.\.\.\]\.colour: unknown key, expected one of sources",
    ),
]
FAULTS: list[tuple[Start, tuple[str, str, str]]] = [
    *((start_hgwd, fault) for fault in HGWD_FAULTS),
    *((start_deliver, fault) for fault in DELIVER_FAULTS),
    *((start_agent, fault) for fault in AGENT_FAULTS),
]


@pytest.mark.parametrize(
    ("start", "fault"), FAULTS, ids=[f"{start.__name__[6:]} {fault[1]}" for start, fault in FAULTS]
)
def test_a_wrong_configuration_is_one_line_with_key_and_range_and_exit_2(
    home: Path, tmp_path: Path, start: Start, fault: tuple[str, str, str]
) -> None:
    table, line, expected = fault
    done = start(home, tmp_path, table, line)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert re.search(expected, done.stderr), done.stderr


def test_a_root_that_is_none_is_named_before_the_gateway_works(home: Path, tmp_path: Path) -> None:
    """Found when the file is read, after the lock was taken: still one line and 2."""
    (tmp_path / "state").mkdir()
    (tmp_path / "device-secret").write_text("ab" * 32)
    (tmp_path / "device-secret").chmod(0o600)
    config = tmp_path / "hgwd.toml"
    text = HGWD.format(directory=tmp_path, trust=home / "trust")
    config.write_text(with_line(text, "carrier", f'image_root_file = "{home}/trust/tls-ca.pem"'))
    password = [sys.executable, "-m", "hgwd.cli", "--config", str(config), "password"]
    subprocess.run(password, input=b"a long enough password\n", cwd=ROOT, check=True)
    done = run("hgwd.cli", "--config", config, "run")
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.fullmatch(
        r"carrier\.image_root_file: expected a TUF root signed by its own keys.*\n", done.stderr
    )
