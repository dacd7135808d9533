"""What tuning needs: memory by purpose, for every method, precision and size. No torch, no measurement.

Arithmetic of the steps of `kogpt tune`: weights, gradients and AdamW's moments; what a pass keeps for its
backward pass; the floats that a frozen matrix becomes for one product. tests/tuning/measure_memory.py holds
it against real runs.

Letters: L layers, E model width, F ff width, V vocabulary, H heads, r rank, P virtual tokens; bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from kogpt.config import ModelConfig
from kogpt.quantize import GROUP

METHODS = ("full", "lora", "p-tuning", "prefix")
LOW_RANK = ("lora", "embed")
MATRICES = ("q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out")
BASES = ("float32", "bfloat16", "int8", "int4")
FLOAT_BYTES = {"float32": 4, "bfloat16": 2}
PROGRAM = {"cpu": 0.45e9, "cuda": 0.8e9}  # Python and torch; a CUDA context with its libraries
USABLE = 0.94  # of a GPU's memory: the rest is lost between the allocator's blocks
LOSS_CHUNK = 1024  # tokens whose logits exist at a time (kogpt/training/loss.py)
LOSS_COPIES = 6  # float32 tensors of the size of a chunk's logits
# On a CPU malloc keeps blocks that were freed, in holes between those that live: these shares of what a pass
# keeps, by tests/tuning/measure_memory.py. In full tuning gradients fill some of the holes. Checkpointing
# returns freed blocks at once (kogpt/memory.py), and so does malloc where they are larger than HEAP_BLOCK.
HEAP_SHARE, FULL_SHARE, RETURNED_SHARE = 0.75, 0.5, 0.3
HEAP_BLOCK = 32 << 20  # DEFAULT_MMAP_THRESHOLD_MAX of glibc


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One way to tune: method, sizes and precisions."""

    method: str
    rows: int  # of a pass; each text of a pair is one
    width: int  # tokens of a row, virtual ones apart
    scored: int | None = None  # learnt tokens of a pass; None: all
    n_passes: int = 1  # of a step
    batch: int | None = None  # rows or pairs of a step, as asked for; None: those of its passes
    dtype: str = "float32"  # of products
    base_dtype: str = "float32"  # of a frozen model
    quantization: str | None = None  # of the stored model, which cannot be rounded again
    checkpointing: bool = False
    rank: int = 16
    targets: tuple[str, ...] = MATRICES
    virtual_tokens: int = 20
    encoder: str = "mlp"
    n_processes: int = 1

    @property
    def tokens(self) -> int:
        """Positions of a pass that the blocks compute."""
        before = self.virtual_tokens if self.method == "p-tuning" else 0
        return self.rows * (self.width + before)


def n_trained(config: ModelConfig, work: Work) -> int:
    """Weights that learn."""
    if work.method == "full":
        return config.n_parameters
    if work.method in LOW_RANK:
        return config.n_layers * work.rank * sum(sum(_shape(config, name)) for name in work.targets)
    if work.method == "prefix":
        return 2 * config.n_layers * work.virtual_tokens * config.d_model
    width = config.d_model
    mlp = 0 if work.encoder == "none" else 2 * (width**2 + width)
    lstm = 12 * width**2 + 16 * width if work.encoder == "lstm" else 0  # two layers, two directions
    return work.virtual_tokens * width + mlp + lstm


def memory(config: ModelConfig, work: Work) -> dict[str, float]:
    """Bytes of each process by purpose, at the peak of a step."""
    trained, share = n_trained(config, work), 1 / work.n_processes
    kept, loss = _activations(config, work), _loss(config, work)
    gradients = 4 * trained * share
    # The gradients of a step's only pass are made while what the pass kept is given back.
    head = 4 * config.n_vocab * config.d_model * share if work.method == "full" else 0.0
    if work.n_passes == 1:
        gradients = max(head, gradients - kept - loss)
    return {
        "weights": weight_bytes(config, work),
        "optimizer": 8 * trained * share,
        "gradients": gradients,
        "activations": kept,
        "working weights": _working(config, work),
        "loss": loss,
    }


