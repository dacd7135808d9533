"""One engine, many callers: each gets what it would get alone, in order; nothing is lost, nothing leaks."""

from __future__ import annotations

import copy
import dis
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from kogpt import KoGPT, KoGPTError, Result, Sampling
from kogpt.classification import Classifier, Wording
from kogpt.engine import Engine
from kogpt.errors import PromptError
from kogpt.evaluation.scoring import shared_prefix
from kogpt.request import Request
from kogpt.session import Mailbox, NoScreen, Piece, StopStrings
from kogpt.tokenizer import Tokenizer

SEEDED = Sampling(temperature=1, seed=3, max_tokens=24)
PROMPTS = ["옛날 옛적에", "오늘 서울의 날씨는", "가나다", "아침에 일어나 창문을 열면"]


@pytest.fixture(scope="module")
def kogpt(tiny_folder: Path) -> KoGPT:
    return KoGPT.from_pretrained(tiny_folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def alone(kogpt: KoGPT) -> dict[str, str]:
    """The text of each prompt, written when nothing else is."""
    return {prompt: kogpt.generate(prompt, SEEDED).text for prompt in PROMPTS}


def text_of(pieces: Iterator[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_two_interleaved_streams(kogpt: KoGPT, alone: dict[str, str]) -> None:
    streams = {prompt: kogpt.stream(prompt, SEEDED) for prompt in PROMPTS[:2]}
    texts = dict.fromkeys(streams, "")
    while streams:
        for prompt, stream in list(streams.items()):
            piece = next(stream, None)
            if piece is None:
                del streams[prompt]
            else:
                texts[prompt] += piece.text
    assert texts == {prompt: alone[prompt] for prompt in PROMPTS[:2]}
    assert kogpt.session.idle and kogpt.engine.idle


def test_generate_inside_a_stream(kogpt: KoGPT, alone: dict[str, str]) -> None:
    text = ""
    for number, piece in enumerate(kogpt.stream(PROMPTS[0], SEEDED)):
        text += piece.text
        if number % 5 == 2:
            assert kogpt.generate(PROMPTS[1], SEEDED).text == alone[PROMPTS[1]]
            assert [r.text for r in kogpt.generate(PROMPTS, SEEDED)] == list(alone.values())
            assert kogpt.score("가", "나") < 0 and kogpt.embed("다").shape == (kogpt.config.d_model,)
    assert text == alone[PROMPTS[0]]


def test_many_threads_share_one_model(kogpt: KoGPT, alone: dict[str, str]) -> None:
    score, vector = kogpt.score("이 영화는", " 재미있다"), kogpt.embed("문장 하나")

    def work(number: int) -> None:
        prompt = PROMPTS[number % 4]
        for turn in range(3):
            if (number + turn) % 3 == 0:
                assert text_of(kogpt.stream(prompt, SEEDED)) == alone[prompt]
            elif (number + turn) % 3 == 1:
                assert kogpt.generate(prompt, SEEDED).text == alone[prompt]
                next(kogpt.stream(prompt, SEEDED))  # and is left
            else:
                assert kogpt.score("이 영화는", " 재미있다") == pytest.approx(score, abs=1e-4)
                assert kogpt.embed("문장 하나") == pytest.approx(vector, abs=1e-4)

    with ThreadPoolExecutor(12) as pool:
        for done in [pool.submit(work, number) for number in range(12)]:
            done.result(timeout=120)
    assert kogpt.session.idle and kogpt.engine.idle and not kogpt.session._sleepers


def test_a_caller_that_takes_its_time_delays_nobody(kogpt: KoGPT, alone: dict[str, str]) -> None:
    slow = kogpt.stream(PROMPTS[0], SEEDED)
    first = next(slow)
    assert [r.text for r in kogpt.generate(PROMPTS, SEEDED)] == list(alone.values())
    assert first.text + text_of(slow) == alone[PROMPTS[0]]


def test_a_thread_that_waits_does_not_spin(kogpt: KoGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the engine is in another thread's hands, a waiting thread sleeps until something has happened."""
    inside, go_on, woken = threading.Event(), threading.Event(), []
    step, sleep = Engine.step, kogpt.session._sleep

    def slow_step(engine: Engine) -> object:
        inside.set()
        go_on.wait(60)
        return step(engine)

    def counted(mailbox: Mailbox) -> None:
        woken.append(1)
        sleep(mailbox)

    monkeypatch.setattr(Engine, "step", slow_step)
    monkeypatch.setattr(kogpt.session, "_sleep", counted)
    with ThreadPoolExecutor(2) as pool:
        driver = pool.submit(kogpt.generate, PROMPTS[0], SEEDED)
        assert inside.wait(60)
        waiter = pool.submit(kogpt.generate, PROMPTS[1], SEEDED)
        while not kogpt.session._sleepers:
            pass
        assert len(woken) == 1
        go_on.set()
        assert isinstance(driver.result(60), Result) and isinstance(waiter.result(60), Result)
    assert len(woken) < 60  # it may be woken in vain when a driver leaves, not all the time


def test_a_stream_left_during_the_last_step_of_another_is_dropped(
    kogpt: KoGPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step finds nothing to drop any more, and no other step follows: who drove it drops the request."""
    left = kogpt.stream(PROMPTS[1], SEEDED)
    next(left)
    step = Engine.step

    def last_step(engine: Engine) -> object:
        events = step(engine)
        leaver = threading.Thread(target=left.close)
        leaver.start()
        leaver.join(60)
        assert not engine.idle  # it is in use, so the request is still there
        return events

    monkeypatch.setattr(Engine, "step", last_step)
    assert kogpt.generate(PROMPTS[0], Sampling(max_tokens=1)).finish_reason == "length"
    assert kogpt.session.idle and kogpt.engine.idle


def leave_classifying(model: KoGPT, meanwhile: Callable[[], object]) -> None:
    """Read a shared prompt, do something else, free the prompt."""

    def texts() -> Iterator[str]:
        meanwhile()
        yield from ()

    wording = Wording(("좋음", "나쁨"), examples=(("하늘이 맑다", 0), ("비가 온다", 1)))
    assert list(Classifier(model.session, wording).classify(texts())) == []


def leave_scoring(model: KoGPT, meanwhile: Callable[[], object]) -> None:
    """The same, as the evaluation does it."""
    with shared_prefix(model.session, np.array(model.tokenizer.encode("하늘이 맑다"), np.int64)) as handle:
        assert handle() is not None
        meanwhile()


LEAVES = pytest.mark.parametrize("leave", [leave_classifying, leave_scoring])


@LEAVES
def test_a_prefix_is_not_freed_during_the_step_of_another(
    kogpt: KoGPT, monkeypatch: pytest.MonkeyPatch, leave: Callable[..., None]
) -> None:
    inside, go_on, step = threading.Event(), threading.Event(), Engine.step
    prefixes = kogpt.engine._store._prefixes
    before = dict(prefixes)

    def slow_step(engine: Engine) -> object:
        inside.set()
        go_on.wait(60)
        return step(engine)

    with ThreadPoolExecutor(1) as pool:

        def begin_a_step() -> None:
            monkeypatch.setattr(Engine, "step", slow_step)
            drivers.append(pool.submit(kogpt.generate, PROMPTS[0], SEEDED))
            assert inside.wait(60)

        drivers: list[Future[Result]] = []
        leave(kogpt, begin_a_step)  # waits for no step
        during = dict(prefixes)
        go_on.set()
        drivers[0].result(60)
    assert len(during) == len(before) + 1 and prefixes == before


@LEAVES
def test_freeing_a_prefix_of_a_closed_model_is_no_mistake(
    tiny_folder: Path, leave: Callable[..., None]
) -> None:
    model = KoGPT.from_pretrained(tiny_folder, device="cpu", dtype="float32")
    leave(model, model.close)
    assert not model.session._released


def test_the_interface_of_a_server(kogpt: KoGPT, alone: dict[str, str]) -> None:
    session = kogpt.session
    numbers = {session.add(prompt, SEEDED): prompt for prompt in PROMPTS}
    gone = session.add("취소할 글", SEEDED)
    pieces = session.step()
    session.cancel(gone)
    session.cancel(12345)
    while not session.idle:
        pieces += session.step()
    texts = {number: "".join(piece.text for n, piece in pieces if n == number) for number in numbers}
    ends = [(number, piece.finish_reason) for number, piece in pieces if piece.finish_reason]
    assert [texts[number] for number in numbers] == [alone[prompt] for prompt in numbers.values()]
    assert dict(ends)[gone] == "cancelled" and len(ends) == 5


def test_who_waits_for_a_cancelled_request_is_told(kogpt: KoGPT) -> None:
    with kogpt.session.mailbox() as mailbox:
        number = mailbox.add(kogpt.session.request(PROMPTS[0], SEEDED))
        mailbox.wait()
        kogpt.session.cancel(number)
        while not mailbox.idle:
            _, piece = mailbox.wait()
        assert piece.finish_reason == "cancelled"


def test_echo_scores_the_prompt_itself(kogpt: KoGPT) -> None:
    sampling = Sampling(temperature=0, max_tokens=2, logprobs=3)
    with kogpt.session.mailbox() as mailbox:
        request = kogpt.session.request(PROMPTS[0], sampling, echo=True)
        mailbox.add(request)
        pieces = []
        while not mailbox.idle:
            pieces.append(mailbox.wait()[1])
    scores = pieces[0].event.scores
    assert scores is not None and len(scores.logprobs) == len(request.inputs) - 1 == len(scores.top)
    [[expected]] = kogpt.engine.score([(request.inputs[:1], [request.inputs[1:]])])
    assert scores.logprobs == pytest.approx(expected, abs=1e-4)
    assert [piece.finish_reason for piece in pieces] == [None, None, "length"]


def test_token_ids_are_a_prompt_too(kogpt: KoGPT, alone: dict[str, str]) -> None:
    ids = np.array(kogpt.tokenizer.encode(PROMPTS[0]))
    with kogpt.session.mailbox(whole=True) as mailbox:
        mailbox.add(kogpt.session.request(ids, SEEDED))
        text = ""
        while not mailbox.idle:
            text += mailbox.wait()[1].text
    assert text == alone[PROMPTS[0]]
    with pytest.raises(PromptError, match="outside 0 to"):
        kogpt.session.request(np.array([1, kogpt.tokenizer.n_vocab]), SEEDED)


def test_an_interruption_while_pieces_are_handed_out_loses_nobody(
    kogpt: KoGPT, alone: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = kogpt.stream(PROMPTS[1], SEEDED)
    first = next(other)
    left, push = [7], kogpt.tokenizer.decoder().__class__.push

    def interrupted(decoder: object, token: int) -> str:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return push(decoder, token)  # type: ignore[arg-type]

    monkeypatch.setattr("kogpt.tokenizer.StreamDecoder.push", interrupted)
    with pytest.raises(KeyboardInterrupt):
        for _ in kogpt.stream(PROMPTS[0], SEEDED):
            pass
    rest = list(other)
    text = first.text + "".join(piece.text for piece in rest)
    assert rest[-1].finish_reason == "cancelled" or text == alone[PROMPTS[1]]
    assert kogpt.session.idle and kogpt.generate(PROMPTS[0], SEEDED).text == alone[PROMPTS[0]]


# Instructions after which CPython 3.11 runs signal handlers.
CHECKED = ("CALL", "CALL_FUNCTION_EX", "RESUME", "JUMP_BACKWARD", "POP_JUMP_BACKWARD_IF_TRUE")


def interrupted(call: Callable[[], object], moment: int) -> bool:
    """Call it; Ctrl-C at the so-many-th moment of session.py at which Python looks for signals, if any."""
    left, last = moment, dict[FrameType, str]()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith("session.py"):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            before, last[frame] = last.get(frame), dis.opname[frame.f_code.co_code[frame.f_lasti]]
            left -= before in CHECKED
            if before in CHECKED and left == 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="names of instructions of Python 3.11")
def test_an_interruption_at_any_moment_leaves_the_engine_free(kogpt: KoGPT) -> None:
    """A moment between taking the driver's lock and noting it let every later call wait for ever."""
    brief, n_moments = Sampling(temperature=1, seed=3, max_tokens=2), 0
    expected, session = kogpt.generate(PROMPTS[0], brief).text, kogpt.session
    for call in (lambda: kogpt.generate(PROMPTS[0], brief), session.step):
        for moment in count(1):
            if not interrupted(call, moment):
                break
            n_moments += 1
            assert not session._driver.locked(), moment
            assert kogpt.generate(PROMPTS[0], brief).text == expected and session.idle
    assert n_moments > 50 and kogpt.engine.idle


def test_a_screen_that_fails_costs_its_own_answer_only(kogpt: KoGPT, alone: dict[str, str]) -> None:
    class Failing(NoScreen):
        def push(self, text: str) -> tuple[str, bool]:
            raise RuntimeError("screen")

    session = kogpt.session
    with session.mailbox(whole=True) as mailbox:
        session.new_screen = Failing
        try:
            mailbox.add(kogpt.request(PROMPTS[1], SEEDED))
        finally:
            session.new_screen = NoScreen
        assert kogpt.generate(PROMPTS[0], SEEDED).text == alone[PROMPTS[0]]
        _, piece = mailbox.wait()
        assert piece.finish_reason == "failed" and "screen" in str(piece.error)
    assert session.idle and kogpt.engine.idle


@pytest.mark.parametrize(
    "ids",
    [[[1, 2]], [1.5], [np.nan], ["가"], [True], 5, np.array([1], dtype=object)],
    ids=["2-D", "fractions", "NaN", "texts", "truth values", "0-D", "objects"],
)
def test_ids_of_the_wrong_kind_are_refused(kogpt: KoGPT, ids: Any) -> None:
    with pytest.raises(PromptError, match="one-dimensional array of integers"):
        kogpt.session.request(np.array(ids), SEEDED)


@pytest.mark.parametrize("copied", [pickle.dumps, copy.deepcopy])
def test_a_model_says_that_it_cannot_be_pickled(kogpt: KoGPT, copied: Callable[[object], object]) -> None:
    assert pickle.loads(pickle.dumps(kogpt.defaults)) == kogpt.defaults
    with pytest.raises(KoGPTError, match="load it in each process"):
        copied(kogpt)


def test_a_closed_model_refuses_and_frees_its_rows(tiny_folder: Path) -> None:
    with KoGPT.from_pretrained(tiny_folder, device="cpu", dtype="float32") as model:
        engine = model.engine
        stream = model.stream(PROMPTS[0], SEEDED)
        next(stream)
    assert "closed" in repr(model) and engine.idle and not len(engine._store._cache)
    for call in (lambda: next(stream), lambda: model.generate("가"), lambda: model.engine):
        with pytest.raises(KoGPTError, match="closed"):
            call()
    model.close()  # twice does no harm


def test_who_waits_while_a_model_is_closed_is_told(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = KoGPT.from_pretrained(tiny_folder, device="cpu", dtype="float32")
    endless = Sampling(max_tokens=10_000, logit_bias={1: -1000})
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(model.generate, ["가"] * 40, endless) for _ in range(4)]
        model.close()
        for done in waiting:
            with pytest.raises(KoGPTError, match="closed"):
                done.result(timeout=60)


LEAVING = {
    "end of the program": "next(stream)",
    "break": "for piece in stream: break",
    "sys.exit": "next(stream); sys.exit(0)",
    "results not read to the end": "results = model.results(['가', '나'] * 50, sampling); next(results)",
    "a garbage cycle": (
        "box = [model, stream]; box.append(box); next(stream); del box, model, stream; gc.collect()"
    ),
    "two of them": "other = model.stream('가', sampling); next(stream); next(other); del model",
    "a thread in the middle": (
        "threading.Thread(target=lambda: model.generate(['가'] * 500, sampling), daemon=True).start();"
        "time.sleep(0.2)"
    ),
}


@pytest.mark.parametrize("leave", LEAVING.values(), ids=LEAVING.keys())
def test_streams_that_are_left_touch_nothing_that_is_gone(tiny_folder: Path, leave: str) -> None:
    """Use after free: the kernels' model was destroyed before an open stream closed its row."""
    program = f"""
import gc, sys, threading, time
from kogpt import KoGPT, Sampling
model = KoGPT.from_pretrained({str(tiny_folder)!r}, device="cpu")
sampling = Sampling(seed=1, max_tokens=100, logit_bias={{1: -1000}})
stream = model.stream("옛날", sampling)
{leave}
print("reached")
"""
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120
        )
        assert (done.returncode, done.stderr) == (0, ""), done
        assert done.stdout == "reached\n" or "sys.exit" in leave


def test_answers_outlive_a_refused_prompt(kogpt: KoGPT, alone: dict[str, str]) -> None:
    mixed: list[object] = [PROMPTS[0], None, "", PROMPTS[1], 5]
    answers = dict(kogpt.answers((prompt, SEEDED) for prompt in mixed))  # type: ignore[misc]
    assert sorted(answers) == list(range(5))
    for number in (0, 3):
        answer = answers[number]
        assert isinstance(answer, Result) and answer.text == alone[mixed[number]]  # type: ignore[index]
    for number, reason in ((1, "NoneType"), (2, "empty"), (4, "int")):
        error = answers[number]
        assert isinstance(error, PromptError) and reason in error.en


def test_asking_raises_the_error_of_the_request_that_fails(
    kogpt: KoGPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = kogpt.engine.runner
    hidden = runner.hidden
    monkeypatch.setattr(runner, "hidden", lambda chunks: [np.full_like(h, np.nan) for h in hidden(chunks)])
    with pytest.raises(KoGPTError, match="not finite"):
        kogpt.session.ask([Request(np.arange(5), pooled=True, reusable=False)])
    monkeypatch.undo()
    assert kogpt.session.idle and np.isfinite(kogpt.embed("문장")).all()


def reference_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The match that is completed first, of several the longest, found in the whole text."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@settings(max_examples=2000, deadline=None)
@given(
    pieces=st.lists(st.text("가나 a\n", max_size=4), max_size=8),
    stops=st.lists(st.text("가나 a\n", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_find_the_earliest_completion_then_the_longest(
    pieces: list[str], stops: list[str]
) -> None:
    finder, shown, stopped = StopStrings(stops), "", False
    for piece in pieces:
        text, stopped = finder.push(piece)
        shown += text
        whole = reference_stop("".join(pieces), stops)[0]
        assert whole.startswith(shown)  # nothing is shown that is taken back later
        if stopped:
            break
    if not stopped:
        shown += finder.flush()
    assert (shown, stopped) == reference_stop("".join(pieces), stops)


def test_no_more_is_held_back_than_may_become_a_stop_string() -> None:
    finder = StopStrings(["사용자:"])
    assert finder.push("안녕 사용") == ("안녕 ", False)
    assert finder.push("법") == ("사용법", False)


def test_a_template_s_token_stands_before_every_prompt(
    kogpt: KoGPT, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    """Models whose tokenizer.json puts [BOS] before a text were trained with it."""
    library = tokenizers.Tokenizer.from_file(str(tiny_tokenizer))
    bos = tokenizers.processors.TemplateProcessing("[BOS] $A", "[BOS] $A $B", [("[BOS]", 0)])
    library.post_processor = bos
    library.save(str(tmp_path / "tokenizer.json"))
    session = KoGPT(Tokenizer.from_file(tmp_path / "tokenizer.json"), Engine(kogpt.engine.runner)).session
    ids = [0, *kogpt.tokenizer.encode("가나")]
    assert list(session.request("가나", SEEDED).inputs) == list(session.prompt_ids("가나")) == ids
    assert list(session.prompt_ids(np.array(ids))) == ids, "ids are taken as they are"
