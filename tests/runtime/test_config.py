"""Configuration faults: one line, naming key, range and unit (style §10)."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest

from runtime.config import check_config, describe, load_config, parse_config
from runtime.errors import ConfigError


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    spool_bytes: Annotated[int, msgspec.Meta(ge=1, le=100, extra={"unit": "bytes"})] = 5
    wait_s: Annotated[float, msgspec.Meta(gt=0, extra={"unit": "seconds"})] | None = None
    names: list[Annotated[str, msgspec.Meta(min_length=1, max_length=3)]] = []


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    limits: Limits = Limits()
    mode: Literal["a", "b"] = "a"
    admin_password: str = ""
    key_file: str
    enabled: bool = True


FAULTS = {
    "": "c.toml: key_file: required key is missing",
    'key_file="x"\ncolour=1': "c.toml: colour: unknown key, expected one of limits, mode, admin_password, key_file, enabled",
    'key_file="x"\n[limits]\nx=1': "c.toml: limits.x: unknown key, expected one of spool_bytes, wait_s, names",
    'key_file="x"\n[limits]\nspool_bytes=0': "c.toml: limits.spool_bytes: expected an integer ≥ 1, ≤ 100 (bytes), got 0",
    'key_file="x"\n[limits]\nspool_bytes="7"': "c.toml: limits.spool_bytes: expected an integer ≥ 1, ≤ 100 (bytes), got '7'",
    'key_file="x"\n[limits]\nwait_s=0.0': "c.toml: limits.wait_s: expected a number > 0 (seconds), got 0.0",
    'key_file="x"\n[limits]\nnames=["a", "abcd"]': "c.toml: limits.names[1]: expected text of 1 to 3 characters, got 'abcd'",
    'key_file="x"\nmode="c"': "c.toml: mode: expected one of 'a', 'b', got 'c'",
    'key_file="x"\nlimits=3': "c.toml: limits: expected a table, got 3",
    'key_file="x"\nenabled=1': "c.toml: enabled: expected true or false, got 1",
    'key_file="x"\nadmin_password=12345': "c.toml: admin_password: expected text, got ***",
    "key_file=": "c.toml: expected TOML: Invalid value (at end of document)",
}


@pytest.mark.parametrize("text", FAULTS)
def test_fault_is_one_line_with_key_and_range(text):
    with pytest.raises(ConfigError) as caught:
        parse_config(text.encode(), Config, source="c.toml")
    assert str(caught.value) == FAULTS[text]


def test_missing_and_oversized_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none.toml", Config)
    (tmp_path / "big.toml").write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigError, match="at most 1048576 bytes"):
        load_config(tmp_path / "big.toml", Config)
    (tmp_path / "latin.toml").write_bytes(b"key_file = '\xff'")
    with pytest.raises(ConfigError, match="expected TOML"):
        load_config(tmp_path / "latin.toml", Config)


def test_check_config_prints_redacted_values_or_the_fault(tmp_path, capsys):
    good = tmp_path / "good.toml"
    good.write_text('key_file = "/etc/key"\nadmin_password = "hunter2"\n')
    assert check_config(good, Config) == 0
    printed = capsys.readouterr().out
    assert "/etc/key" in printed
    assert "hunter2" not in printed
    good.write_text("colour = 1")
    assert check_config(good, Config) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_described_configuration_keeps_paths_and_hides_values():
    config = parse_config(b'key_file="k"\nadmin_password="hunter2"', Config, source="-")
    assert describe(config)["admin_password"] == "***"
    assert describe(config)["key_file"] == "k"
    assert describe(config)["limits"]["spool_bytes"] == 5