def peak(config: ModelConfig, work: Work, device: str = "cuda") -> float:
    """Bytes of each process at the peak of a step, beside PROGRAM; device: "cuda" or "cpu"."""
    purposes = memory(config, work)
    total = sum(purposes.values())
    if device != "cpu":
        return total
    if work.checkpointing:  # no block is at work while the loss is computed
        inside = purposes["activations"] - kept_bytes(config, work)
        return total - min(inside, purposes["loss"]) + RETURNED_SHARE * purposes["activations"]
    is_on_heap = 4 * work.tokens * config.d_model <= HEAP_BLOCK
    share = FULL_SHARE if work.method == "full" else HEAP_SHARE
    return total + (share * purposes["activations"] if is_on_heap else 0.0)


def weight_bytes(config: ModelConfig, work: Work) -> float:
    """The model and what learns beside it, as a process holds them."""
    share = 1 / work.n_processes
    if work.method == "full":
        return 4 * config.n_parameters * share
    per_weight = {"int8": 1.0, "int4": 0.5 + 1 / GROUP}.get(work.base_dtype)
    blocks = config.n_layers * sum(n * k for n, k in _matrices(config))
    outer = (1 if config.tied_head else 2) * config.n_vocab * config.d_model
    vectors = config.n_parameters - blocks - outer
    held = blocks * (per_weight or FLOAT_BYTES[work.base_dtype] * share)  # quantised ones are not shared
    wide = 4 if work.base_dtype == "float32" else 2
    return held + (wide * outer + 4 * vectors + 4 * n_trained(config, work)) * share


def kept_bytes(config: ModelConfig, work: Work) -> float:
    """What a pass keeps for its backward pass, up to the last norm.

    By the order of a block: input of the norm in float32 with mean and deviation; what the products read,
    where weights or factors beside them learn, once for each product under autocast; q, k, v, the result of
    attention and its sums; GELU's input and its result.
    """
    c, e, f = FLOAT_BYTES[work.dtype], config.d_model, config.d_ff
    learns = set(MATRICES) if work.method == "full" else set(work.targets if work.method in LOW_RANK else ())
    readers = len(learns & {"q_proj", "k_proj", "v_proj", "fc_in"})
    read = c * e * (readers if work.dtype == "bfloat16" else min(1, readers))
    attention = 4 * c * e + 4 * config.n_heads
    mlp = c * f * (2 if "fc_out" in learns else 1)
    low_rank = c * work.rank * len(learns) if work.method in LOW_RANK else 0
    layer = work.tokens * (4 * e + 8 + read + attention + mlp + low_rank)
    if work.method == "prefix":
        layer += 2 * c * e * work.virtual_tokens * work.rows
        layer += 4 * work.width * (work.virtual_tokens + work.width)  # the mask
    last = work.tokens * (4 * e + 8)
    if work.checkpointing:
        return config.n_layers * work.tokens * 4 * e + last
    # No gradient reaches the norm of the first block, nor its MLP, if nothing before them learns.
    is_reached = work.method in ("full", "p-tuning")
    first = 0 if is_reached else 4 * e + 8 + (0 if "fc_in" in learns else c * f)
    return config.n_layers * layer - work.tokens * first + last


def _activations(config: ModelConfig, work: Work) -> float:
    """What a pass keeps, and what the block at work makes beside it."""
    c = FLOAT_BYTES[work.dtype]
    # Gradients of the widest step, and the last norm's result with its gradient.
    inside: float = work.tokens * (2 * c * config.d_ff + 16 * config.d_model)
    if work.checkpointing:
        inside += kept_bytes(config, replace(work, checkpointing=False)) / config.n_layers
    return kept_bytes(config, work) + inside


