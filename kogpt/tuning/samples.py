"""What a model answers while it is tuned: the first dev rows, each token the likeliest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from kogpt.tokenizer import Tokenizer
from kogpt.training.processes import Processes
from kogpt.tuning.methods import TuningObjective
from kogpt.tuning.rows import Row

N_SAMPLES, N_TOKENS = 3, 24


def sample_answers(
    objective: TuningObjective, rows: Sequence[Row], tokenizer: Tokenizer, processes: Processes
) -> list[dict[str, str]]:
    """`prompt`, `wanted` and `answer` of the first rows; empty where no text is learnt."""
    chosen = [row for row in rows[:N_SAMPLES] if not row.head and row.partner is None]
    if not chosen:
        return []
    contexts = [row.context.tolist() or row.ids[:1].tolist() for row in chosen]
    found = []
    for row, context, answer in zip(
        chosen, contexts, greedy(objective, contexts, tokenizer, processes), strict=True
    ):
        texts = (context, row.ids[row.first :].tolist(), answer)
        prompt, wanted, given = (tokenizer.decode(ids) for ids in texts)
        found.append({"prompt": prompt, "wanted": wanted, "answer": given})
    return found


def greedy(
    objective: TuningObjective, contexts: Sequence[list[int]], tokenizer: Tokenizer, processes: Processes
) -> list[list[int]]:
    """The likeliest ids after each context, up to [EOS] or N_TOKENS; all contexts are read anew each time."""
    answers: list[list[int]] = [[] for _ in contexts]
    numbers = torch.arange(len(contexts), device=processes.device)
    room = objective.model.config.n_ctx - objective.n_virtual - max(map(len, contexts))
    with torch.no_grad():
        for _ in range(min(N_TOKENS, room)):
            rows = [[*context, *answer] for context, answer in zip(contexts, answers, strict=True)]
            inputs = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
            for number, row in enumerate(rows):
                inputs[number, : len(row)] = row
            last = torch.tensor([len(row) - 1 for row in rows], device=processes.device)
            chosen = objective.next_ids(
                torch.from_numpy(inputs).to(processes.device), (numbers, last)
            ).tolist()
            for answer, token in zip(answers, chosen, strict=True):
                if not answer or answer[-1] != tokenizer.eos_token_id:
                    answer.append(token)
            if all(answer[-1] == tokenizer.eos_token_id for answer in answers):
                break
    return answers
