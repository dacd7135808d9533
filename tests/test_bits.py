"""One number from the torch of training and from the engine of `kogpt eval ppl`; windows and their tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, random_tensors
from korean import PROSE
from runners import stored

from kogpt.bits import per_byte, split_windows
from kogpt.engine import Engine
from kogpt.evaluation import perplexity
from kogpt.evaluation.evaluate import EvaluatedModel
from kogpt.generation import KoGPT
from kogpt.model import GPTJ
from kogpt.numpy_runner import NumpyRunner
from kogpt.tokenizer import Tokenizer
from kogpt.training.objective import ComputeSettings, Objective
from kogpt.training.validation import Document, bits_per_byte


@pytest.mark.parametrize("start", [(1,), (0, 1, 7)])
@pytest.mark.parametrize("n", [1, 5, 7, 8, 9, 15, 16, 40])
def test_windows_score_each_token_once_with_half_a_window_before_it(n: int, start: tuple[int, ...]) -> None:
    ids = np.arange(100, 100 + n)
    windows = split_windows(ids, start, 8)
    assert [t for tokens, first in windows for t in tokens[first:]] == list(ids)
    assert tuple(windows[0][0][: len(start)]) == start
    assert all(len(tokens) <= 8 for tokens, _ in windows)
    assert all(first >= 4 for _, first in windows[1:])
    assert split_windows(ids[:0], start, 8) == []


def test_one_bit_for_each_byte() -> None:
    assert per_byte(10 * np.log(2), 10) == pytest.approx(1)


def test_training_and_evaluation_give_the_same_number(tmp_path: Path, tiny_tokenizer: Path) -> None:
    texts = [PROSE[0], " ".join(PROSE), PROSE[1]]  # the second takes several windows
    tensors = random_tensors(TINY, seed=3)
    tokenizer = Tokenizer.from_file(tiny_tokenizer)
    runner = NumpyRunner(TINY, {name: stored(array) for name, array in tensors.items()}, "float32")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    model = EvaluatedModel("tiny", KoGPT(tokenizer, Engine(runner)), {})
    found = perplexity.measure(model, tmp_path / "texts.jsonl")
    assert found.n_tokens > 2 * TINY.n_ctx

    module = GPTJ(TINY)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
    objective = Objective(module, ComputeSettings(dtype="float32", compile="nothing"))
    documents = [Document(np.array(tokenizer.encode(text)), len(text.encode())) for text in texts]
    validated = bits_per_byte(objective, {"texts": documents}, TINY.n_ctx)["texts"]
    assert found.bits_per_byte == pytest.approx(validated, rel=1e-5)
