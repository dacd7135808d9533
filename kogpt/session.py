"""Many callers, one engine: prompts become requests, events become pieces of text.

A session owns its engine. Whoever waits for a piece drives the engine for everybody; the pieces of others go
into their mailboxes. So any number of threads, and of streams within streams, share one model, and a slow
caller delays nobody. There are two ways to use it: a server has one thread that calls add, step and cancel;
everybody else opens a mailbox and waits for its pieces.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Condition, Lock, RLock, current_thread
from threading import Event as Flag
from typing import Any, NoReturn, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from kogpt.engine import Engine
from kogpt.errors import KoGPTError, PromptError, SamplingError
from kogpt.grammar import GrammarCompiler
from kogpt.request import Event, FinishReason, Grammar, Ids, Request, Writing
from kogpt.sampling import SampledToken, Sampling
from kogpt.tokenizer import StreamDecoder, Tokenizer

LOST_WAKE_UP = 1.0  # seconds until a sleeper looks again: an interruption may come before it is woken

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Piece:
    """One event of a request, and the text that it adds to its answer."""

    text: str  # whole characters, often none yet
    finish_reason: FinishReason | None  # set on an answer's last piece
    event: Event = field(repr=False)
    stop: str | None = None  # the stop string that ended the answer, if one did

    @property
    def sample(self) -> int:
        """Which of the n answers."""
        return self.event.sample

    @property
    def token(self) -> SampledToken | None:
        """The token that was written; it may be one that ends the answer and is not shown."""
        return self.event.token

    @property
    def error(self) -> BaseException | None:
        """Why the answer failed, where finish_reason says so."""
        return self.event.error


class Screen(Protocol):
    """What an answer passes before it is shown, piece by piece: a filter."""

    def push(self, text: str) -> tuple[str, bool]:
        """Add text; what may be shown now, and whether the answer ends here."""

    def flush(self) -> tuple[str, bool]:
        """The rest, once no more text will come, and whether some of it is cut off."""


class NoScreen:
    """Shows everything at once."""

    def push(self, text: str) -> tuple[str, bool]:
        """The text as it is."""
        return text, False

    def flush(self) -> tuple[str, bool]:
        """Nothing is held back."""
        return "", False


class StopStrings:
    """Finds the stop string that is completed first (of several, the longest) as text arrives.

    Text that may still become one is held back, never more than the longest stop string less a character.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = sorted(stops, key=len, reverse=True)
        self._held = ""
        self.found: str | None = None  # the one that was completed

    def push(self, text: str) -> tuple[str, bool]:
        """Add text; what is safe to show now, and whether a stop string was completed."""
        if not self._stops:
            return text, False
        shown: list[str] = []
        for character in text:
            self._held += character
            for stop in self._stops:
                if self._held.endswith(stop):
                    self.found = stop
                    return "".join(shown) + self._held[: -len(stop)], True
            n_safe = len(self._held) - self._n_pending()
            shown.append(self._held[:n_safe])
            self._held = self._held[n_safe:]
        return "".join(shown), False

    def flush(self) -> str:
        """The text held back, once no more will come."""
        held, self._held = self._held, ""
        return held

    def _n_pending(self) -> int:
        """Length of the longest end of the held text that some stop string begins with."""
        for n in range(len(self._held), 0, -1):
            if any(stop.startswith(self._held[-n:]) for stop in self._stops):
                return n
        return 0


@dataclass(slots=True, eq=False)
class _Answer:
    """One answer while it is written."""

    decoder: StreamDecoder
    stops: StopStrings
    screen: Screen

    def push(self, event: Event) -> Piece:
        """The text that an event adds, as the screen shows it."""
        piece = self._unscreened(event)
        text, cut = self.screen.push(piece.text)
        if piece.finish_reason and not cut:
            rest, cut = self.screen.flush()
            text += rest
        failed = piece.finish_reason == "failed"
        return Piece(text, "filtered" if cut and not failed else piece.finish_reason, event, piece.stop)

    def _unscreened(self, event: Event) -> Piece:
        text, finish = "", event.finish
        if event.token is not None and finish != "stop":
            text, stopped = self.stops.push(self.decoder.push(event.token.token))
            if stopped:
                return Piece(text, "stop", event, self.stops.found)
        if finish:
            rest, stopped = self.stops.push(self.decoder.flush())
            text += rest if stopped else rest + self.stops.flush()
        return Piece(text, finish, event)


