"""What a person sees: progress at least once a second, an estimate that holds, plain words (U9, U13)."""

from __future__ import annotations

import io
import json

import pytest
import trio

from nas_agent.adapters.measure import Tally
from nas_agent.core.advice import explain_refusal
from nas_agent.core.estimate import Estimate
from nas_agent.core.targets import DirectoryTarget, GatewayTarget, parse_target
from nas_agent.events import DoneEvent, FailureEvent, ProblemEvent, ProgressEvent, problem_event, show_path
from nas_agent.ports import Problem, Refusal
from nas_agent.terminal import PROBLEMS_SHOWN_MAX, Terminal
from nas_agent.texts import show_bytes, show_duration, text_of
from runtime.errors import LocalError


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def progress(**changes: object) -> ProgressEvent:
    values: dict[str, object] = {
        "command": "backup", "phase": "scan", "elapsed_s": 1.0, "eta_s": None, "files_total": None, "files_done": 3,
        "files_unchanged": 1, "bytes_total": None, "bytes_done": 2048, "sent_bytes": 1024, "spooled_bytes": 0,
        "stored_bytes": 1024, "problems": 0,
    }  # fmt: skip
    return ProgressEvent(**{**values, **changes})  # type: ignore[arg-type]


def test_progress_says_total_done_unchanged_gateway_and_stored_apart() -> None:
    shown = text_of(
        progress(
            bytes_total=4096,
            files_total=6,
            eta_s=90.0,
            spooled_bytes=512 << 10,
            stored_bytes=3 << 20,
            problems=2,
        )
    )
    assert shown == (
        "reading 50 %, 2.0 KiB of 4.0 KiB, 3 of 6 files, 1 unchanged, sent 1.0 KiB, on the gateway 512.0 KiB, "
        "stored 3.0 MiB, 2 problems, about 1 min 30 s left"
    )


def test_a_terminal_redraws_one_line_and_a_file_gets_plain_lines() -> None:
    tty, file = Tty(), io.StringIO()
    for stream in (tty, file):
        terminal = Terminal(io.StringIO(), stream)
        terminal.emit(progress())
        terminal.emit(progress(files_done=4))
        terminal.emit(FailureEvent(exit_code=1, code="x", message="failed"))
    assert "\n" not in tty.getvalue().removesuffix("nas-agent: failed\n")
    assert file.getvalue().splitlines()[1].startswith("reading, 2.0 KiB, 4 files")
    assert "\r" not in file.getvalue()
    assert "\x1b" not in file.getvalue()


def test_quiet_leaves_the_result_and_the_problems() -> None:
    out, err = io.StringIO(), io.StringIO()
    terminal = Terminal(out, err, quiet=True)
    terminal.emit(progress())
    terminal.emit(problem_event(Problem(b"a", "unreadable", "Permission denied")))
    terminal.emit(DoneEvent(exit_code=0, message="done"))
    assert (out.getvalue(), err.getvalue()) == ("done\n", "unreadable: a: Permission denied\n")


def test_json_keeps_to_stdout_and_quiet_drops_its_progress() -> None:
    out, err = io.StringIO(), io.StringIO()
    terminal = Terminal(out, err, json=True, quiet=True)
    terminal.emit(progress())
    terminal.emit(DoneEvent(exit_code=0, message="done"))
    assert [json.loads(line)["event"] for line in out.getvalue().splitlines()] == ["done"]
    assert err.getvalue() == ""


def test_a_flood_of_problems_does_not_bury_the_result() -> None:
    err = io.StringIO()
    terminal = Terminal(io.StringIO(), err)
    for number in range(PROBLEMS_SHOWN_MAX * 2):
        terminal.emit(problem_event(Problem(b"%d" % number, "unreadable", "x")))
    assert len(err.getvalue().splitlines()) == PROBLEMS_SHOWN_MAX


async def test_progress_comes_every_second_and_never_above_the_total(
    autojump_clock: trio.testing.MockClock,
) -> None:
    out = io.StringIO()
    tally = Tally(files_total=10, bytes_total=100, files_done=12, bytes_done=130)
    with trio.move_on_after(5.5):
        await Terminal(out, io.StringIO(), json=True).follow("backup", tally)
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert len(events) == 5
    assert {event["bytes_done"] for event in events} == {100}


@pytest.mark.parametrize("rate", [10, 1000])
def test_the_estimate_holds_within_a_quarter_at_a_steady_rate(rate: int) -> None:
    total = rate * 100
    estimate = Estimate(began_s=50.0)
    for second in range(1, 100):
        eta_s = estimate.eta_s(50.0 + second, done=rate * second, total=total)
        if second >= 10:
            assert eta_s == pytest.approx(100 - second, rel=0.25)
    assert estimate.eta_s(151, done=total + 5, total=total) == 0


def test_no_estimate_is_better_than_a_wild_one() -> None:
    estimate = Estimate(began_s=0.0)
    assert estimate.eta_s(0.5, done=1, total=100) is None
    assert estimate.eta_s(3.0, done=0, total=100) is None
    assert estimate.eta_s(4.0, done=10, total=None) is None


@pytest.mark.parametrize(
    ("path", "shown"),
    [(b"", "."), ("写真/a b".encode(), "写真/a b"), (b"\xff\n\x1b[31m", r"\xff\n\x1b[31m")],
)
def test_a_name_of_any_bytes_is_shown_without_control_characters(path: bytes, shown: str) -> None:
    assert show_path(path) == shown


def test_a_problem_carries_the_exact_bytes_of_its_path() -> None:
    event = problem_event(Problem(b"\xff", "unreadable", "x"))
    assert isinstance(event, ProblemEvent)
    assert event.path_base64 == "/w=="


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (30 << 30, "30.0 GiB"), (5 << 50, "5120.0 TiB")],
)
def test_sizes(size_bytes: int, shown: str) -> None:
    assert show_bytes(size_bytes) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (7260, "2 h 1 min")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert show_duration(seconds) == shown


def test_a_full_quota_says_how_much_is_needed_and_what_to_do() -> None:
    text = explain_refusal(
        Refusal("quota-full", "capacity used up", needed_bytes=7, limit_bytes=100, used_bytes=95)
    )
    assert text == (
        "capacity used up (needed 7 bytes, used 95 bytes, limit 100 bytes) [quota-full]: "
        "free capacity (fewer generations, excludes) or choose a larger plan"
    )


def test_an_unknown_refusal_is_shown_as_it_came() -> None:
    assert explain_refusal(Refusal("new-code", "something new")) == "something new [new-code]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file:///mnt/usb%20disk", DirectoryTarget("/mnt/usb disk")),
        ("https://[fe80::1%eth0]:8443", GatewayTarget("fe80::1%eth0", 8443)),
        ("https://gateway.lan:8443/", GatewayTarget("gateway.lan", 8443)),
    ],
)
def test_targets(text: str, expected: object) -> None:
    assert parse_target(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "/mnt", "file://mnt", "http://x:1", "https://x", "https://x:0", "https://x:70000", "https://u@x:1"],
)
def test_other_targets_are_refused_with_the_two_forms(text: str) -> None:
    with pytest.raises(LocalError, match="expected file:///directory or https://host:port"):
        parse_target(text)
