"""Device, precision, cache and threads -> the runner with the weights in it; what a model's cache takes.

Where nobody chose, the machine decides: torch where there is a GPU, else the native kernels, else numpy.
What is slower than it could be, and what is asked for without effect, is said in one warning for each load.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kogpt import native_runner
from kogpt.checkpoint import Checkpoint
from kogpt.config import ModelConfig
from kogpt.errors import KoGPTError, MissingExtra, localized
from kogpt.memory import require_memory, usable_cpus
from kogpt.quantize import FORMATS, wrong_dtype
from kogpt.runner import Runner, require_dtype, require_own_cache
from kogpt.weights import WIDTHS

RUNNERS = ("native", "numpy", "torch")
DEVICE = re.compile(r"auto|cpu|cuda(:all)?|cuda:\d+(,cuda:\d+)*")
DEVICES = ("auto", "cpu", "cuda", "cuda:N", "cuda:N,cuda:M", "cuda:all")  # what DEVICE matches, for people
# A cache may hold the wheel that was built before there was a compiler. KoGPT is not on PyPI.
REINSTALL = "pip install --force-reinstall --no-cache-dir ."
BLAS_THREADS = "OPENBLAS_NUM_THREADS"  # read by numpy's BLAS when numpy is first imported

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model runs and in which precision; "auto" and None leave it to this machine.

    device: auto, cpu, cuda, cuda:N, cuda:N,cuda:M (layers split over these GPUs) or cuda:all.
    dtype: of the weights; one of the runner's `dtypes`. cache_dtype: of keys and values; on the native
    runner float32, bfloat16 or int8. threads: of the CPU. runner: native, numpy or torch. offload: layers
    that stay in CPU memory beside one GPU; None: as many as it has no room for.
    KoGPTError for a value that no machine has; one that this machine lacks is refused by `load_runner`.
    """

    device: str = "auto"
    dtype: str = "auto"
    cache_dtype: str = "auto"
    threads: int | None = None
    runner: str = "auto"
    offload: int | None = None

    def __post_init__(self) -> None:
        if type(self.device) is not str or not DEVICE.fullmatch(self.device):
            raise _impossible("device", self.device, DEVICES)
        known = {"dtype": (*WIDTHS, *FORMATS), "cache_dtype": native_runner.CACHE_DTYPES, "runner": RUNNERS}
        for name, values in known.items():
            if (value := getattr(self, name)) not in ("auto", *values):
                raise _impossible(name, value, ("auto", *values))
        limit = native_runner.MAX_THREADS
        if self.threads is not None and (type(self.threads) is not int or not 1 <= self.threads <= limit):
            raise KoGPTError(
                f"threads is {self.threads!r}, must be from 1 to {limit}: as many as there are cores",
                f"threads 값 {self.threads!r} (조건: 1 이상 {limit} 이하, 코어 수만큼)",
            )
        if self.offload is not None and (type(self.offload) is not int or self.offload < 0):
            raise KoGPTError(
                f"offload is {self.offload!r}, must be None or a number of layers: 0 keeps all on the GPU",
                f"offload 값 {self.offload!r} (조건: None 또는 0 이상의 층 수, 0은 모든 층을 GPU에 둠)",
            )

    @classmethod
    def of(cls, device: str | Placement, dtype: str = "auto", cache_dtype: str = "auto") -> Placement:
        """The Placement of three names, or the one that is given instead of a device's name."""
        if not isinstance(device, Placement):
            return cls(device, dtype, cache_dtype)
        if (dtype, cache_dtype) != ("auto", "auto"):
            raise KoGPTError(
                f"dtype={dtype!r} and cache_dtype={cache_dtype!r} stand beside a Placement: put them into it",
                f"dtype={dtype!r}, cache_dtype={cache_dtype!r} 값은 Placement 안에 적으세요",
            )
        return device

    def runner_name(self) -> str:
        """Which runner computes here; MissingExtra or KoGPTError where that one cannot."""
        on_gpu = self.device.startswith("cuda")
        name = self.runner
        if name == "auto" and (on_gpu or (self.device == "auto" and finds_gpu())):
            name = "torch"
        elif name == "auto":
            name = "native" if native_runner.available() else "numpy"
        if name == "torch" and not _has_torch():
            raise MissingExtra(f"--device {self.device}" if on_gpu else "--runner torch", "torch")
        if name == "native" and not native_runner.available():
            en, ko = native_problem()
            raise KoGPTError(
                f"--runner native: {en}; or use --runner numpy",
                f"--runner native: {ko} (또는 --runner numpy)",
            )
        if name != "torch" and on_gpu:
            raise KoGPTError(
                f"the {name} runner computes on the CPU, not on {self.device}: use --device cpu",
                f"{name} 러너는 CPU에서만 계산합니다 (지정한 장치: {self.device}). --device cpu를 쓰세요",
            )
        return name

    def torch_device(self) -> str:
        """The device of a torch runner: what "auto" means here."""
        if self.device != "auto":
            return self.device
        return "cuda" if finds_gpu() else "cpu"


