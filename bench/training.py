"""Tokens per second and MFU of our loop beside transformers' Trainer, interleaved; prints JSON lines.

    python bench/training.py --layers 6 --width 384 --vocabulary 16128 --rows 8 --length 512

The same GPT-J shape, random tokens, rows, AdamW and dtype (autocast to bfloat16 where the device multiplies
it) on both sides, in one process. MFU is the share of a large matrix product that the machine reached then.
Where other programs want the cores too, tokens per second of processor time say more. Needs transformers and
accelerate.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import GPTJForCausalLM, Trainer, TrainerCallback, TrainingArguments

from kogpt.config import ModelConfig
from kogpt.training.loop import Batch, Run
from kogpt.training.objective import ComputeSettings, Objective
from kogpt.training.optimizers import OptimizerSettings
from kogpt.training.processes import Processes, join
from kogpt.training.report import Report, flops_per_token, measure_peak
from kogpt.training.schedule import Schedule
from kogpt.training.settings import LoopSettings, TrainingSettings
from kogpt.training.start import initial_model

RATE = 3e-4
Seconds = tuple[float, float]  # of a step: by the clock, and of processor time
Round = Callable[[int], list[Seconds]]  # so many steps -> seconds of each


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("layers", 6), ("width", 384), ("vocabulary", 16128), ("rows", 8), ("length", 512)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--their-rows", type=int, help="that Trainer takes at a time, if not all fit")
    parser.add_argument("--steps", type=int, default=5, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.rows % (args.their_rows or args.rows):
        parser.error(f"--rows {args.rows} is not a multiple of --their-rows {args.their_rows}")
    config = ModelConfig(
        n_layers=args.layers,
        n_heads=args.width // 64,
        d_model=args.width,
        d_ff=4 * args.width,
        n_vocab=args.vocabulary,
        n_ctx=max(args.length, 1024),
        rotary_dim=32,
    )
    tokens = np.random.default_rng(0).integers(5, config.n_vocab, (args.rows, args.length + 1))
    with join() as processes, tempfile.TemporaryDirectory() as folder:
        sides = {
            "kogpt": ours(config, tokens, processes, Path(folder)),
            "transformers": theirs(config, tokens, args.their_rows or args.rows, processes, folder),
        }
        seconds = measure(sides, args.steps, args.rounds)
        report(
            config,
            seconds,
            (args.rows, args.length),
            measure_peak(processes.device, ComputeSettings().dtype_on(processes.device)),
        )


def ours(config: ModelConfig, tokens: np.ndarray[Any, Any], processes: Processes, folder: Path) -> Round:
    """Rounds of our loop."""
    compiled = "blocks" if processes.device.type == "cuda" else "loss"
    settings = TrainingSettings(
        schedule=Schedule(steps=10**6, warmup_steps=1),
        optimizer=OptimizerSettings(name="adamw", adamw_rate=RATE),
        compute=ComputeSettings(compile=compiled),
        loop=LoopSettings(tokens_per_pass=tokens.size),
    )
    objective = Objective(initial_model(config, seed=0), settings.compute)
    processes.distribute(objective, objective.blocks())
    run = Run(folder, objective, settings, processes, Report(folder), {})
    batch = Batch(tokens[:, :-1], tokens[:, 1:], ())

    def one_round(steps: int) -> list[Seconds]:
        clock = Clock()
        for _ in range(steps):
            clock.on_step_begin()
            run.update(batch)
            clock.on_step_end()
        return clock.seconds

    return one_round


def theirs(
    config: ModelConfig, tokens: np.ndarray[Any, Any], at_once: int, processes: Processes, folder: str
) -> Round:
    """Rounds of transformers' Trainer, whose steps may be made of several passes."""
    torch.manual_seed(0)
    with processes.device:
        model = GPTJForCausalLM(transformers.GPTJConfig(**config.to_json()))
    rows = [{"input_ids": row, "labels": row} for row in tokens[:, :-1].tolist()]

    def one_round(steps: int) -> list[Seconds]:
        clock = Clock()
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=len(rows) // at_once,
            learning_rate=RATE,
            max_grad_norm=1.0,
            bf16=ComputeSettings().dtype_on(processes.device) == torch.bfloat16,
            use_cpu=processes.device.type == "cpu",
            optim="adamw_torch_fused",
            save_strategy="no",
            report_to=[],
            logging_strategy="no",
            disable_tqdm=True,
        )
        Trainer(model, arguments, train_dataset=rows, callbacks=[clock]).train()
        return clock.seconds

    return one_round


class Clock(TrainerCallback):  # type: ignore[misc]  # a class that is not typed
    """Seconds of each step, loading of its batch not counted."""

    def __init__(self) -> None:
        self.seconds: list[Seconds] = []
        self.wait: Callable[[], object] = (
            torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
        )

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.wait()
        self.begin = time.perf_counter(), time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.wait()
        self.seconds.append((time.perf_counter() - self.begin[0], time.process_time() - self.begin[1]))


def measure(sides: dict[str, Round], steps: int, rounds: int) -> dict[str, list[Seconds]]:
    """Seconds of every step by side, after a round that warms up; sides take turns."""
    seconds: dict[str, list[Seconds]] = {name: [] for name in sides}
    for one_round in sides.values():
        one_round(2)
    for _ in range(rounds):
        for name, one_round in sides.items():
            seconds[name] += one_round(steps)
    return seconds


def report(
    config: ModelConfig, seconds: dict[str, list[Seconds]], batch: tuple[int, int], peak: float
) -> None:
    """One line for each side and one for the ratios."""
    n_tokens, length = batch[0] * batch[1], batch[1]
    rates: dict[str, tuple[float, float]] = {}
    for name, times in seconds.items():
        clock, processor = ([step[kind] for step in times] for kind in (0, 1))
        rates[name] = n_tokens / statistics.median(clock), n_tokens / statistics.median(processor)
        facts = {
            "side": name,
            "tokens_per_second": round(rates[name][0]),
            "tokens_per_cpu_second": round(rates[name][1]),
            "n_parameters": config.n_parameters,
            "best": round(n_tokens / min(clock)),
            "worst": round(n_tokens / max(clock)),
            "mfu": round(rates[name][0] * flops_per_token(config, length) / peak, 3),
        }
        print(json.dumps(facts))
    by_clock, by_processor = (ours / theirs for ours, theirs in zip(*rates.values(), strict=True))
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    place = {"threads": torch.get_num_threads(), "machine": platform.machine(), "peak_tflops": peak / 1e12}
    ratios = {"ratio": round(by_clock, 2), "cpu_ratio": round(by_processor, 2)}
    print(json.dumps({**ratios, **place, **versions}))


if __name__ == "__main__":
    main()
