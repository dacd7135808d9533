"""`kogpt serve`: the model behind HTTP, and a page."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kogpt.cli.options import (
    add_filter_option,
    add_model_options,
    load_model,
    placement_from,
    read_amount,
    read_count,
)
from kogpt.cli.vllm import add_engine_options, require_use, serve_by_vllm
from kogpt.errors import InputError, MissingExtra, localized

KEY_VARIABLE = "KOGPT_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kogpt serve`."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=read_count, default=8000, metavar="N", help="port to listen on (default: %(default)s)"
    )
    parser.add_argument("--uds", metavar="PATH", help="listen on a UNIX socket instead")
    parser.add_argument("--tls-certificate", metavar="PATH", help="certificate for HTTPS (PEM)")
    parser.add_argument("--tls-key", metavar="PATH", help="private key of the certificate (PEM)")
    parser.add_argument(
        "--api-key-file",
        metavar="PATH",
        help=f"file of API keys, one per line; {KEY_VARIABLE} holds a single one",
    )
    parser.add_argument(
        "--allowed-host", action="append", metavar="NAME", help="host name to answer to; may be repeated"
    )
    parser.add_argument(
        "--cors-origin",
        action="append",
        metavar="ORIGIN",
        help="page that may call this server; may be repeated",
    )
    parser.add_argument(
        "--drain-seconds",
        type=read_amount,
        default=30.0,
        metavar="S",
        help="time that answers may take to finish after SIGTERM (default: %(default)s)",
    )
    parser.add_argument(
        "--rows",
        type=read_count,
        default=16,
        metavar="N",
        help="answers that are written at once; more wait for their turn (default: %(default)s)",
    )
    parser.add_argument("--print-limits", action="store_true", help="print the limits of requests and exit")
    add_model_options(parser)
    parser.add_argument(
        "--adapter",
        action="append",
        dest="adapters",
        metavar="[NAME=]DIR",
        help="serve the model with an adapter too, a folder of PEFT, under this name (default: the folder's);"
        " may be repeated",
    )
    parser.add_argument("--index", metavar="INDEX", help="answer /v1/search from this index of kogpt search")
    add_filter_option(parser)
    add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    try:
        from kogpt.server.access import Access
        from kogpt.server.app import make_app, make_service
        from kogpt.server.limits import Limits
        from kogpt.server.listen import Address
        from kogpt.server.listen import run as listen
    except ImportError as error:
        raise MissingExtra("kogpt serve", "serve") from error

    limits = Limits()
    if args.print_limits:
        print("\n".join(limits.describe()))
        return 0
    require_use(args)
    address = Address(args.host, args.port, _path(args.uds), _path(args.tls_certificate), _path(args.tls_key))
    keys = read_keys(args.api_key_file)
    address.check(has_key=bool(keys))
    access = Access(keys, address.loopback, tuple(args.allowed_host or ()), tuple(args.cors_origin or ()))
    if args.engine == "vllm":
        return serve_by_vllm(args, address, access, _show_access_log)
    folders = read_adapters(args.adapters or ())
    if args.index is not None:
        _require_index(args.index)
    address.check_free()
    _show_access_log()
    _tell_memory(args)
    model = load_model(args)
    model.verify()  # /ready must not vouch for damaged weights
    model.engine.max_rows = args.rows
    service = make_service(model, limits, model.with_adapters(folders) if folders else {})
    service.index = _path(args.index)
    print(localized(f"KoGPT listens on {address}", f"KoGPT 서버 주소: {address}"), file=sys.stderr)
    listen(make_app(service, access), service, address, args.drain_seconds)
    return 1 if service.worker.dead is not None else 0


def _require_index(folder: str) -> None:
    """Refuse what is no sound index, before the model is loaded."""
    from kogpt.search.index import Index

    Index.open(folder).close()


def _tell_memory(args: argparse.Namespace) -> None:
    """Say what texts that fill the context will take, before anything is loaded."""
    from kogpt import checkpoint, hub
    from kogpt.memory import amount
    from kogpt.native_runner import cache_dtype_for
    from kogpt.placement import cache_bytes, default_dtype

    placement = placement_from(args)
    config = checkpoint.read_config(hub.find_folder(args.model, args.revision, weights=False))
    dtype = default_dtype(placement) if placement.dtype == "auto" else placement.dtype
    cache_dtype = cache_dtype_for(dtype) if placement.cache_dtype == "auto" else placement.cache_dtype
    need = amount(cache_bytes(config, cache_dtype, args.rows * config.n_ctx))
    print(
        localized(
            f"{args.rows} texts of {config.n_ctx:,} tokens at once take {need} beside the weights",
            f"한 번에 쓰는 글 {args.rows}개가 각각 {config.n_ctx:,} 토큰이면 가중치 밖에 쓰는 메모리: {need}",
        ),
        file=sys.stderr,
    )


def _show_access_log() -> None:
    """Write one JSON line per request to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    access = logging.getLogger("kogpt.access")
    access.addHandler(handler)
    access.setLevel(logging.INFO)
    access.propagate = False  # --debug has a handler of its own above


def read_keys(path: str | None) -> tuple[str, ...]:
    """The API keys of the file, or of the environment; never of the command line, which others can read."""
    if path is None:
        key = os.environ.get(KEY_VARIABLE, "")
        return (_require_ascii(key),) if key else ()
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}", f"{path}: 읽을 수 없습니다: {error}") from None
    keys = tuple(_require_ascii(line.strip()) for line in lines if line.strip())
    if not keys:
        raise InputError(
            f"{path} holds no API key: one per line", f"{path}: API 키가 없습니다. 한 줄에 하나씩 적으세요"
        )
    return keys


def _require_ascii(key: str) -> str:
    """The key; InputError where no header can carry it (RFC 9110, section 5.5), without showing it."""
    if not key.isascii() or not key.isprintable():
        raise InputError(
            "an API key has characters that no HTTP header carries: use letters, digits and signs of ASCII",
            "API 키에 HTTP 헤더로 보낼 수 없는 문자가 있습니다. ASCII 문자, 숫자, 기호만 쓰세요",
        )
    return key


def read_adapters(arguments: Sequence[str]) -> dict[str, str]:
    """The folders of --adapter by the names under which they are served."""
    found: dict[str, str] = {}
    for argument in arguments:
        stated, separator, rest = argument.partition("=")
        folder = rest if separator else argument
        name = stated if separator else Path(folder).resolve().name
        if not name or name in found:
            raise InputError(
                f"--adapter {argument}: the name {name!r} is empty or taken, write --adapter NAME=DIR",
                f"--adapter {argument}: 이름 {name!r}: 비어 있거나 이미 있습니다."
                " --adapter 이름=폴더 형식으로 쓰세요",
            )
        found[name] = folder
    return found


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
