"""Log lines: JSON, bounded, without secrets."""

from __future__ import annotations

import io
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.clock import ManualClock
from runtime.logs import LINE_BYTES_MAX, Logger, encode_line, get_logger, is_secret_name


def written(**fields):
    stream = io.BytesIO()
    get_logger("test", stream=stream, clock=ManualClock(0.5)).info("event_name", **fields)
    [line] = stream.getvalue().splitlines()
    return json.loads(line)


def test_line_carries_time_level_logger_event_and_fields():
    assert written(bytes=5, outcome="stored") == {
        "time": "1970-01-01T00:00:00.500+00:00",
        "level": "info",
        "logger": "test",
        "event": "event_name",
        "bytes": 5,
        "outcome": "stored",
    }


@pytest.mark.parametrize(
    "name",
    [
        "token",
        "lan_token",
        "sessionToken",
        "password",
        "access-key",
        "API_KEY",
        "secret",
        "Authorization",
        "pin",
    ],
)
def test_secret_by_name_is_replaced_at_every_depth(name):
    assert is_secret_name(name)
    line = written(**{name: "hunter2", "nested": {name: ["hunter2"]}, "list": [{name: b"hunter2"}]})
    assert "hunter2" not in json.dumps(line)
    assert line[name] == "***"


@pytest.mark.parametrize(
    "name", ["key_file", "token_count", "public_key", "monkey", "session_id", "keyboard", "pack"]
)
def test_harmless_names_are_kept(name):
    assert not is_secret_name(name)


def test_bytes_are_never_written_out():
    assert written(body=b"hunter2")["body"] == "<7 bytes>"


def test_fields_cannot_forge_the_head_of_a_line():
    line = json.loads(
        encode_line(0, "info", "test", "event_name", {"level": "x", "logger": "y", "time": "z"})
    )
    assert (line["level"], line["logger"], line["event"]) == ("info", "test", "event_name")


def test_long_values_and_lines_are_cut():
    assert len(written(text="x" * 100_000)["text"]) <= 2048
    line = encode_line(0, "info", "test", "event_name", {f"f{n}": "x" * 2000 for n in range(20)})
    assert len(line) <= LINE_BYTES_MAX
    assert len(json.loads(line)["f19"]) == 120
    line = encode_line(0, "info", "test", "event_name", {f"f{n}": "x" * 2000 for n in range(60)})
    assert len(line) <= LINE_BYTES_MAX
    assert json.loads(line)["event"] == "event_name"


def test_pipe_that_nobody_reads_never_stops_the_program():
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "wb") as writer:
        log = get_logger("test", stream=writer)
        for number in range(5000):
            log.info("event_name", number=number, text="x" * 100)
        kept = len(os.read(reading, 1 << 20).splitlines())
        assert 100 < kept < 5000
        log.bind(a=1).info("again")
        dropped, again = (json.loads(line) for line in os.read(reading, 1 << 20).splitlines())
        assert again["event"] == "again"
        assert (dropped["event"], dropped["lines"]) == ("log_lines_dropped", 5000 - kept)
        assert reader.fileno() == reading


@given(
    st.dictionaries(
        st.text(max_size=9), st.none() | st.text(max_size=9) | st.binary(max_size=9) | st.floats(), max_size=5
    )
)
def test_any_field_makes_exactly_one_line(fields):
    line = encode_line(0, "info", "test", "event_name", fields)
    assert line.count(b"\n") == 1
    json.loads(line)


class BrokenStream(io.BytesIO):
    def write(self, _data):
        raise BrokenPipeError


def test_broken_stream_does_not_stop_the_program():
    Logger("test", BrokenStream()).error("event_name")


def test_bound_fields_are_on_every_later_line():
    stream = io.BytesIO()
    log = get_logger("test", stream=stream).bind(line="line-1")
    log.info("a")
    log.warning("b", line="line-2")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["line"] for line in lines] == ["line-1", "line-2"]
