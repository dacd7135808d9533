"""The planner against torch: FLOPs as counted, activations as saved; and its own arithmetic by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed._tools.mem_tracker import MemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.flop_counter import FlopCounterMode

from kogpt.config import SHAPES, ModelConfig
from kogpt.errors import ConfigError
from kogpt.model import GPTJ
from kogpt.pretraining import plan as planner
from kogpt.pretraining.plan import GIB, GPUS, Job, Plan, best_plan, best_plans, plans
from kogpt.pretraining.start import meta_model
from kogpt.training.objective import Arithmetic, Objective
from kogpt.training.optimisers import Rule, build
from kogpt.training.workers import Workers

B6 = SHAPES["kogpt-6b"]
JOB = Job(config=B6, gpu=GPUS["h100"], n_gpus=64, tokens=20 * B6.n_parameters)


def shape(**changes: int) -> ModelConfig:
    sizes = dict(n_layers=2, n_heads=4, d_model=64, d_ff=256, n_vocab=512, n_ctx=128, rotary_dim=8) | changes
    return ModelConfig(**sizes)  # type: ignore[arg-type]


def naive(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as plain products, which the counter knows."""
    return (q @ k.transpose(-1, -2)).softmax(-1) @ v


@pytest.mark.parametrize("changes", [{}, {"n_layers": 5}, {"d_ff": 128}, {"n_vocab": 4096}, {"n_ctx": 32}])
def test_flops_are_those_that_torch_counts(changes: dict[str, int]) -> None:
    config = shape(**changes)
    model, tokens = GPTJ(config), torch.zeros((2, config.n_ctx), dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        positions = torch.arange(config.n_ctx)
        model.head(model.trunk(model.embed(tokens), positions, naive)).sum().backward()
    vectors = config.n_layers * (3 * config.d_model + config.d_ff) + config.n_vocab + 2 * config.d_model
    expected = planner.flops_per_token(config) - 6 * vectors  # biases and norms are no products
    assert counter.get_total_flops() == tokens.numel() * expected


def test_flops_of_the_published_shape() -> None:
    """6 * (6,166,502,400 - 64,512 * 4096) + 12 * 28 * 4096 * 2048, by hand."""
    assert planner.flops_per_token(B6) == 35_413_567_488 + 2_818_572_288


def saved_bytes(config: ModelConfig, rows: int) -> int:
    """What autograd keeps of a forward pass under autocast, parameters aside."""
    model = GPTJ(config)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    tokens = torch.zeros((rows, config.n_ctx), dtype=torch.long)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        model.trunk(model.embed(tokens), torch.arange(config.n_ctx))
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("changes", [{}, {"d_ff": 128}, {"n_heads": 1}, {"d_model": 96}, {"n_ctx": 64}])
def test_activations_are_those_that_autograd_keeps(changes: dict[str, int]) -> None:
    """One more layer costs activation_bytes a token, and autocast's bfloat16 copies of its matrices."""
    config = shape(**changes)
    deeper = replace(config, n_layers=config.n_layers + 1)
    rows = 3
    measured = saved_bytes(deeper, rows) - saved_bytes(config, rows)
    matrices = 2 * (4 * config.d_model**2 + 2 * config.d_model * config.d_ff)
    expected = rows * config.n_ctx * planner.activation_bytes(config) + matrices
    assert measured == pytest.approx(expected, rel=0.002)


def test_parameters_add_up() -> None:
    outer = B6.n_parameters - B6.n_layers * planner.block_parameters(B6)
    assert outer == 2 * 64512 * 4096 + 64512 + 2 * 4096
    assert planner.block_parameters(B6) == 4 * 4096**2 + 2 * 4096 * 16384 + 16384 + 4096 + 2 * 4096


def test_one_gpu_holds_everything() -> None:
    """AdamW in float32: 16 bytes a parameter, nothing gathered."""
    job = replace(JOB, n_gpus=1, optimizer="adamw")
    memory = planner.memory(job, 1, True)
    assert sum(memory[name] for name in ("weights", "gradients", "optimizer")) == 16 * B6.n_parameters
    assert memory["working weights"] == 2 * planner.block_parameters(B6)


def test_sharding_divides_the_state_and_nothing_else() -> None:
    few, many = (planner.memory(replace(JOB, n_gpus=n), 2, False) for n in (8, 64))
    for name in ("weights", "gradients", "optimizer"):
        assert few[name] == pytest.approx(8 * many[name])
    for name in ("working weights", "activations", "loss"):
        assert few[name] == many[name]


@pytest.mark.filterwarnings("ignore")  # torch's own, of its fake processes
@pytest.mark.parametrize(("checkpointing", "most"), [(False, 1.15), (True, 1.45)])
@pytest.mark.parametrize("changes", [{"n_layers": 6}, {"d_model": 384, "d_ff": 1536, "n_vocab": 4096}])
def test_torchs_own_tracker_sees_no_more_and_little_less(
    changes: dict[str, int], checkpointing: bool, most: float
) -> None:
    """One of eight processes, the others faked, over two steps; recomputing leaves the two peaks apart."""
    config = shape(**({"d_model": 256, "d_ff": 1024, "n_ctx": 256} | changes))
    rows, n_gpus = 4, 8
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=n_gpus)
    try:
        seen = tracked_peak(config, rows, Workers(count=n_gpus), checkpointing)
    finally:
        dist.destroy_process_group()
    job = Job(config=config, gpu=GPUS["h100"], n_gpus=n_gpus, tokens=1e9, optimizer="adamw")
    assert seen <= sum(planner.memory(job, rows, checkpointing).values()) <= most * seen


