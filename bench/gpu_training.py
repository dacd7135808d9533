"""Milliseconds of the parts of a training step of runs/mini3.toml on a GPU, each beside what may replace it.

python -m bench.gpu_training                              # all parts, most of the time compiling
python -m bench.gpu_training --parts head block           # some
python -m bench.gpu_training --device cpu --shape tiny    # where there is no GPU

step       one update of the loop: a batch to the GPU, loss, gradients, optimizers
optimizer  Muon and AdamW alone
head       head and loss with all gradients: by logits at a time, and without the gradient of the bias
block      one block with all gradients: q, k and v as three products and as one; all that read the
           LayerNorm as one product, and both that write to the residual stream as one (PaLM, arXiv
           2204.02311, section 2); and how far the outputs are apart
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.gpu import synchronize
from bench.gpu_profile import RECIPE, trained_shape
from bench.gpu_weights import TINY
from kogpt.config import ModelConfig
from kogpt.model import Block, ForwardPass, Linear, Rotation, rotary_table, rotate
from kogpt.pretraining.recipe import Recipe, read_recipe
from kogpt.training import loss as loss_module
from kogpt.training.loop import Batch, Run
from kogpt.training.loss import head_loss, loss_and_gradient
from kogpt.training.objective import Objective
from kogpt.training.processes import join
from kogpt.training.report import Report
from kogpt.training.start import initial_model

WARM = 4  # runs before: compiled, memory taken
TIMED = 10
LOGITS = (25, 26, 27, 28)  # powers of two
Forward = Callable[[Block, Tensor, Rotation], Tensor]


@dataclass(frozen=True, slots=True)
class Work:
    """The step that is measured."""

    recipe: Recipe
    config: ModelConfig
    device: torch.device
    rows: int
    length: int

    @property
    def compiles(self) -> bool:
        return self.device.type != "cpu"


def main(words: Sequence[str] | None = None) -> None:
    """Measure the parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=("mini", "tiny"), default="mini")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=tuple(PARTS))
    args = parser.parse_args(words)
    changes = [] if args.device != "cpu" else ['compute.compile = "nothing"']
    recipe = read_recipe(RECIPE, changes)
    stage = recipe.stages[0]
    sizes = (stage.rows, stage.length) if args.shape == "mini" else (2, 16)
    config = trained_shape(recipe) if args.shape == "mini" else TINY
    work = Work(recipe, config, torch.device(args.device), *sizes)
    torch.manual_seed(0)
    for part in args.parts:
        PARTS[part](work)


@contextmanager
def running(work: Work) -> Iterator[Run]:
    """A run of the recipe that writes nothing that stays."""
    with join(work.device.type) as processes, tempfile.TemporaryDirectory() as folder:
        objective = Objective(initial_model(work.config, seed=0), work.recipe.compute)
        processes.distribute(objective, objective.blocks())
        yield Run(Path(folder), objective, work.recipe, processes, Report(Path(folder)), {})


def step(work: Work) -> None:
    """The loop's update."""
    ids = np.random.default_rng(0).integers(5, work.config.n_vocab, (work.rows, work.length + 1))
    batch = Batch(ids[:, :-1], ids[:, 1:], ())
    with running(work) as run:
        show(f"step of {work.rows} x {work.length}", lambda: run.update(batch), work)


def optimizer(work: Work) -> None:
    """Every optimizer's step, with the same gradients again."""
    with running(work) as run:
        for parameter in run.objective.parameters():
            parameter.grad = 1e-3 * torch.randn_like(parameter)

        def update() -> None:
            for rule in run.optimizers:
                rule.step()

        show("optimizers", update, work)


