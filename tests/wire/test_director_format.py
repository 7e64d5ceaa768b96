"""Director documents, target custom and target paths (design §5.2, protocols.md §4)."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.director import (
    DirectorBody,
    DirectorSoftware,
    DirectorWindow,
    SoftwareName,
    TargetCustom,
    TargetPath,
    parse_director_body,
    parse_target_custom,
    shard_of,
    to_plain,
)
from wire.errors import FormatError, UpgradeNeededError, WireError
from wire.ids import OperatorId

ACME = OperatorId.parse("acme-home")
SHARD = hashlib.sha256(b"acme-home").hexdigest()[:2]
TARGET = f"{SHARD}/acme-home/lights/1.2.0/PR-500.hgwpkg"


def body(**changes):
    entry = {"software": "acme-home/lights", "action": "install", "target": TARGET}
    return {"v": 1, "gateway": "0" * 32, "serial": "PR500KI00001", "software": [entry], **changes}


def entry(**changes):
    return body(software=[{"software": "acme-home/lights", "action": "install", "target": TARGET, **changes}])


def test_a_document_round_trips_through_plain_json():
    made = DirectorBody(
        gateway="0" * 32,
        serial="PR500KI00001",
        critical=("software",),
        software=(
            DirectorSoftware(
                software="acme-home/lights",
                action="update",
                target=TARGET,
                rate_bytes_per_s=65536,
                window=DirectorWindow(start="23:00", end="05:00"),
            ),
            DirectorSoftware(software="acme-home/blinds", action="remove"),
        ),
    )
    plain = json.loads(json.dumps(to_plain(made)))
    assert parse_director_body(plain) == made
    assert "budget_bytes" not in plain["software"][0]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (body(gateway="xyz"), "RandomId"),
        (body(serial="short"), "GatewaySerial"),
        (body(poll_s=4), "poll_s"),
        (body(jitter_percent=51), "jitter_percent"),
        (entry(software="lights"), "operator"),
        (entry(action="explode"), "action"),
        (entry(target=None), "needs a target"),
        (entry(target=f"{SHARD}/acme-home/blinds/1.0/PR-500.hgwpkg"), "another software"),
        (entry(window={"start": "24:00", "end": "05:00"}), "start"),
        (entry(rate_bytes_per_s=0), "rate_bytes_per_s"),
        (body(software=body()["software"] * 2), "twice"),
        (body(critical="software"), "critical"),
        ([], "expected an object"),
    ],
)
def test_a_bad_document_is_refused_naming_the_cause(value, why):
    with pytest.raises(FormatError, match=why):
        parse_director_body(value)


def test_unknown_is_fine_unknown_critical_and_newer_versions_are_not():
    assert parse_director_body(body(colour="red")).serial == "PR500KI00001"
    with pytest.raises(UpgradeNeededError, match="colour"):
        parse_director_body(body(colour="red", critical=["colour"]))
    with pytest.raises(UpgradeNeededError, match="version 1"):
        parse_director_body({"v": 2})


def custom(**changes):
    good = {"v": 1, "release": 3, "floor": 2, "series": ["PR-500"], "makers": ["KI"], "footprint_bytes": 10}
    return {**good, **changes}


def test_custom_round_trips_and_says_whom_it_fits():
    parsed = parse_target_custom(custom())
    assert parsed == TargetCustom(release=3, floor=2, series=("PR-500",), makers=("KI",), footprint_bytes=10)
    assert parse_target_custom(json.loads(json.dumps(to_plain(parsed)))) == parsed
    assert parsed.fits(series="PR-500", maker="KI")
    assert not parsed.fits(series="PR-500", maker="NE")
    assert not parsed.fits(series="RS-500", maker="KI")


@pytest.mark.parametrize(
    "changes",
    [
        {"release": 0},
        {"floor": 4},
        {"floor": -1},
        {"series": ["PR-999"]},
        {"series": []},
        {"makers": []},
        {"footprint_bytes": 0},
        {"release": True},
    ],
)
def test_bad_custom_is_refused(changes):
    with pytest.raises(FormatError, match="target custom"):
        parse_target_custom(custom(**changes))


def test_unknown_critical_custom_is_refused():
    with pytest.raises(UpgradeNeededError, match="chip"):
        parse_target_custom(custom(chip="x", critical=["chip"]))


def test_shard_is_the_first_byte_of_the_hash_of_the_operator():
    assert shard_of(ACME) == SHARD
    path = TargetPath.parse(TARGET)
    assert path.text == TARGET
    assert (path.name.text, path.version.text, path.variant) == ("acme-home/lights", "1.2.0", "PR-500")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "zz/acme-home/lights/1.2.0/PR-500.hgwpkg",
        f"{SHARD}/acme-home/lights/1.2.0/PR-500.zip",
        f"{SHARD}/acme-home/lights/1.2.0/PR-999.hgwpkg",
        f"{SHARD}/acme-home/lights/PR-500.hgwpkg",
        f"{SHARD}/acme-home/../1.2.0/PR-500.hgwpkg",
        f"{SHARD}/acme-home/lights/1.2.0/x/PR-500.hgwpkg",
        f"/{SHARD}/acme-home/lights/1.2.0/PR-500.hgwpkg",
    ],
)
def test_a_bad_target_path_is_refused(text):
    with pytest.raises(FormatError):
        TargetPath.parse(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda s: st.lists(s) | st.dictionaries(st.text(), s),
    )
)
def test_no_other_error_leaves_the_parsers(value):
    for parse in (parse_director_body, parse_target_custom):
        with pytest.raises(WireError):
            parse(value)
    with pytest.raises(WireError):
        SoftwareName.parse(str(value))
