"""The planner against torch: FLOPs as counted, activations as saved; and its own arithmetic by hand."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.tensor.debug import CommDebugMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.flop_counter import FlopCounterMode

from kogpt.config import SHAPES, ModelConfig
from kogpt.errors import ConfigError, columns
from kogpt.model import GPTJ, ForwardPass
from kogpt.pretraining import plan as planner
from kogpt.pretraining.plan import GIB, GPUS, Job, Plan, best_plan, best_plans, plans
from kogpt.training.objective import ComputeSettings, Objective
from kogpt.training.optimizers import Muon, OptimizerSettings, build_optimizers, orthogonalize
from kogpt.training.processes import Processes
from kogpt.training.start import meta_model

B6 = SHAPES["kogpt-6b"]
JOB = Job(config=B6, gpu=GPUS["h100"], n_gpus=64, tokens=20 * B6.n_parameters)


def shape(**changes: int) -> ModelConfig:
    sizes = dict(n_layers=2, n_heads=4, d_model=64, d_ff=256, n_vocab=512, n_ctx=128, rotary_dim=8) | changes
    return ModelConfig(**sizes)  # type: ignore[arg-type]


class Naive(ForwardPass):
    """Attention as plain products, which the counter knows."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v


@pytest.mark.parametrize("changes", [{}, {"n_layers": 5}, {"d_ff": 128}, {"n_vocab": 4096}, {"n_ctx": 32}])
def test_flops_are_those_that_torch_counts(changes: dict[str, int]) -> None:
    config = shape(**changes)
    model, tokens = GPTJ(config), torch.zeros((2, config.n_ctx), dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        positions = torch.arange(config.n_ctx)
        model.head(model.trunk(model.embed(tokens), positions, Naive())).sum().backward()
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
@pytest.mark.parametrize(
    ("checkpointing", "most"), [pytest.param(False, 1.15, marks=pytest.mark.slow), (True, 1.45)]
)
@pytest.mark.parametrize(
    "changes",
    [pytest.param({"n_layers": 6}, marks=pytest.mark.slow), {"d_model": 384, "d_ff": 1536, "n_vocab": 4096}],
)
def test_torchs_own_tracker_sees_no_more_and_little_less(
    changes: dict[str, int], checkpointing: bool, most: float
) -> None:
    """One of eight processes, the others faked, over two steps; recomputing leaves the two peaks apart."""
    config = shape(**({"d_model": 256, "d_ff": 1024, "n_ctx": 256} | changes))
    rows, n_gpus = 4, 8
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=n_gpus)
    try:
        seen = tracked_peak(config, rows, Processes(count=n_gpus), checkpointing)
    finally:
        dist.destroy_process_group()
    job = Job(config=config, gpu=GPUS["h100"], n_gpus=n_gpus, tokens=1e9, optimizer="adamw")
    assert seen <= sum(planner.memory(job, rows, checkpointing).values()) <= most * seen


def tracked_peak(config: ModelConfig, rows: int, processes: Processes, checkpointing: bool) -> float:
    compute = ComputeSettings(dtype="bfloat16", compile="nothing", checkpoint_blocks=checkpointing)
    objective = Objective(meta_model(config), compute)
    processes.distribute(objective, objective.blocks(), torch.bfloat16)
    optimizers = build_optimizers(objective.groups(), OptimizerSettings(name="adamw"), torch.bfloat16)
    tokens = torch.zeros((rows, config.n_ctx), dtype=torch.long)
    tracker = MemTracker()
    tracker.track_external(objective, *optimizers)
    with tracker:
        for _ in range(2):  # the first makes the optimizers' state
            torch.autograd.backward(objective(tokens, tokens))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
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


def test_divisors_of_a_large_batch_are_found_at_once() -> None:
    assert planner._divisors(36) == [1, 2, 3, 4, 6, 9, 12, 18, 36]
    assert len(planner._divisors(10**12)) == 13**2


def test_time_by_hand() -> None:
    """82,780 tokens/s on eight H100 at 40 %: 8 * 989e12 * 0.4 / 38.23e9."""
    plan = best_plan(replace(JOB, n_gpus=8, optimizer="adamw"))
    assert plan.tokens_per_day == pytest.approx(86_400 * 8 * 989e12 * 0.4 / 38.232139776e9)
    assert plan.mfu == pytest.approx(0.4)
    assert plan.days == pytest.approx(20 * 6_166_502_400 / plan.tokens_per_day)
    assert plan.dollars == pytest.approx(24 * plan.days * 8 * 3.0)