def head(work: Work) -> None:
    """Head and loss at several sizes of a chunk, which matters on a GPU only."""
    config, device = work.config, work.device
    dtype = work.recipe.compute.dtype_on(device)
    hidden = torch.randn(work.rows * work.length, config.d_model, device=device, dtype=dtype)
    weight = 0.02 * torch.randn(config.n_vocab, config.d_model, device=device)
    bias = torch.zeros(config.n_vocab, device=device)
    targets = torch.randint(5, config.n_vocab, (len(hidden),), device=device)
    kernel = torch.compile(loss_and_gradient) if work.compiles else loss_and_gradient
    usual = loss_module.GPU_LOGITS
    for trains_bias in (True, False):
        leaves = [hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(trains_bias)]

        def both() -> None:
            total = head_loss(hidden, (weight, bias), targets, 0.0, kernel)
            torch.autograd.grad(total, [leaf for leaf in leaves if leaf.requires_grad])  # noqa: B023

        for power in LOGITS:
            vars(loss_module)["GPU_LOGITS"] = 2**power
            show(f"head, 2^{power} logits{'' if trains_bias else ', bias frozen'}", both, work)
    vars(loss_module)["GPU_LOGITS"] = usual


class Together(ForwardPass):
    """q, k and v by one product with their matrices on top of each other."""

    def project_all(self, linears: Sequence[Linear], x: Tensor) -> Sequence[Tensor]:
        return F.linear(x, torch.cat([linear.weight for linear in linears])).chunk(len(linears), -1)


def three_products(block: Block, x: Tensor, rotation: Rotation) -> Tensor:
    """The block as it is."""
    found: Tensor = block(x, rotation, 0, ForwardPass())
    return found


def one_product(block: Block, x: Tensor, rotation: Rotation) -> Tensor:
    """q, k and v as one product."""
    found: Tensor = block(x, rotation, 0, Together())
    return found


def two_products(block: Block, x: Tensor, rotation: Rotation) -> Tensor:
    """All that read the LayerNorm as one product, all that write to the residual stream as another."""
    attention, mlp = block.attn, block.mlp
    readers = [linear.weight for linear in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.fc_in)]
    width = x.shape[-1]
    q, k, v, inner = F.linear(block.ln_1(x), torch.cat(readers)).split([width] * 3 + [len(readers[3])], -1)
    q, k, v = (part.unflatten(-1, (-1, attention.d_head)) for part in (q, k, v))
    q, k = rotate(q, rotation), rotate(k, rotation)
    y = ForwardPass().attend(0, *(part.transpose(1, 2) for part in (q, k, v))).transpose(1, 2).flatten(-2)
    inner = F.gelu(inner + mlp.fc_in.bias.to(inner.dtype), approximate="tanh")
    writers = torch.cat([attention.out_proj.weight, mlp.fc_out.weight], 1)
    return x + F.linear(torch.cat([y, inner], -1), writers, mlp.fc_out.bias)


def block(work: Work) -> None:
    """A block's output and gradients by each of its forms."""
    device, dtype = work.device, work.recipe.compute.dtype_on(work.device)
    own = initial_model(work.config, seed=0).transformer.h[0].to(device)
    assert isinstance(own, Block)
    for parameter in own.parameters():
        torch.nn.init.normal_(parameter, std=0.05)  # out_proj and fc_out begin with zeros
    x = torch.randn(work.rows, work.length, work.config.d_model, device=device, requires_grad=True)
    rotation = rotary_table(torch.arange(work.length, device=device), work.config.rotary_dim, torch.float32)
    expected: list[Tensor] = []
    for form in (three_products, one_product, two_products):
        run = torch.compile(form, dynamic=False) if work.compiles else form
        found: list[Tensor] = []

        def both() -> None:
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                y = run(own, x, rotation)  # noqa: B023
            found[:] = [y.detach(), *torch.autograd.grad(y.square().mean(), [x, *own.parameters()])]  # noqa: B023

        show(f"block, {form.__name__.replace('_', ' ')}", both, work)
        expected = expected or list(found)
        apart = max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))
        print(f"apart from three products: {apart:.1e}", flush=True)


PARTS: dict[str, Callable[[Work], None]] = {
    "step": step,
    "optimizer": optimizer,
    "head": head,
    "block": block,
}


def show(name: str, run: Callable[[], object], work: Work) -> None:
    """Print the median of some runs, each waited for."""
    seconds = []
    for _ in range(WARM + TIMED):
        synchronize(str(work.device))
        begin = time.perf_counter()
        run()
        synchronize(str(work.device))
        seconds.append(time.perf_counter() - begin)
    print(f"{name}: {1e3 * statistics.median(seconds[WARM:]):.2f} ms", flush=True)


if __name__ == "__main__":
    main()
