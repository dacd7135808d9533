"""From a device's name to a runner: who computes, in which dtype, and what is said of a slower choice."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kogpt import checkpoint, native_runner, placement
from kogpt.checkpoint import Checkpoint
from kogpt.config import ModelConfig
from kogpt.errors import KoGPTError, MissingExtra, NotEnoughMemory
from kogpt.generation import KoGPT
from kogpt.placement import Placement, default_dtype, load_runner, runner_class
from kogpt.runner import Chunk

IDS = np.array([5, 6, 7])


@pytest.fixture
def stored(tiny_folder: Path) -> Checkpoint:
    return checkpoint.load(tiny_folder)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without a GPU, whatever this one has."""
    monkeypatch.setattr(placement, "has_cuda", lambda: False)
    yield


def without_native(monkeypatch: pytest.MonkeyPatch, library: Path = Path("not built")) -> None:
    monkeypatch.setattr(native_runner, "available", lambda: False)
    monkeypatch.setattr(native_runner, "LIBRARY", library)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            ("device", name)
            for name in ("gpu", "cuda:", "cuda:x", "cuda:0,", "cuda:0,cpu", "auto,cuda", "", 0)
        ),
        *(("dtype", name) for name in ("int3", "half", np.float32)),
        *(("cache_dtype", name) for name in ("int4", "float16")),
        *(("runner", name) for name in ("jax", "Torch")),
        *(("threads", n) for n in (0, -1, 1025, True, 2.0, "2")),
    ],
)
def test_impossible_values_are_named_with_what_is_possible(field: str, value: Any) -> None:
    with pytest.raises(KoGPTError) as error:
        Placement(**{field: value})
    for text in (error.value.en, error.value.ko):
        assert field in text and repr(value)[:10] in text
        assert ("1024" if field == "threads" else "auto") in text


def test_a_placement_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Placement().device = "cpu"  # type: ignore[misc]
    assert Placement() == Placement("auto", "auto", "auto", None, "auto")


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:all", "cuda:0,cuda:1"])
def test_a_gpu_is_torchs(device: str) -> None:
    assert Placement(device).runner_name() == "torch"
    assert Placement(device).torch_device() == device


def test_the_machine_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = "native" if native_runner.available() else "numpy"
    assert Placement().runner_name() == Placement("cpu").runner_name() == cpu
    assert Placement(runner="torch").torch_device() == "cpu"
    monkeypatch.setattr(placement, "has_cuda", lambda: True)
    monkeypatch.setattr(placement, "_torch_gpus", lambda: 1)
    assert Placement().runner_name() == "torch" and Placement("cpu").runner_name() == cpu
    assert Placement().torch_device() == "cuda"
    monkeypatch.setattr(placement, "_torch_gpus", lambda: 0)  # a driver beside a build of torch for CPUs
    assert Placement().runner_name() == cpu and Placement(runner="torch").torch_device() == "cpu"
    without_native(monkeypatch)
    assert Placement("cpu").runner_name() == "numpy"


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_has_torch", lambda: False)
    for chosen in (Placement("cuda"), Placement(runner="torch")):
        with pytest.raises(MissingExtra, match="torch"):
            chosen.runner_name()
    without_native(monkeypatch)
    with pytest.raises(KoGPTError, match=r"were not built.*--runner numpy"):
        Placement(runner="native").runner_name()


@pytest.mark.parametrize("runner", ["native", "numpy"])
def test_a_cpu_runner_on_a_gpu_is_refused(runner: str) -> None:
    if runner == "native" and not native_runner.available():
        pytest.skip("the kernels were not built")
    with pytest.raises(KoGPTError, match=rf"{runner} runner computes on the CPU, not on cuda:1"):
        Placement("cuda:1", runner=runner).runner_name()


@pytest.mark.parametrize("runner", placement.RUNNERS)
def test_the_runner_is_loaded_in_its_default_dtype(runner: str, stored: Checkpoint) -> None:
    if runner == "native" and not native_runner.available():
        pytest.skip("the kernels were not built")
    chosen = Placement("cpu", runner=runner)
    loaded = load_runner(stored, chosen)
    assert (loaded.name, loaded.dtype) == (runner, default_dtype(chosen))
    assert loaded.dtype in runner_class(runner).dtypes
    for dtype in set(runner_class(runner).dtypes) - {"int4"}:
        logits = load_runner(stored, replace(chosen, dtype=dtype))
        assert logits.dtype == dtype
        assert np.isfinite(logits.forward([Chunk(logits.open(), IDS)])[0]).all()


@pytest.mark.parametrize("runner", placement.RUNNERS)
def test_a_dtype_that_the_runner_lacks_is_refused(runner: str, stored: Checkpoint) -> None:
    if runner == "native" and not native_runner.available():
        pytest.skip("the kernels were not built")
    lacking = {"auto", "float64", "int8", "int4"} - {"auto", *runner_class(runner).dtypes}
    assert lacking or runner == "torch"
    for dtype in lacking:
        with pytest.raises(KoGPTError, match=f"'{dtype}'.* for the {runner} runner"):
            load_runner(stored, Placement("cpu", dtype, runner=runner))


