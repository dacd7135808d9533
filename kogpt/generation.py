"""Text in, text out: load a model, continue prompts, score continuations, embed texts.

Where tokens and text meet: the prompt is encoded, each row's tokens leave through one incremental decoder
and one search for stop strings, streamed or not. Knows nothing of HTTP, arguments or data sets.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, overload

import numpy as np
from numpy.typing import NDArray

from kogpt import checkpoint
from kogpt.engine import Engine
from kogpt.errors import PromptError, SamplingError
from kogpt.placement import Placement, load_runner
from kogpt.request import Event, FinishReason, Ids, Request, Writing
from kogpt.sampling import SampledToken, Sampling
from kogpt.tokenizer import StreamDecoder, Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token added to one answer. `text` is whole characters, often none yet."""

    text: str
    sample: int  # which of the n answers
    drawn: SampledToken | None  # None where there is no token: the logits were not finite
    finish_reason: FinishReason | None  # set on an answer's last piece


@dataclass(frozen=True, slots=True)
class Result:
    """One answer: the continuation only, without the prompt and without a stop string.

    `tokens` are all ids written but [EOS]; where a stop string ended the answer they reach past `text`.
    finish_reason: "stop" ([EOS] or a stop string), "length", or "failed" (logits were not finite).
    """

    prompt: str
    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    logprobs: tuple[SampledToken, ...] | None  # one for each of `tokens`, if Sampling.logprobs asked for them
    sample: int = 0


class StopStrings:
    """Finds the stop string that is completed first (of several, the longest) as text arrives.

    Text that may still become one is held back, never more than the longest stop string less a character.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = sorted(stops, key=len, reverse=True)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Add text; what is safe to show now, and whether a stop string was completed."""
        if not self._stops:
            return text, False
        shown: list[str] = []
        for character in text:
            self._held += character
            for stop in self._stops:
                if self._held.endswith(stop):
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


@dataclass(slots=True)
class _Answer:
    """One answer while it is written."""

    decoder: StreamDecoder
    stops: StopStrings
    text: list[str] = field(default_factory=list)
    drawn: list[SampledToken] = field(default_factory=list)

    def push(self, event: Event) -> Piece:
        text, finish = "", event.finish
        if event.token is not None and finish != "stop":
            self.drawn.append(event.token)
            text, stopped = self.stops.push(self.decoder.push(event.token.token))
            if stopped:
                finish = "stop"
            elif finish:
                text += self._rest()
        elif finish:
            text = self._rest()
        self.text.append(text)
        return Piece(text, event.sample, event.token, finish)

    def _rest(self) -> str:
        """The end of the text: an unfinished character, then what might have become a stop string."""
        text, stopped = self.stops.push(self.decoder.flush())
        return text if stopped else text + self.stops.flush()


@dataclass(slots=True)
class _Job:
    """One prompt while its answers are written."""

    prompt: str
    request: Request
    started: float
    logprobs: bool
    answers: dict[int, _Answer] = field(default_factory=dict)
    n_finished: int = 0

    def result(self, piece: Piece) -> Result:
        """The finished answer whose last piece this is."""
        assert piece.finish_reason is not None
        answer = self.answers[piece.sample]
        return Result(
            prompt=self.prompt,
            text="".join(answer.text),
            tokens=tuple(drawn.token for drawn in answer.drawn),
            finish_reason=piece.finish_reason,
            prompt_tokens=len(self.request.inputs),
            completion_tokens=len(answer.drawn),
            seconds=time.perf_counter() - self.started,
            logprobs=tuple(answer.drawn) if self.logprobs else None,
            sample=piece.sample,
        )


