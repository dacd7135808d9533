"""The planner against real objectives: weights, what learns, what a pass keeps; the table of the pages."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kogpt.cli import main
from kogpt.config import SHAPES, ModelConfig
from kogpt.errors import NotEnoughMemory
from kogpt.training.objective import ComputeSettings
from kogpt.training.processes import Processes
from kogpt.training.start import meta_model
from kogpt.tuning import estimate, plan, run
from kogpt.tuning.data import Files, Wording, read_data
from kogpt.tuning.frozen import freeze
from kogpt.tuning.methods import TuningObjective, n_trained
from kogpt.tuning.plan import Work, command, first_fit, peak
from kogpt.tuning.run import TuningSettings

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "runs"))
import measure_memory  # noqa: E402
import tuning_memory  # noqa: E402

SMALL = ModelConfig(n_layers=3, n_heads=4, d_model=128, d_ff=480, n_vocab=640, n_ctx=256, rotary_dim=8)
WAYS = [
    Work(method="full", rows=4, width=96),
    Work(method="full", rows=4, width=96, checkpointing=True),
    Work(method="lora", rows=4, width=96),
    Work(method="lora", rows=4, width=96, base_dtype="int4", rank=4, targets=("q_proj", "fc_out")),
    Work(method="lora", rows=4, width=96, base_dtype="bfloat16", dtype="bfloat16"),
    Work(method="p-tuning", rows=4, width=96, base_dtype="int8", encoder="lstm"),
    Work(method="p-tuning", rows=4, width=96, encoder="none"),
    Work(method="prefix", rows=4, width=96, virtual_tokens=30),
]


def objective(work: Work, config: ModelConfig = SMALL) -> TuningObjective:
    """What `kogpt tune` would build, with weights of zeros and ones."""
    settings = TuningSettings(
        method=work.method,
        rank=work.rank,
        targets=work.targets,
        virtual_tokens=work.virtual_tokens,
        encoder=work.encoder,
    )
    model = meta_model(config)
    if work.method != "full":
        freeze(model, work.base_dtype)
    compute = ComputeSettings(dtype=work.dtype, compile="nothing", checkpoint_blocks=work.checkpointing)
    made = run._objective(model, settings, compute)
    Processes().distribute(made, made.blocks())
    with torch.no_grad():
        for tensor in (*made.model.parameters(), *made.model.buffers()):
            tensor.fill_(1)
    return made


def held_bytes(made: TuningObjective) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in (*made.parameters(), *made.buffers()))


@pytest.mark.parametrize("work", WAYS)
def test_weights_are_counted(work: Work) -> None:
    made = objective(work)
    assert plan.n_trained(SMALL, work) == n_trained(made)
    assert plan.weight_bytes(SMALL, work) == pytest.approx(held_bytes(made), rel=0.02)  # scales of int8


@pytest.mark.parametrize("work", WAYS)
def test_what_a_pass_keeps_is_counted(work: Work) -> None:
    """Against the tensors that torch keeps, each storage once; weights apart."""
    made = objective(work)
    known = {tensor.untyped_storage().data_ptr() for tensor in (*made.parameters(), *made.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)
        return tensor

    held: list[torch.Tensor] = []  # so that no address is used twice
    ids = torch.randint(2, 600, (work.rows, work.width))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = made.hidden(made.embedded(ids), made.forward_pass(ids))
    found, planned = sum(kept.values()), plan.kept_bytes(SMALL, work)
    if work.method == "full" and work.dtype == "bfloat16":
        planned += 2 * SMALL.n_parameters
    assert hidden.requires_grad
    assert planned == pytest.approx(found, rel=0.1), (planned, found)


@pytest.mark.parametrize("name", ("lora, short, checkpointing", "two passes"))
def test_the_peak_of_real_steps_is_planned(name: str) -> None:
    """Two of the cases of tests/tuning/measure_memory.py, of the shape of kogpt-mini."""
    before, most = measure_memory.measured(name)
    assert before + measure_memory.planned(name) == pytest.approx(most, rel=0.1)


def test_checkpointing_never_takes_more() -> None:
    for device in ("cpu", "cuda"):
        for work in WAYS:
            again = replace(work, checkpointing=True)
            assert peak(SMALL, again, device) <= peak(SMALL, replace(work, checkpointing=False), device)


def test_the_pages_have_the_table_of_the_planner() -> None:
    for locale, page in tuning_memory.PAGES.items():
        found = tuning_memory.TABLE.search(page.read_text(encoding="utf-8"))
        assert found is not None and found.group() == tuning_memory.table(locale), (
            "runs/tuning_memory.py --docs"
        )


def test_less_room_asks_for_narrower_bases_then_for_blocks_twice() -> None:
    work = Work(method="lora", rows=8, width=512, dtype="bfloat16")
    found = [first_fit(SHAPES["kogpt-6b"], work, room) for room in (40e9, 27e9, 12e9, 10e9, 1e9)]
    assert [way and (way.base_dtype, way.checkpointing) for way in found] == [
        ("bfloat16", False),
        ("int8", False),
        ("int8", True),
        ("int4", True),
        None,
    ]
    assert found[2] is not None
    assert peak(SHAPES["kogpt-6b"], found[2]) < 12e9
    assert command(found[2], "x").endswith("--base-dtype int8 --checkpoint-blocks")


def test_the_options_that_fit_keep_the_batch_that_was_asked_for() -> None:
    work = Work(method="lora", rows=13, width=300, n_passes=3, batch=32)
    assert plan.options(work)[:2] == ["--batch", "32"]
    pairs = Work(method="embed", rows=64, width=256, batch=32)
    assert plan.options(pairs) == ["--batch", "32", "--length", "256", "--base-dtype", "float32"]


def test_a_quantised_model_is_not_to_be_rounded_again() -> None:
    work = Work(method="lora", rows=8, width=512, quantization="int8")
    assert {way.base_dtype for way in plan.ways(work)} == {"bfloat16", "int8"}


def test_embed_is_planned_for_the_longer_text_of_a_pair(tmp_path: Path, tiny_folder: Path) -> None:
    rows = [{"text1": f"글 {n}", "text2": f"{n}번째 글은 훨씬 깁니다. " * 4} for n in range(20)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    data = read_data(Files(train=path), Wording(), pairs=True)
    job = run.prepare(TuningSettings(method="embed", batch=4), str(tiny_folder), data, None)
    work = run.work_of(job, Processes())
    longest = max(len(job.tokenizer.encode_prompt(pair[1])) for e in data.train if (pair := e.pair))
    assert (work.width, work.rows, work.batch) == (longest, 8, 4)
    assert run._remedies(work)[0].startswith("a smaller --batch")


def test_a_dry_run_and_a_run_agree_on_what_fits(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"글 {n}"}) + "\n" for n in range(20)), encoding="utf-8")
    job = run.prepare(
        TuningSettings(method="lora", batch=4),
        str(tiny_folder),
        read_data(Files(train=path), Wording()),
        None,
    )
    need = peak(job.stored.config, run.work_of(job, Processes()), "cpu")
    for spare in (1, -1):
        for module in (run, estimate):
            monkeypatch.setattr(module, "free_memory", lambda _, spare=spare: int(need) + spare)
        assert estimate.estimate(job, Processes())["fits"] == (spare > 0)
        with nullcontext() if spare > 0 else pytest.raises(NotEnoughMemory):
            run._require_room(job, Processes())


def test_info_tells_what_tuning_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "kogpt-6b", "--tune", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["tune"]
    assert set(found) == {"full", "lora", "p-tuning", "prefix"}
    assert found["full"]["float32"] > 16 * 6.1e9 and found["lora"]["int4"] < found["lora"]["int8"] < 25e9
    assert main(["info", "kogpt-6b", "--tune"]) == 0
    assert "p-tuning" in capsys.readouterr().out
