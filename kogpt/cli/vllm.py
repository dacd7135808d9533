"""`kogpt serve --engine vllm`: an installed vLLM computes, our server stands in front of it."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kogpt import checkpoint
from kogpt.cli.options import read_count
from kogpt.errors import InputError, localized

if TYPE_CHECKING:
    import subprocess

    from kogpt.checkpoint import Checkpoint
    from kogpt.cli.defaults import Given
    from kogpt.cluster.vllm import Deployment
    from kogpt.server.access import Access
    from kogpt.server.listen import Address

# Options of `kogpt serve` that an engine does not use: dest -> the value that asks for nothing.
UNUSED: Mapping[str, Mapping[str, object]] = {
    "vllm": {
        "filter": "off",
        "adapters": None,
        "index": None,
        "rows": None,
        "drain_seconds": None,
        "device": "auto",
        "dtype": "auto",
        "cache_dtype": "auto",
        "model_parallel": False,
        "offload": None,
    },
    "kogpt": {
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "nnodes": 1,
        "master_addr": None,
        "phi_folder": None,
        "print_commands": False,
    },
}


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """--engine, and how vLLM spreads the model."""
    group = parser.add_argument_group("several GPUs")
    group.add_argument(
        "--engine", choices=("kogpt", "vllm"), default="kogpt", help="what computes (default: %(default)s)"
    )
    counts = {
        "--tensor-parallel-size": "vllm: GPUs that share each layer",
        "--pipeline-parallel-size": "vllm: groups of GPUs that share the layers",
        "--nnodes": "vllm: machines; each needs the same exported folder",
    }
    for flag, text in counts.items():
        group.add_argument(flag, type=read_count, metavar="N", default=1, help=text)
    group.add_argument("--master-addr", metavar="IP", default="127.0.0.1", help="vllm: the first machine")
    group.add_argument(
        "--phi-folder",
        metavar="DIR",
        type=Path,
        help="vllm: where the model in the layout of Phi is kept (default: ~/.cache/kogpt)",
    )
    group.add_argument(
        "--print-commands", action="store_true", help="vllm: print the command of each machine and exit"
    )


def require_use(args: argparse.Namespace) -> None:
    """InputError for typed options that the engine does not use; a line for configured ones.

    A configured filter is an InputError as well: without it texts would go out that nobody expects.
    """
    unused = [name for name, nothing in UNUSED[args.engine].items() if getattr(args, name) != nothing]
    if typed := [name for name in unused if name in args.typed]:
        raise _unused(args.engine, ", ".join(_as_typed(args, name) for name in typed))
    configured = [args.configured[name] for name in unused if name in args.configured]
    for given in configured:
        if given.name == "filter":
            raise _no_filter(given)
    if configured:
        told = ", ".join(f"{given.name} ({given.source})" for given in configured)
        en = f"not used by --engine {args.engine}: {told}"
        ko = f"--engine {args.engine}에 쓰이지 않는 설정: {told}"
        print(f"kogpt: {localized(en, ko)}", file=sys.stderr)


def _as_typed(args: argparse.Namespace, name: str) -> str:
    """An option and its value, as in --rows 4."""
    value = getattr(args, name)
    values = value if isinstance(value, list) else [value]
    return " ".join([args.typed[name], *(str(each) for each in values if each is not True)])


def _unused(engine: str, shown: str) -> InputError:
    other = next(name for name in UNUSED if name != engine)
    return InputError(
        f"--engine {engine} does not use {shown}: leave that out, or serve with --engine {other}",
        f"--engine {engine}에 쓰이지 않는 옵션: {shown}. 빼거나 --engine {other} 옵션으로 실행하세요",
    )


def _no_filter(given: Given) -> InputError:
    return InputError(
        f"{given.source}: filter is {given.value}, --engine vllm filters nothing: type --filter off to serve"
        " without it, or serve with --engine kogpt",
        f"{given.source}: filter 값 {given.value} (--engine vllm에는 필터가 없습니다)."
        " 필터 없이 실행하려면 --filter off를, 아니면 --engine kogpt를 쓰세요",
    )


def serve_by_vllm(
    args: argparse.Namespace, address: Address, access: Access, show_log: Callable[[], None]
) -> int:
    """Export once, start vLLM, serve in front of it until a signal comes or it ends.

    show_log: begins the access log, once there is something to serve.
    """
    from kogpt.cluster.vllm import Deployment, require_vllm, running
    from kogpt.server.listen import run_front
    from kogpt.server.proxy import Front, make_proxy

    executable = "vllm" if args.print_commands else require_vllm()
    stored = checkpoint.load(args.model, args.revision)
    deployment = Deployment(
        model=_phi_folder(args, stored),
        name=Path(args.model).name,
        port=_free_port(),
        tensor_parallel=args.tensor_parallel_size,
        pipeline_parallel=args.pipeline_parallel_size,
        n_nodes=args.nnodes,
        master=args.master_addr,
    )
    deployment.check(stored.config)
    if args.print_commands:
        print("\n".join(deployment.lines()))
        return 0
    _tell_others(deployment)
    show_log()
    with running(executable, deployment) as child:
        front = Front(f"http://127.0.0.1:{deployment.port}", deployment.name, lambda: child.poll() is None)
        print(localized(f"KoGPT listens on {address}", f"KoGPT 서버 주소: {address}"), file=sys.stderr)
        run_front(make_proxy(front, access), address, front.limits, front.goes_on)
        return 0 if child.poll() is None else _say_ended(child)


def _phi_folder(args: argparse.Namespace, stored: Checkpoint) -> Path:
    """The model in the layout of Phi, exported once; its name is a hash of the weights."""
    from kogpt.export.phi import export_phi

    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder: Path = (args.phi_folder or Path(cache, "kogpt")) / f"phi-{checkpoint.digest(stored.folder)[:16]}"
    if not (folder / "config.json").is_file():
        line = localized(f"writing the layout of Phi to {folder}", f"Phi 구조의 모델을 쓰는 중: {folder}")
        print(line, file=sys.stderr)
        export_phi(stored, "float16", folder)
    return folder


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _tell_others(deployment: Deployment) -> None:
    for rank, line in enumerate(deployment.lines()[1:], 1):
        where = localized(f"on machine {rank + 1}", f"{rank + 1}번째 컴퓨터에서 실행하세요")
        print(f"{where}: {line}", file=sys.stderr)


def _say_ended(child: subprocess.Popen[bytes]) -> int:
    code = child.returncode
    en = f"kogpt serve: vLLM ended with exit code {code}: its own lines above say why"
    ko = f"kogpt serve: vLLM이 끝났습니다 (종료 코드 {code}). 위에 나온 vLLM의 메시지를 보세요"
    print(localized(en, ko), file=sys.stderr)
    return 1
