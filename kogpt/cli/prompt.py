"""`kogpt` by itself: the original's three questions, and text that streams as it is written.

The first question is on the screen before numpy is imported; the model loads in a thread behind it.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from kogpt.cli.options import add_adapter_option, add_model_options, load_model
from kogpt.cli.questions import Pipe, Questions, Terminal, is_dumb_terminal, on_terminal
from kogpt.errors import InputError, PromptError, localized

if TYPE_CHECKING:
    from concurrent.futures import Future

    from kogpt.generation import KoGPT
    from kogpt.sampling import Sampling

# The original's own words and numbers.
TEMPERATURE = 0.8
MAX_LENGTH = 128  # tokens of prompt and answer together
PROMPT_QUESTION = "prompt> "
TEMPERATURE_QUESTION = f"temperature({TEMPERATURE})> "
LENGTH_QUESTION = f"max_length({MAX_LENGTH})> "
FAREWELL = "terminate KakaoBrain Korean(hangul) Generative Pre-Training Model"

Number = TypeVar("Number", int, float)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `kogpt` takes without a subcommand."""
    add_model_options(parser)
    add_adapter_option(parser)
    parser.add_argument("--seed", type=int, metavar="INT", help="the same seed gives the same text")


def run(args: argparse.Namespace) -> int:
    """Ask and answer until the input ends or Ctrl-D (0), or Ctrl-C at a question (130)."""
    if terminal := on_terminal():
        _show_early(PROMPT_QUESTION)
    from concurrent.futures import ThreadPoolExecutor  # 10 ms, once the question is on the screen

    pool = ThreadPoolExecutor(max_workers=1)
    model = pool.submit(load_model, args)
    try:
        questions = Terminal(model) if terminal else Pipe()
        return _converse(questions, model, args.seed)
    finally:
        pool.shutdown(wait=model.done())


def _converse(questions: Questions, model: Future[KoGPT], seed: int | None) -> int:
    """Question after question; the exit code."""
    try:
        while True:
            _one_round(questions, model, seed)
    except EOFError:
        return _farewell(0, model)
    except KeyboardInterrupt:
        return _farewell(130, model)


def _one_round(questions: Questions, model: Future[KoGPT], seed: int | None) -> None:
    """Ask the three questions and write one text."""
    try:
        prompt = questions.ask(PROMPT_QUESTION, keep=True)
        if not prompt.strip():
            return
        temperature = _number(questions, TEMPERATURE_QUESTION, TEMPERATURE, _temperature)
        max_length = _number(questions, LENGTH_QUESTION, MAX_LENGTH, _max_length)
        _wait(questions, model)
        from kogpt.sampling import Sampling

        _write(model.result(), prompt, Sampling(temperature=temperature, max_length=max_length, seed=seed))
    except (InputError, PromptError) as error:
        if not questions.patient:
            raise
        print(error, file=sys.stderr)


def _number(questions: Questions, question: str, default: Number, parse: Callable[[str], Number]) -> Number:
    """The answer as a number; asks until it is one. An input that ends here means the default."""
    mistaken = False
    while True:
        try:
            answer = questions.ask(question).strip()
        except EOFError:
            if questions.patient or mistaken:
                raise
            return default
        if not answer:
            return default
        try:
            return parse(answer)
        except InputError as error:
            mistaken = True
            print(error, file=sys.stderr)


def _temperature(answer: str) -> float:
    try:
        value = float(answer)
    except ValueError:
        value = math.nan
    if 0 <= value < math.inf:  # nan is neither
        return value
    raise InputError(
        f"temperature is {answer[:40]!r}, must be a number of at least 0 (0 writes the likeliest text)",
        f"temperature 값 {answer[:40]!r} (조건: 0 이상의 수. 0이면 가장 그럴듯한 글을 씁니다)",
    )


def _max_length(answer: str) -> int:
    try:
        value = int(answer)
    except ValueError:
        value = 0
    if value >= 1:
        return value
    raise InputError(
        f"max_length is {answer[:40]!r}, must be a whole number of at least 1 (tokens of prompt and answer"
        " together)",
        f"max_length 값 {answer[:40]!r} (조건: 1 이상의 정수. 프롬프트와 답을 합한 토큰 수입니다)",
    )


def _wait(questions: Questions, model: Future[KoGPT]) -> None:
    """Say that the model is still loading, to somebody who may wonder."""
    if questions.patient and not model.done():
        print(localized("loading the model ...", "모델을 불러오는 중입니다 ..."), file=sys.stderr)
    model.result()


def _write(model: KoGPT, prompt: str, sampling: Sampling) -> None:
    """The prompt and what follows it, as the original shows it, and an empty line."""
    pieces = model.stream(prompt, sampling)
    with _stoppable() as stopped:
        first = next(pieces)  # a refused prompt is refused before anything is shown
        sys.stdout.write(prompt)
        for piece in chain([first], pieces):
            if stopped():
                break
            sys.stdout.write(piece.text)
            sys.stdout.flush()
        pieces.close()
    sys.stdout.write("\n\n")
    sys.stdout.flush()


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Within, the first Ctrl-C only sets what the yielded function tells; a second one interrupts."""
    n_pressed = 0

    def press(*_: object) -> None:
        nonlocal n_pressed
        n_pressed += 1
        if n_pressed > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: n_pressed > 0
    finally:
        signal.signal(signal.SIGINT, before)


def _show_early(question: str) -> None:
    """Put the question on the terminal at once; the line editor, 0.1 s of import, draws over it."""
    if not is_dumb_terminal():
        screen = sys.stdout if sys.stdout.isatty() else sys.stderr
        screen.write(question)
        screen.flush()


def _farewell(code: int, model: Future[KoGPT]) -> int:
    print(FAREWELL, file=sys.stderr)
    if not model.done():  # a thread cannot be stopped, and nobody waits for the model any more
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