class KoGPT:
    """A model and its tokenizer, ready to use. Not thread-safe.

    model = KoGPT.from_pretrained()
    print(model.generate("오늘 서울의 날씨는", Sampling(max_tokens=32)).text)
    """

    def __init__(self, tokenizer: Tokenizer, engine: Engine) -> None:
        self.tokenizer = tokenizer
        self.engine = engine
        self.config = engine.runner.config

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "kogpt-mini",
        revision: str | None = None,
        device: str | Placement = "auto",
        dtype: str = "auto",
        cache_dtype: str = "auto",
    ) -> Self:
        """Load a folder, a hub name or the built-in kogpt-mini.

        device: auto, cpu, cuda, cuda:N; cuda:0,cuda:1 or cuda:all (every GPU) splits the model over them; or
        a whole Placement, which says dtype, cache_dtype and threads as well.
        dtype: auto, float32, bfloat16, float16 and what the runner for that device knows besides; of a
        quantised folder auto is the format that it is stored in, where the runner multiplies in that.
        cache_dtype: of keys and values; auto, or float32, bfloat16, int8 on the native runner.
        Raises CheckpointError, TokenizerError, NotEnoughMemory.
        """
        stored = checkpoint.load(name, revision)
        tokenizer = Tokenizer.from_file(stored.folder / "tokenizer.json")
        tokenizer.check_fits(stored.config)
        runner = load_runner(stored, Placement.of(device, dtype, cache_dtype))
        return cls(tokenizer, Engine(runner, n_vocab=tokenizer.n_vocab))

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is also an Iterable[str]; it is taken as one prompt
        self, prompts: str, sampling: Sampling | None = None
    ) -> Result: ...
    @overload
    def generate(self, prompts: Iterable[str], sampling: Sampling | None = None) -> list[Result]: ...
    def generate(
        self, prompts: str | Iterable[str], sampling: Sampling | None = None
    ) -> Result | list[Result]:
        """Continue one prompt, or many in a batch (then n results each, prompt by prompt, sample by sample).

        Raises PromptError for a prompt that is empty or leaves no room in the context.
        """
        sampling = sampling or Sampling()
        if not isinstance(prompts, str):
            return sorted_results(self.results(prompts, sampling))
        if sampling.n != 1:
            raise SamplingError(
                f"n is {sampling.n}, one prompt gives one result: pass a list, generate([prompt], ...)",
                f"n 값 {sampling.n}: 여러 답을 받으려면 generate([prompt], ...)처럼 목록으로 주십시오",
            )
        return next(result for _, result in self.results([prompts], sampling))

    def results(self, prompts: Iterable[str], sampling: Sampling) -> Iterator[tuple[int, Result]]:
        """(number of the prompt, result) as answers are finished; prompts are taken as room appears."""
        for number, answer in self.answers((prompt, sampling) for prompt in prompts):
            if isinstance(answer, PromptError):
                raise answer
            yield number, answer

    def answers(self, prompts: Iterable[tuple[str, Sampling]]) -> Iterator[tuple[int, Result | PromptError]]:
        """As `results`, each prompt with its own settings; one that is refused does not stop the others."""
        refused: list[tuple[int, PromptError]] = []

        def jobs() -> Iterator[tuple[int, _Job]]:
            for number, (prompt, sampling) in enumerate(prompts):
                try:
                    yield number, self._job(prompt, sampling)
                except PromptError as error:
                    refused.append((number, error))

        for number, job, piece in self._run(jobs()):
            yield from refused
            refused.clear()
            if piece.finish_reason:
                yield number, job.result(piece)
        yield from refused

    def stream(self, prompt: str, sampling: Sampling | None = None) -> Generator[Piece, None, None]:
        """Continue one prompt piece by piece; closing the generator cancels it."""
        for _, _, piece in self._run(iter([(0, self._job(prompt, sampling or Sampling()))])):
            yield piece

    def score(self, prompt: str, continuations: Sequence[str]) -> list[float]:
        """Log-likelihood of each continuation after the prompt, in nats: the sum over its tokens."""
        encoded = [self.encode_pair(prompt, continuation) for continuation in continuations]
        questions = [(context, [ids]) for context, ids in encoded]
        if all(np.array_equal(context, encoded[0][0]) for context, _ in encoded):
            questions = [(encoded[0][0], [ids for _, ids in encoded])] if encoded else []
        scores = self.engine.score(questions)
        return [float(array.sum()) for question in scores for array in question]

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, d_model) float32: the mean over a text's tokens of the model's last hidden state."""
        ids = [self._prompt_ids(text, reserve=0) for text in texts]
        return np.array(self.engine.pool(ids), dtype=np.float32).reshape(len(texts), self.config.d_model)

    def encode_pair(self, prompt: str, continuation: str) -> tuple[Ids, Ids]:
        """Ids of a prompt and of a text that follows it.

        Those of the joined text where a token ends at the border, else those of each part by itself.
        Raises PromptError where either has no token or both do not fit the context.
        """
        context = self._prompt_ids(prompt, reserve=1)
        joined = np.array(self.tokenizer.encode_prompt(prompt + continuation), dtype=np.int64)
        if np.array_equal(joined[: len(context)], context):
            ids = joined[len(context) :]
        else:
            ids = np.array(self.tokenizer.encode(continuation), dtype=np.int64)
        if not len(ids):
            raise _empty("the continuation", "이어지는 글")
        self._require_room(len(context) + len(ids), reserve=0)
        return context, ids

    def _run(self, waiting: Iterator[tuple[int, _Job]]) -> Iterator[tuple[int, _Job, Piece]]:
        """Drive the engine until every answer is finished; cancels what is left if the caller stops."""
        jobs: dict[int, tuple[int, _Job]] = {}  # engine's number -> (prompt's number, job)
        try:
            while True:
                while self.engine.n_waiting < self.engine.max_rows and (entry := next(waiting, None)):
                    jobs[self.engine.add(entry[1].request)] = entry
                if self.engine.idle:
                    return
                for event in self.engine.step():
                    number, job = jobs[event.request]
                    piece = job.answers[event.sample].push(event)
                    if piece.finish_reason and not event.finish:  # a stop string, which the engine cannot see
                        self.engine.cancel(event.request, event.sample)
                    job.n_finished += piece.finish_reason is not None
                    if job.n_finished == job.request.n_samples:
                        del jobs[event.request]
                    yield number, job, piece
        finally:
            for request in jobs:
                self.engine.cancel(request)

    def _job(self, prompt: str, sampling: Sampling) -> _Job:
        ids = self._prompt_ids(prompt, reserve=1)
        limit = sampling.new_tokens(len(ids), self.config.n_ctx)
        if limit < 1:
            raise PromptError(
                f"the prompt has {len(ids)} tokens, max_length is {sampling.max_length}:"
                " shorten the prompt or raise max_length",
                f"프롬프트가 {len(ids)} 토큰인데 max_length 값이 {sampling.max_length}입니다:"
                " 프롬프트를 줄이거나 max_length 값을 늘려 주십시오",
            )
        self._require_known(sampling)
        writing = Writing(sampling, limit, frozenset({self.config.eos_token_id}))
        request = Request(ids, writing=writing)
        job = _Job(prompt, request, time.perf_counter(), sampling.logprobs is not None)
        for sample in range(sampling.n):
            job.answers[sample] = _Answer(self.tokenizer.decoder(), StopStrings(sampling.stop))
        return job

    def _require_known(self, sampling: Sampling) -> None:
        token = max(sampling.logit_bias, default=0)
        if token >= self.tokenizer.n_vocab:
            raise SamplingError(
                f"logit_bias has token id {token}, the vocabulary ends at {self.tokenizer.n_vocab - 1}",
                f"logit_bias의 토큰 번호 {token}: 어휘의 마지막 번호는 {self.tokenizer.n_vocab - 1}입니다",
            )

    def _prompt_ids(self, text: str, reserve: int) -> Ids:
        # NFC leaves at least a quarter of the characters (UAX 15): a text far too long is refused unread.
        if len(text) > 4 * self.config.n_ctx * self.tokenizer.longest:
            self._require_room(len(text) // (4 * self.tokenizer.longest), reserve)
        ids = np.array(self.tokenizer.encode_prompt(text), dtype=np.int64)
        if not len(ids):
            raise _empty("the prompt", "프롬프트")
        self._require_room(len(ids), reserve)
        return ids

    def _require_room(self, n_tokens: int, reserve: int) -> None:
        limit = self.config.n_ctx - reserve
        if n_tokens > limit:
            raise PromptError(
                f"the text has {n_tokens} tokens, the model reads at most {limit}: shorten it",
                f"글이 {n_tokens} 토큰으로, 모델이 읽을 수 있는 {limit} 토큰을 넘습니다: 글을 줄여 주십시오",
            )


def sorted_results(results: Iterable[tuple[int, Result]]) -> list[Result]:
    """Results in the order of their prompts and samples."""
    return [result for _, result in sorted(results, key=lambda entry: (entry[0], entry[1].sample))]


def _empty(what: str, ko: str) -> PromptError:
    return PromptError(f"{what} is empty: give some text", f"{ko}이(가) 비어 있습니다: 글을 적어 주십시오")
