"""A profile boots as a machine: our real hgwd in an arm64 guest, within the profile's memory and flash."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest

from firmware_sim.boot import ImageError, build_image, show_boot
from firmware_sim.boot.image import OUR_PACKAGES, REPOSITORY
from firmware_sim.boot.site import first_boot_files
from firmware_sim.profile import load_profile
from hgwd.config import load_hgwd_config

PROFILE = load_profile("PR-500")
NEEDED = ("qemu-system-aarch64", "mmdebstrap", "mksquashfs", "depmod", "cpio", "mkfs.ext4")
MISSING = [tool for tool in NEEDED if shutil.which(tool) is None]
can_boot = pytest.mark.skipif(
    bool(MISSING), reason=f"{', '.join(MISSING)}: see scripts/debian-packages-sim.txt"
)


def test_the_factory_files_are_a_configuration_that_hgwd_accepts(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    files = first_boot_files(PROFILE, scratch, carrier="2001:db8:5::2", serial="PR500SIM0001")
    text = files["hgwd.toml"].decode()
    (tmp_path / "hgwd.toml").write_text(text)
    config = load_hgwd_config(tmp_path / "hgwd.toml")
    assert config.spool.bytes_max == 24 * 1024 * 1024
    assert config.spool.pack_bytes_max == 5 * 1024 * 1024
    named = {config.carrier.ca_file, config.carrier.image_root_file, config.carrier.director_root_file}
    named |= {config.gateway.device_secret_file, config.admin.password_file}
    assert named == {f"/data/{name}" for name in files if name != "hgwd.toml"}


def test_the_image_holds_the_gateways_packages_and_no_others() -> None:
    # hgwd must never need carrier, deliver or nas_agent: the guest has none of them.
    assert OUR_PACKAGES == ("wire", "runtime", "hgwd")
    lock = (REPOSITORY / "requirements" / "gateway.txt").read_text("utf-8").lower()
    for heavy in ("boto3", "asyncssh", "sqlalchemy", "starlette", "hypercorn", "cryptography"):
        assert f"\n{heavy}==" not in f"\n{lock}"


@pytest.mark.slow
@pytest.mark.timeout(600)
@can_boot
def test_an_image_that_does_not_fit_its_slot_is_refused() -> None:
    small = msgspec.structs.replace(PROFILE, slot_mib=msgspec.structs.replace(PROFILE.slot_mib, value=8))
    with pytest.raises(ImageError, match="8 MiB slot"):
        build_image(small)


@pytest.mark.slow
@pytest.mark.timeout(600)
@can_boot
def test_hgwd_serves_its_lan_within_the_profile_and_again_after_a_power_cut(tmp_path: Path) -> None:
    results = show_boot(PROFILE, tmp_path)
    assert len(results) == 2
    for result in results:
        assert json.loads(result.hello) == {"product": "hgwd", "v": 1}
        assert (
            10_000 < result.report.rss_kib <= result.report.peak_kib <= PROFILE.memory_budget_mib.value * 1024
        )
        assert result.report.total_kib <= PROFILE.ram_mib.value * 1024
        # Room for the whole spool must be left on the data flash.
        assert result.report.flash_free_kib > PROFILE.spool_limit_mib.value * 1024
        assert result.ready_s < 100
