"""The manifest: what is accepted, what is refused and why (JNT-21, JNT-50)."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import FormatError, UpgradeNeededError, WireError
from wire.package import GATEWAY_SERIES, check_package_path, encode_manifest, parse_manifest

GOOD = {
    "v": 1,
    "operator": "acme-home",
    "software": "lights",
    "version": "1.2.0",
    "release": 3,
    "floor": 2,
    "series": ["PR-500", "RS-500"],
    "makers": ["KI", "NE"],
    "runtime": "python-zipapp",
    "entry": "app.pyz",
    "args": ["--quiet"],
    "resources": {"memory_bytes": 16 * 2**20},
    "permissions": {"network": "lan", "listen_ports": [8080]},
    "health": {"kind": "http", "port": 8080, "path": "/health"},
}


def encoded(**changes):
    return json.dumps({**GOOD, **changes}).encode()


def test_manifest_round_trips_to_one_encoding():
    manifest = parse_manifest(encoded())
    again = parse_manifest(encode_manifest(manifest))
    assert again == manifest
    assert encode_manifest(again) == encode_manifest(manifest)
    assert manifest.variant == "PR-500"


def test_JNT_21_the_series_are_the_six_of_the_contract():
    assert set(GATEWAY_SERIES) == {"PR-400", "RV-440", "RT-400", "PR-500", "RS-500", "RT-500"}


@pytest.mark.parametrize("series", ["RV-400", "RV-500", "PR-600", "pr-500", ""])
def test_JNT_21_other_series_are_refused(series):
    with pytest.raises(FormatError, match="JNT-21"):
        parse_manifest(encoded(series=[series]))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"release": 0}, "release"),
        ({"release": 3.5}, "release"),
        ({"floor": 4}, "above its own release"),
        ({"series": []}, "series"),
        ({"series": ["PR-500", "PR-500"]}, "stands twice"),
        ({"makers": ["XX"]}, "makers"),
        ({"runtime": "shell"}, "runtime"),
        ({"entry": "../app.pyz"}, "package path"),
        ({"entry": "/app.pyz"}, "package path"),
        ({"resources": {"memory_bytes": 16 * 2**20 - 1}}, "memory_bytes"),
        ({"permissions": {"network": "wan"}}, "network"),
        ({"permissions": {"network": "none", "listen_ports": [8080]}}, "listen_ports"),
        ({"permissions": {"network": "lan", "listen_ports": [80]}}, "1024"),
        ({"health": {"kind": "tcp"}}, "needs health.port"),
        ({"health": {"kind": "http", "port": 8080, "path": "http://x/"}}, "path"),
        ({"operator": "Acme"}, "OperatorId"),
        ({"software": "a/b"}, "SoftwareId"),
        ({"version": "latest"}, "VersionText"),
        ({"args": ["x" * 257]}, "256"),
    ],
)
def test_a_manifest_with_a_bad_value_is_refused_naming_it(changes, part):
    with pytest.raises(FormatError, match=part):
        parse_manifest(encoded(**changes))


def test_an_unknown_field_is_accepted_unless_it_is_critical():
    assert parse_manifest(encoded(colour="red")).software == "lights"
    with pytest.raises(UpgradeNeededError, match="colour"):
        parse_manifest(encoded(colour="red", critical=["colour"]))
    assert parse_manifest(encoded(critical=["release", "health"])).release == 3


def test_a_newer_manifest_reads_as_newer_and_not_as_damage():
    with pytest.raises(UpgradeNeededError, match="version 1, got 2"):
        parse_manifest(json.dumps({"v": 2, "anything": True}).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"v":1}', b"\xff\xfe", b"[" * 60000, b" " * 70000])
def test_bytes_that_are_no_manifest_are_refused(data):
    with pytest.raises(FormatError, match="manifest"):
        parse_manifest(data)


@given(st.binary(max_size=200))
def test_no_other_error_leaves_the_parser(data):
    with pytest.raises(WireError):
        parse_manifest(data)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "a/../b",
        "a/./b",
        "a b",
        "ü",
        "a\\b",
        "a\x00b",
        "a\n",
        "x" * 101,
        "a/" * 100 + "bb",
    ],
)
def test_unsafe_package_paths_are_refused(path):
    with pytest.raises(FormatError, match="package path"):
        check_package_path(path)


@pytest.mark.parametrize("path", ["a", "a/b.c", "...", ".hidden", "lib/x86_64-linux+1@2/y"])
def test_safe_package_paths_pass(path):
    assert check_package_path(path) == path