def test_the_network_counts_when_it_is_slower() -> None:
    plan = best_plan(replace(JOB, n_gpus=512))
    assert plan.network_seconds > plan.compute_seconds and plan.mfu < 0.4
    outer = 2 * 64512 * 4096 + 64512 + 2 * 4096
    moved = plan.micro_steps * (8 * (B6.n_parameters - outer) + 6 * outer) * 511 / 512
    assert plan.network_seconds == pytest.approx(moved / 50e9)
    assert plan.tokens_per_day == pytest.approx(86_400 * 2**22 / (moved / 50e9 + plan.optimizer_seconds))


@pytest.mark.filterwarnings("ignore")  # torch's own, of its fake processes
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_micro_step_gathers_blocks_twice_and_outer_weights_once(checkpointing: bool) -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    try:
        compute = ComputeSettings(dtype="bfloat16", compile="nothing", checkpoint_blocks=checkpointing)
        objective = Objective(meta_model(shape(n_layers=5)), compute)
        Processes(count=8).distribute(objective, objective.blocks(), torch.bfloat16)
        tokens = torch.zeros((2, 16), dtype=torch.long)
        with CommDebugMode() as calls:
            torch.autograd.backward(objective(tokens, tokens))
    finally:
        dist.destroy_process_group()
    found = {str(kind): times for kind, times in calls.get_comm_counts().items()}
    assert found == {"c10d._allgather_base_": 2 * 5 + 1, "c10d._reduce_scatter_base_": 5 + 1}


@pytest.mark.parametrize("size", [(48, 48), (96, 24), (24, 96)])
def test_newton_schulz_costs_what_torch_counts(size: tuple[int, int]) -> None:
    (group,) = Muon([torch.nn.Parameter(torch.ones(size))], OptimizerSettings(), torch.float32).param_groups
    with FlopCounterMode(display=False) as counter:
        orthogonalize(torch.ones((1, *size)), group)
    assert counter.get_total_flops() == planner.newton_schulz_flops(*size)


def test_muon_has_the_matrices_that_it_is_given() -> None:
    config = shape(n_layers=3)
    _, muon = build_optimizers(
        Objective(GPTJ(config), ComputeSettings(compile="nothing")).groups(),
        OptimizerSettings(),
        torch.float32,
    )
    given = [tuple(p.shape) for group in muon.param_groups for p in group["params"]]
    assert sorted(planner.muon_matrices(config)) == sorted(given)


def optimizer_seconds(n_gpus: int, optimizer: str = "muon") -> float:
    job = replace(JOB, n_gpus=n_gpus, optimizer=optimizer)
    return Plan(job=job, rows=1, checkpointing=False, memory={}).optimizer_seconds


def test_the_optimizer_by_hand() -> None:
    """112 matrices of E x E, 30 E^3 FLOPs each, and 56 of E x F, 90 E^3, F being 4 E; in rounds."""
    cube, speed = 4096**3, 989e12 * 0.4
    assert optimizer_seconds(1) == pytest.approx((112 * 30 + 56 * 90) * cube / speed)
    # On 8 GPUs 7 rounds of large and 14 of small ones: 4 bytes a parameter, the work without a gap.
    moved = 4 * (112 + 4 * 56) * 4096**2 / 8
    assert optimizer_seconds(8) == pytest.approx(
        moved * 7 / 8 / 450e9 + (14 * 30 + 7 * 90) * cube / speed, rel=1e-12
    )
    # On 64 GPUs 56 large ones with 8 small, then 64 and 40 small; on 512 all at once.
    moved = 4 * (4 + 1 + 1) * 4096**2
    assert optimizer_seconds(64) == pytest.approx(moved * 63 / 64 / 50e9 + (90 + 2 * 30) * cube / speed)
    assert optimizer_seconds(512) == pytest.approx(16 * 4096**2 * 511 / 512 / 50e9 + 90 * cube / speed)
    assert optimizer_seconds(512, "adamw") == 0


def test_an_average_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = planner.memory(JOB, 1, False)
    averaged = planner.memory(replace(JOB, averages=True), 1, False)
    assert averaged == plain | {"average": plain["weights"]}
    monkeypatch.setenv("LC_ALL", "C")
    assert "optimizer muon, an average of the weights." in planner.describe(replace(JOB, averages=True))


