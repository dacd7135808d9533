"""Text in, text out: load a model, continue prompts, score continuations, embed texts.

KoGPT is a thin face of a session (session.py), which turns prompts into requests and tokens into text. Knows
nothing of HTTP, arguments or data sets.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from kogpt import checkpoint, peft
from kogpt.adapter import Lora, SoftPrompt
from kogpt.classification import Classification, Classifier, Wording
from kogpt.config import ModelConfig
from kogpt.engine import Engine
from kogpt.errors import KoGPTError, PromptError, SamplingError
from kogpt.generation_defaults import GenerationDefaults, read_generation_defaults
from kogpt.manifest import Verification
from kogpt.peft import Origin, SavedAdapter
from kogpt.placement import Placement, load_runner
from kogpt.request import Event, FinishReason, Ids, Request, Tuned
from kogpt.sampling import SampledToken, Sampling
from kogpt.session import Piece, Screen, Session, require_text, too_long
from kogpt.tokenizer import Tokenizer

CACHED_ROWS = 32  # texts that a model keeps in its prefix cache

Settings = Sampling | Mapping[str, Any] | None
Texts = list[str] | tuple[str, ...]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of an answer and the model's own opinion of it."""

    token: int
    text: str  # U+FFFD where the token is a part of a character
    logprob: float  # nats
    top_logprobs: tuple[TokenLogprob, ...] = ()  # the likeliest tokens in its place, best first


@dataclass(frozen=True, slots=True)
class Result:
    """One answer: the continuation only, without the prompt and without a stop string.

    `tokens` are all ids written but the end of text; where a stop string ended the answer they reach past
    `text`. finish_reason: "stop" (end of text or a stop string), "length", "filtered" (a screen cut it off,
    see KoGPT.use_screen), or "failed": `error` says why.
    """

    prompt: str
    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    seconds: float  # since the request was made
    logprobs: tuple[TokenLogprob, ...] | None  # one for each of `tokens`, if Sampling.logprobs asked for them
    sample: int = 0  # which of the n answers
    error: BaseException | None = None


