"""The first token after load in a process of its own that has no compiled kernel on disk.

    python -m bench.gpu_cold --dtype float16

Importing torch is no part of it. Triton's cache is an empty folder, and CUDA's own cache of compiled code is
off. Prints one line of JSON: seconds of loading and of the first token after it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

from bench.gpu_weights import NAMES, named_shape, random_weights
from kogpt.cli import speed
from kogpt.torch_runner import TorchRunner

PROMPT = 32  # tokens
LIMIT = 60.0  # seconds of the process


def measured(shape: str, dtype: str, device: str) -> Mapping[str, float]:
    """Seconds `load` and `first_token`, in a new process."""
    command = [sys.executable, "-m", "bench.gpu_cold", "--shape", shape, "--dtype", dtype, "--device", device]
    with tempfile.TemporaryDirectory() as empty:
        environment = {**os.environ, "TRITON_CACHE_DIR": empty, "CUDA_CACHE_DISABLE": "1"}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
        )
    if done.returncode:
        raise RuntimeError(done.stderr[-300:])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Measure in this process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=NAMES, default="6b")
    parser.add_argument("--dtype", choices=TorchRunner.dtypes, default="float16")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args(words)
    config = named_shape(args.shape)
    weights = random_weights(config, args.dtype)
    started = time.perf_counter()
    runner = TorchRunner(config, weights, args.dtype, args.device)
    loaded = time.perf_counter() - started
    print(json.dumps({"load": loaded, "first_token": speed.prefill_seconds(runner, PROMPT)}))


if __name__ == "__main__":
    main()