def test_the_optimizer_works_when_all_else_is_done() -> None:
    plan = best_plan(JOB)
    assert plan.step_seconds == max(plan.compute_seconds, plan.network_seconds) + optimizer_seconds(64)


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
    with pytest.raises(ConfigError, match=r"too few GPUs \(1\): .* needs 9\d\.\d GiB on each, 67.1 GiB"):
        best_plan(replace(JOB, n_gpus=1, optimizer="adamw"))


@pytest.mark.parametrize(
    ("change", "en", "ko"),
    [
        ({"n_gpus": 0}, "GPUs 0: must be above 0", "0보다 큰"),
        ({"tokens": 0}, "tokens 0: must be above 0", "0보다 큰"),
        ({"tokens": math.inf}, "tokens inf: must be above 0 and finite", "유한한 수"),
        ({"mfu": 1.2}, "MFU 1.2: must be above 0 and at most 1", "0보다 크고 1 이하"),
        ({"optimizer": "sgd"}, "optimizer sgd: must be adamw, muon", "adamw, muon"),
        ({"n_gpus": 4096}, "batch tokens 4194304: must be at least 8388608, a row per GPU", "8388608 이상"),
    ],
)
def test_impossible_jobs_are_refused(change: dict[str, object], en: str, ko: str) -> None:
    with pytest.raises(ConfigError) as refused:
        replace(JOB, **change)  # type: ignore[arg-type]
    assert en in refused.value.en and ko in refused.value.ko
    assert not any(english in refused.value.ko for english in ("must", "above", "least", " or "))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_impossible_figures_of_a_gpu_are_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="GPU network"):
        planner.gpu("h100", network=value)


def test_table_and_json_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    found = best_plans(JOB, (8, 64))
    text = planner.table(found)
    facts = [planner.to_json(plan) for plan in found]
    assert len({len(line) for line in text.splitlines()}) == 1
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["all memory, GiB", *(f"{fact['bytes'] / GIB:.1f}" for fact in facts)] in cells
    assert json.loads(json.dumps(facts)) == facts


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.000651, "0.000651"),
        (0.651, "0.651"),
        (17.34, "17.3"),
        (999.9, "1,000"),
        (12_345, "12,300"),
    ],
)
def test_figures_have_three_digits_and_no_power_of_ten(value: float, text: str) -> None:
    assert planner._figure(value) == text


def test_nothing_of_a_small_model_is_rounded_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line of the table is within 0.5 % of what it rounds."""
    monkeypatch.setenv("LC_ALL", "C")
    config = shape()
    job = Job(config=config, gpu=GPUS["h100"], n_gpus=1, tokens=20 * config.n_parameters, batch_tokens=2**17)
    found = best_plans(job, (1, 8))
    head, _, *lines = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in planner.table(found).splitlines()
    )
    assert head[1:] == ["1 GPU", "8 GPUs"]
    shown = {name: cells for name, *cells in lines}
    for column, plan in enumerate(found):
        exact = {f"{name}, GiB": size / GIB for name, size in plan.memory.items()}
        exact |= {
            "matrix products, s": plan.compute_seconds,
            "network, s": plan.network_seconds,
            "optimizer, s": plan.optimizer_seconds,
            "tokens a day, 10^9": plan.tokens_per_day / 1e9,
            "days": plan.days,
            "cost, dollars": plan.dollars,
        }
        for name, value in exact.items():
            assert float(shown[name][column].replace(",", "")) == pytest.approx(value, rel=0.005), name
    assert f" {planner._figure(job.tokens / 1e9)} x 10^9 tokens" in planner.describe(job)


def test_the_plan_is_told_in_korean_too(monkeypatch: pytest.MonkeyPatch) -> None:
    job = replace(JOB, averages=True)
    found = best_plans(job, (8, 64))
    monkeypatch.setenv("LC_ALL", "C")
    english = planner.describe(job) + planner.table(found)
    monkeypatch.setenv("LC_ALL", "ko_KR.UTF-8")
    text, table = planner.describe(job), planner.table(found)
    assert "매개변수 6,166,502,400개" in text and "가중치의 평균" in text
    words = set(re.findall("[A-Za-z]{3,}", text + table))
    assert words == {"GFLOP", "TFLOP", "GPU", "GiB", "MFU", "muon"}
    assert len({columns(line) for line in table.splitlines()}) == 1
    assert "| 작업용 가중치, GiB" in table
    assert not re.search("[가-힣]", english)
