"""`make demo` does the main job with the real programs and believes nothing that it did not check."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from firmware_sim.demo.report import Report
from firmware_sim.lab import has_rights

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not has_rights(), reason="the lab makes network namespaces: needs root")
@pytest.mark.timeout(400)
def test_the_main_job_is_verified_end_to_end(tmp_path: Path, seeded_random: random.Random) -> None:
    source = tmp_path / "source"
    (source / "a" / "b").mkdir(parents=True)
    for number in range(40):
        name = os.fsencode(source / "a" / "b") + b"/name-\xff-%d" % number
        Path(os.fsdecode(name)).write_bytes(seeded_random.randbytes(1 << 20))
    (source / "link").symlink_to("a")
    os.link(source / "a" / "b" / os.fsdecode(b"name-\xff-0"), source / "hard")
    done = subprocess.run(
        [sys.executable, "-m", "firmware_sim.cli", "demo", "--dir", source],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "demo-report.json").read_text(encoding="utf-8"))
    assert report["verified"] is True
    assert all(step["verified"] for step in report["steps"])
    facts = " ".join(fact for step in report["steps"] for fact in step["facts"])
    for word in ("alarm raised", "isolated, healthy", "six digits", "cut in the middle", "durable", "rsync"):
        assert word in facts
    assert report["bill"]


def test_a_report_with_a_failed_step_is_never_verified() -> None:
    report = Report(out=io.StringIO())
    assert not report.verified
    with report.step("one") as step:
        step.note("held")
    assert report.verified
    with pytest.raises(ValueError, match="broken"), report.step("two"):
        raise ValueError("broken")
    assert not report.verified
    assert report.steps[1].failure == "broken"
    assert "FAILED" in report.out.getvalue()


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes an ordinary user, which only root can")
def test_without_root_one_sentence_says_why_not(tmp_path: Path) -> None:
    code = (
        "import os, sys; from firmware_sim.cli import main; os.setgid(65534); os.setuid(65534); "
        f"sys.exit(main(['demo', '--dir', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "run it as root" in done.stderr
    assert len(done.stderr.splitlines()) == 1
