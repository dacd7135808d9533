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

from kogpt.cli.conversation import NAMES, Conversation
from kogpt.cli.options import (
    add_adapter_option,
    add_filter_option,
    add_generation_options,
    add_model_options,
    given_settings,
    load_model,
)
from kogpt.cli.questions import Pipe, Questions, Terminal, is_dumb_terminal, on_terminal
from kogpt.errors import InputError, KoGPTError, localized

if TYPE_CHECKING:
    from concurrent.futures import Future

    from kogpt.generation import KoGPT
    from kogpt.sampling import Sampling

# The original's own words.
PROMPT_QUESTION = "prompt> "
FAREWELL = "terminate KakaoBrain Korean(hangul) Generative Pre-Training Model"
QUOTES = '"""'  # begin and end a prompt of several lines

Number = TypeVar("Number", int, float)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kogpt` without a subcommand."""
    add_model_options(parser)
    add_adapter_option(parser)
    add_filter_option(parser)
    add_generation_options(parser, NAMES)


def run(args: argparse.Namespace) -> int:
    """Ask and answer until the input ends, Ctrl-D or /bye (0), or Ctrl-C at the first question (130)."""
    if terminal := on_terminal():
        _show_early(args.model)
    from concurrent.futures import ThreadPoolExecutor  # 10 ms, once the question is on the screen

    given = given_settings(args)
    pool = ThreadPoolExecutor(max_workers=1)
    model = pool.submit(load_model, args)
    try:
        questions = Terminal(model) if terminal else Pipe()
        return _converse(questions, model, Conversation(args.model, given))
    finally:
        pool.shutdown(wait=model.done())


def _converse(questions: Questions, model: Future[KoGPT], conversation: Conversation) -> int:
    """Question after question; the exit code."""
    try:
        while True:
            _one_round(questions, model, conversation)
    except EOFError:
        return _farewell(0, model)
    except KeyboardInterrupt:
        return _farewell(130, model)


def _one_round(questions: Questions, model: Future[KoGPT], conversation: Conversation) -> None:
    """Ask the three questions and write one text, or obey one command."""
    try:
        line = questions.ask(PROMPT_QUESTION, keep=True)
        if questions.patient and line.startswith("/"):
            print(conversation.obey(line), file=sys.stderr)
        elif line.strip():
            asked = _ask_the_rest(questions, model, conversation, line)
            if asked is not None:
                conversation.written.append(_write(model.result(), *asked))
    except KoGPTError as error:
        if not questions.patient or (model.done() and model.exception()):
            raise
        print(error, file=sys.stderr)


def _ask_the_rest(
    questions: Questions, model: Future[KoGPT], conversation: Conversation, line: str
) -> tuple[str, Sampling] | None:
    """The whole prompt and its settings; None if Ctrl-C went back to the first question."""
    try:
        prompt = _all_lines(questions, line)
    except KeyboardInterrupt:
        return None
    loaded = _wait(questions, model)
    conversation.own = loaded.defaults.settings
    try:
        default = conversation.temperature()
        temperature = _number(questions, f"temperature({default:g})> ", default, _temperature)
        length = conversation.length(loaded, prompt)
        max_length = _number(questions, f"max_length({length})> ", length, _max_length)
    except KeyboardInterrupt:
        if not questions.patient:
            raise
        return None
    chosen = conversation.chosen | {"temperature": temperature, "max_length": max_length}
    sampling = loaded.sampling(**chosen)  # refused numbers are not offered again
    if questions.patient:
        typed = {"temperature": (temperature, default), "max_length": (max_length, length)}
        conversation.answered |= {name: value for name, (value, usual) in typed.items() if value != usual}
    return prompt, sampling


def _all_lines(questions: Questions, line: str) -> str:
    """The prompt that a line begins: more of it follows, up to three quotes, if the line begins with them."""
    if not questions.patient or not line.startswith(QUOTES):
        return line
    text = line.removeprefix(QUOTES)
    while not text.rstrip().endswith(QUOTES):
        text = f"{text}\n{questions.ask('... ')}"
    return text.rstrip().removesuffix(QUOTES).strip("\n")


def _number(questions: Questions, question: str, default: Number, parse: Callable[[str], Number]) -> Number:
    """The answer as a number; asks a person until it is one. An input that ends here means the default.

    InputError for a wrong answer of a pipe: its next line answers the next question, not this one again.
    """
    while True:
        try:
            answer = questions.ask(question).strip()
        except EOFError:
            if questions.patient:
                raise
            return default
        if not answer:
            return default
        try:
            return parse(answer)
        except InputError as error:
            if not questions.patient:
                raise
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


def _wait(questions: Questions, model: Future[KoGPT]) -> KoGPT:
    """The model. Say that the model is still loading, to somebody who may wonder."""
    if questions.patient and not model.done():
        print(localized("loading the model ...", "모델을 불러오는 중입니다 ..."), file=sys.stderr)
    return model.result()


def _write(model: KoGPT, prompt: str, sampling: Sampling) -> str:
    """Show the prompt and what follows it, as the original does, and an empty line; the whole text."""
    text = prompt
    pieces = model.stream(prompt, sampling)
    with _stoppable() as stopped:
        first = next(pieces)  # a refused prompt is refused before anything is shown
        sys.stdout.write(prompt)
        for piece in chain([first], pieces):
            if stopped():
                break
            text += piece.text
            sys.stdout.write(piece.text)
            sys.stdout.flush()
        pieces.close()
    sys.stdout.write("\n\n")
    sys.stdout.flush()
    return text


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


def _show_early(model: str) -> None:
    """Put one line about the prompt, and the first question, on the terminal at once.

    The line editor, 0.1 s of import, draws over the question.
    """
    screen = sys.stdout if sys.stdout.isatty() else sys.stderr
    about = localized(
        "/? lists commands, Ctrl-D leaves, max_length counts the prompt too",
        "/? 명령 목록, Ctrl-D 끝내기, max_length는 프롬프트를 포함한 길이",
    )
    screen.write(f"{model} ({about})\n{'' if is_dumb_terminal() else PROMPT_QUESTION}")
    screen.flush()


def _farewell(code: int, model: Future[KoGPT]) -> int:
    print(FAREWELL, file=sys.stderr)
    if not model.done():  # a thread cannot be stopped, and nobody waits for the model any more
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
