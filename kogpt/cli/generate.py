"""`kogpt generate`: continue one prompt, standard input, or a file of prompts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kogpt.cli.options import add_generation_options, add_model_options, load_model, sampling_from
from kogpt.cli.progress import Progress
from kogpt.cli.reading import (
    ENCODINGS,
    decode,
    intended,
    jsonl_prompts,
    read_bytes,
    text_lines,
)
from kogpt.errors import InputError, PromptError, localized

if TYPE_CHECKING:
    from kogpt.generation import KoGPT, Result
    from kogpt.sampling import Sampling


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `kogpt generate` takes."""
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="the text to continue; - reads it from standard input"
    )
    parser.add_argument(
        "--file", metavar="PATH", help='one prompt a line, or JSON Lines with a "prompt" each (.jsonl)'
    )
    parser.add_argument(
        "--encoding", choices=ENCODINGS, default="auto", help="of the input (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per answer")
    add_generation_options(parser)
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the continuation of every prompt."""
    sampling = sampling_from(args)
    prompts = _prompts(args)  # read and checked before a model is loaded for them
    model = load_model(args)
    if len(prompts.texts) == 1 and sampling.n == 1 and not args.json:
        return _stream(model, prompts.texts[0], sampling)
    return _batch(model, prompts, sampling, args.json)


@dataclass(frozen=True, slots=True)
class _Prompts:
    """Prompts and where each comes from."""

    texts: list[str]
    source: str
    lines: list[int]  # line numbers in a file of prompts; empty for a single prompt


def _prompts(args: argparse.Namespace) -> _Prompts:
    if args.prompt is not None and args.file is not None:
        raise InputError("give a PROMPT or a --file, not both", "PROMPT와 --file 중 하나만 지정해 주십시오")
    if args.file is not None:
        return _prompts_of_file(args.file, args.encoding)
    if args.prompt is None and sys.stdin is not None and sys.stdin.isatty():
        raise InputError(
            "there is no prompt: kogpt generate PROMPT (or - to read standard input, or --file PATH)",
            "프롬프트가 없습니다: kogpt generate PROMPT (표준 입력은 -, 파일은 --file PATH)",
        )
    if args.prompt in (None, "-"):
        text = decode(read_bytes("-"), _source("-"), args.encoding)
        return _Prompts([text.removesuffix("\n").removesuffix("\r")], _source("-"), [])
    return _Prompts([intended(args.prompt, "PROMPT")], "PROMPT", [])


def _prompts_of_file(path: str, encoding: str) -> _Prompts:
    source = _source(path)
    read = jsonl_prompts if path.endswith(".jsonl") else text_lines
    numbered = list(read(read_bytes(path), source, encoding))
    if not numbered:
        raise InputError(f"{source} holds no prompts", f"{source}: 프롬프트가 없습니다")
    return _Prompts([text for _, text in numbered], source, [line for line, _ in numbered])


def _source(path: str) -> str:
    """What messages call an input."""
    return localized("standard input", "표준 입력") if path == "-" else path


def _stream(model: KoGPT, prompt: str, sampling: Sampling) -> int:
    """Show one answer as it is written."""
    finish = None
    for piece in model.stream(prompt, sampling):
        sys.stdout.write(piece.text)
        sys.stdout.flush()
        finish = piece.finish_reason
    sys.stdout.write("\n")
    return _exit_code(int(finish == "error"))


def _batch(model: KoGPT, prompts: _Prompts, sampling: Sampling, as_json: bool) -> int:
    """Print all answers in the order of their prompts, each as soon as those before it are printed."""
    n_failed = n_printed = 0
    with Progress(len(prompts.texts) * sampling.n) as progress:
        for result in _in_order(_results(model, prompts, sampling), sampling.n):
            n_failed += result.finish_reason == "error"
            with progress.hidden():
                if as_json:
                    print(json.dumps(_record(result), ensure_ascii=False))
                else:
                    print(f"\n{result.text}" if n_printed else result.text)
                sys.stdout.flush()
            n_printed += 1
            progress.advance()
    return _exit_code(n_failed)


def _results(model: KoGPT, prompts: _Prompts, sampling: Sampling) -> Iterator[tuple[int, Result]]:
    """The model's results; a prompt that it refuses is named by its line."""
    taken = 0

    def texts() -> Iterator[str]:
        nonlocal taken
        for text in prompts.texts:
            taken += 1
            yield text

    try:
        yield from model.results(texts(), sampling)
    except PromptError as error:
        if not prompts.lines:
            raise
        line = prompts.lines[taken - 1]
        raise PromptError(
            f"{prompts.source} line {line}: {error.en}", f"{prompts.source} {line}행: {error.ko}"
        ) from error


def _in_order(results: Iterator[tuple[int, Result]], n: int) -> Iterator[Result]:
    """Results prompt by prompt and sample by sample; each prompt has n."""
    early: dict[int, list[Result]] = {}
    next_number = 0
    for number, result in results:
        early.setdefault(number, []).append(result)
        while len(early.get(next_number, ())) == n:
            yield from sorted(early.pop(next_number), key=lambda result: result.sample)
            next_number += 1


def _record(result: Result) -> dict[str, Any]:
    """One line of --json; these names are stable."""
    record: dict[str, Any] = {
        "prompt": result.prompt,
        "text": result.text,
        "tokens": list(result.tokens),
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
        "seconds": round(result.seconds, 4),
    }
    if result.logprobs is not None:
        record["logprobs"] = [
            {"token": drawn.token, "logprob": drawn.logprob, "top": [list(top) for top in drawn.top_logprobs]}
            for drawn in result.logprobs
        ]
    return record


def _exit_code(n_failed: int) -> int:
    if not n_failed:
        return 0
    line = localized(
        f"kogpt: {n_failed} answers ended early: the model computed numbers that are not finite",
        f"kogpt: 답 {n_failed}개가 도중에 끝났습니다: 모델의 계산 결과가 유한한 수가 아닙니다",
    )
    print(line, file=sys.stderr)
    return 1