def test_the_cache_and_the_threads_arrive(stored: Checkpoint) -> None:
    if not native_runner.available():
        pytest.skip("the kernels were not built")
    loaded = load_runner(stored, Placement("cpu", "float32", "int8", threads=1))
    assert isinstance(loaded, native_runner.NativeRunner)
    assert (loaded.dtype, loaded.cache_dtype, loaded.threads) == ("float32", "int8", 1)
    with pytest.raises(KoGPTError, match=r"numpy runner.*int8.*--cache-dtype"):
        load_runner(stored, Placement("cpu", "float32", "int8", runner="numpy"))


def test_numpy_unpacks_only_what_fits(stored: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = replace(stored, quantization="int8")
    monkeypatch.setattr("kogpt.memory.available_memory", lambda: 4 * stored.config.n_parameters)
    with pytest.raises(NotEnoughMemory, match="this model unpacked"):
        load_runner(packed, Placement("cpu", runner="numpy"))


# Nothing falls back silently


def test_the_fastest_choice_says_nothing(stored: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    if not native_runner.available():
        pytest.skip("the kernels were not built")
    load_runner(stored)
    load_runner(stored, Placement("cpu", "float32", threads=1))
    assert said(caplog) == []


@pytest.mark.parametrize(("built", "why"), [(False, "were not built"), (True, "another version")])
def test_numpy_for_want_of_the_library_is_said_once(
    built: bool,
    why: str,
    stored: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    library = tmp_path / "_native.so"
    if built:
        library.touch()
    without_native(monkeypatch, library)
    assert load_runner(stored, Placement("cpu")).name == "numpy"
    (line,) = said(caplog)
    assert "numpy" in line and why in line
    # A name would be looked for on PyPI, where KoGPT is not.
    assert f"repository{',' * built} pip install --force-reinstall --no-cache-dir ." in line
    caplog.clear()
    load_runner(stored, Placement("cpu", runner="numpy"))
    assert said(caplog) == [], "numpy was asked for"


@pytest.mark.parametrize("has_torch", [False, True])
def test_an_unused_gpu_is_said_once(
    has_torch: bool, stored: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(placement, "has_cuda", lambda: True)
    monkeypatch.setattr(placement, "_has_torch", lambda: has_torch)
    monkeypatch.setattr(placement, "_torch_gpus", lambda: 0)
    load_runner(stored, Placement("cpu"))
    assert [line for line in said(caplog) if "GPU" in line] == [], "the CPU was asked for"
    load_runner(stored)
    (line,) = [line for line in said(caplog) if "GPU" in line]
    assert ("torch finds none" if has_torch else "kogpt[torch]") in line and "--device cpu" in line


def test_threads_without_effect_are_said(
    stored: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    chosen = Placement("cpu", threads=2, runner="numpy")
    load_runner(stored, chosen)
    (line,) = said(caplog)
    assert "threads=2 has no effect" in line and "OPENBLAS_NUM_THREADS" in line
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    assert list(placement.fallbacks(chosen, "numpy")) == []
    monkeypatch.setattr(placement, "has_cuda", lambda: True)
    (line,) = placement.fallbacks(Placement("cuda", threads=2), "torch")
    assert line.startswith("--threads 2 has no effect on a GPU")


def test_it_is_said_in_korean_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "ko_KR.UTF-8")
    without_native(monkeypatch)
    (line,) = placement.fallbacks(Placement("cpu"), "numpy")
    assert line.startswith("더 느린 numpy로 계산합니다. native 커널이 빌드되지 않았습니다.")


@pytest.mark.parametrize("korean", [False, True])
def test_the_command_says_it_on_stderr_in_one_line(korean: bool, tiny_folder: Path) -> None:
    program = (
        "from kogpt import native_runner; from pathlib import Path; import sys\n"
        "native_runner.available = lambda: False; native_runner.LIBRARY = Path('none')\n"
        "from kogpt.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["generate", "봄", "--model", str(tiny_folder), "--device", "cpu", "--max-tokens", "2"]
    locale = {"LC_ALL": "ko_KR.UTF-8" if korean else "C", "PATH": "", "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True,
        encoding="utf-8",
        env=locale,
        cwd=Path(__file__).parents[1],
        check=True,
    )
    (line,) = done.stderr.splitlines()
    assert ("numpy로 계산합니다" if korean else "computing with numpy") in line


# In Python


def test_from_pretrained_takes_a_placement(tiny_folder: Path) -> None:
    model = KoGPT.from_pretrained(tiny_folder, device=Placement("cpu", "float32", runner="numpy"))
    assert (model.engine.runner.name, model.engine.runner.dtype) == ("numpy", "float32")
    with pytest.raises(KoGPTError, match="put them into it"):
        KoGPT.from_pretrained(tiny_folder, device=Placement("cpu"), dtype="float32")


def test_bytes_of_the_cache(tiny: ModelConfig) -> None:
    values = 2 * tiny.n_layers * tiny.d_model
    assert placement.cache_bytes(tiny, "float32", 7) == 7 * 4 * values
    assert placement.cache_bytes(tiny, "int8", 7) == 7 * (values + 2 * tiny.n_layers * tiny.n_heads * 4)