class KoGPT:
    """A model and its tokenizer, ready to use, from any number of threads.

    model = KoGPT.from_pretrained()
    print(model.generate("제1조(목적) 이 법은", max_tokens=32).text)
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        engine: Engine,
        defaults: GenerationDefaults | None = None,
        name: str = "",
        tuned: SavedAdapter | None = None,
    ) -> None:
        """Take over an engine.

        defaults: what the model's folder recommends for writing. tuned: an adapter for every text.
        """
        self.tokenizer = tokenizer
        self.config: ModelConfig = engine.runner.config
        self.defaults = defaults or GenerationDefaults(self.config.eos_token_ids, {}, ())
        self.name = name
        self.folder: Path | None = None  # that it was loaded from
        self._verification: Verification | None = None  # check of the weights; None once it has passed
        self.session = Session(tokenizer, engine, self.defaults.eos_token_ids)
        self._prefix: int | None = None  # of every text; handles of the engine and of its runner
        self._adapter: int | None = None
        self.tuned: SavedAdapter | None = None
        self.origin = Origin()
        if tuned is not None:
            self._attach(tuned)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "kogpt-mini",
        revision: str | None = None,
        device: str | Placement = "auto",
        dtype: str = "auto",
        cache_dtype: str = "auto",
        adapter: str | Path | None = None,
    ) -> Self:
        """Load a folder, a hub name or the built-in kogpt-mini.

        device: auto, cpu, cuda, cuda:N; cuda:0,cuda:1 or cuda:all (every GPU) splits the model over them; or
        a whole Placement, which says dtype, cache_dtype and threads as well.
        dtype: auto, float32, bfloat16, float16 and what the runner for that device knows besides; of a
        quantised folder auto is the format that it is stored in, where the runner multiplies in that.
        cache_dtype: of keys and values; auto, or float32, bfloat16, int8 on the native runner.
        adapter: a folder of PEFT, tuned on this model, or the name of an adapter that ships; every text is
        read and written with it.
        Large weights are verified beside the first step; if they are damaged, every answer raises the
        CheckpointError (see `verify`).
        Raises CheckpointError, TokenizerError, NotEnoughMemory.
        """
        started = time.perf_counter()
        stored = checkpoint.load(name, revision, beside=True)
        tokenizer = Tokenizer.from_file(stored.folder / "tokenizer.json")
        tokenizer.check_fits(stored.config)
        defaults = read_generation_defaults(stored.folder, stored.config)
        runner = load_runner(stored, Placement.of(device, dtype, cache_dtype))
        engine = Engine(runner, n_vocab=tokenizer.n_vocab, max_cached=CACHED_ROWS)
        tuned = None if adapter is None else peft.load(adapter, stored)
        model = cls(tokenizer, engine, defaults, str(name), tuned)
        model.folder = stored.folder
        model._verification = stored.verification
        logger.debug("loaded %r in %.2f s", model, time.perf_counter() - started)
        return model

    def __repr__(self) -> str:
        if self.session.closed:
            return f"KoGPT({self.name!r}, closed)"
        c, runner = self.config, self.engine.runner
        shape = f"{c.n_parameters:,} parameters, {c.n_layers} layers, context {c.n_ctx}"
        return f"KoGPT({self.name!r}: {shape}; {runner.name} runner, {runner.dtype})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def with_adapters(self, folders: Mapping[str, str | Path]) -> dict[str, Self]:
        """This model with each of some adapters, by name. All share weights and session, and close together.

        folders: of PEFT, tuned on this model, by the names that the models shall have. Texts of different
        adapters are read and written in the same steps. For an idle model of `from_pretrained`.
        Raises CheckpointError.
        """
        assert self.folder is not None, "a model that was loaded"
        stored = checkpoint.load(self.folder, beside=True)  # for its shape and name; the weights are here
        found = {}
        for name, folder in folders.items():
            found[name] = copy.copy(self)
            found[name].name = name
            found[name]._attach(peft.load(folder, stored))
        return found

    def untuned(self) -> Self:
        """This model without its adapter. Both share weights and session, and close together."""
        base = copy.copy(self)
        base.tuned, base.origin, base._prefix, base._adapter = None, Origin(), None, None
        return base

    def _attach(self, tuned: SavedAdapter) -> None:
        """Read and write every text with an adapter."""
        self.tuned, self.origin, adapter = tuned, tuned.origin, tuned.adapter
        self._prefix = self._adapter = None
        if isinstance(adapter, Lora):
            self._adapter = self.engine.add_adapter(adapter)
        elif isinstance(adapter, SoftPrompt):
            self._prefix = self.engine.prefix(adapter.embeddings)
        else:
            self._prefix = self.engine.load(adapter)

    def verify(self) -> None:
        """Wait until every byte of the weights is verified, as answers do by themselves. CheckpointError."""
        if self._verification is not None:
            self._verification.wait()
            self._verification = None

    def close(self) -> None:
        """Free the model's memory. Streams that are still read, and later calls, get a KoGPTError."""
        self.session.close()

    def use_screen(self, new_screen: Callable[[], Screen], logprobs: bool = False) -> None:
        """Have every later answer pass a screen before it is shown, one of its own each.

        logprobs: allow them for a caller who shows none of the tokens, which no screen covers.

        kogpt.tasks.filter has one for profanity and personal data: use_screen(TextFilter("mask").stream).
        """
        self.session.new_screen = new_screen
        self.session.allows_logprobs = logprobs

    @property
    def engine(self) -> Engine:
        """The engine, for whoever has the model for itself; KoGPTError once the model is closed."""
        return self.session.engine

    def sampling(self, settings: Settings = None, **chosen: Any) -> Sampling:
        """The settings of a generation: those given, else what the model recommends, else Sampling's own.

        A Sampling is complete and taken as it is. Raises SamplingError.
        """
        if isinstance(settings, Sampling) and not chosen:
            return settings
        if not isinstance(settings, Mapping | None):
            raise SamplingError(
                f"settings are {type(settings).__name__} beside {', '.join(chosen) or 'nothing'}:"
                " give a Sampling alone, or a dict and keywords such as max_tokens=32",
                f"설정 형식 {type(settings).__name__}, 키워드 {', '.join(chosen) or '없음'}:"
                " Sampling 하나만 주거나, dict와 max_tokens=32 같은 키워드를 주세요",
            )
        given = {**(settings or {}), **chosen}
        known = Sampling.__dataclass_fields__
        if unknown := [name for name in given if name not in known]:
            raise SamplingError(
                f"there is no setting {unknown[0]!r}: the settings are {', '.join(known)}",
                f"{unknown[0]!r} 설정은 없습니다. 가능한 설정: {', '.join(known)}",
            )
        return self.defaults.sampling(**given)

    @overload
    def generate(self, prompts: str, sampling: Settings = None, **settings: Any) -> Result: ...
    @overload
    def generate(
        self, prompts: Iterable[str], sampling: Settings = None, **settings: Any
    ) -> list[Result]: ...
    def generate(
        self, prompts: str | Iterable[str], sampling: Settings = None, **settings: Any
    ) -> Result | list[Result]:
        """Continue one prompt, or many in a batch (then n results each, prompt by prompt, sample by sample).

        Settings are a Sampling, or a dict and keywords: generate("가", max_tokens=3).
        Raises PromptError for a prompt that is empty, no text, or leaves no room in the context, and the
        error of an answer that fails. With many prompts one error loses the others: see `answers`.
        """
        chosen = self.sampling(sampling, **settings)
        if not isinstance(prompts, str):
            return sorted_results(self.results(_several(prompts), chosen))
        if chosen.n != 1:
            raise SamplingError(
                f"n is {chosen.n}, one prompt gives one result: pass a list, generate([prompt], ...)",
                f"n 값 {chosen.n}: 여러 답을 받으려면 generate([prompt], ...)처럼 목록으로 주세요",
            )
        [(_, result)] = self.results([prompts], chosen)
        return result

    def results(self, prompts: Iterable[str], sampling: Sampling) -> Iterator[tuple[int, Result]]:
        """(number of the prompt, result) as answers are finished; prompts are taken as room appears.

        Raises as `generate`, as soon as a prompt is refused or an answer fails.
        """
        for number, answer in self.answers((prompt, sampling) for prompt in prompts):
            if isinstance(answer, PromptError):
                raise answer
            if answer.error is not None:
                raise answer.error
            yield number, answer

    def answers(self, prompts: Iterable[tuple[str, Sampling]]) -> Iterator[tuple[int, Result | PromptError]]:
        """As `results`, each prompt with its own settings; no prompt costs the others their answers.

        A prompt that is refused has its PromptError for an answer, one that fails a Result with `error`.
        """
        waiting = enumerate(prompts)
        jobs: dict[int, _Job] = {}
        with self.session.mailbox(whole=True) as mailbox:
            while True:
                while len(mailbox.numbers) < 2 * self.engine.max_rows and (entry := next(waiting, None)):
                    number, (prompt, sampling) = entry
                    try:
                        request = self.request(prompt, sampling)
                    except PromptError as error:
                        yield number, error
                    else:
                        jobs[mailbox.add(request)] = _Job(number, prompt, request, self.tokenizer)
                if mailbox.idle:
                    return
                key, piece = mailbox.wait()
                job = jobs[key]
                if (result := job.push(piece)) is not None:
                    if job.finished:
                        del jobs[key]
                    yield job.number, result

    def stream(self, prompt: str, sampling: Settings = None, **settings: Any) -> Generator[Piece, None, None]:
        """Continue one prompt piece by piece; leaving the generator cancels the rest.

        Settings as in `generate`. Raises as it does, a failure after the last piece.
        """
        chosen = self.sampling(sampling, **settings)
        request = self.request(prompt, chosen)
        with self.session.mailbox() as mailbox:
            mailbox.add(request)
            while not mailbox.idle:
                _, piece = mailbox.wait()
                yield piece
                if piece.error is not None:
                    raise piece.error

    @overload
    def score(self, prompt: str, continuations: str) -> float: ...
    @overload
    def score(self, prompt: str, continuations: Texts) -> list[float]: ...
    @overload
    def score(self, prompt: Texts, continuations: Texts) -> list[float]: ...
    @overload
    def score(self, prompt: Texts, continuations: Sequence[list[str]]) -> list[list[float]]: ...
    def score(self, prompt: Any, continuations: Any) -> Any:
        """Log-likelihood of continuations in nats: the sum over the tokens of each.

        One prompt and one text give a float, one prompt and many texts a list. Many prompts take as many
        entries of continuations, a text or a list for each; they are scored in one batch. Border and empty
        prompt: as Tokenizer.encode_choices. Compare the continuations of one prompt only.
        """
        if isinstance(prompt, str):
            return self._scores([(prompt, continuations)])[0]
        prompts = list(_several(prompt))
        entries = None if isinstance(continuations, str) else list(_several(continuations))
        if entries is None or len(prompts) != len(entries):
            n, (en, ko) = len(prompts), ("one text", "글 하나")
            if entries is not None:
                en, ko = f"a list of {len(entries)}", f"{len(entries)}개의 목록"
            raise PromptError(
                f"the continuations of a list of {n} prompts are {en}: give a list of {n},"
                " a text or a list of texts for each prompt",
                f"프롬프트 {n}개에 이어지는 글로 {ko}만 받았습니다."
                f" 프롬프트마다 글 하나나 글의 목록을 넣어 {n}개의 목록으로 주세요",
            )
        return self._scores(list(zip(prompts, entries, strict=True)))

    def embed(self, texts: str | Iterable[str]) -> NDArray[np.float32]:
        """(d_model,) float32 for one text, (n, d_model) for many: the mean of the last hidden states."""
        if isinstance(texts, str):
            vector: NDArray[np.float32] = self.embed([texts])[0]
            return vector
        events = self.session.ask([self.embedding_request(text) for text in _several(texts)])
        return np.array([event.pooled for event in events], np.float32).reshape(-1, self.config.d_model)

    @overload
    def classify(self, texts: str, labels: Wording | Texts | None = None) -> Classification: ...
    @overload
    def classify(self, texts: Texts, labels: Wording | Texts | None = None) -> list[Classification]: ...
    def classify(
        self, texts: str | Texts, labels: Wording | Texts | None = None
    ) -> Classification | list[Classification]:
        """The likeliest label of one text or of many, and how likely each label is.

        labels: words such as ["긍정", "부정"], or a Wording with instruction, examples and template; None:
        those that the model's adapter was tuned for. Raises PromptError as `Classifier.classify`.
        """
        if labels is None and self.has_head:
            answers = self._classify_by_head([texts] if isinstance(texts, str) else list(_several(texts)))
            return answers[0] if isinstance(texts, str) else answers
        classifier = Classifier(self.session, self.wording(labels), self._prefix, self._adapter)
        if isinstance(texts, str):
            [found] = classifier.classify([texts])
            return found
        return list(classifier.classify(_several(texts)))

    def wording(self, labels: Wording | Texts | None = None) -> Wording:
        """How `classify` asks: as given, with these labels, or as the model's adapter was tuned."""
        if isinstance(labels, Wording):
            return labels
        if isinstance(labels, str):
            raise PromptError(
                f"labels are one text, {labels[:100]!r}: give a list, as in ['긍정', '부정']",
                f"레이블이 글 하나입니다({labels[:100]!r}). ['긍정', '부정']처럼 목록으로 주세요",
            )
        if labels is not None:
            return Wording(tuple(_several(labels)))
        if self.has_head:
            raise PromptError(
                "the adapter answers by a head, not by words: call classify(text) without labels",
                "이 어댑터는 낱말이 아니라 헤드로 답합니다. classify(글)처럼 레이블 없이 부르세요",
            )
        words, template = self.origin.labels, self.origin.template
        if not words or template is None:
            raise PromptError(
                "there are no labels: give some, as in classify(text, ['긍정', '부정']), or load the model"
                " with an adapter that was tuned on labels",
                "레이블이 없습니다. classify(글, ['긍정', '부정'])처럼 주거나 어댑터를 쓰세요",
            )
        names = tuple(word.strip() for word in words)
        return Wording(names, template, words, calibrated=False)

    @property
    def has_head(self) -> bool:
        """Whether the model's adapter answers by a head instead of words."""
        return self.tuned is not None and self.tuned.head is not None

    def head_requests(self, texts: Sequence[str]) -> list[Request]:
        """The requests by which the head of the adapter labels texts; `labels_by_head` reads their events.

        Raises PromptError for a head that grades, CheckpointError for a template of two texts.
        """
        if not self.origin.labels:
            raise PromptError(
                "the adapter grades texts and has no labels: give some, as in"
                " classify(text, ['긍정', '부정']), or call label_scores",
                "이 어댑터는 점수를 매기며 레이블이 없습니다. classify(글, ['긍정', '부정'])처럼 주거나"
                " label_scores를 쓰세요",
            )
        return [self.embedding_request(self.origin.prompt(text), last_only=True) for text in texts]

    def labels_by_head(self, texts: Sequence[str], events: Sequence[Event]) -> list[Classification]:
        """The label of each text by the answers to its `head_requests`."""
        assert self.tuned is not None and self.tuned.head is not None
        names = [word.strip() for word in self.origin.labels]
        found = []
        for text, event in zip(texts, events, strict=True):
            assert event.pooled is not None
            row = (event.pooled @ self.tuned.head.T).astype(np.float64)
            powers = np.exp(row - row.max())
            shares = dict(zip(names, map(float, powers / powers.sum()), strict=True))
            found.append(Classification(text, names[int(row.argmax())], shares))
        return found

    def _classify_by_head(self, texts: Sequence[str]) -> list[Classification]:
        return self.labels_by_head(texts, self.session.ask(self.head_requests(texts)))

    def label_scores(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """(n, labels): what the adapter thinks of each text, or pair of texts; of grades (n, 1).

        The outputs of its head, of a graded pair the mean over both orders, or else the log-likelihoods of
        its labels in nats. KoGPTError without an adapter that has a head or labels.
        """
        if self.tuned is None or (self.tuned.head is None and not self.tuned.origin.labels):
            raise KoGPTError(
                "there is no adapter with labels: load one, such as adapter='sentiment'",
                "레이블이 있는 어댑터가 없습니다. adapter='sentiment'처럼 불러오세요",
            )
        origin, head = self.tuned.origin, self.tuned.head
        questions = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        prompts = [origin.prompt(*question) for question in questions]
        if head is None:
            scores = self.score(prompts, [list(origin.labels)] * len(prompts))
            return np.array(scores, np.float64).reshape(-1, len(origin.labels))
        if not origin.labels:
            prompts += [origin.prompt(*reversed(question)) for question in questions]
        events = self.session.ask([self.embedding_request(prompt, last_only=True) for prompt in prompts])
        outputs = np.array([event.pooled for event in events]).reshape(-1, self.config.d_model) @ head.T
        mean: NDArray[np.float64] = outputs.reshape(-1, len(questions), len(head)).mean(0, np.float64)
        return mean

    def request(self, prompt: str | Ids, sampling: Sampling, echo: bool = False) -> Request:
        """What `stream` asks the session for: a prompt continued with the model's adapter.

        echo and errors: as Session.request.
        """
        return self.session.request(prompt, sampling, self._prefix, self._adapter, echo)

    @property
    def handles(self) -> Tuned:
        """The handles of the model's adapter, for requests of one's own."""
        return Tuned(self._prefix, self._adapter)

    def embedding_request(self, text: str | Ids, last_only: bool = False) -> Request:
        """What `embed` asks the session for; last_only: the last hidden state instead of the mean."""
        ids = self.session.prompt_ids(text, self.engine.length(self._prefix))
        return Request(
            ids,
            prefix=self._prefix,
            adapter=self._adapter,
            pooled=True,
            last_only=last_only,
            reusable=False,
        )

    def question_request(self, prompt: str, choices: Sequence[str]) -> Request:
        """What `score` asks the session for: the log-probabilities of choices after a prompt.

        Raises PromptError for a choice that adds nothing, and for what does not fit the context.
        """
        context, ids = self.tokenizer.encode_choices(prompt, choices)
        length = len(context) + max(map(len, ids)) - 1  # the last token is scored, not read
        limit = self.config.n_ctx - self.engine.length(self._prefix)
        if length > limit:
            raise too_long(length + 1, limit + 1)
        arrays = [np.array(choice, dtype=np.int64) for choice in ids]
        inputs, prefix, adapter = np.array(context, dtype=np.int64), self._prefix, self._adapter
        return Request(inputs, prefix=prefix, adapter=adapter, choices=arrays, reusable=False)

    def _scores(self, questions: Sequence[tuple[str, str | Sequence[str]]]) -> list[float | list[float]]:
        requests: list[Request] = []
        slots: list[int] = []  # of each question among the requests; -1 where it has no choices
        for prompt, texts in questions:
            choices = [texts] if isinstance(texts, str) else list(_several(texts))
            for text in (prompt, *choices):
                require_text(text)
            if choices:
                slots.append(len(requests))
                requests.append(self.question_request(prompt, choices))
            else:
                slots.append(-1)
        events = self.session.ask(requests)
        answers: list[float | list[float]] = []
        for slot, (_, texts) in zip(slots, questions, strict=True):
            scores = [] if slot < 0 else [float(s.logprobs.sum()) for s in events[slot].choices]
            answers.append(scores[0] if isinstance(texts, str) else scores)
        return answers


@dataclass(slots=True)
class _Job:
    """One prompt while its answers are written."""

    number: int  # of the prompt
    prompt: str
    request: Request
    tokenizer: Tokenizer
    started: float = field(default_factory=time.perf_counter)
    text: dict[int, list[str]] = field(default_factory=dict)  # by sample
    tokens: dict[int, list[SampledToken]] = field(default_factory=dict)
    n_results: int = 0

    @property
    def finished(self) -> bool:
        """Whether all of its answers have come."""
        return self.n_results == self.request.n_samples

    @property
    def _wants_logprobs(self) -> bool:
        writing = self.request.writing
        return writing is not None and writing.sampling.logprobs is not None

    def push(self, piece: Piece) -> Result | None:
        """Note a piece; the result if it is an answer's last."""
        text = self.text.setdefault(piece.sample, [])
        tokens = self.tokens.setdefault(piece.sample, [])
        text.append(piece.text)
        if piece.token is not None and piece.event.finish != "stop":  # the end of text is no token of it
            tokens.append(piece.token)
        if piece.finish_reason is None:
            return None
        self.n_results += 1
        return Result(
            prompt=self.prompt,
            text="".join(text),
            tokens=tuple(token.token for token in tokens),
            finish_reason=piece.finish_reason,
            prompt_tokens=len(self.request.inputs),
            completion_tokens=len(tokens),
            seconds=time.perf_counter() - self.started,
            logprobs=token_logprobs(tokens, self.tokenizer) if self._wants_logprobs else None,
            sample=piece.sample,
            error=piece.error,
        )


def token_logprobs(tokens: Sequence[SampledToken], tokenizer: Tokenizer) -> tuple[TokenLogprob, ...]:
    """Tokens with their texts."""

    def named(token: int, logprob: float) -> TokenLogprob:
        return TokenLogprob(token, tokenizer.token_bytes(token).decode("utf-8", "replace"), logprob)

    return tuple(
        replace(named(t.token, t.logprob), top_logprobs=tuple(named(*top) for top in t.top_logprobs))
        for t in tokens
    )


def _several(texts: Any) -> Iterable[Any]:
    """Texts to go through; PromptError for what holds none. Bytes hold numbers, so they are refused whole."""
    if isinstance(texts, bytes | bytearray) or not isinstance(texts, Iterable):
        require_text(texts)
    several: Iterable[Any] = texts
    return several


def sorted_results(results: Iterable[tuple[int, Result]]) -> list[Result]:
    """Results in the order of their prompts and samples."""
    return [result for _, result in sorted(results, key=lambda entry: (entry[0], entry[1].sample))]