@dataclass(slots=True, eq=False)
class _Order:
    """One request of a mailbox while it is worked on."""

    mailbox: Mailbox
    answers: dict[int, _Answer | None]  # of the samples that are not finished; None where none is written


class Mailbox:
    """Where the pieces of one caller's requests arrive, in order. Leaving it cancels what is unfinished.

    with session.mailbox() as mailbox:
        number = mailbox.add(session.request("옛날 옛적에", Sampling()))
        number, piece = mailbox.wait()
    """

    def __init__(self, session: Session, woken: Condition, whole: bool) -> None:
        self._session = session
        self._whole = whole
        self._n_ends = 0  # last pieces in it
        self._pieces: deque[tuple[int, Piece]] = deque()
        self.woken = woken
        self.numbers: set[int] = set()  # of its unfinished requests

    @property
    def ready(self) -> bool:
        """Whether there is something that its owner waits for."""
        return self._n_ends > 0 if self._whole else bool(self._pieces)

    @property
    def idle(self) -> bool:
        """Whether nothing is left to wait for."""
        return not self._pieces and not self.numbers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self.numbers):
            self._session.cancel(number)

    def add(self, request: Request) -> int:
        """Queue a request; the number that its pieces will carry."""
        return self._session.post(request, self)

    def wait(self) -> tuple[int, Piece]:
        """The next piece of any of its requests. Raises KoGPTError once the session is closed."""
        assert not self.idle, "nothing to wait for"
        if not self.ready:
            self._session.drive(self)
        return self.take()

    def take(self) -> tuple[int, Piece]:
        """The oldest piece."""
        number, piece = self._pieces.popleft()
        self._n_ends -= piece.finish_reason is not None
        return number, piece

    def put(self, number: int, piece: Piece) -> None:
        """Add a piece and wake the owner, if that is what it waits for. The session calls it."""
        self._pieces.append((number, piece))
        self._n_ends += piece.finish_reason is not None
        if self.ready:
            self.woken.notify_all()