def load_runner(stored: Checkpoint, placement: Placement | None = None) -> Runner:
    """The runner for a placement, with the checkpoint's weights in it.

    It answers no step before they are verified, and raises CheckpointError instead if they are damaged.
    Raises KoGPTError where the runner lacks the dtype, a quantised model would be rounded twice, or the
    runner is not installed; NotEnoughMemory.
    """
    placement = placement or Placement()
    name = placement.runner_name()
    if name != "native":
        require_own_cache(placement.cache_dtype, name)
    dtype, tensors = _weights(stored, name, placement)
    for line in fallbacks(placement, name):
        logger.warning(line)
    if name == "native":
        threads, cache_dtype = placement.threads, placement.cache_dtype
        runner = native_runner.NativeRunner(stored.config, tensors, dtype, threads, cache_dtype)
        if stored.verification is not None:
            stored.verification.begin()
            runner.answer_after(stored.verification.wait)
        return runner
    if stored.verification is not None:
        stored.verification.wait()
    if name == "torch":
        return _torch_runner(stored.config, tensors, dtype, placement)
    from kogpt.numpy_runner import NumpyRunner

    return NumpyRunner(stored.config, tensors, dtype)


def runner_class(name: str) -> type[Runner]:
    """The class of a runner; torch takes 1.5 s to import, so only where it is used."""
    if name == "native":
        return native_runner.NativeRunner
    if name == "numpy":
        from kogpt.numpy_runner import NumpyRunner

        return NumpyRunner
    from kogpt.torch_runner import TorchRunner

    return TorchRunner


def default_dtype(placement: Placement) -> str:
    """The dtype that "auto" means for a model of floats."""
    name = placement.runner_name()
    if name == "torch" and placement.torch_device() == "cpu":
        return "bfloat16"  # torch's kernels for float16 on a CPU are slow
    return runner_class(name).dtypes[0]


def fallbacks(placement: Placement, name: str) -> Iterator[str]:
    """A line for each thing that is slower than it could be, and for each option without effect."""
    if placement.device == "auto" and name != "torch" and placement.runner == "auto" and has_cuda():
        yield localized(*_unused_gpu())
    if name == "numpy" and placement.runner == "auto":
        en, ko = native_problem()
        yield localized(f"computing with numpy, which is slower: {en}", f"더 느린 numpy로 계산합니다. {ko}")
    on_gpu = name == "torch" and placement.torch_device() != "cpu"
    if placement.offload is not None and not on_gpu:
        yield localized(
            f"--offload {placement.offload} has no effect on a CPU: leave it out",
            f"--offload {placement.offload} 옵션은 CPU에서 효과가 없습니다. 빼고 실행하세요",
        )
    if placement.threads is None:
        return
    if on_gpu:
        yield localized(
            f"--threads {placement.threads} has no effect on a GPU: leave it out",
            f"--threads {placement.threads} 옵션은 GPU에서 효과가 없습니다. 빼고 실행하세요",
        )
    if name == "numpy" and os.environ.get(BLAS_THREADS) != str(placement.threads):
        yield localized(
            f"threads={placement.threads} has no effect once numpy is loaded: set {BLAS_THREADS} before",
            f"threads={placement.threads} 설정은 numpy를 불러온 뒤에는 효과가 없습니다. "
            f"실행하기 전에 {BLAS_THREADS} 환경 변수를 설정하세요",
        )


