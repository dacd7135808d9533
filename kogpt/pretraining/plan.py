"""What a pretraining run would need: memory per GPU, tokens per day, days and cost. No torch, no measurement.

Arithmetic of a run of `kogpt pretrain run` under torchrun: weights, gradients and optimizer state in float32,
each GPU holding its share of them (ZeRO stage 3, arXiv 1910.02054; torch's fully_shard), blocks gathered in
bfloat16 one at a time, gradients reduced in float32, the loss made in chunks of tokens.

Letters: N parameters, L layers, H heads, E model width, F ff width, V vocabulary, T context, G GPUs; bytes
and seconds unless another unit is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Any

from kogpt.config import ModelConfig
from kogpt.errors import ConfigError, columns, localized, pad

DAY = 86_400
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One accelerator as its maker and a cloud describe it."""

    peak: float  # bfloat16 FLOP/s, dense, accumulated in float32
    memory: float  # bytes
    network: float  # bytes/s each way of one GPU's own adapter, to GPUs of other nodes
    link: float  # bytes/s each way of one GPU to GPUs of its node
    dollars: float  # per GPU and hour


# Peaks, memory and links: NVIDIA's data sheets (A100 80GB SXM, H100 SXM, H200 SXM, HGX B200), links one way.
# Network: one adapter per GPU, of 200 or 400 Gbit/s, as its maker rates it; of the 50 GB/s of the latter NCCL
# reaches 46 to 49 (github.com/NVIDIA/nccl-tests, issues 267 and 290). This is the rate of an exchange among
# all GPUs, and the slowest case of a gather, for which NCCL lets all adapters of a node work together:
# 200 GB/s are reported of 256 H100 and 2 GB (github.com/NVIDIA/nccl, issue 1218).
# Prices: round figures of mid-2026 offers; give your own.
GPUS = {
    "a100": Gpu(peak=312e12, memory=80e9, network=25e9, link=300e9, dollars=1.5),
    "h100": Gpu(peak=989e12, memory=80e9, network=50e9, link=450e9, dollars=3.0),
    "h200": Gpu(peak=989e12, memory=141e9, network=50e9, link=450e9, dollars=4.0),
    "b200": Gpu(peak=2250e12, memory=180e9, network=50e9, link=900e9, dollars=6.0),
}
GPUS_PER_NODE = 8
TOKENS_PER_PARAMETER = 20  # Hoffmann et al. (arXiv 2203.15556), table 3: what the same compute does best with