def _working(config: ModelConfig, work: Work) -> float:
    """Floats that matrices become for products."""
    c = FLOAT_BYTES[work.dtype]
    largest = max(n * k for n, k in _matrices(config))
    block = sum(n * k for n, k in _matrices(config))
    gathered = 0.0
    if work.n_processes > 1:  # the block at work and the next, and the outer weights
        wide = FLOAT_BYTES.get(work.base_dtype, 0) if work.method != "full" else 4
        gathered = wide * (2 * block + 2 * config.n_vocab * config.d_model)
    if work.method == "full":
        copies = 0 if work.dtype == "float32" else c * block * (1 if work.checkpointing else config.n_layers)
        return gathered + copies
    return gathered + (0 if work.base_dtype == work.dtype else c * largest)


def _loss(config: ModelConfig, work: Work) -> float:
    """Hidden states of learnt tokens and their gradients, logits of a chunk, the head in other dtypes."""
    scored = work.rows * work.width if work.scored is None else work.scored
    c, head = FLOAT_BYTES[work.dtype], config.n_vocab * config.d_model
    held = 4 if work.method == "full" or work.base_dtype == "float32" else 2
    copy = 0 if held == c else c * head
    own = 4 * head if work.method == "full" else 0  # its gradient, and that times the loss's
    return (
        2 * c * scored * config.d_model
        + 4 * LOSS_COPIES * min(scored, LOSS_CHUNK) * config.n_vocab
        + copy
        + own
    )


def _shape(config: ModelConfig, name: str) -> tuple[int, int]:
    """Outputs and inputs of a matrix of a block."""
    wide, narrow = config.d_ff, config.d_model
    return {"fc_in": (wide, narrow), "fc_out": (narrow, wide)}.get(name, (narrow, narrow))


def _matrices(config: ModelConfig) -> list[tuple[int, int]]:
    return [_shape(config, name) for name in MATRICES]


def ways(work: Work) -> Iterator[Work]:
    """The same work in less and less memory: narrower bases, then blocks computed twice."""
    bases = list(BASES[1:] if work.method != "full" else BASES[:1])
    if work.quantization is not None:
        bases = [base for base in bases if base in (*FLOAT_BYTES, work.quantization)]
    for again in (False, True):
        for base in bases:
            yield replace(work, base_dtype=base, checkpointing=again)


def first_fit(config: ModelConfig, work: Work, room: float, device: str = "cuda") -> Work | None:
    """The first of the ways that fits into `room` bytes; None if none does."""
    return next((way for way in ways(work) if peak(config, way, device) <= room), None)


def options(work: Work) -> list[str]:
    """The options of `kogpt tune` that ask for this work."""
    batch = work.batch or work.rows * work.n_passes * work.n_processes
    found = ["--batch", str(batch), "--length", str(work.width)]
    if work.method != "embed":  # all pairs of a batch share one pass
        found += ["--tokens-per-pass", str(work.rows * work.width)]
    if work.method != "full":
        found += ["--base-dtype", work.base_dtype]
    return found + (["--checkpoint-blocks"] if work.checkpointing else [])


def command(work: Work, model: str) -> str:
    """The command that tunes so, but for its data."""
    launcher = f"torchrun --nproc-per-node {work.n_processes} -m " if work.n_processes > 1 else ""
    return f"{launcher}kogpt tune {work.method} --model {model} {' '.join(options(work))}"


def describe(config: ModelConfig, rows: int, width: int) -> dict[str, dict[str, float]]:
    """Bytes by method and format of the base: rows of `width` tokens in one pass, products in bfloat16."""
    found: dict[str, dict[str, float]] = {}
    for method in METHODS:
        work = Work(method=method, rows=rows, width=width, dtype="bfloat16")
        bases = BASES[:1] if method == "full" else BASES
        found[method] = {base: peak(config, replace(work, base_dtype=base)) for base in bases}
    return found