def tracked_peak(config: ModelConfig, rows: int, workers: Workers, checkpointing: bool) -> float:
    arithmetic = Arithmetic(dtype="bfloat16", compile="nothing", checkpoint_blocks=checkpointing)
    objective = Objective(meta_model(config), arithmetic)
    workers.distribute(objective, objective.blocks(), torch.bfloat16)
    optimisers = build(objective, Rule(name="adamw"), torch.bfloat16)
    tokens = torch.zeros((rows, config.n_ctx), dtype=torch.long)
    tracker = MemTracker()
    tracker.track_external(objective, *optimisers)
    with tracker:
        for _ in range(2):  # the first makes the optimisers' state
            torch.autograd.backward(objective(tokens, tokens))
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad()
            tracker.reset_mod_stats()
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    return float(peak["Total"])


def test_muon_keeps_one_moment_of_the_matrices() -> None:
    adamw, muon = (
        planner.memory(replace(JOB, n_gpus=1, optimizer=name), 1, True)["optimizer"]
        for name in ("adamw", "muon")
    )
    matrices = B6.n_layers * (4 * 4096**2 + 2 * 4096 * 16384)
    assert adamw - muon == 4 * matrices


def test_checkpointing_keeps_inputs_and_one_layer() -> None:
    plain, again = (planner.memory(JOB, 4, checkpointing)["activations"] for checkpointing in (False, True))
    tokens = 4 * B6.n_ctx
    assert plain == 28 * tokens * planner.activation_bytes(B6)
    assert again == tokens * (28 * 4 * 4096 + planner.activation_bytes(B6))


def test_time_by_hand() -> None:
    """82,780 tokens/s on eight H100 at 40 %: 8 * 989e12 * 0.4 / 38.23e9."""
    plan = best_plan(replace(JOB, n_gpus=8))
    assert plan.tokens_per_day == pytest.approx(86_400 * 8 * 989e12 * 0.4 / 38.232139776e9)
    assert plan.mfu == pytest.approx(0.4)
    assert plan.days == pytest.approx(20 * 6_166_502_400 / plan.tokens_per_day)
    assert plan.dollars == pytest.approx(24 * plan.days * 8 * 3.0)


def test_the_network_counts_when_it_is_slower() -> None:
    plan = best_plan(replace(JOB, n_gpus=512))
    assert plan.network_seconds > plan.compute_seconds and plan.mfu < 0.4
    moved = plan.micro_steps * 8 * B6.n_parameters * 511 / 512
    assert plan.tokens_per_day == pytest.approx(86_400 * 2**22 / (moved / 50e9))


def test_recomputing_costs_a_third() -> None:
    plain, again = (
        Plan(job=JOB, rows=1, checkpointing=checkpointing, memory={}).compute_seconds
        for checkpointing in (False, True)
    )
    assert again == pytest.approx(plain * 4 / 3)


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("n_gpus", [8, 64, 512])
def test_the_best_plan_fits_and_no_other_is_faster(gpu: str, n_gpus: int) -> None:
    job = replace(JOB, gpu=GPUS[gpu], n_gpus=n_gpus)
    best = best_plan(job)
    assert sum(best.memory.values()) <= 0.9 * job.gpu.memory
    assert best.rows * best.micro_steps * n_gpus * B6.n_ctx == job.batch_tokens
    assert all(other.tokens_per_day <= best.tokens_per_day for other in plans(job))


def test_too_small_a_machine_is_refused_with_numbers() -> None:
    with pytest.raises(ConfigError, match=r"too few GPUs \(1\): .* needs 9\d GiB on each, 67 GiB"):
        best_plan(replace(JOB, n_gpus=1, optimizer="adamw"))


@pytest.mark.parametrize(
    "change", [{"n_gpus": 0}, {"tokens": 0}, {"mfu": 1.2}, {"optimizer": "sgd"}, {"n_gpus": 4096}]
)
def test_impossible_jobs_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        replace(JOB, **change)  # type: ignore[arg-type]


def test_table_and_json_say_the_same() -> None:
    found = best_plans(JOB, (8, 64))
    text = planner.table(found)
    facts = [planner.to_json(plan) for plan in found]
    assert len({len(line) for line in text.splitlines()}) == 1
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["all memory, GiB", *(f"{fact['bytes'] / GIB:.1f}" for fact in facts)] in cells
    assert json.loads(json.dumps(facts)) == facts
