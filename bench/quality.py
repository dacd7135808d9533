"""Quality against size: what every format that `kogpt export` writes loses against float32.

    python bench/quality.py --calibration TRAIN.jsonl.zst ... --score VALID.jsonl.zst ...

Bits per byte of held-out text; KL divergence from float32 in nats a token, and the share of positions with
the same first choice, over windows of 256 tokens. Every format is exported to a folder and run from
there by the native runner; int4 rounded to nearest, and calibrated on text of the model's own and on the
calibration texts. GGUF files run here with their weights unpacked to float32: llama.cpp rounds the
activations of quantised files too and loses a little more. --quantize names the llama-quantize of llama.cpp
or ik_llama.cpp (llama_quantize.py is one), whose --kinds (--pure) are measured too; it unpacks them itself.
Calibration text must not be text that is scored: that no document is in both is checked.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from kogpt import checkpoint
from kogpt.checkpoint import Checkpoint
from kogpt.engine import Engine
from kogpt.evaluation.evaluate import EvaluatedModel
from kogpt.evaluation.perplexity import measure, read_texts
from kogpt.export.folder import export
from kogpt.export.phi import export_gguf
from kogpt.generation import KoGPT
from kogpt.placement import Placement, load_runner
from kogpt.runner import Chunk, Runner
from kogpt.tokenizer import Tokenizer

OWN = ("float32", "bfloat16", "int8", "int4", "int4, own text", "int4, calibrated")
ROWS = (*OWN, "GGUF F16", "GGUF Q8_0", "GGUF Q4_0")
BY_LLAMA = "llama-quantize"
KINDS = "Q8_0,Q4_0"
WINDOW = 256  # tokens

Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Task:
    """The model, and the texts that every format is scored on."""

    model: str
    source: Checkpoint
    calibration: str
    scored: dict[Path, list[str]]
    windows: list[NDArray[np.int64]]
    quantize: Path | None  # llama-quantize


@dataclass(frozen=True, slots=True)
class Measured:
    """One row of the table."""

    n_bytes: int
    bits: list[float]  # bits per byte of each file
    logits: list[Logits]  # one (T, V) array for each window


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
    parser.add_argument(
        "--windows", type=int, default=16, help="of 256 tokens of each file (default: %(default)s)"
    )
    parser.add_argument("--quantize", type=Path, metavar="PATH", help="llama.cpp's llama-quantize")
    parser.add_argument("--kinds", default=KINDS, help="that it writes (default: %(default)s)")
    parser.add_argument("--formats", nargs="+", choices=ROWS, default=ROWS, help="(default: all)")
    parser.add_argument("--results", type=Path, metavar="PATH", help="JSON lines, for bench.peers --quality")
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
    windows = [window for texts in scored.values() for window in cut(tokenizer, texts, args.windows)]
    task = Task(args.model, source, "\n".join(calibration), scored, windows, args.quantize)
    names = " | ".join(path.name.split(".")[0] for path in scored)
    print(f"| format | MB | {names} | mean | against float32 | KL | equal first choices |")
    print("|---|---:|" + "---:|" * (len(scored) + 4))
    yardstick: Measured | None = None
    losses = []
    ours = dict.fromkeys((OWN[0], *args.formats))  # float32 first: the others are compared with it
    for row in (*ours, *(f"{BY_LLAMA} {kind}" for kind in args.kinds.split(",") if args.quantize)):
        with tempfile.TemporaryDirectory() as scratch:
            found = measure_format(row, task, Path(scratch))
        yardstick = yardstick or found
        losses.append({"format": row, "kl": loss(found, yardstick)})
        print(line(row, found, yardstick), flush=True)
    if args.results:
        args.results.write_text("".join(json.dumps(row) + "\n" for row in losses), encoding="utf-8")


def cut(tokenizer: Tokenizer, texts: Sequence[str], n_windows: int) -> Iterator[NDArray[np.int64]]:
    """The first windows of some texts, which begin after [EOS] as documents do."""
    ids: list[int] = []
    for text in texts:
        ids += [*tokenizer.document_start, *tokenizer.encode(text)]
    for start in range(0, min(len(ids) - WINDOW, n_windows * WINDOW), WINDOW):
        yield np.array(ids[start : start + WINDOW])


def measure_format(row: str, task: Task, scratch: Path) -> Measured:
    """Export, load and run one format."""
    folder = scratch / "model"
    kind, _, name = row.partition(" ")
    dtype = row.split(",")[0] if row in OWN else "float32"
    if row in OWN:
        text = task.calibration if name == "calibrated" else None
        export(task.source, dtype, folder, text, by_own_text=name == "own text")
    else:
        export_gguf(task.source, name if kind == "GGUF" else "F16", folder)
    n_bytes = sum(
        path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".gguf")
    )
    if kind == BY_LLAMA:
        n_bytes = quantize(task, folder, name)
    stored = checkpoint.load(folder)
    runner = load_runner(stored, Placement("cpu", dtype))
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    evaluated = EvaluatedModel(task.model, KoGPT(tokenizer, Engine(runner)), {})
    bits = []
    for path, texts in task.scored.items():
        sample = scratch / f"{path.name.split('.')[0]}.jsonl"
        sample.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
        bits.append(measure(evaluated, sample).bits_per_byte)
    return Measured(n_bytes, bits, [logits(runner, window) for window in task.windows])


def quantize(task: Task, folder: Path, kind: str) -> int:
    """Replace the F16 file of a folder by what llama-quantize makes of it, as F16 again; bytes of the former.

    So this measures types that only llama.cpp can unpack.
    """
    assert task.quantize is not None
    own, packed = folder / "model.F16.gguf", folder.parent / f"packed.{kind}.gguf"
    there, back = ["--pure", str(own), str(packed), kind], [str(packed), str(own), "F16"]
    for arguments in (there, ["--allow-requantize", "--pure", *back]):
        command = [str(task.quantize), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (folder / "kogpt.manifest.json").unlink()
    return packed.stat().st_size


def logits(runner: Runner, window: NDArray[np.int64]) -> Logits:
    """(T, V) logits of one window."""
    row = runner.open()
    try:
        return np.asarray(runner.forward([Chunk(row, window, len(window))])[0], np.float32)
    finally:
        runner.close(row)


def line(row: str, found: Measured, yardstick: Measured) -> str:
    """One row of the table."""
    mean, reference = np.mean(found.bits), np.mean(yardstick.bits)
    pairs = list(zip(yardstick.logits, found.logits, strict=True))
    equal = np.mean([(a.argmax(-1) == b.argmax(-1)).mean() for a, b in pairs])
    cells = " | ".join(f"{value:.4f}" for value in (*found.bits, mean))
    share = f"{100 * (mean / reference - 1):+.3f} % | {loss(found, yardstick):.5f} | {100 * equal:.1f} %"
    return f"| {row} | {found.n_bytes / 1e6:.1f} | {cells} | {share} |"


def loss(found: Measured, yardstick: Measured) -> float:
    """Mean KL divergence over the windows."""
    pairs = zip(yardstick.logits, found.logits, strict=True)
    return float(np.mean([divergence(expected, logits) for expected, logits in pairs]))


def divergence(expected: Logits, found: Logits) -> float:
    """Mean over the positions of KL(expected || found), in nats."""
    p, q = (
        x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)
        for x in (expected.astype(np.float64), found.astype(np.float64))
    )
    return float((np.exp(p) * (p - q)).sum(-1).mean())


if __name__ == "__main__":
    main()
