"""Profiles are data, and say what nobody knows."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from firmware_sim.profile import ProfileError, load_profile, parse_profile, profile_names

TEXT = (resources.files("firmware_sim") / "profiles" / "pr-500.toml").read_text("utf-8")


def test_every_series_of_the_field_has_a_profile() -> None:
    assert profile_names() == ["PR-400", "PR-500", "PR-500+USB", "RS-500", "RT-400", "RT-500", "RV-440"]


@pytest.mark.parametrize(("name", "budget_mib", "spool_mib"), [("PR-500", 96, 24), ("PR-500+USB", 224, 4096)])
def test_the_two_profiles_with_a_published_budget_carry_it(
    name: str, budget_mib: int, spool_mib: int
) -> None:
    profile = load_profile(name)
    assert profile.memory_budget_bytes == budget_mib * 1024 * 1024
    assert profile.spool_limit_mib.value == spool_mib


@pytest.mark.parametrize("name", profile_names())
def test_no_profile_claims_to_know_the_hardware(name: str) -> None:
    profile = load_profile(name)
    assert {"machine", "cores", "ram_mib", "slot_mib", "data_flash_mib"} <= set(profile.assumptions())
    assert "class profile" in profile.title


@pytest.mark.parametrize("name", profile_names())
def test_joint_sizes_restate_the_tariff(name: str) -> None:
    # JNT-05: under 25 M stored, under 7.5 M per target, M = 2^20.
    profile = load_profile(name)
    assert profile.joint_stored_bytes_below.value == 26_214_400
    assert profile.joint_footprint_bytes_below.value == 7_864_320


def test_a_front_the_profile_cannot_carry_is_off_and_says_why() -> None:
    assert "sftp" not in load_profile("PR-500").fronts
    assert "75 MiB" in load_profile("PR-500").fronts_off["sftp"]
    assert "sftp" in load_profile("PR-500+USB").fronts


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda text: text.replace("[cores]", "[coers]"), "coers"),
        (lambda text: text.replace("assumed = false", 'assumed = "yes"', 1), "assumed"),
        (lambda text: re.sub(r"(\[ram_mib\]\nvalue = )256", r"\g<1>0", text), "ram_mib"),
        (lambda text: re.sub(r"(\[memory_budget_mib\]\nvalue = )96", r"\g<1>129", text), "memory_budget_mib"),
        (lambda text: re.sub(r"(\[cores\]\nvalue = 2\nassumed = true\nwhy = ).*", r'\g<1>""', text), "cores"),
        (lambda text: text.replace('sftp = "', 'restic-rest = "'), "front"),
        (lambda text: text + "[", "profile"),
    ],
)
def test_a_malformed_profile_is_refused_naming_the_key(change, named: str) -> None:
    changed = change(TEXT)
    assert changed != TEXT
    with pytest.raises(ProfileError, match=named):
        parse_profile(changed)


@pytest.mark.parametrize("name", ["PR-600", "../pr-500", "/nowhere/x.toml"])
def test_an_unknown_profile_is_refused(name: str) -> None:
    with pytest.raises(ProfileError):
        load_profile(name)
