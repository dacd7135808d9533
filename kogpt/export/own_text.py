"""Text that a model writes by itself, to calibrate on where there is no other."""

from __future__ import annotations

import numpy as np

from kogpt.engine import Engine
from kogpt.request import Ids, Request, Writing
from kogpt.runner import Runner
from kogpt.sampling import Sampling
from kogpt.tokenizer import Tokenizer

ROWS = 64  # documents that are written at once, where memory allows it


def own_text(runner: Runner, tokenizer: Tokenizer, n_tokens: int, window: int) -> Ids:
    """`n_tokens` or a few more of documents that the model writes, the same ones each time.

    Every token is drawn with the model's own probability. A document has at most `window` tokens, its start
    included. Raises NotEnoughMemory.
    """
    engine = Engine(runner, ROWS, n_vocab=tokenizer.n_vocab)
    start = np.array(tokenizer.document_start, np.int64)
    stop_ids = frozenset(runner.config.eos_token_ids)
    documents: list[list[int]] = []
    while (n_left := n_tokens - sum(map(len, documents))) > 0:
        begun: dict[int, list[int]] = {}
        for _ in range(max(ROWS // 4, -(-n_left // window))):
            sampling = Sampling(temperature=1.0, seed=len(documents) + len(begun))
            request = Request(start, writing=Writing(sampling, window - len(start), stop_ids))
            begun[engine.add(request)] = start.tolist()
        while not engine.idle:
            for event in engine.step():
                if event.error is not None:
                    raise event.error
                if event.token is not None and event.token.token not in stop_ids:
                    begun[event.request].append(event.token.token)
        documents += begun.values()
    engine.close()
    return np.array([token for document in documents for token in document], np.int64)
