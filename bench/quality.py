"""Quality against size: bits per byte of held-out text for every format that `kogpt export` writes.

    python bench/quality.py --calibration TRAIN.jsonl.zst ... --score VALID.jsonl.zst ...

Every format is exported to a folder of its own and scored from there by the native runner; int4 without and
with the calibration texts. float32 is the yardstick. Calibration text must not be text that is scored:
that no document is in both is checked.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from kogpt import checkpoint
from kogpt.engine import Engine
from kogpt.evaluation.evaluate import EvaluatedModel
from kogpt.evaluation.perplexity import measure, read_texts
from kogpt.export.folder import export
from kogpt.generation import KoGPT
from kogpt.placement import Placement, load_runner
from kogpt.tokenizer import Tokenizer

ROWS = ("float32", "bfloat16", "int8", "int4", "int4, calibrated")


def start_of(path: Path, n_bytes: int) -> list[str]:
    """The first documents of a file, of so many bytes together; the last one is cut."""
    taken: list[str] = []
    for text in read_texts(path):
        taken.append(text.encode()[:n_bytes].decode(errors="ignore"))
        n_bytes -= len(taken[-1].encode())
        if n_bytes < 4:
            break
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="kogpt-mini")
    parser.add_argument("--calibration", type=Path, nargs="+", required=True, help="an equal part of each")
    parser.add_argument("--score", type=Path, nargs="+", required=True)
    parser.add_argument(
        "--kilobytes", type=int, default=100, help="scored of each file (default: %(default)s)"
    )
    args = parser.parse_args()
    scored = {path: start_of(path, 1000 * args.kilobytes) for path in args.score}
    calibration = [
        text for path in args.calibration for text in start_of(path, 1_000_000 // len(args.calibration))
    ]
    assert not set(calibration) & {text for texts in scored.values() for text in texts}, (
        "a document is in both"
    )
    source = checkpoint.load(args.model)
    tokenizer = Tokenizer.from_file(source.folder / "tokenizer.json")
    print(
        "| format | MB | "
        + " | ".join(path.name.split(".")[0] for path in scored)
        + " | mean | against float32 |"
    )
    print("|---|---:|" + "---:|" * (len(scored) + 2))
    yardstick = 0.0
    for row in ROWS:
        dtype = row.split(",")[0]
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            export(source, dtype, folder, "\n".join(calibration) if dtype != row else None)
            stored = checkpoint.load(folder)
            runner = load_runner(stored, Placement("cpu", dtype))
            measured = EvaluatedModel(args.model, KoGPT(tokenizer, Engine(runner)), {})
            values = []
            for path, texts in scored.items():
                sample = Path(scratch) / f"{path.name.split('.')[0]}.jsonl"
                sample.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
                values.append(measure(measured, sample).bits_per_byte)
            mean = sum(values) / len(values)
            yardstick = yardstick or mean
            size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6
        cells = " | ".join(f"{value:.4f}" for value in (*values, mean))
        print(f"| {row} | {size:.1f} | {cells} | {100 * (mean / yardstick - 1):+.3f} % |", flush=True)


if __name__ == "__main__":
    main()
