"""KoGPT behind the three methods of lm-evaluation-harness' LM.

A group of contexts shares its beginning as one prefix, and the choices of a question share the question; each
is read once. The harness' own `hf` model reads every context again for every choice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from inspect import signature
from itertools import groupby, pairwise
from typing import Any, Self

import numpy as np
from lm_eval import utils
from lm_eval.api.model import TemplateLM

from kogpt.errors import KoGPTError, PromptError
from kogpt.evaluation.sampling_mode import write_texts
from kogpt.evaluation.scoring import question, scores_of, shared_prefix
from kogpt.generation import KoGPT
from kogpt.request import Ids, Request
from kogpt.sampling import Sampling

Pair = tuple[tuple[int, ...], tuple[int, ...]]  # ids of a context and of its continuation

MAX_DEPTH = 64  # how often a group of contexts is split further for longer shared beginnings
DEFAULT_NEW_TOKENS = 256  # the harness' own default for generate_until
# Settings that the harness gives to every model. The engine plans its batches itself and runs no hub's code.
OF_EVERY_MODEL = ("batch_size", "max_batch_size", "trust_remote_code")


class KoGPTLM(TemplateLM):  # type: ignore[misc]  # the harness is not typed
    """`--model kogpt --model_args pretrained=kogpt-mini,dtype=float32`, or a KoGPT that is ready."""

    def __init__(
        self,
        pretrained: str | KoGPT = "kogpt-mini",
        revision: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        cache_dtype: str = "auto",
        adapter: str | None = None,
    ) -> None:
        super().__init__()
        if isinstance(pretrained, str):
            place = device or "auto"
            pretrained = KoGPT.from_pretrained(pretrained, revision, place, dtype, cache_dtype, adapter)
        self.model = pretrained
        self.n_tokens_run = 0  # tokens that the runner had to read for all scores so far

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> Self:
        """As create_from_arg_obj, from `name=value,name=value`."""
        return cls.create_from_arg_obj(utils.simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> Self:
        """A model from --model_args and the harness' own settings. KoGPTError for an argument it lacks."""
        known = list(signature(cls).parameters)
        if unknown := [name for name in arg_dict if name not in (*known, *OF_EVERY_MODEL)]:
            names = ", ".join(known)
            raise KoGPTError(
                f"there is no model argument {unknown[0]!r}: choose from {names}",
                f"{unknown[0]!r} 모델 인자는 없습니다. 다음에서 고르세요: {names}",
            )
        more = {name: value for name, value in (additional_config or {}).items() if value is not None}
        ours, theirs = ({k: v for k, v in x.items() if k not in OF_EVERY_MODEL} for x in (arg_dict, more))
        return cls(**ours, **theirs)

    @property
    def eot_token_id(self) -> int:
        return self.model.config.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context: [EOS] unless the tokenizer's template says otherwise."""
        return self.model.tokenizer.document_start[-1]

    @property
    def _n_ctx(self) -> int:
        """Positions that a tuned prefix leaves."""
        return self.model.config.n_ctx - self.model.engine.length(self.model.handles.prefix)

    @property
    def tokenizer_name(self) -> str:
        return "kogpt"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text; nothing is added."""
        return self.model.tokenizer.encode(string)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether each token is the likeliest) of each continuation.

        Neighbouring requests with the same context are the choices of one question; their border follows
        Tokenizer.encode_choices, as in `kogpt eval`. Raises PromptError for an empty continuation and for one
        that is longer than the model's context.
        """
        texts = [request.args for request in requests]
        pairs: list[Pair] = []
        for context, group in groupby(texts, key=lambda pair: pair[0]):
            ids, choices = self.model.tokenizer.encode_choices(context, [choice for _, choice in group])
            pairs += [self._fitted(ids, choice) for choice in choices]
        answers = self.score(pairs)
        for text, answer in zip(texts, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", text, answer)
        return answers

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        return self.score([self._fitted(context, continuation) for _, context, continuation in requests])

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, cut into the harness' own windows."""
        owners, pairs = [], []
        for number, request in enumerate(requests):
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.model.config.n_ctx,
                context_len=1,
            )
            for context, continuation in map(utils.make_disjoint_window, windows):
                owners.append(number)
                pairs.append(self._fitted(context, continuation))
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self.score(pairs), strict=True):
            totals[owner] += value
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts up to a stop string, written in batches; greedy unless the task asks for a temperature.

        Where context and max_gen_toks do not fit the model's context, the end of the context is kept: what
        max_gen_toks leaves of it, but at least half. Raises PromptError and SamplingError.
        """
        texts = write_texts(self.model.session, [self._writing(*request.args) for request in requests])
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether each token is the likeliest) of each continuation."""
        choices: dict[tuple[int, ...], list[tuple[int, ...]]] = defaultdict(list)
        for context, continuation in dict.fromkeys(pairs):
            choices[context].append(continuation)
        found: dict[Pair, tuple[float, bool]] = {}
        for group in groups(sorted(choices)):
            found |= self._score_group({context: choices[context] for context in group})
        return [found[pair] for pair in pairs]

    def _score_group(
        self, choices: dict[tuple[int, ...], list[tuple[int, ...]]]
    ) -> dict[Pair, tuple[float, bool]]:
        """Score sorted contexts. The beginning that they share is a prefix, but for each one's last token."""
        contexts, shared = list(choices), 0
        if len(contexts) > 1:
            shared = min(n_shared(contexts[0], contexts[-1]), min(map(len, contexts)) - 1)
        tuned = self.model.handles
        with shared_prefix(self.model.session, _ids(contexts[0][:shared]), tuned) as prefix:
            requests = [
                question(_ids(context[shared:]), list(map(_ids, texts)), prefix(), tuned.adapter)
                for context, texts in choices.items()
            ]
            events = self.model.session.ask(requests)
        self.n_tokens_run += shared
        found: dict[Pair, tuple[float, bool]] = {}
        for (context, texts), event in zip(choices.items(), events, strict=True):
            self.n_tokens_run += len(context) - shared + sum(len(text) - 1 for text in texts)
            for text, scores in zip(texts, scores_of(event), strict=True):
                greedy = tuple(scores.likeliest.tolist()) == text
                found[context, text] = (float(scores.logprobs.sum()), greedy)
        return found

    def _fitted(self, context: Sequence[int], continuation: Sequence[int]) -> Pair:
        """The end of a context, as long as fits before the continuation. PromptError if nothing fits."""
        n_ctx = self._n_ctx
        if not 0 < len(continuation) <= n_ctx:
            raise PromptError(
                f"a continuation has {len(continuation)} tokens, it needs 1 to {n_ctx}: shorten it, or choose"
                " another task",
                f"이어지는 글이 {len(continuation)} 토큰입니다 (1~{n_ctx} 토큰 필요). 줄이거나 다른 과제를"
                " 고르세요",
            )
        return tuple(context[-(n_ctx + 1 - len(continuation)) :]), tuple(continuation)

    def _writing(self, context: str, settings: dict[str, Any]) -> Request:
        """The request for one text, from the settings of a task file."""
        until = settings.get("until") or []
        stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
        wanted = max(1, int(settings.get("max_gen_toks", DEFAULT_NEW_TOKENS)))
        temperature = float(settings.get("temperature", 1.0)) if settings.get("do_sample") else 0.0
        n_ctx = self._n_ctx
        kept = max(n_ctx - wanted, n_ctx // 2)
        ids = self.model.tokenizer.encode_prompt(context)[-kept:] or [self.prefix_token_id]
        sampling = Sampling(temperature=temperature, stop=stops, max_tokens=min(wanted, n_ctx - len(ids)))
        return self.model.request(_ids(ids), sampling)


def groups(contexts: Sequence[tuple[int, ...]], depth: int = 0) -> list[Sequence[tuple[int, ...]]]:
    """Cut sorted contexts into groups, so that reading each group's shared beginning once saves the most."""
    if len(contexts) < 3 or depth == MAX_DEPTH:
        return [contexts]
    nearby = [n_shared(*pair) for pair in pairwise(contexts)]
    least = min(nearby)
    if least == max(nearby):
        return [contexts]
    cuts = [0, *(i + 1 for i, n in enumerate(nearby) if n == least), len(contexts)]
    split = [group for start, end in pairwise(cuts) for group in groups(contexts[start:end], depth + 1)]
    return split if sum(map(_saved, split)) > _saved(contexts) else [contexts]


def _saved(contexts: Sequence[tuple[int, ...]]) -> int:
    """Tokens of a sorted group that need not be read again."""
    return n_shared(contexts[0], contexts[-1]) * (len(contexts) - 1)


def n_shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest beginning that two sequences share."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((n for n, (x, y) in pairs if x != y), min(len(a), len(b)))


def _ids(tokens: Sequence[int]) -> Ids:
    return np.array(tokens, dtype=np.int64)
