"""KoGPT behind the three methods of lm-evaluation-harness' LM.

Contexts that begin alike are read once: what all requests of a group share is one prefix, and the choices
of a question share the question. The harness' own `hf` model reads every context anew for every choice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
from lm_eval import utils
from lm_eval.api.model import TemplateLM

from kogpt.engine import Engine
from kogpt.evaluation import scoring
from kogpt.evaluation.fewshot import Item, n_shared
from kogpt.generation import KoGPT, StopStrings
from kogpt.request import Ids, Request, Writing
from kogpt.runner import Array, Chunk, Runner, choose_all
from kogpt.sampling import Chosen, Sampling, Wanted

Pair = tuple[tuple[int, ...], tuple[int, ...]]  # ids of a context and of what follows it

MAX_DEPTH = 64  # how often a group of contexts is split further for the sake of longer shared beginnings
DEFAULT_NEW_TOKENS = 256  # the harness' own default for generate_until


class KoGPTLM(TemplateLM):  # type: ignore[misc]  # the harness is not typed
    """`--model kogpt --model_args pretrained=kogpt-mini,dtype=float32`, or a KoGPT that is ready."""

    def __init__(
        self,
        pretrained: str | KoGPT = "kogpt-mini",
        revision: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        **_harness: Any,  # batch_size and max_batch_size: batches are planned here
    ) -> None:
        super().__init__()
        if isinstance(pretrained, str):
            pretrained = KoGPT.from_pretrained(pretrained, revision, device or "auto", dtype)
        self.model = pretrained
        self.n_tokens_run = 0  # by the runner, for all that was asked

    @property
    def eot_token_id(self) -> int:
        return self.model.config.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """[EOS], which documents of the training text follow; [BOS] was never trained."""
        return self.model.config.eos_token_id

    @property
    def tokenizer_name(self) -> str:
        return "kogpt"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text; nothing is ever added to it."""
        return self.model.tokenizer.encode(string)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._fitted(context, continuation) for _, context, continuation in requests]
        answers = self.score(pairs)
        for request, answer in zip(requests, answers, strict=True):
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in the harness' own windows."""
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
        """Texts up to a stop string; greedy unless the task asks for a temperature."""
        return [self._written(*request.args) for request in requests]

    def score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether every token was the likeliest) of each continuation."""
        choices: dict[tuple[int, ...], list[tuple[int, ...]]] = defaultdict(list)
        for context, continuation in dict.fromkeys(pairs):
            choices[context].append(continuation)
        watched = Watched(self.model.engine.runner)
        found: dict[Pair, tuple[float, bool]] = {}
        for group in groups(sorted(choices)):
            for context, values in self._score_group(cast(Runner, watched), group, choices):
                likeliest = watched.greedy(context, choices[context])
                for continuation, value, greedy in zip(choices[context], values, likeliest, strict=True):
                    found[context, continuation] = (value, greedy)
            watched.forget()
        self.n_tokens_run += watched.n_tokens
        return [found[pair] for pair in pairs]

    def _score_group(
        self,
        runner: Runner,
        contexts: Sequence[tuple[int, ...]],
        choices: dict[tuple[int, ...], list[tuple[int, ...]]],
    ) -> Iterable[tuple[tuple[int, ...], list[float]]]:
        """Contexts that begin alike: what they share, at most all but a token of each, is read once."""
        shared = 0
        if len(contexts) > 1:
            shared = min(n_shared((contexts[0], contexts[-1])), min(map(len, contexts)) - 1)
        items = [Item(_ids(context[shared:]), tuple(map(_ids, choices[context])), ()) for context in contexts]
        finished = scoring.finish(scoring.score(runner, _ids(contexts[0][:shared]), items, {}))
        return zip(contexts, finished, strict=True)

    def _fitted(self, context: Sequence[int], continuation: Sequence[int]) -> Pair:
        """The end of a context, as much of it as fits before the continuation."""
        room = self.model.config.n_ctx + 1 - len(continuation)
        assert room > 0 and continuation, "a continuation has to fit the model's context"
        return tuple(context[-room:]), tuple(continuation)

    def _written(self, context: str, settings: dict[str, Any]) -> str:
        settings = dict(settings)
        until = settings.pop("until", [])
        stops = tuple([until] if isinstance(until, str) else until)
        limit = int(settings.pop("max_gen_toks", DEFAULT_NEW_TOKENS))
        warm = bool(settings.pop("do_sample", False))
        sampling = Sampling(temperature=float(settings.pop("temperature", 1.0)) if warm else 0.0)
        ids = self.tok_encode(context)[-(self.model.config.n_ctx - limit) :] or [self.prefix_token_id]
        stop_ids = frozenset({self.eot_token_id})
        engine: Engine = self.model.engine
        number = engine.add(Request(_ids(ids), writing=Writing(sampling, limit, stop_ids)))
        decoder, search, text = self.model.tokenizer.decoder(), StopStrings(stops), ""
        while not engine.idle:
            for event in engine.step():
                if event.token is None or event.token.token in stop_ids:
                    continue
                piece, stopped = search.push(decoder.push(event.token.token))
                text += piece
                if stopped:
                    engine.cancel(number)
                    return text
        return text + search.push(decoder.flush())[0] + search.flush()


class Watched:
    """A runner that remembers, for every text that it gave logits for, the likeliest next token.

    A text is known by a hash that grows with it, token by token.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.config, self.name, self.dtype = runner.config, runner.name, runner.dtype
        self.prefill_tokens = runner.prefill_tokens
        self.n_tokens = 0
        self._read: dict[int, tuple[int, ...]] = {}  # row -> hash after each position, 0 before the first
        self._likeliest: dict[int, int] = {}  # hash of a text -> token

    def greedy(self, context: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[bool]:
        """Whether each token of a continuation is the likeliest after what precedes it."""
        return [self._is_greedy(_grown(0, context)[-1], continuation) for continuation in continuations]

    def _is_greedy(self, text: int, continuation: Sequence[int]) -> bool:
        before = [text, *_grown(text, continuation[:-1])]
        return all(self._likeliest[state] == token for state, token in zip(before, continuation, strict=True))

    def forget(self) -> None:
        """Drop what was remembered, once a group of requests is done."""
        self._likeliest.clear()

    def open(self) -> int:
        row = self.runner.open()
        self._read[row] = (0,)
        return row

    def fork(self, row: int, length: int | None = None) -> int:
        copy = self.runner.fork(row, length)
        self._read[copy] = self._read[row] if length is None else self._read[row][: length + 1]
        return copy

    def close(self, row: int) -> None:
        self.runner.close(row)
        del self._read[row]

    def length(self, row: int) -> int:
        return self.runner.length(row)

    def forward(self, chunks: Sequence[Chunk]) -> list[Array]:
        outputs = self.runner.forward(chunks)
        for chunk, logits in zip(chunks, outputs, strict=True):
            states = _grown(self._read[chunk.row][-1], chunk.inputs.tolist())
            self._read[chunk.row] += tuple(states)
            self.n_tokens += len(states)
            for state, row in zip(states[len(states) - len(logits) :], logits, strict=True):
                self._likeliest[state] = int(row.argmax())
        return outputs

    def draw(self, chunks: Sequence[Chunk], wanted: Sequence[Wanted]) -> list[Chosen]:
        return choose_all(self.forward(chunks), wanted)

    def truncate(self, row: int, length: int) -> None:
        self.runner.truncate(row, length)
        self._read[row] = self._read[row][: length + 1]

    def room(self) -> int | None:
        return self.runner.room()

    def hidden(self, chunks: Sequence[Chunk]) -> list[Array]:
        return self.runner.hidden(chunks)


def _grown(state: int, tokens: Sequence[int]) -> list[int]:
    """The hash of a text after each further token."""
    states = []
    for token in tokens:
        state = hash((state, token))
        states.append(state)
    return states


def groups(contexts: Sequence[tuple[int, ...]], depth: int = 0) -> list[Sequence[tuple[int, ...]]]:
    """Sorted contexts in runs that share a beginning, so that reading each beginning once saves the most."""
    if len(contexts) < 3 or depth == MAX_DEPTH:
        return [contexts]
    nearby = [n_shared(pair) for pair in pairwise(contexts)]
    least = min(nearby)
    if least == max(nearby):
        return [contexts]
    cuts = [0, *(i + 1 for i, n in enumerate(nearby) if n == least), len(contexts)]
    split = [group for start, end in pairwise(cuts) for group in groups(contexts[start:end], depth + 1)]
    return split if sum(map(_saved, split)) > _saved(contexts) else [contexts]


def _saved(contexts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that need not be read again in a sorted group."""
    return n_shared((contexts[0], contexts[-1])) * (len(contexts) - 1)


def _ids(tokens: Sequence[int]) -> Ids:
    return np.array(tokens, dtype=np.int64)
