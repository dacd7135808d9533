"""KoGPT's evaluation beside lm-evaluation-harness: the same answers on KoBEST, and how much faster on NSMC.

    python bench/harness.py equality --model kogpt-mini --data DIR   every item of KoBEST, both ways
    python bench/harness.py speed --model kogpt-mini --data DIR      NSMC against the harness' hf model

One JSON line per measurement; exit code 1 if answers differ. Needs kogpt[harness], and for `speed` also
what the harness' hf model runs on: pip install 'lm-eval[hf]'.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from kogpt import hub
from kogpt.datasets import Example
from kogpt.evaluation import fewshot, harness, scoring, tasks
from kogpt.evaluation.evaluate import EvaluatedModel, Settings, evaluate, read_data
from kogpt.evaluation.harness import rows
from kogpt.evaluation.task import Task
from kogpt.generation import KoGPT

# The harness' name of a task -> ours, and which of our prompts is word for word the harness'.
SAME = {name: (name.replace("_", "-"), "harness") for name in harness.KOBEST} | {"nsmc": ("nsmc", "question")}
HF_ROWS = (1, 8)  # batch sizes of the harness' hf model


def main() -> int:
    """Run one comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("equality", "speed"))
    parser.add_argument("--model", default="kogpt-mini", help="a folder or a built-in model")
    parser.add_argument("--data", type=Path, required=True, help="folder of data files")
    parser.add_argument("--tasks", nargs="+", type=_name, default=list(harness.KOBEST), help="for equality")
    parser.add_argument("--shots", type=int, help="default: 0 for equality, 40 for speed")
    parser.add_argument("--limit", type=int, help="items of each task (default: all; for speed 40)")
    parser.add_argument("--rounds", type=int, default=3, help="for speed")
    parser.add_argument("--dtype", default="float32", help="of our side (default: float32, as hf's)")
    args = parser.parse_args()
    os.environ["KOGPT_DATA"] = str(args.data)
    os.environ["HF_EVALUATE_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    logging.disable(logging.WARNING)
    model = KoGPT.from_pretrained(args.model, device="cpu", dtype=args.dtype)
    if args.what == "speed":
        return _print(speed(args, model))
    return max([_print(equality(args, model, name)) for name in args.tasks])


def equality(args: argparse.Namespace, model: KoGPT, name: str) -> dict[str, Any]:
    """All items of a task by our evaluator and by the harness with `kogpt` as its model."""
    task, prompt = _task(name)
    settings = Settings(shots=args.shots or 0, seeds=(1,), limit=args.limit)
    ours = evaluate(EvaluatedModel(args.model, model, {}), task, task.prompt(prompt), settings).seeds[0]
    lm = harness.language_model(model)
    theirs = _harness(name, lm, ours.encoded.shots, read_data(task, settings).scored)
    scores = [[value for value, _ in row] for row in theirs["scores"]]
    differences = [
        abs(a - b) for x, y in zip(ours.scores, scores, strict=True) for a, b in zip(x, y, strict=True)
    ]
    said = scoring.decide(scores, ours.encoded.items, task.scoring)[0]
    ideal = len(ours.encoded.prefix) + sum(item.n_tokens for item in ours.encoded.items)
    return {
        "what": "equality",
        "model": args.model,
        "runner": model.engine.runner.name,
        "dtype": model.engine.runner.dtype,
        "task": name,
        "shots": len(ours.encoded.shots),
        "n": len(said),
        "different_answers": int(
            (said != scoring.decide(ours.scores, ours.encoded.items, task.scoring)[0]).sum()
        ),
        "largest_difference_nats": max(differences),
        "ours": ours.values,
        "harness": theirs["metrics"],
        "tokens_run_over_ideal": lm.n_tokens_run / ideal,
    }


def speed(args: argparse.Namespace, model: KoGPT) -> dict[str, Any]:
    """NSMC items with the same 40 shots: our evaluator, the harness with kogpt, the harness with hf.

    Rounds of all of them in turn, medians; every side encodes its texts anew. The hf model runs with one row
    at a time and with eight: which is faster depends on the machine.
    """
    task, prompt = _task("nsmc")
    settings = Settings(shots=args.shots or 40, seeds=(1,), limit=args.limit or 40)
    items = read_data(task, settings)
    shots = fewshot.draw(task, items.pool, items.scored, settings.shots, 1)
    question, n_ctx = task.prompt(prompt), model.config.n_ctx

    def own() -> scoring.Scores:
        run = fewshot.encode_task(task, question, items.scored, shots, model.tokenizer, n_ctx)
        assert len(run.shots) == len(shots), "the shots have to fit, or the harness would read others"
        return scoring.finish(scoring.score(model.session, run.prefix, run.items, {}))

    others = {"harness, kogpt": harness.language_model(model)}
    others |= {f"harness, hf, {rows} a batch": _hf(args.model, rows) for rows in HF_ROWS}
    for lm in others.values():  # what the first run imports and allocates counts for nobody
        _harness("nsmc", lm, shots[:1], items.scored[:1])
    sides = {"kogpt eval": own} | {
        name: partial(_pairs, lm, shots, items.scored) for name, lm in others.items()
    }
    rounds = [{name: _timed(work) for name, work in sides.items()} for _ in range(args.rounds)]
    seconds = {name: sorted(timed[name][0] for timed in rounds) for name in sides}
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    fastest = min((name for name in sides if "hf" in name), key=lambda name: medians[name])
    scores = {name: np.array(answers) for name, (_, answers) in rounds[0].items()}
    return {
        "what": "speed",
        "model": args.model,
        "runner": model.engine.runner.name,
        "dtype": model.engine.runner.dtype,
        "shots": len(shots),
        "n": len(items.scored),
        "rounds": args.rounds,
        "seconds": seconds,
        "times_faster_than_hf": {name: medians[fastest] / median for name, median in medians.items()},
        "different_answers": max(
            int((scores[fastest].argmax(axis=1) != other.argmax(axis=1)).sum()) for other in scores.values()
        ),
        "largest_difference_nats": max(
            float(np.abs(scores[fastest] - other).max()) for other in scores.values()
        ),
    }


def _harness(name: str, lm: Any, shots: Sequence[Example], scored: Sequence[Example]) -> dict[str, Any]:
    """The harness' own run over the same shots and items: log-likelihoods, and its metrics."""
    results = harness.evaluate(
        [name],
        lm,
        rows={name: partial(rows.of_examples, name, shots, scored)},
        num_fewshot=len(shots),
        bootstrap_iters=0,
    )
    samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
    metrics = {key: value for key, value in results["results"][name].items() if isinstance(value, float)}
    return {"scores": [[answer[0] for answer in sample["resps"]] for sample in samples], "metrics": metrics}


def _hf(model: str, rows: int) -> Any:
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise SystemExit(f"the harness' hf model needs {error.name}: pip install 'lm-eval[hf]'") from error

    folder = hub.find_folder(model)
    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=rows)


def _name(name: str) -> str:
    """The harness' name of a task, from that or from ours (kobest_copa, kobest-copa)."""
    theirs = {own: theirs for theirs, (own, _) in SAME.items()}.get(name, name)
    if theirs not in SAME:
        known = " ".join(own for own, _ in SAME.values())
        raise argparse.ArgumentTypeError(f"there is no task {name!r} that both know: {known}")
    return theirs


def _task(name: str) -> tuple[Task, str]:
    own, prompt = SAME[name]
    return tasks.get(own), prompt


def _pairs(lm: Any, shots: Sequence[Example], scored: Sequence[Example]) -> scoring.Scores:
    """Log-likelihoods of the choices of NSMC, by one of the harness' models."""
    return [[value for value, _ in row] for row in _harness("nsmc", lm, shots, scored)["scores"]]


def _timed(work: Callable[[], scoring.Scores]) -> tuple[float, scoring.Scores]:
    """Seconds on the wall; the models are loaded before."""
    started = time.perf_counter()
    scores = work()
    return time.perf_counter() - started, scores


def _print(result: dict[str, Any]) -> int:
    print(json.dumps(result, ensure_ascii=False), flush=True)
    return int(result["different_answers"] > 0)


if __name__ == "__main__":
    sys.exit(main())
