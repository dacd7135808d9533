"""What a run reports: metrics.jsonl, a live line, TensorBoard if wanted, a plot of the loss."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray

from kogpt.config import ModelConfig
from kogpt.errors import CheckpointError, MissingExtra, localized, pad
from kogpt.files import atomic_write, explain_disk_errors, sync

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS = "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class Work:
    """What training costs, for the share of the machine that it uses (MFU)."""

    flops_per_token: Callable[[float], float]  # by the length of a row
    peak: float  # floating-point operations per second of all processes


class Report:
    """Writes metrics.jsonl, and the last update as one line of `live`, which a terminal overwrites.

    tensorboard: write every number to event files in the folder of that name too. work: None: no MFU is said.
    """

    def __init__(
        self, folder: Path, live: TextIO | None = None, tensorboard: bool = False, work: Work | None = None
    ) -> None:
        self.path = folder / METRICS
        self.live = live
        self.tensorboard = tensorboard
        self.work = work
        self._events: SummaryWriter | None = None

    def begin(self, step: int) -> None:
        """Drop the lines that a killed run wrote after the checkpoint of `step`; all lines at step 0."""
        if self.path.exists():
            lines = [line for line in read_metrics(self.path) if step and line["step"] <= step]
            with atomic_write(self.path) as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        if self.tensorboard:
            self._events = _event_writer(self.path.parent / "tensorboard", step + 1)

    def write(self, metrics: Mapping[str, Any]) -> None:
        """One line of JSON."""
        with explain_disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
        if self._events:
            for name, value in _scalars(metrics):
                self._events.add_scalar(name, value, metrics["step"])
            self._events.flush()

    def secure(self) -> None:
        """Wait until all lines are on the disk."""
        with explain_disk_errors(self.path):
            sync(self.path)
            sync(self.path.parent)

    def utilization(self, lengths: NDArray[np.int64], seconds: float) -> dict[str, float]:
        """`mfu` of a step whose rows have `lengths` tokens, (B,); nothing where the work is unknown."""
        if self.work is None:
            return {}
        flops = self.work.flops_per_token(float(lengths.mean())) * float(lengths.sum())
        return {"mfu": flops / self.work.peak / seconds}

    def show(self, metrics: Mapping[str, Any], n_steps: int) -> None:
        """Show step, loss, speed, MFU if it is known, and the time left."""
        if self.live is None:
            return
        left = (n_steps - metrics["step"]) * metrics["seconds_per_step"]
        mfu = f"MFU {metrics['mfu']:.0%}  " if "mfu" in metrics else ""
        step, loss = f"{metrics['step']}/{n_steps}", f"{metrics['loss']:.3f}"
        speed, time = f"{metrics['tokens_per_second']:,.0f}", _duration(left)
        line = localized(
            f"step {step}  loss {loss}  {speed} tokens/s  {mfu}{time} left",
            f"스텝 {step}  손실 {loss}  초당 {speed}토큰  {mfu}{time} 남음",
        )
        self.live.write(f"\r{pad(line, 78)}" if self.live.isatty() else line + "\n")
        self.live.flush()

    def tell(self, line: str) -> None:
        """Show on a line of its own what takes time now."""
        if self.live is not None:
            self.live.write(f"\r{pad(line, 78)}\n" if self.live.isatty() else line + "\n")
            self.live.flush()

    def end(self) -> None:
        """End the live line and the event file."""
        if self._events:
            self._events.close()
        if self.live is not None and self.live.isatty():
            self.live.write("\n")


def _event_writer(folder: Path, first_step: int) -> SummaryWriter:
    """A new event file; TensorBoard drops `first_step` and later steps of earlier files."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtra("--tensorboard", "tensorboard") from error
    return SummaryWriter(str(folder), purge_step=first_step)


def _scalars(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a line by name; those of a nested table as TABLE/NAME. The step is no number here."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{inner}", number) for inner, number in _scalars(value))
        elif isinstance(value, int | float) and name != "step":
            yield name, value


def read_metrics(path: Path, key: str = "step") -> list[dict[str, Any]]:
    """All whole lines of a metrics.jsonl; a last line that a crash cut off is dropped.

    CheckpointError for any other line that is not a JSON object with that key.
    """
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    try:
        return [_object(line, key) for line in whole.decode().split("\n")] if whole else []
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} has a line that is not JSON of a run ({error}): remove that line and resume",
            f"{path}에 학습 기록 JSON이 아닌 줄이 있습니다({error}). 그 줄을 지우고 이어서 학습하세요",
        ) from error


def _object(line: str, key: str) -> dict[str, Any]:
    found = json.loads(line)
    if type(found) is not dict or key not in found:
        raise ValueError(f"{line[:40]!r} is no object with {key!r}")
    return found


def flops_per_token(config: ModelConfig, length: float) -> float:
    """Floating-point operations per token of a training step with all weights, rows of `length` tokens.

    2 for each weight of a matrix product in the forward pass and 4 in the backward pass (Kaplan et al., arXiv
    2001.08361, section 2.1); attention adds two products over half a row on average.
    """
    per_layer = 4 * config.d_model**2 + 2 * config.d_model * config.d_ff
    weights = config.n_layers * per_layer + config.d_model * config.n_vocab
    attention = 2 * config.n_layers * config.d_model * length / 2
    return 6 * (weights + attention)


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product, the best of three: the denominator of MFU."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(4):  # the first round warms up
        begin = time.perf_counter()
        product = a @ b.T  # a layer's layout; torch's emulated bfloat16 is twenty times slower for a @ b
        float(product[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - begin)
    return float(2 * size**3 / best)


def plot(metrics: Path, picture: Path) -> None:
    """Training loss and validation against tokens, as a PNG; needs matplotlib.

    Validation: bits per byte of each set, or the metrics on dev of a tuning run.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("a plot", "train") from error
    lines = read_metrics(metrics)
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    trained = [line for line in lines if "loss" in line]
    left.plot([line["tokens"] / 1e6 for line in trained], [line["loss"] for line in trained], linewidth=0.7)
    left.set(xlabel="million tokens", ylabel="training loss, nats per token")
    checked = [(line["tokens"] / 1e6, found) for line in lines if (found := _validation(line))]
    for number, name in enumerate(checked[-1][1] if checked else ()):
        line = [(tokens, found.get(name)) for tokens, found in checked]
        style = ("-", "--", ":")[number // 10 % 3]  # matplotlib has ten colours
        right.plot(*zip(*line, strict=True), style, marker=".", label=name)
    is_pretraining = any("bits_per_byte" in line for line in lines)
    right.set(xlabel="million tokens", ylabel="bits per UTF-8 byte" if is_pretraining else "on dev")
    if checked:
        figure.legend(fontsize="small", loc="outside right center")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=100)


def _validation(line: Mapping[str, Any]) -> Mapping[str, float]:
    """Bits per byte by set, or metrics on dev by name; empty for a line of a training step."""
    dev = {name.removeprefix("dev_"): value for name, value in line.items() if name.startswith("dev_")}
    found: Mapping[str, float] = line.get("bits_per_byte", dev)
    return found


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
