"""The files under deploy/: what they run exists, and what reads them accepts them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from kogpt.cli import command

DEPLOY = Path(__file__).parents[1] / "deploy"
UNIT = (DEPLOY / "kogpt.service").read_text(encoding="utf-8")
CONTAINER = (DEPLOY / "Containerfile").read_text(encoding="utf-8")


def test_the_unit_runs_a_command_that_exists() -> None:
    [line] = re.findall(r"^ExecStart=(.*)$", UNIT, re.MULTILINE)
    program, name, *options = shlex.split(line)
    assert Path(program).name == "kogpt"
    drain = command(name)[1].parse_args(options).drain_seconds
    [stop] = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)
    assert drain < int(stop)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_knows_every_setting(tmp_path: Path) -> None:
    """systemd-analyze complains of a program that is not there, and of settings that it does not know."""
    unit = tmp_path / "kogpt.service"
    unit.write_text(UNIT.replace("/opt/kogpt/bin/kogpt", "/bin/true"), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    complaints = [line for line in done.stderr.splitlines() if str(unit) in line or "kogpt.service" in line]
    assert complaints == []


def test_the_container_runs_a_command_that_exists_and_needs_no_network() -> None:
    [line] = re.findall(r"^ENTRYPOINT (.*)$", CONTAINER, re.MULTILINE)
    program, name, *options = json.loads(line)
    assert program == "kogpt" and command(name)[1].parse_args(options).host == "0.0.0.0"
    assert "HEALTHCHECK" in CONTAINER and "--format docker" in CONTAINER, "OCI images have no HEALTHCHECK"
    [install] = re.findall(r"pip install .*", CONTAINER.replace("\\\n", ""))
    assert {"--no-index", "--find-links"} <= set(shlex.split(install))
