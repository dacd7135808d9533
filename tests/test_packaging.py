"""What is installed from a source distribution, with a C++ compiler and without."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run("setup.py", "--quiet", "egg_info", "--egg-base", folder, "sdist", "--dist-dir", folder, cwd=ROOT)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def wheel(sdist: Path, folder: Path, **environment: str) -> Path:
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--no-cache-dir", "--wheel-dir", folder)
    run("-m", "pip", "wheel", *options, sdist, cwd=folder, **environment)
    (archive,) = folder.glob("*.whl")
    return archive


def test_source_distribution_holds_all_sources_of_the_kernels(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {Path(*Path(name).parts[1:]) for name in archive.getnames()}
    assert {path.relative_to(ROOT) for path in (ROOT / "native").iterdir()} <= names


def test_installs_without_a_compiler(sdist: Path, tmp_path: Path) -> None:
    """The numpy runner serves, and `kogpt info` says so."""
    with zipfile.ZipFile(wheel(sdist, tmp_path, CXX="no-such-compiler")) as archive:
        archive.extractall(tmp_path / "installed")
    printed = run("-m", "kogpt", "info", cwd=tmp_path, PYTHONPATH=str(tmp_path / "installed"))
    assert "numpy (the native kernels were not built: install a C++ compiler" in printed


@pytest.mark.slow
def test_one_wheel_serves_every_python(sdist: Path, tmp_path: Path) -> None:
    archive = wheel(sdist, tmp_path)
    assert "-py3-none-" in archive.name
    with zipfile.ZipFile(archive) as files:
        files.extractall(tmp_path / "installed")
    printed = run("-m", "kogpt", "info", cwd=tmp_path, PYTHONPATH=str(tmp_path / "installed"))
    assert "runner     native" in printed