class Session:
    """The one owner of an engine, for any number of callers and threads."""

    def __init__(self, tokenizer: Tokenizer, engine: Engine, stop_ids: Sequence[int] | None = None) -> None:
        """stop_ids: tokens that end an answer; the tokenizer's end of text if None."""
        self.tokenizer = tokenizer
        self._engine: Engine | None = engine
        self._stop_ids = frozenset((tokenizer.eos_token_id,) if stop_ids is None else stop_ids)
        self.new_screen: Callable[[], Screen] = NoScreen  # for each answer
        self.allows_logprobs = True  # whether tokens may be named, which a screen does not cover
        self._compiler: GrammarCompiler | None = None  # of grammars, made for the first
        self._compiler_lock = Lock()
        self._driver = Lock()  # whoever holds it may use the engine
        self._lock = RLock()  # of the books below; held for moments, and re-entered by the garbage collector
        self._orders: dict[int, _Order] = {}
        self._news: deque[Event] = deque()  # not delivered yet
        self._cancelled: deque[int] = deque()
        self._released: deque[int] = deque()  # prefixes
        self._sleepers: list[Mailbox] = []
        self._own = self.mailbox()
        self._closed, self._ended = Flag(), Flag()
        # Created after the runner's own, so at exit it runs before it: no row is touched afterwards.
        weakref.finalize(self, _end, self._driver, self._closed, self._ended)

    @property
    def engine(self) -> Engine:
        """The engine; KoGPTError once the session is closed."""
        if self._engine is None or self._closed.is_set():
            self._stop_at_exit()
            raise _closed()
        return self._engine

    def __reduce__(self) -> NoReturn:
        raise KoGPTError(
            "a loaded model cannot be pickled or deep-copied: load it in each process,"
            " or share one among threads",
            "불러온 모델은 피클하거나 깊은 복사를 할 수 없습니다."
            " 프로세스마다 불러오거나 스레드끼리 하나를 함께 쓰세요",
        )

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed.is_set()

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do and no piece is left to take."""
        return not self._orders and self._own.idle

    def add(
        self,
        prompt: str | Ids,
        sampling: Sampling,
        prefix: int | None = None,
        adapter: int | None = None,
    ) -> int:
        """Queue a prompt for `step`; the number that its pieces will carry. Raises as `request`."""
        return self._own.add(self.request(prompt, sampling, prefix, adapter))

    def step(self) -> list[tuple[int, Piece]]:
        """Advance everybody once; the pieces of what was queued by `add`, each with its number."""
        self._drive_alone(self._advance)
        pieces = []
        while self._own.ready:
            pieces.append(self._own.take())
        return pieces

    def cancel(self, number: int) -> None:
        """Drop a request; who waits for it gets a last piece that says "cancelled".

        Unknown and finished requests are ignored. Safe at any moment, also from a finalizer: where the
        engine is in use, whoever uses it drops the request.
        """
        self._drop(number, "cancelled")
        self._hand_over()

    def release(self, prefix: int) -> None:
        """Free a prefix that a request kept, as Engine.release does; nothing once the session is closed.

        Safe at any moment, as `cancel` is: where the engine is in use, whoever uses it frees the prefix.
        """
        self._released.append(prefix)
        self._hand_over()

    def mailbox(self, whole: bool = False) -> Mailbox:
        """A mailbox for one more caller; `whole`: who waits for whole answers is not woken for each piece."""
        return Mailbox(self, Condition(self._lock), whole)

    def ask(self, requests: Sequence[Request]) -> list[Event]:
        """Run requests that write nothing; the answer to each. Raises the error of one that fails."""
        answers: dict[int, Event | None] = {}
        with self.mailbox(whole=True) as mailbox:
            for request in requests:
                answers[mailbox.add(request)] = None
            while not mailbox.idle:
                number, piece = mailbox.wait()
                if piece.error is not None:
                    raise piece.error
                answers[number] = piece.event
        return [event for event in answers.values() if event is not None]

    def close(self) -> None:
        """Drop every request, free the rows and let go of the engine; who waits gets a KoGPTError."""
        self._drive_alone(self._close)
        with self._lock:
            for mailbox in self._sleepers:
                mailbox.woken.notify_all()

    def _close(self) -> None:
        if self._engine is not None and not self._closed.is_set():
            self._engine.close()
        self._closed.set()
        self._engine = None

    def request(
        self,
        prompt: str | Ids,
        sampling: Sampling,
        prefix: int | None = None,
        adapter: int | None = None,
        echo: bool = False,
    ) -> Request:
        """The request to continue a prompt; `echo`: its own tokens are scored too, all but the first.

        Raises PromptError for a prompt that is empty, no text, or leaves no room in the context, and
        SamplingError for settings that this model cannot follow.
        """
        before = self.engine.length(prefix)
        ids = self.prompt_ids(prompt, before + 1)
        n_ctx = self.engine.runner.config.n_ctx
        limit = sampling.new_tokens(before + len(ids), n_ctx)
        if limit < 1:
            raise PromptError(
                f"the prompt has {before + len(ids)} tokens, max_length is {sampling.max_length}:"
                " shorten the prompt or raise max_length",
                f"프롬프트가 {before + len(ids)} 토큰인데 max_length 값이 {sampling.max_length}입니다."
                " 프롬프트를 줄이거나 max_length 값을 늘리세요",
            )
        self._require_known(sampling)
        if not self.allows_logprobs and sampling.logprobs is not None:
            raise SamplingError(
                "logprobs show tokens that the filter covers: ask for no logprobs, or use no filter",
                "logprobs에는 필터가 가린 토큰이 드러납니다. logprobs를 빼거나 필터 없이 실행하세요",
            )
        return Request(
            ids,
            prefix=prefix,
            adapter=adapter,
            writing=Writing(sampling, limit, self._stop_ids, self._grammar(sampling)),
            n_scored=len(ids) - 1 if echo else 0,
            n_top=sampling.logprobs or 0,
        )

    def _grammar(self, sampling: Sampling) -> Grammar | None:
        """What answers have to match, if anything. Raises SamplingError, MissingExtra."""
        if sampling.grammar is None:
            return None
        with self._compiler_lock:
            if self._compiler is None:
                self._compiler = GrammarCompiler(self.tokenizer, self._stop_ids, self.engine.n_vocab)
        return self._compiler.compile(sampling)

    def prompt_ids(self, prompt: str | Ids, reserve: int = 0) -> Ids:
        """Ids of a text; PromptError where there are none, or too many with `reserve` more positions."""
        limit = self.engine.runner.config.n_ctx - reserve
        if isinstance(prompt, np.ndarray):
            require_ids(prompt)
            ids = prompt
        else:
            ids = self._encoded(prompt, limit)
        n_vocab = self.engine.n_vocab
        if not len(ids):
            raise PromptError(
                "the prompt is empty: give some text", "프롬프트가 비어 있습니다. 글을 적어 주세요"
            )
        if ids.min() < 0 or ids.max() >= n_vocab:
            raise PromptError(
                f"the prompt has a token id outside 0 to {n_vocab - 1}",
                f"프롬프트에 범위를 벗어난 토큰 번호가 있습니다 (조건: 0 이상 {n_vocab - 1} 이하)",
            )
        if len(ids) > limit:
            raise too_long(len(ids), limit)
        return ids

    def _encoded(self, text: str, limit: int) -> Ids:
        require_text(text)
        # NFC leaves at least a quarter of the characters (UAX 15): a text far too long is refused unread.
        if len(text) > 4 * self.engine.runner.config.n_ctx * self.tokenizer.longest:
            raise too_long(len(text) // (4 * self.tokenizer.longest), limit)
        return np.array(self.tokenizer.encode_prompt(text), dtype=np.int64)

    def post(self, request: Request, mailbox: Mailbox) -> int:
        """Queue a request whose pieces go to a mailbox."""
        answers: dict[int, _Answer | None] = dict.fromkeys(range(request.n_samples))
        if request.writing is not None:
            stop = request.writing.sampling.stop
            for sample in answers:
                answers[sample] = _Answer(self.tokenizer.decoder(), StopStrings(stop), self.new_screen())
        with self._lock:  # no event of it is delivered before it is in the books
            number = self.engine.add(request)
            self._orders[number] = _Order(mailbox, answers)
            mailbox.numbers.add(number)
        logger.debug("request %d: %d inputs, %d samples", number, len(request.inputs), request.n_samples)
        return number

    def drive(self, mailbox: Mailbox) -> None:
        """Return when the mailbox is ready: drive the engine, or sleep while somebody else does."""
        try:
            while not mailbox.ready:
                self._stop_at_exit()
                if not self._drive_if_free(lambda: None if mailbox.ready else self._advance()):
                    self._sleep(mailbox)
        finally:
            self._hand_over()

    def _stop_at_exit(self) -> None:
        """Where the program ends, a daemon thread sleeps until it has ended; others get a KoGPTError."""
        if self._ended.is_set():
            if current_thread().daemon:
                Flag().wait()
            raise _closed()

    def _sleep(self, mailbox: Mailbox) -> None:
        """Wait for a piece, or for the engine to be free."""
        with self._lock:
            self._sleepers.append(mailbox)
            try:
                mailbox.woken.wait_for(lambda: mailbox.ready or not self._driver.locked(), LOST_WAKE_UP)
            finally:
                self._sleepers.remove(mailbox)

    def _hand_over(self) -> None:
        """Drop what was left while the engine was in use, and let another caller drive it."""
        while (self._cancelled or self._released) and self._drive_if_free(self._drop_left):
            pass
        with self._lock:
            if self._sleepers:
                self._sleepers[0].woken.notify_all()

    def _drive_if_free(self, do: Callable[[], None]) -> bool:
        """Do something with the engine, unless another caller has it; whether it was free."""
        held: list[bool] = []
        try:
            # One call into C: an interruption (Ctrl-C) never finds a lock that is taken but not noted.
            held.extend(map(self._driver.acquire, (False,)))
            if held[0]:
                do()
            return held[0]
        finally:
            if True in held:
                self._driver.release()

    def _drive_alone(self, do: Callable[[], None]) -> None:
        """Do something with the engine, once whoever has it is through with a step."""
        self._stop_at_exit()
        try:
            with self._driver:
                do()
        finally:
            self._hand_over()

    def _advance(self) -> None:
        """One step of the engine; its news go to their mailboxes. The caller holds the driver's lock."""
        engine = self.engine
        self._drop_left()
        self._news.extend(engine.step())
        while self._news:
            event = self._news.popleft()
            try:
                self._deliver(event)
            except BaseException as error:
                if not isinstance(error, Exception):  # an interruption: half a piece is worse than none
                    self.cancel(event.request)
                    raise
                self._drop(event.request, "failed", error)  # a screen's fault: its owner is told

    def _deliver(self, event: Event) -> None:
        """Make an event a piece and put it into the mailbox of whoever asked for it."""
        with self._lock:
            order = self._orders.get(event.request)
            if order is None or event.sample not in order.answers:
                return  # cancelled, or ended by a stop string in this very step
            answer = order.answers[event.sample]
            piece = Piece("", event.finish, event) if answer is None else answer.push(event)
            if piece.finish_reason:
                del order.answers[event.sample]
            if piece.finish_reason and not event.finish:  # by text, which the engine cannot see
                self.engine.cancel(event.request, event.sample)
            if not order.answers:
                self._orders.pop(event.request, None)
                order.mailbox.numbers.discard(event.request)
                logger.debug("request %d: finished (%s)", event.request, piece.finish_reason)
            order.mailbox.put(event.request, piece)

    def _drop(self, number: int, finish: FinishReason, error: BaseException | None = None) -> None:
        """End a request, if it is unfinished; the engine forgets it at its next step."""
        with self._lock:
            order = self._orders.pop(number, None)
            if order is None:
                return
            for sample in order.answers:
                event = Event(number, sample, finish=finish, error=error)
                order.mailbox.put(number, Piece("", finish, event))
            order.mailbox.numbers.discard(number)
        self._cancelled.append(number)

    def _drop_left(self) -> None:
        """Have the engine forget what was cancelled and released. The caller holds the driver's lock."""
        engine = None if self._closed.is_set() else self._engine
        while self._cancelled:
            number = self._cancelled.popleft()
            if engine is not None:
                engine.cancel(number)
        while self._released:
            prefix = self._released.popleft()
            if engine is not None:
                engine.release(prefix)

    def _require_known(self, sampling: Sampling) -> None:
        token = max(sampling.logit_bias, default=0)
        if token >= self.tokenizer.n_vocab:
            raise SamplingError(
                f"logit_bias has token id {token}, the vocabulary ends at {self.tokenizer.n_vocab - 1}",
                f"logit_bias의 토큰 번호 {token}: 어휘의 마지막 번호는 {self.tokenizer.n_vocab - 1}입니다",
            )


