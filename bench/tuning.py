"""Tokens per second of `kogpt tune` beside transformers' Trainer with PEFT, interleaved; prints JSON lines.

    python bench/tuning.py --data rows.jsonl --method lora
    python bench/tuning.py --data rows.jsonl --method full

The same model (kogpt-mini), rows, batch size, AdamW and float32 on all sides, in one process; each pads a
batch to its longest row. The Trainer is given the batches of `kogpt tune`, which hold rows of like length,
and then shuffled rows, as it takes them by itself. Tokens are those of the rows, without padding. Rows are
those of `kogpt tune --data FILE`, with labels 0 and 1. Needs transformers, peft and accelerate.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from torch.utils.data import SequentialSampler
from transformers import GPTJForCausalLM, Trainer, TrainerCallback, TrainingArguments

sys.path.insert(0, str(Path(__file__).parents[1]))

from kogpt.training.loop import Run
from kogpt.training.processes import Processes
from kogpt.training.report import Report
from kogpt.tuning.data import Files, Wording, read_data
from kogpt.tuning.methods import MATRICES
from kogpt.tuning.rows import Row
from kogpt.tuning.run import RATES, Job, TuningSettings, build, prepare

WORDS = {"0": " 부정", "1": " 긍정"}
Round = Callable[[Sequence[int]], list[float]]  # numbers of steps -> seconds of each
Order = Callable[[int], Sequence[Row]]  # number of a step -> the rows of its batch


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--method", choices=("lora", "full"), required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    data = read_data(Files(train=args.data), Wording("{text}\n감정:", WORDS))
    settings = TuningSettings(method=args.method, batch=args.batch, dtype="float32", truncate=True)
    job = prepare(settings, "kogpt-mini", data, None)
    with tempfile.TemporaryDirectory() as folder:
        orders = {
            "kogpt": job.batches.rows_of,
            "transformers, batches of kogpt": job.batches.rows_of,
            "transformers": shuffled(job),
        }
        sides = {
            name: theirs(job, folder, order) if name.startswith("transformers") else ours(job, Path(folder))
            for name, order in orders.items()
        }
        steps = range(2 + args.steps * args.rounds)
        for side in sides.values():
            side(steps[:2])  # warms up
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for first in range(2, len(steps), args.steps):
            for name, side in sides.items():
                seconds[name] += side(steps[first : first + args.steps])
    report(
        args.method,
        {
            name: [
                n_tokens(order(step)) / taken for step, taken in zip(steps[2:], seconds[name], strict=True)
            ]
            for name, order in orders.items()
        },
    )


def shuffled(job: Job) -> Order:
    """Batches of rows in a random order."""
    random = np.random.default_rng(0).permutation(len(job.train))
    size = job.settings.batch

    def rows_of(step: int) -> list[Row]:
        places = np.arange(step * size, (step + 1) * size) % len(random)
        return [job.train[index] for index in random[places]]

    return rows_of


def n_tokens(rows: Sequence[Row]) -> int:
    """Tokens of some rows, padding not counted."""
    return sum(len(row.ids) for row in rows)


def ours(job: Job, folder: Path) -> Round:
    """Rounds of our loop."""
    run = Run(
        folder,
        build(job, Processes()),
        job.settings.training(job.batches),
        Processes(),
        Report(folder),
        {},
    )

    def one_round(steps: Sequence[int]) -> list[float]:
        found = []
        for step in steps:
            batch = job.batches(step)
            begin = time.perf_counter()
            run.update(batch)
            found.append(time.perf_counter() - begin)
        return found

    return one_round


def theirs(job: Job, folder: str, order: Order) -> Round:
    """Rounds of transformers' Trainer, with PEFT's LoRA."""
    model = GPTJForCausalLM.from_pretrained(job.stored.folder, dtype=torch.float32)
    if job.settings.method == "lora":
        targets = list(MATRICES)
        wanted = peft.LoraConfig(
            r=job.settings.rank, lora_alpha=job.settings.alpha, use_rslora=True, target_modules=targets
        )
        model = peft.get_peft_model(model, wanted)

    def one_round(steps: Sequence[int]) -> list[float]:
        clock = Clock()
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=len(steps),
            per_device_train_batch_size=job.settings.batch,
            learning_rate=RATES[job.settings.method],
            use_cpu=True,
            optim="adamw_torch_fused",
            save_strategy="no",
            report_to=[],
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        rows = [row for step in steps for row in order(step)]
        InOrder(model, arguments, train_dataset=rows, data_collator=collate, callbacks=[clock]).train()
        return clock.seconds

    return one_round


def collate(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Padded ids, their mask, and labels of the learnt ids."""
    width = max(len(row.ids) for row in rows)
    ids, mask = (np.zeros((len(rows), width), dtype=np.int64) for _ in range(2))
    labels = np.full((len(rows), width), -100, dtype=np.int64)
    for number, row in enumerate(rows):
        n = len(row.ids)
        ids[number, :n], mask[number, :n], labels[number, row.first : n] = row.ids, 1, row.ids[row.first :]
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "labels": torch.from_numpy(labels),
    }


class InOrder(Trainer):  # type: ignore[misc]  # a class that is not typed
    """Takes the rows in their order."""

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class Clock(TrainerCallback):  # type: ignore[misc]  # a class that is not typed
    """Seconds of each step, loading of its batch not counted."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.begin = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self.begin)


def report(method: str, rates: dict[str, list[float]]) -> None:
    """A line for each side, with how many times as fast kogpt is: the ratio of the medians of tokens/s."""
    own = statistics.median(rates["kogpt"])
    for name, found in rates.items():
        median = statistics.median(found)
        facts = {"method": method, "side": name, "tokens_per_second": round(median)}
        facts |= {"best": round(max(found)), "worst": round(min(found)), "kogpt_is": round(own / median, 2)}
        print(json.dumps(facts))
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }
    place = {"threads": torch.get_num_threads(), "machine": platform.machine()}
    print(json.dumps({**place, **versions}))


if __name__ == "__main__":
    main()
