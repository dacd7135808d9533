"""Serving by an installed vLLM: the model in the layout of Phi, `vllm serve` as a child process.

vLLM's requirements conflict with those of others, so it is never a dependency: whatever `vllm` is on the PATH
runs. Several machines need the same folder at the same path on each, and one command on each.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kogpt.config import ModelConfig
from kogpt.errors import KoGPTError

MASTER_PORT = 29501  # vLLM's own default


@dataclass(frozen=True, slots=True)
class Deployment:
    """How vLLM spreads a model over GPUs and machines."""

    model: Path  # in the layout of Phi
    name: str  # that clients ask for
    port: int
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    n_nodes: int = 1
    master: str = "127.0.0.1"  # address of the first machine

    def check(self, config: ModelConfig) -> None:
        """KoGPTError for a split that this model or these machines do not allow."""
        if config.n_heads % self.tensor_parallel:
            raise KoGPTError(
                f"--tensor-parallel-size is {self.tensor_parallel}, must divide the {config.n_heads} heads",
                f"--tensor-parallel-size 값 {self.tensor_parallel} (조건: 헤드 수 {config.n_heads}의 약수)",
            )
        if self.pipeline_parallel > config.n_layers:
            raise KoGPTError(
                f"--pipeline-parallel-size is {self.pipeline_parallel}, there are {config.n_layers} layers",
                f"--pipeline-parallel-size 값 {self.pipeline_parallel} (조건: 층 수 {config.n_layers} 이하)",
            )
        if self.tensor_parallel * self.pipeline_parallel % self.n_nodes:
            n_gpus = self.tensor_parallel * self.pipeline_parallel
            raise KoGPTError(
                f"--nnodes is {self.n_nodes}, must divide the {n_gpus} GPUs of the two sizes",
                f"--nnodes 값 {self.n_nodes} (조건: 두 크기를 곱한 GPU 수 {n_gpus}의 약수)",
            )

    def command(self, rank: int = 0) -> list[str]:
        """The arguments of vLLM on one machine."""
        words = ["serve", str(self.model), "--served-model-name", self.name]
        words += ["--host", "127.0.0.1", "--port", str(self.port)]
        words += ["--tensor-parallel-size", str(self.tensor_parallel)]
        words += ["--pipeline-parallel-size", str(self.pipeline_parallel)]
        if self.n_nodes > 1:
            words += ["--nnodes", str(self.n_nodes), "--node-rank", str(rank)]
            words += ["--master-addr", self.master, "--master-port", str(MASTER_PORT)]
            words += ["--headless"] if rank else []
        return words

    def lines(self) -> list[str]:
        """The command for each machine, as a shell takes it."""
        return [f"vllm {shlex.join(self.command(rank))}" for rank in range(self.n_nodes)]


def require_vllm() -> str:
    """Path of the `vllm` command; KoGPTError where there is none."""
    found = shutil.which("vllm")
    if found is None:
        raise KoGPTError(
            "--engine vllm needs an installed vLLM: pip install vllm, in an environment of its own,"
            " and put it on the PATH",
            "--engine vllm에는 vLLM이 필요합니다. 따로 만든 환경에 pip install vllm으로 설치하고 "
            "PATH에 추가하세요",
        )
    return found


@contextmanager
def running(executable: str, deployment: Deployment) -> Iterator[subprocess.Popen[bytes]]:
    """vLLM as a child on this machine; it ends with the block, and is killed if it does not within 30 s."""
    child = subprocess.Popen([executable, *deployment.command()], stdout=sys.stderr)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