def require_text(text: object) -> None:
    """Raise PromptError unless it is a str."""
    if not isinstance(text, str):
        raise PromptError(
            f"a prompt is a text (str), not {type(text).__name__}: leave it out, or give some text",
            f"프롬프트는 문자열(str)이어야 합니다 (받은 형식: {type(text).__name__}). 빼거나 글을 적으세요",
        )


def require_ids(ids: NDArray[Any]) -> None:
    """Raise PromptError unless it is a (T,) array of integers; an empty one has whatever dtype."""
    if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
        raise PromptError(
            f"a prompt of token ids has the shape {ids.shape} and the dtype {ids.dtype}:"
            " give a one-dimensional array of integers, or a text",
            f"토큰 번호로 된 프롬프트의 모양 {ids.shape}, 자료형 {ids.dtype}:"
            " 1차원 정수 배열이나 글을 주세요",
        )


def too_long(n_tokens: int, limit: int) -> PromptError:
    """The refusal of a text that does not fit the context."""
    return PromptError(
        f"the text has {n_tokens} tokens, the model reads at most {limit}: shorten it",
        f"글이 {n_tokens} 토큰으로, 모델이 읽을 수 있는 {limit} 토큰을 넘습니다. 글을 줄여 주세요",
    )


def _closed() -> KoGPTError:
    return KoGPTError("the model is closed: load it again", "닫힌 모델입니다. 다시 불러오세요")


def _end(driver: Lock, closed: Flag, ended: Flag) -> None:
    """The session is gone, or the program ends: wait for the step that has begun; none begins afterwards."""
    ended.set()
    closed.set()
    driver.acquire()