USABLE = 0.9  # of a GPU's memory: the rest is the context, fragments and NCCL's buffers
# Per parameter: two moments, or one. Muon is for the blocks' matrices only.
STATE_BYTES = {"adamw": 8, "muon": 4}
GATHERED_BYTES = 2  # per parameter: weights travel in bfloat16
REDUCED_BYTES = 4  # per parameter: gradients travel in float32
EXCHANGED_BYTES = 2  # per parameter: Muon's matrices travel in bfloat16
NEWTON_SCHULZ_STEPS = 5  # torch.optim.Muon's default
LOSS_CHUNK, LOSS_LOGITS = 1024, 2**26  # tokens, or logits if that is more, at a time (kogpt/training/loss.py)
RECOMPUTED = 4 / 3  # forward, backward at twice the cost, and the forward again
PURPOSES_KO = {  # the keys of a Plan's memory, in Korean
    "weights": "가중치",
    "gradients": "기울기",
    "optimizer": "옵티마이저",
    "average": "평균",
    "working weights": "작업용 가중치",
    "activations": "활성값",
    "loss": "손실",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be trained, and on what."""

    config: ModelConfig
    gpu: Gpu
    n_gpus: int
    tokens: float  # to be seen
    batch_tokens: int = 2**22  # per step, all GPUs together
    mfu: float = 0.4  # of the peak, while nothing is recomputed and nobody waits for the network
    optimizer: str = "muon"
    averages: bool = False  # an average of the weights is kept

    def __post_init__(self) -> None:
        positive = {"GPUs": self.n_gpus, "tokens": self.tokens, "batch tokens": self.batch_tokens}
        for name, value in positive.items():
            _require_positive(name, value)
        if not 0 < self.mfu <= 1:
            raise _impossible("MFU", self.mfu, "above 0 and at most 1", "0보다 크고 1 이하인 값")
        if self.optimizer not in STATE_BYTES:
            raise _impossible("optimizer", self.optimizer, ", ".join(STATE_BYTES), ", ".join(STATE_BYTES))
        least = self.n_gpus * self.config.n_ctx
        if self.batch_tokens < least:
            raise _impossible(
                "batch tokens",
                self.batch_tokens,
                f"at least {least}, a row per GPU; take more, or fewer GPUs",
                f"GPU마다 한 줄, 곧 {least} 이상. 값을 늘리거나 GPU를 줄이세요",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One way to run a job."""

    job: Job
    rows: int  # sequences of T tokens that a GPU takes at a time
    checkpointing: bool  # keep the blocks' inputs only and compute the rest again
    memory: dict[str, float]  # bytes per GPU by purpose

    @property
    def fits(self) -> bool:
        return sum(self.memory.values()) <= USABLE * self.job.gpu.memory

    @property
    def micro_steps(self) -> int:
        """How often a GPU runs forward and backward before an update."""
        per_gpu = self.job.batch_tokens // (self.job.n_gpus * self.job.config.n_ctx)
        return -(-per_gpu // self.rows)

    @property
    def compute_seconds(self) -> float:
        """Of the matrix products of a step."""
        flops = self.job.batch_tokens * flops_per_token(self.job.config)
        flops *= RECOMPUTED if self.checkpointing else 1
        return flops / (self.job.n_gpus * self.job.gpu.peak * self.job.mfu)

    @property
    def network_seconds(self) -> float:
        """Of a step's micro-steps: blocks gathered twice, outer weights once, gradients scattered once."""
        config = self.job.config
        moved = (2 * GATHERED_BYTES + REDUCED_BYTES) * config.n_parameters
        moved -= GATHERED_BYTES * _outer_parameters(config)
        return self.micro_steps * _travel_seconds(self.job, moved)

    @property
    def optimizer_seconds(self) -> float:
        """Of Muon's update, when all else is done: matrices to the GPUs that work on them, work, and back.

        As many matrices at a time as there are GPUs, the largest first, and all wait for the largest of them
        (kogpt/training/optimizers.py). What is element by element, and so all of AdamW, is left out.
        """
        if self.job.optimizer == "adamw":
            return 0.0
        longest = muon_matrices(self.job.config)[:: self.job.n_gpus]
        moved = 2 * EXCHANGED_BYTES * sum(rows * columns for rows, columns in longest)
        flops = sum(newton_schulz_flops(rows, columns) for rows, columns in longest)
        return _travel_seconds(self.job, moved) + flops / (self.job.gpu.peak * self.job.mfu)

    @property
    def step_seconds(self) -> float:
        """The network works beside the matrix products: the longer of the two counts. Then the optimizer."""
        return max(self.compute_seconds, self.network_seconds) + self.optimizer_seconds

    @property
    def tokens_per_day(self) -> float:
        return DAY * self.job.batch_tokens / self.step_seconds

    @property
    def days(self) -> float:
        return self.job.tokens / self.tokens_per_day

    @property
    def dollars(self) -> float:
        return 24 * self.days * self.job.n_gpus * self.job.gpu.dollars

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation with recomputing and waiting (PaLM, arXiv 2204.02311, appendix B)."""
        rate = self.tokens_per_day / DAY * flops_per_token(self.job.config)
        return rate / (self.job.n_gpus * self.job.gpu.peak)


def flops_per_token(config: ModelConfig) -> float:
    """Of forward and backward pass at full context: 6 N + 12 L E T (PaLM, arXiv 2204.02311, appendix B).

    N counts what is multiplied: all but the embedding, which is looked up. Attention is counted in full,
    though half of it is masked.
    """
    looked_up = 0 if config.tied_head else config.n_vocab * config.d_model
    multiplied = config.n_parameters - looked_up
    return 6 * multiplied + 12 * config.n_layers * config.d_model * config.n_ctx


def muon_matrices(config: ModelConfig) -> list[tuple[int, int]]:
    """Rows and columns of each matrix inside the blocks, the largest first."""
    shapes = [shape for name, shape in config.tensor_shapes().items() if ".h." in name and len(shape) == 2]
    return sorted(((rows, columns) for rows, columns in shapes), key=math.prod, reverse=True)


def newton_schulz_flops(rows: int, columns: int) -> float:
    """Of making a matrix orthogonal: X X^T, its square, and that times X, a step."""
    short, long = sorted((rows, columns))
    return NEWTON_SCHULZ_STEPS * (4 * short**2 * long + 2 * short**3)


def _travel_seconds(job: Job, moved: float) -> float:
    """Of so many bytes that a GPU has from all, itself included, by the slowest wire on their way."""
    rate = job.gpu.link if job.n_gpus <= GPUS_PER_NODE else job.gpu.network
    return moved * (job.n_gpus - 1) / job.n_gpus / rate


def activation_bytes(config: ModelConfig) -> int:
    """Kept per token and layer for the backward pass, after Korthikanti et al. (arXiv 2205.05198, 4.1).

    Theirs: 34 E + 5 H T for a GPT in half precision. Here, in the order of the block: its input in float32
    (4 E); the normalised input in bfloat16, once for each product that reads it (4 * 2 E); q, k, v (6 E);
    attention's output (2 E), without the T x T matrices, which fused attention never stores, but with one
    float32 per head; before and after GELU (2 * 2 F); mean and deviation of LayerNorm (8). No dropout.
    """
    return 20 * config.d_model + 4 * config.d_ff + 4 * config.n_heads + 8


def block_parameters(config: ModelConfig) -> int:
    """Of one block."""
    return (config.n_parameters - _outer_parameters(config)) // config.n_layers


def _outer_parameters(config: ModelConfig) -> int:
    """Embedding, last LayerNorm and head."""
    matrices = 1 if config.tied_head else 2
    return matrices * config.n_vocab * config.d_model + config.n_vocab + 2 * config.d_model


def memory(job: Job, rows: int, checkpointing: bool) -> dict[str, float]:
    """Bytes per GPU by purpose."""
    config, share = job.config, 1 / job.n_gpus
    block, outer = block_parameters(config), _outer_parameters(config)
    vectors = config.n_layers * (2 * config.d_model + config.d_ff + config.d_model)
    matrices = config.n_layers * block - vectors
    state = STATE_BYTES[job.optimizer] * matrices + STATE_BYTES["adamw"] * (outer + vectors)
    layer = rows * config.n_ctx * activation_bytes(config)
    inputs = rows * config.n_ctx * 4 * config.d_model * config.n_layers
    if job.n_gpus > 1:
        # The block at work, the buffer that it came in and that of the next on its way; one block's gradients
        # twice, as made and as sent; the outer weights, and their gradients until the last.
        working = GATHERED_BYTES * (3 * block + outer) + (2 + REDUCED_BYTES) * block + 2 * outer
    else:  # autocast's bfloat16 copies, which live until the backward pass has used them
        working = 2 * block * (1 if checkpointing else config.n_layers)
    return {
        "weights": 4 * config.n_parameters * share,
        "gradients": 4 * config.n_parameters * share,
        "optimizer": state * share,
        **({"average": 4 * config.n_parameters * share} if job.averages else {}),
        "working weights": working,
        "activations": inputs + layer if checkpointing else config.n_layers * layer,
        "loss": _loss_bytes(config, rows),
    }


def _loss_bytes(config: ModelConfig, rows: int) -> float:
    """Hidden states and their gradient, the head's bfloat16 copy and float32 gradient, logits of a chunk."""
    hidden = rows * config.n_ctx * config.d_model * (4 + 2 + 2)
    chunk = min(rows * config.n_ctx, max(LOSS_CHUNK, LOSS_LOGITS // config.n_vocab))
    return hidden + 6 * config.n_vocab * config.d_model + 14 * chunk * config.n_vocab


def plans(job: Job) -> list[Plan]:
    """Every way to run the job that fits, the fastest first; of equals, the one with the least traffic."""
    most = job.batch_tokens // (job.n_gpus * job.config.n_ctx)
    ways = [(rows, again) for rows in _divisors(most) for again in (False, True)]
    found = [
        Plan(job=job, rows=rows, checkpointing=again, memory=memory(job, rows, again)) for rows, again in ways
    ]
    fitting = [plan for plan in found if plan.fits]
    return sorted(fitting, key=lambda plan: (-plan.tokens_per_day, plan.network_seconds))


def _divisors(n: int) -> list[int]:
    small = [k for k in range(1, math.isqrt(n) + 1) if n % k == 0]
    return sorted({*small, *(n // k for k in small)})


def best_plan(job: Job) -> Plan:
    """The fastest plan; ConfigError with the shortfall if none fits."""
    if found := plans(job):
        return found[0]
    need, room = _figure(sum(memory(job, 1, True).values()) / GIB), _figure(USABLE * job.gpu.memory / GIB)
    raise ConfigError(
        f"too few GPUs ({job.n_gpus}): one row with recomputation needs {need} GiB on each, "
        f"{room} GiB are usable; take more or larger ones, or a smaller model",
        f"GPU {job.n_gpus}개로는 부족합니다. 한 줄을 재계산 방식으로 학습해도 GPU마다 {need} GiB가 "
        f"필요하지만 쓸 수 있는 것은 {room} GiB입니다. GPU를 늘리거나 모델을 줄이세요",
    )


def gpu(name: str, **figures: float) -> Gpu:
    """One of the table by name, some of its figures replaced; ConfigError if it is not there."""
    if name not in GPUS:
        raise ConfigError(
            f"GPU {name!r} is not in the table: there are {', '.join(GPUS)}; take one and give its figures",
            f"표에 없는 GPU입니다: {name!r}. 있는 이름: {', '.join(GPUS)}. 하나를 골라 수치를 지정하세요",
        )
    for figure, value in figures.items():
        _require_positive(f"GPU {figure}", value)
    return replace(GPUS[name], **figures)


def describe(job: Job) -> str:
    """The assumptions of the table, in a few lines of the user's language."""
    return localized(_describe_en(job), _describe_ko(job))


def _describe_en(job: Job) -> str:
    config, one = job.config, job.gpu
    flops, tokens = flops_per_token(config) / 1e9, job.tokens / 1e9
    return "\n".join(
        [
            f"{config.n_parameters:,} parameters, context {config.n_ctx}, {_figure(flops)} GFLOP per token; "
            f"{_figure(tokens)} x 10^9 tokens, {job.batch_tokens:,} a step; optimizer {job.optimizer}"
            f"{', an average of the weights' if job.averages else ''}.",
            f"A GPU: {one.peak / 1e12:g} TFLOP/s, {one.memory / 1e9:g} GB, {one.link / 1e9:g} GB/s to "
            f"the others of its node of {GPUS_PER_NODE}, {one.network / 1e9:g} GB/s to other nodes, "
            f"{one.dollars:.2f} dollars an hour.",
            f"MFU {100 * job.mfu:g}% where nothing is recomputed or waited for.",
        ]
    )


def _describe_ko(job: Job) -> str:
    config, one = job.config, job.gpu
    flops, tokens = flops_per_token(config) / 1e9, job.tokens / 1e9
    return "\n".join(
        [
            f"매개변수 {config.n_parameters:,}개, 문맥 {config.n_ctx}, 토큰마다 {_figure(flops)} GFLOP, "
            f"토큰 {_figure(tokens)} x 10^9개, 스텝마다 {job.batch_tokens:,}개, 옵티마이저 {job.optimizer}"
            f"{', 가중치의 평균' if job.averages else ''}.",
            f"GPU 하나: {one.peak / 1e12:g} TFLOP/s, {one.memory / 1e9:g} GB, 노드({GPUS_PER_NODE}개) 안에서 "
            f"{one.link / 1e9:g} GB/s, 다른 노드와 {one.network / 1e9:g} GB/s, 시간당 {one.dollars:.2f}달러.",
            f"재계산도 기다림도 없을 때의 MFU는 {100 * job.mfu:g}%입니다.",
        ]
    )


def best_plans(job: Job, counts: Iterable[int]) -> list[Plan]:
    """The fastest plan at each number of GPUs."""
    return [best_plan(replace(job, n_gpus=count)) for count in counts]


def to_json(plan: Plan) -> dict[str, Any]:
    """A plan as one flat object; bytes, seconds, dollars."""
    return {
        "gpus": plan.job.n_gpus,
        "rows": plan.rows,
        "micro_steps": plan.micro_steps,
        "checkpointing": plan.checkpointing,
        **{f"{name.replace(' ', '_')}_bytes": round(size) for name, size in plan.memory.items()},
        "bytes": round(sum(plan.memory.values())),
        "compute_seconds": plan.compute_seconds,
        "network_seconds": plan.network_seconds,
        "optimizer_seconds": plan.optimizer_seconds,
        "step_seconds": plan.step_seconds,
        "tokens_per_day": plan.tokens_per_day,
        "mfu": plan.mfu,
        "days": plan.days,
        "dollars": plan.dollars,
    }


def table(found: Sequence[Plan]) -> str:
    """The plans side by side, in Markdown that also reads as plain text, in the user's language."""
    rows = [
        [localized("per GPU and step", "GPU와 스텝마다"), *(_gpus(plan.job.n_gpus) for plan in found)],
        *([name, *(cell(plan) for plan in found)] for name, cell in _lines(found[0].memory)),
    ]
    widths = [max(columns(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [_line(row, widths) for row in rows]
    rule = f"|{'-' * (widths[0] + 2)}|" + "".join(f"{'-' * (width + 1)}:|" for width in widths[1:])
    return "\n".join([lines[0], rule, *lines[1:]])


def _lines(purposes: Iterable[str]) -> list[tuple[str, Callable[[Plan], str]]]:
    """Name of each line below the first, and what it says of a plan."""
    memory = [
        (f"{localized(name, PURPOSES_KO[name])}, GiB", partial(_gibibytes, name=name)) for name in purposes
    ]
    yes, no = localized("yes", "예"), localized("no", "아니요")
    return [
        *memory,
        (localized("all memory, GiB", "메모리 합계, GiB"), lambda plan: _figure(_all_bytes(plan) / GIB)),
        (localized("rows at a time", "한 번에 넣는 줄"), lambda plan: str(plan.rows)),
        (localized("micro-steps", "나누어 계산하는 횟수"), lambda plan: str(plan.micro_steps)),
        (localized("blocks recomputed", "블록 재계산"), lambda plan: yes if plan.checkpointing else no),
        (localized("matrix products, s", "행렬 곱, 초"), lambda plan: _figure(plan.compute_seconds)),
        (localized("network, s", "통신, 초"), lambda plan: _figure(plan.network_seconds)),
        (localized("optimizer, s", "옵티마이저, 초"), lambda plan: _figure(plan.optimizer_seconds)),
        (localized("MFU reached", "실제 MFU"), lambda plan: f"{_figure(100 * plan.mfu)}%"),
        (
            localized("tokens a day, 10^9", "하루 토큰, 10^9개"),
            lambda plan: _figure(plan.tokens_per_day / 1e9),
        ),
        (localized("days", "일수"), lambda plan: _figure(plan.days)),
        (localized("cost, dollars", "비용, 달러"), lambda plan: _figure(plan.dollars)),
    ]


def _gibibytes(plan: Plan, name: str) -> str:
    return _figure(plan.memory[name] / GIB)


def _all_bytes(plan: Plan) -> float:
    return sum(plan.memory.values())


def _gpus(count: int) -> str:
    return localized(f"{count} GPU{'s' if count > 1 else ''}", f"GPU {count}개")


def _figure(value: float) -> str:
    """Three significant digits, never as a power of ten: 12,400, 17.3, 0.000651."""
    return f"{Decimal(f'{value:.3g}'):,f}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    rest = (pad(cell, width, right=True) for cell, width in zip(cells[1:], widths[1:], strict=True))
    return f"| {' | '.join([pad(cells[0], widths[0]), *rest])} |"


def _require_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:  # NaN is refused too
        raise _impossible(name, value, "above 0 and finite", "0보다 큰 유한한 수")


def _impossible(name: str, value: object, rule: str, rule_ko: str) -> ConfigError:
    return ConfigError(
        f"{name} {value}: must be {rule}", f"{name} {value}: 허용되지 않는 값입니다(조건: {rule_ko})"
    )
