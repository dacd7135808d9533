"""`kogpt generate`: continue one prompt, standard input, or a file of prompts."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from kogpt.cli import MISTAKE
from kogpt.cli.defaults import pass_over
from kogpt.cli.options import (
    add_adapter_option,
    add_filter_option,
    add_generation_options,
    add_model_options,
    given_settings,
    load_model,
)
from kogpt.cli.progress import Progress
from kogpt.cli.reading import Entry, read_prompts
from kogpt.cli.workers import add_worker_options, cut, require_workers, spread
from kogpt.errors import InputError, KoGPTError, localized
from kogpt.texts import ENCODINGS, decode, decode_argument, read_bytes

if TYPE_CHECKING:
    from kogpt.generation import KoGPT, Result
    from kogpt.sampling import Sampling

    Asked = Sequence[tuple[str, Sampling]]  # prompts, each with its settings

PART = 64  # prompts that a worker takes at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kogpt generate`."""
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="text to continue; - reads standard input"
    )
    parser.add_argument(
        "--file",
        metavar="PATH",
        help='file with one prompt per line, or JSON Lines with a "prompt" each (.jsonl);'
        " a line that is refused does not stop the others",
    )
    parser.add_argument(
        "--encoding", choices=ENCODINGS, default="auto", help="encoding of the input (default: %(default)s)"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help='print one JSON object per answer; "input" holds the other keys of its line,'
        ' "error" says why there is no answer',
    )
    add_generation_options(parser)
    add_model_options(parser)
    add_adapter_option(parser)
    add_filter_option(parser)
    add_worker_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the continuation of every prompt."""
    _pass_over(args)
    given = given_settings(args)
    _require_json(args)
    require_workers(args)
    prompts = _prompts(args)  # read and checked before a model is loaded for them
    if args.workers is not None:
        return _run_spread(args, prompts, given)
    model = load_model(args)
    sampling = model.sampling(**given)
    first, *others = prompts.entries
    if isinstance(first, Entry) and not others and sampling.n == 1 and not args.json:
        return _stream(model, first.text, sampling)
    return _Batch(prompts, sampling, args.json).run(lambda asked: _local(model, asked))


def _pass_over(args: argparse.Namespace) -> None:
    """Leave out what is configured for other runs and does not go with what is typed."""
    if args.prompt is not None:
        pass_over(args, "file")
    if "filter" in args.typed and args.filter != "off":
        pass_over(args, "logprobs")  # tokens that the filter covers


def _require_json(args: argparse.Namespace) -> None:
    """InputError for --logprobs, if typed, where plain text is printed, which has no place for them."""
    if "logprobs" in args.typed and not args.json:
        raise InputError(
            "--logprobs shows in --json only: add --json, or leave --logprobs out",
            "--logprobs 결과는 --json에서만 볼 수 있습니다. --json을 더하거나 --logprobs를 빼세요",
        )


def _run_spread(args: argparse.Namespace, prompts: _Prompts, given: dict[str, Any]) -> int:
    """The batch by several workers. Seeds that nobody gave follow from the run, so that it can be resumed."""
    from kogpt import checkpoint, hub, peft
    from kogpt.generation_defaults import read_generation_defaults

    folder = hub.find_folder(args.model, args.revision)
    sampling = read_generation_defaults(folder, checkpoint.read_config(folder)).sampling(**given)
    names = ("model", "revision", "dtype", "cache_dtype", "adapter", "filter")
    asked = {name: str(getattr(args, name)) for name in names}
    run = {**asked, "sampling": repr(sampling), "texts": repr(prompts.entries)}
    batch = _Batch(prompts, sampling, args.json, sha256(repr(run).encode()).digest())
    if args.parts is not None:  # new weights in the same folder are another run
        run |= peft.digests(folder, args.adapter)

    def answers(asked: Asked) -> Iterator[tuple[int, _Answer | KoGPTError]]:
        parts = cut(asked, PART)
        for number, part in enumerate(spread(args, partial(_worker, args), parts, run)):
            for n_before, record, error in part:
                found = KoGPTError(*error) if record is None else _Answer(record, error)
                yield number * PART + n_before, found

    return batch.run(answers)


def _worker(args: argparse.Namespace) -> Callable[[Asked], list[Any]]:
    """A function that answers a part with a model of its own: [number in the part, record, error]."""
    model = load_model(args)

    def work(part: Asked) -> list[Any]:
        found: list[Any] = []
        for number, answer in _local(model, part):
            if isinstance(answer, KoGPTError):
                found.append([number, None, answer.args])
            else:
                found.append([number, answer.record, answer.error])
        return found

    return work


def _local(model: KoGPT, asked: Asked) -> Iterator[tuple[int, _Answer | KoGPTError]]:
    """Answers of a model in this process."""
    for number, answer in model.answers(asked):
        if isinstance(answer, KoGPTError):
            yield number, answer
        else:
            yield number, _Answer(_record(answer), None if answer.error is None else str(answer.error))


@dataclass(frozen=True, slots=True)
class _Answer:
    """One line of --json, and why the answer failed."""

    record: dict[str, Any]
    error: str | None


@dataclass(frozen=True, slots=True)
class _Prompts:
    """Prompts and where each comes from."""

    entries: list[Entry | InputError]  # at least one Entry
    source: str
    is_file: bool = False


def _prompts(args: argparse.Namespace) -> _Prompts:
    if args.prompt is not None and args.file is not None:
        raise InputError("give a PROMPT or a --file, not both", "PROMPT와 --file 중 하나만 지정하세요")
    if args.file is not None:
        return _prompts_of_file(args.file, args.encoding)
    if args.prompt is None and sys.stdin is not None and sys.stdin.isatty():
        raise InputError(
            "there is no prompt: kogpt generate PROMPT (or - to read standard input, or --file PATH)",
            "프롬프트가 없습니다: kogpt generate PROMPT (표준 입력은 -, 파일은 --file PATH)",
        )
    if args.prompt in (None, "-"):
        text = decode(read_bytes("-"), _source("-"), args.encoding)
        return _Prompts([Entry(1, text.removesuffix("\n"), {})], _source("-"))
    return _Prompts([Entry(1, decode_argument(args.prompt, "PROMPT"), {})], "PROMPT")


def _prompts_of_file(path: str, encoding: str) -> _Prompts:
    source = _source(path)
    entries = list(read_prompts(path, source, encoding))
    if not any(isinstance(entry, Entry) for entry in entries):
        raise next(
            (entry for entry in entries if isinstance(entry, InputError)),
            InputError(f"{source} holds no prompts", f"{source}: 프롬프트가 없습니다"),
        )
    return _Prompts(entries, source, is_file=True)


def _source(path: str) -> str:
    """What messages call an input."""
    return localized("standard input", "표준 입력") if path == "-" else path


def _stream(model: KoGPT, prompt: str, sampling: Sampling) -> int:
    """Show one answer as it is written."""
    errors = []
    for piece in model.stream(prompt, sampling):
        sys.stdout.write(piece.text)
        sys.stdout.flush()
        if piece.error is not None:
            errors.append(str(piece.error))
            break
    sys.stdout.write("\n")
    return _exit_code(errors)


class _Batch:
    """All answers in the order of their prompts, each printed as soon as those before it are.

    A line of a file that is refused is said and passed over; a single prompt ends the command.
    """

    def __init__(
        self, prompts: _Prompts, sampling: Sampling, as_json: bool, run: bytes | None = None
    ) -> None:
        """run: a digest from which the seeds follow that nobody gave; without it they are random."""
        self._prompts = prompts
        self._as_json = as_json
        # Each prompt has its own seed if the user gave none, so that every answer can be had again.
        self._settings = [
            replace(sampling, seed=_new_seed(run, number)) if sampling.seed is None else sampling
            for number in range(len(prompts.entries))
        ]
        self._n_printed = self._n_refused = 0
        self._errors: list[str] = []

    def run(self, answer: Callable[[Asked], Iterator[tuple[int, _Answer | KoGPTError]]]) -> int:
        """Ask for all answers and print them; the exit code."""
        n = self._settings[0].n
        with Progress(len(self._prompts.entries) * n) as progress:
            for number, found in _in_order(self._answers(answer), n):
                refused = isinstance(found, KoGPTError)
                with progress.hidden(on_stderr=refused):
                    if isinstance(found, KoGPTError):
                        self._refuse(number, found)
                    else:
                        self._show(number, found)
                    sys.stdout.flush()
                progress.advance(n if refused else 1)
        return _exit_code(self._errors) or (MISTAKE if self._n_refused else 0)

    def _answers(
        self, answer: Callable[[Asked], Iterator[tuple[int, _Answer | KoGPTError]]]
    ) -> Iterator[tuple[int, _Answer | KoGPTError]]:
        """(number of the entry, its answer or why there is none), as they come."""
        numbers, asked = [], []
        for number, entry in enumerate(self._prompts.entries):
            if isinstance(entry, InputError):
                yield number, entry
            else:
                numbers.append(number)
                asked.append((entry.text, self._settings[number]))
        for n_before, found in answer(asked):
            yield numbers[n_before], found

    def _show(self, number: int, answer: _Answer) -> None:
        if answer.error is not None:
            self._errors.append(answer.error)
        text = answer.record["text"]
        if self._as_json:
            self._print_json(number, answer.record | {"seed": self._settings[number].seed})
        else:
            print(f"\n{text}" if self._n_printed else text)
        self._n_printed += 1

    def _refuse(self, number: int, error: KoGPTError) -> None:
        prompts = self._prompts
        if not prompts.is_file:
            raise error
        self._n_refused += 1
        entry, where = prompts.entries[number], ""
        if isinstance(entry, Entry):  # an InputError names its line itself
            source, line = prompts.source, entry.line
            where = localized(f"{source} line {line}: ", f"{source} {line}행: ")
        print(f"kogpt: {where}{error}", file=sys.stderr)
        if self._as_json:
            prompt = entry.text if isinstance(entry, Entry) else None
            self._print_json(number, {"prompt": prompt, "error": str(error)})

    def _print_json(self, number: int, record: dict[str, Any]) -> None:
        entry = self._prompts.entries[number]
        if isinstance(entry, Entry) and entry.others:
            record["input"] = entry.others
        print(json.dumps(record, ensure_ascii=False))


def _new_seed(run: bytes | None, number: int) -> int:
    if run is None:
        return int.from_bytes(os.urandom(4), "little")
    return int.from_bytes(sha256(run + number.to_bytes(8, "little")).digest()[:4], "little")


def _in_order(
    answers: Iterator[tuple[int, _Answer | KoGPTError]], n: int
) -> Iterator[tuple[int, _Answer | KoGPTError]]:
    """Answers prompt by prompt and sample by sample; each prompt has n answers, or is refused."""
    early: dict[int, list[_Answer]] = {}
    refused: dict[int, KoGPTError] = {}
    next_number = 0
    for number, answer in answers:
        if isinstance(answer, KoGPTError):
            refused[number] = answer
        else:
            early.setdefault(number, []).append(answer)
        while next_number in refused or len(early.get(next_number, ())) == n:
            if next_number in refused:
                yield next_number, refused.pop(next_number)
            else:
                for answer in sorted(early.pop(next_number), key=lambda answer: answer.record["sample"]):
                    yield next_number, answer
            next_number += 1


def _record(result: Result) -> dict[str, Any]:
    """One line of --json; these names are stable."""
    record: dict[str, Any] = {
        "prompt": result.prompt,
        "sample": result.sample,
        "text": result.text,
        "tokens": list(result.tokens),
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
        "seconds": round(result.seconds, 4),
    }
    if result.logprobs is not None:
        record["logprobs"] = [
            {
                "token": token.token,
                "text": token.text,
                "logprob": token.logprob,
                "top": [[top.token, top.logprob] for top in token.top_logprobs],
            }
            for token in result.logprobs
        ]
    return record


def _exit_code(errors: Sequence[str]) -> int:
    """1, and a line that says why, where answers failed."""
    if not errors:
        return 0
    n = len(errors)
    line = localized(f"{n} answers ended early: {errors[0]}", f"답 {n}개가 도중에 끝났습니다: {errors[0]}")
    print(f"kogpt: {line}", file=sys.stderr)
    return 1