def _unused_gpu() -> tuple[str, str]:
    """Why "auto" leaves a GPU alone, and the remedy; English and Korean."""
    if _has_torch():
        return (
            "this machine has a GPU, but torch finds none: computing on the CPU; install a driver and a "
            "build of torch that fit each other, or choose --device cpu",
            "GPU가 있지만 torch가 찾지 못해 CPU로 계산합니다. 서로 맞는 드라이버와 torch를 설치하거나 "
            "--device cpu를 지정하세요",
        )
    return (
        "this machine has a GPU, but torch is not installed: computing on the CPU; "
        "pip install 'kogpt[torch]', or choose --device cpu",
        "GPU가 있지만 torch가 설치되어 있지 않아 CPU로 계산합니다. "
        "pip install 'kogpt[torch]'로 설치하거나 --device cpu를 지정하세요",
    )


def cache_bytes(config: ModelConfig, cache_dtype: str, n_tokens: int) -> int:
    """Memory of the keys and values of `n_tokens`; int8 has a float32 scale for each position and head."""
    if cache_dtype == "int8":
        return 2 * config.n_layers * config.n_heads * (config.d_head + 4) * n_tokens
    return 2 * config.n_layers * config.d_model * WIDTHS[cache_dtype] * n_tokens


def has_cuda() -> bool:
    """Whether an NVIDIA driver is at hand, told without importing torch."""
    # Linux; Linux under Windows, where /dev/dxg is there for any vendor's GPU.
    nodes = (Path("/dev/nvidiactl"), Path("/usr/lib/wsl/lib/libcuda.so.1"))
    return any(node.exists() for node in nodes) or shutil.which("nvidia-smi") is not None


def finds_gpu() -> bool:
    """Whether torch computes on a GPU here; it may be a build without CUDA, beside a driver."""
    return has_cuda() and _has_torch() and _torch_gpus() > 0


def _torch_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _weights(stored: Checkpoint, name: str, placement: Placement) -> tuple[str, Mapping[str, Any]]:
    """The dtype in memory and the weights for it.

    A quantised folder keeps its format in a runner that knows it; for any format of floats, and for other
    runners, it is unpacked. KoGPTError where it would be rounded a second time.
    """
    kind, quantization, dtype = runner_class(name), stored.quantization, placement.dtype
    if dtype != "auto":
        require_dtype(dtype, kind.dtypes, name)
    if quantization is not None and quantization in kind.dtypes and dtype in ("auto", quantization):
        return quantization, stored.tensors
    if quantization is not None and dtype in FORMATS:
        raise wrong_dtype(quantization, dtype)
    if dtype == "auto":
        dtype = default_dtype(placement)
    tensors = stored.floats()
    if name == "numpy" and quantization is not None:  # which keeps all of them
        n_bytes = kind.weight_bytes(stored.config, "float32")
        require_memory(n_bytes, "this model unpacked", "압축을 푼 이 모델")
        tensors = dict(tensors)
    return dtype, tensors


def _torch_runner(
    config: ModelConfig, tensors: Mapping[str, Any], dtype: str, placement: Placement
) -> Runner:
    import torch

    from kogpt.torch_runner import TorchRunner

    device = placement.torch_device()
    if device != "cpu":
        return TorchRunner(config, tensors, dtype, device, placement.offload)
    torch.set_num_threads(placement.threads or usable_cpus())
    return TorchRunner(config, tensors, dtype)


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def native_problem() -> tuple[str, str]:
    """Why the native kernels cannot be used, and the remedy; English and Korean."""
    if native_runner.LIBRARY.exists():
        return (
            f"the native library belongs to another version of KoGPT: in its repository, {REINSTALL}",
            "native 라이브러리가 다른 버전의 KoGPT에서 만들어졌습니다. KoGPT 저장소에서 다시 설치하세요: "
            f"{REINSTALL}",
        )
    return (
        f"the native kernels were not built: install a C++ compiler, then in KoGPT's repository {REINSTALL}",
        "native 커널이 빌드되지 않았습니다. C++ 컴파일러를 설치한 뒤 KoGPT 저장소에서 다시 설치하세요: "
        f"{REINSTALL}",
    )


def _impossible(what: str, value: object, known: tuple[str, ...]) -> KoGPTError:
    shown, values = repr(value)[:60], ", ".join(known)
    return KoGPTError(
        f"{what} is {shown}, must be one of {values}", f"{what} 값 {shown} (가능한 값: {values})"
    )
