"""Many threads on one model beside one batch of as many prompts; prints a line of JSON.

    python -m bench.threads [--model NAME] [--threads 16] [--tokens 64] [--rounds 5]

Both write the same texts. Rounds are interleaved; the ratio is that of the medians of tokens per second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from kogpt import KoGPT, Sampling


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="kogpt-mini")
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    model = KoGPT.from_pretrained(args.model)
    eos = {token: -1000.0 for token in model.defaults.eos_token_ids}
    sampling = Sampling(seed=1, max_tokens=args.tokens, logit_bias=eos)
    prompts = [f"제{number}조(목적) 이 법은" for number in range(1, args.threads + 1)]
    with ThreadPoolExecutor(args.threads) as pool:

        def together() -> list[str]:
            return [result.text for result in model.generate(prompts, sampling)]

        def apart() -> list[str]:
            return [result.text for result in pool.map(lambda p: model.generate(p, sampling), prompts)]

        assert together() == apart(), "the texts do not depend on how they are asked for"
        rates: dict[str, list[float]] = {"batch": [], "threads": []}
        for _ in range(args.rounds):
            rates["batch"].append(args.threads * args.tokens / seconds(together))
            rates["threads"].append(args.threads * args.tokens / seconds(apart))
    batch, threads = (statistics.median(rates[name]) for name in ("batch", "threads"))
    rounded = {"batch": round(batch, 1), "threads": round(threads, 1), "ratio": round(threads / batch, 3)}
    print(json.dumps({"model": args.model, "n_threads": args.threads, **rounded}))


def seconds(do: Callable[[], object]) -> float:
    """Wall-clock time of a call."""
    started = time.perf_counter()
    do()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
