"""The loop: what it computes, what it says, and that stopping anywhere and resuming changes no bit."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kogpt.errors import CheckpointError, DiskError
from kogpt.model import ForwardPass
from kogpt.training import checkpoints
from kogpt.training.loop import Batch, Batches, End, Run, TrainingStopped
from kogpt.training.loss import IGNORED
from kogpt.training.objective import ComputeSettings, Objective
from kogpt.training.optimizers import OptimizerSettings, ParameterGroup
from kogpt.training.processes import Processes
from kogpt.training.report import Report, Work, flops_per_token, plot, read_metrics
from kogpt.training.schedule import Schedule
from kogpt.training.verdict import Best, Verdict, judge

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import toy  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The children train on one thread; another number of them sums in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    assert in_process(folder) is End.DONE
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def everything(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `unbroken`, with everything that a recipe can switch on."""
    folder = tmp_path_factory.mktemp("everything")
    settings, batches = toy.everything(text)
    assert in_process(folder, batches, **settings) is End.DONE
    return folder


def in_process(folder: Path, batches: Batches = toy.batch, **settings: Any) -> End:
    run = toy.make_run(folder, **settings)
    run.resume()
    return run.train(batches)


def child(folder: Path, steps: int, moment: str = "", **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", str(HERE / "toy.py"), str(folder), str(steps), *moment.split()]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), **environment}
    return subprocess.Popen(command, env=settings, stderr=subprocess.PIPE, text=True)


class Operations(TorchDispatchMode):
    """Names of what torch is asked for, in order."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_a_step_waits_for_its_device_only_once_and_late(tmp_path: Path) -> None:
    """Loss and norm are read one after the other when all up to the clipping is queued."""
    run = toy.make_run(tmp_path)
    with Operations() as seen:
        run.update(toy.batch(0))
        run._agree(time.monotonic())
    reads = [n for n, name in enumerate(seen.names) if name.startswith("aten._local_scalar_dense")]
    assert len(reads) == 2 and reads[1] == reads[0] + 1
    assert seen.names.index("aten._foreach_mul_.Tensor") < reads[0]  # by the factor of the clipping


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_a_gpu_trains_as_the_cpu(tmp_path: Path) -> None:
    """Batches in pinned memory, and steps that are queued before the one before has ended."""
    compute = ComputeSettings(dtype="float32", compile="nothing")
    found = []
    for device in ("cpu", "cuda:0"):
        run = toy.make_run(tmp_path / device, Processes(torch.device(device)), compute=compute)
        run.resume()
        assert run.train(toy.batch) is End.DONE
        found.append(logged(tmp_path / device, "loss"))
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def checkpoint_of_one_step(folder: Path) -> Run:
    run = toy.make_run(folder)
    run.resume()
    run.update(toy.batch(0))
    run.save()
    run.checkpoints.finish()
    return run


def logged(folder: Path, name: str) -> dict[int, float]:
    return {line["step"]: line[name] for line in read_metrics(folder / "metrics.jsonl") if name in line}


def losses(folder: Path) -> list[tuple[int, float]]:
    return list(logged(folder, "loss").items())


def assert_same_run(folder: Path, other: Path) -> None:
    mine, theirs = toy.weights(folder), toy.weights(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert losses(folder) == losses(other)
    counts = {checkpoints.verify(path).averaged for path in map(checkpoints.latest, (folder, other)) if path}
    assert len(counts) == 1
    if counts != {0}:
        mine, theirs = toy.weights(folder, "average"), toy.weights(other, "average")
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_training_lowers_the_loss_and_moves_every_weight(unbroken: Path) -> None:
    start = toy.make_run(unbroken).objective.state_dict()
    end = toy.weights(unbroken)
    assert all(not torch.equal(start[name], end[name]) for name in start)
    steps = losses(unbroken)
    assert [step for step, _ in steps] == list(range(1, toy.STEPS + 1))
    assert steps[-1][1] < steps[0][1]


def test_passes_add_up_to_the_whole_batch(unbroken: Path, tmp_path: Path) -> None:
    assert in_process(tmp_path, tokens_per_pass=10**6) is End.DONE
    whole, in_parts = dict(losses(tmp_path)), dict(losses(unbroken))
    assert whole == pytest.approx(in_parts, rel=2e-3)  # bfloat16: the order of sums differs


def test_ignored_targets_do_not_dilute_the_mean(tmp_path: Path) -> None:
    batch = toy.batch(0)
    targets = batch.targets.copy()
    targets[4:] = IGNORED
    half = Batch(batch.inputs[:4], batch.targets[:4], batch.origins[:4])
    first = toy.make_run(tmp_path).update(replace(batch, targets=targets))
    second = toy.make_run(tmp_path).update(half)
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-4)
    assert first["gradient_norm"] == pytest.approx(second["gradient_norm"], rel=1e-2)


def interrupt(run: Run, step: int) -> None:
    """Let SIGTERM come within this step."""
    update = run.update

    def interrupted(batch: Batch) -> dict[str, Any]:
        if run.step == step:
            signal.raise_signal(signal.SIGTERM)
        return update(batch)

    run.update = interrupted  # type: ignore[method-assign]


def test_a_signal_finishes_the_step_saves_and_the_resumed_run_is_the_unbroken_one(
    unbroken: Path, tmp_path: Path
) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    run = toy.make_run(tmp_path)
    run.resume()
    interrupt(run, 2)
    assert run.train(toy.batch) is End.STOPPED
    assert run.step == 3 and signal.getsignal(signal.SIGTERM) is handler
    newest = checkpoints.latest(tmp_path)
    assert newest is not None and newest.name == "step_00000003"
    torch.manual_seed(99)  # a resumed process starts with another state
    assert in_process(tmp_path) is End.DONE
    assert_same_run(tmp_path, unbroken)


def test_a_run_in_float32_resumes_bit_for_bit(unbroken: Path, tmp_path: Path) -> None:
    compute = ComputeSettings(dtype="float32", compile="nothing")
    assert in_process(tmp_path / "whole", compute=compute) is End.DONE
    run = toy.make_run(tmp_path / "broken", compute=compute)
    run.resume()
    for step in range(2):
        run.update(toy.batch(step))
    run.save()
    run.checkpoints.finish()
    assert in_process(tmp_path / "broken", compute=compute) is End.DONE
    mine, whole, other = map(toy.weights, (tmp_path / "broken", tmp_path / "whole", unbroken))
    assert all(torch.equal(mine[name], whole[name]) for name in mine)
    assert not all(torch.equal(mine[name], other[name]) for name in mine)  # bfloat16's


@pytest.mark.parametrize(
    ("moment", "survivor", "whole"),
    [("shard", 2, "unbroken"), ("rename", 2, "unbroken"), ("update", 4, "everything")],
)
def test_a_kill_at_any_moment_leaves_the_last_whole_checkpoint(
    moment: str, survivor: int, whole: str, text: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    expected: Path = request.getfixturevalue(whole)
    settings, batches = toy.everything(text) if whole == "everything" else ({}, toy.batch)
    process = child(tmp_path, 5, moment, **({"TOY_TEXT": str(text)} if settings else {}))
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    newest = checkpoints.latest(tmp_path)
    assert newest is not None and newest.name == f"step_{survivor:08d}"
    assert in_process(tmp_path, batches, **settings) is End.DONE
    assert not list(tmp_path.glob("*.partial"))
    assert_same_run(tmp_path, expected)


def test_a_full_disk_is_one_clear_line_and_harms_no_older_checkpoint(tmp_path: Path) -> None:
    run = checkpoint_of_one_step(tmp_path)
    run.update(toy.batch(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # bytes a file may have
    try:
        run.save()
        with pytest.raises(DiskError, match=r"cannot write .*GB free\): make room"):
            run.checkpoints.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.glob("step_*")] == ["step_00000001"]
    again = toy.make_run(tmp_path)
    assert again.resume() and again.step == 1


def test_torchs_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    run = toy.make_run(tmp_path)
    run.resume()
    run.update(toy.batch(0))
    torch.manual_seed(5)  # not where a new run starts
    run.save()
    run.checkpoints.finish()
    expected = torch.rand(3)
    again = toy.make_run(tmp_path)
    again.resume()
    assert torch.equal(torch.rand(3), expected)


def test_a_damaged_checkpoint_is_named(unbroken: Path, tmp_path: Path) -> None:
    checkpoint_of_one_step(tmp_path)
    folder = tmp_path / "step_00000001"
    whole = {name: (folder / name).read_bytes() for name in ("__0_0.distcp", ".metadata", "run.json")}
    flipped = bytearray(whole["__0_0.distcp"])
    flipped[len(flipped) // 2] ^= 1
    damages = [
        ("__0_0.distcp", b"torn"),
        ("__0_0.distcp", bytes(flipped)),
        (".metadata", whole[".metadata"][:-9]),
    ]
    damages += [("run.json", text) for text in (b"{}", b"[]", b"{", b'{"step": 1, "sha256": {}}')]
    for name, data in damages:
        (folder / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=r"step_00000001 is damaged .*: remove it") as caught:
            toy.make_run(tmp_path).resume()
        assert "\n" not in caught.value.en
        (folder / name).write_bytes(whole[name])
    assert toy.make_run(tmp_path).resume()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", 2),
        ("tokens", 9),
        ("seconds", 1.5),
        ("identity", {"optimizer": "muon", "n_layer": 3}),
        ("best", {"step": 1, "metrics": {}, "misses": 0}),
        ("enough", True),
        ("averaged", 3),
        ("digest", "0" * 64),
    ],
)
def test_an_edited_fact_of_a_checkpoint_is_found(name: str, value: object, tmp_path: Path) -> None:
    checkpoint_of_one_step(tmp_path)
    path = tmp_path / "step_00000001" / "run.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    assert {field.name for field in fields(checkpoints.CheckpointInfo)} | {"sha256", "digest"} == set(
        document
    )
    assert document[name] != value
    path.write_text(json.dumps({**document, name: value}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"step_00000001 is damaged \(run.json was changed.*remove it"):
        toy.make_run(tmp_path).resume()


def test_a_renamed_checkpoint_is_found(tmp_path: Path) -> None:
    checkpoint_of_one_step(tmp_path)
    (tmp_path / "step_00000001").rename(tmp_path / "step_00000003")
    with pytest.raises(CheckpointError, match=r"step_00000003 is damaged \(it is the checkpoint of step 1\)"):
        toy.make_run(tmp_path).resume()


def test_a_checkpoint_of_another_model_or_optimizer_is_not_resumed_and_not_called_damaged(
    tmp_path: Path,
) -> None:
    checkpoint_of_one_step(tmp_path)
    with pytest.raises(
        CheckpointError, match="trained with optimizer = 'muon', not 'adamw': give the recipe"
    ):
        toy.make_run(tmp_path, optimizer=OptimizerSettings(name="adamw")).resume()
    other = toy.make_run(tmp_path)
    other.identity["n_layer"] = 3
    with pytest.raises(CheckpointError, match="with n_layer = None, not 3"):
        other.resume()


def test_a_resumed_run_takes_the_rates_of_its_recipe(tmp_path: Path) -> None:
    checkpoint_of_one_step(tmp_path)
    still = toy.make_run(tmp_path, optimizer=OptimizerSettings(adamw_rate=0.0, muon_rate=0.0))
    assert still.resume()
    before = {name: value.clone() for name, value in still.objective.state_dict().items()}
    still.update(toy.batch(1))
    after = still.objective.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_metrics_that_cannot_be_written_are_one_clear_line(tmp_path: Path) -> None:
    run = toy.make_run(tmp_path)
    run.resume()
    run.report.path = Path("/dev/full")
    with pytest.raises(DiskError, match=r"cannot write /dev/full \(No space.*GB free\): make room"):
        run.report.write({"step": 1})


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_batch(tmp_path: Path) -> None:
    run = toy.make_run(tmp_path)
    with torch.no_grad():
        run.objective.get_parameter("model.transformer.ln_f.weight")[0] = float("inf")
    before = {name: value.clone() for name, value in run.objective.state_dict().items()}
    with pytest.raises(TrainingStopped, match=r"step 0: loss (nan|inf).*noise 0:0, noise 0:1"):
        run.update(toy.batch(0))
    after = run.objective.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert run.step == 0


def test_a_checkpoint_is_of_its_step_although_training_goes_on(tmp_path: Path) -> None:
    run = toy.make_run(tmp_path)
    run.resume()
    run.update(toy.batch(0))
    then = {name: value.clone() for name, value in run.objective.state_dict().items()}
    run.save()
    run.update(toy.batch(1))  # may change weights in place while they are written
    run.checkpoints.finish()
    saved = toy.weights(tmp_path)
    assert all(torch.equal(saved[name], then[name]) for name in then)
    assert not torch.equal(then["model.lm_head.bias"], run.objective.state_dict()["model.lm_head.bias"])


def test_old_checkpoints_make_room(unbroken: Path) -> None:
    assert sorted(path.name for path in unbroken.glob("step_*")) == ["step_00000004", "step_00000006"]


def test_metrics_after_the_checkpoint_are_forgotten_on_resume(tmp_path: Path) -> None:
    assert in_process(tmp_path) is End.DONE
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 9, "loss": 1.0}) + "\n" + '{"step": 10, "lo')  # a crash cut it off
    toy.make_run(tmp_path).resume()
    assert [step for step, _ in losses(tmp_path)] == list(range(1, toy.STEPS + 1))


def test_a_line_of_the_metrics_that_is_no_json_is_named(tmp_path: Path) -> None:
    checkpoint_of_one_step(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("rubbish\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl has a line that is not JSON"):
        toy.make_run(tmp_path).resume()


def test_a_run_of_a_cpu_goes_on_where_there_is_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint_of_one_step(tmp_path)
    changed: list[Tensor] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: torch.zeros(16, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", changed.append)
    assert toy.make_run(tmp_path).resume() and not changed


def test_two_processes_train_the_same_model_and_resume_bit_for_bit(
    everything: Path, text: Path, tmp_path: Path
) -> None:
    def pair(name: str, steps: int, moment: str = "", status: int = 0) -> Path:
        port = 20_000 + os.getpid() % 20_000
        world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        world |= {"TOY_TEXT": str(text)}
        processes = [child(tmp_path / name, steps, moment, RANK=str(rank), **world) for rank in range(2)]
        for process in processes:
            _, message = process.communicate()
            assert process.returncode == status, message
        return tmp_path / name

    whole = pair("whole", 99)
    broken = pair("broken", 5, "update", -signal.SIGKILL)
    stopped = checkpoints.latest(broken)
    assert stopped is not None and stopped.name == "step_00000004"
    assert_same_run(pair("broken", 99), whole)
    apart = checkpoints.latest(pair("apart", 3, "apart"))
    assert apart is not None and apart.name == "step_00000004"
    for name in ("loss", "gradient_norm"):  # Muon and AdamW would not notice a gradient of half the length
        assert logged(whole, name) == pytest.approx(logged(everything, name), rel=1e-2)
    for part in ("module", "average"):
        alone = toy.weights(everything, part)
        for name, value in toy.weights(whole, part).items():
            torch.testing.assert_close(value, alone[name], atol=0.02, rtol=0.1)


def test_validation_runs_when_due_and_at_the_end(tmp_path: Path) -> None:
    asked: list[int] = []

    def validate(step: int, best: Best | None) -> Verdict:
        assert best is None
        asked.append(step)
        return Verdict({"bits_per_byte": {"noise": 5.0}})

    live = io.StringIO()
    report = Report(tmp_path, live, work=Work(lambda length: length, peak=1e9))
    run = toy.make_run(tmp_path, validate_every=4, report=report)
    run.resume()
    run.train(toy.batch, validate)
    assert asked == [4, 6]
    shown = live.getvalue()
    assert "step 6/6  loss 4." in shown and "tokens/s  MFU 0%  0:00:00 left" in shown
    used = logged(tmp_path, "mfu")
    speed = logged(tmp_path, "tokens_per_second")
    assert used == pytest.approx({step: 16 * rate / 1e9 for step, rate in speed.items()})
    plot(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_live_line_needs_no_figure_of_the_machine(tmp_path: Path) -> None:
    live = io.StringIO()
    assert in_process(tmp_path, report=Report(tmp_path, live)) is End.DONE
    assert "tokens/s  0:00:00 left" in live.getvalue() and "MFU" not in live.getvalue()
    assert logged(tmp_path, "mfu") == {}


def test_a_live_line_is_in_the_language_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = io.StringIO()
    monkeypatch.setenv("LC_ALL", "ko_KR.UTF-8")
    line = {"step": 5, "loss": 4.25, "tokens_per_second": 1234.5, "seconds_per_step": 2.0}
    Report(tmp_path, live).show(line, 10)
    assert live.getvalue() == "스텝 5/10  손실 4.250  초당 1,234토큰  0:00:10 남음\n"


# Of each step; the best is the second, and three misses follow it.
SCORES = [1.0, 3.0, 2.0, 3.0, float("nan"), 9.0]


def judged(step: int, best: Best | None) -> Verdict:
    return judge({"score": SCORES[step - 1]}, "score", best, patience=3)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step_*"))


def test_validation_that_has_enough_ends_the_run_and_the_best_checkpoint_stays(tmp_path: Path) -> None:
    run = toy.make_run(tmp_path, validate_every=1, save_every=100, keep=1)
    run.resume()
    assert run.train(toy.batch, judged) is End.ENOUGH
    assert run.step == 5 and names(tmp_path) == ["step_00000002", "step_00000005"]
    assert checkpoints.best(tmp_path) == tmp_path / "step_00000002"
    assert checkpoints.verify(tmp_path / "step_00000002").best == Best(2, {"score": 3.0})
    again = toy.make_run(tmp_path, validate_every=1, keep=1)
    assert again.resume() and again.best == Best(2, {"score": 3.0}, misses=3)
    assert again.train(lambda step: pytest.fail("it had enough"), judged) is End.ENOUGH


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_resumed_run_remembers_the_best_and_how_long_ago_it_was(stop: int, tmp_path: Path) -> None:
    def sitting(name: str, until: int | None = None) -> End:
        run = toy.make_run(tmp_path / name, validate_every=1, save_every=100, keep=1)
        run.resume()
        if until is not None:
            interrupt(run, until)
        return run.train(toy.batch, judged)

    assert sitting("whole") is End.ENOUGH
    first = sitting("broken", until=stop)
    assert first is (End.ENOUGH if stop == 4 else End.STOPPED)
    assert sitting("broken") is End.ENOUGH
    assert_same_run(tmp_path / "broken", tmp_path / "whole")
    assert names(tmp_path / "broken") == names(tmp_path / "whole")


def test_the_newest_checkpoint_is_the_best_where_nothing_was_judged(unbroken: Path, tmp_path: Path) -> None:
    assert checkpoints.best(unbroken) == unbroken / "step_00000006"
    assert checkpoints.best(tmp_path) is None


def test_lower_may_be_better_and_nan_never_is() -> None:
    best = Best(7, {"loss": 2.0}, misses=1)
    assert judge({"loss": 1.9}, "loss", best, 2, lower_is_better=True) == Verdict({"loss": 1.9}, True, False)
    assert judge({"loss": 2.0}, "loss", best, 2, lower_is_better=True) == Verdict({"loss": 2.0}, False, True)
    nothing = judge({"loss": float("nan")}, "loss", None)
    assert not nothing.better and not nothing.enough


class Dropped(Objective):
    """With dropout on the embeddings; notes the mode that each pass was made in."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.dropout = torch.nn.Dropout(0.5)
        self.modes: list[bool] = []

    def embedded(self, inputs: Tensor) -> Tensor:
        self.modes.append(self.training)
        x: Tensor = self.dropout(super().embedded(inputs))
        return x


def test_dropout_is_off_in_validation_and_a_resumed_run_drops_alike(tmp_path: Path) -> None:
    def train(name: str, batches: Callable[[int], Batch]) -> Run:
        run = toy.make_run(tmp_path / name, validate_every=2, tokens_per_pass=10**6, objective=Dropped)
        run.resume()
        run.objective.eval()  # whoever had it before

        def validate(step: int, best: Best | None) -> Verdict:
            assert not torch.is_grad_enabled()
            losses = [
                float(run.objective(torch.from_numpy(b.inputs), torch.from_numpy(b.targets)))
                for b in (toy.batch(0), toy.batch(0))
            ]
            return Verdict({"same": float(losses[0] == losses[1])})

        run.train(batches, validate)
        return run

    def interrupted(step: int) -> Batch:
        if step == 2:
            signal.raise_signal(signal.SIGTERM)
        return toy.batch(step)

    whole = train("whole", toy.batch)
    assert logged(tmp_path / "whole", "same") == {2: 1.0, 4: 1.0, 6: 1.0}
    assert whole.objective.modes == [True, True, False, False] * 3
    train("broken", interrupted)
    train("broken", toy.batch)
    assert_same_run(tmp_path / "broken", tmp_path / "whole")


class Noted(Objective):
    """Notes the shape of each pass."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        assert inputs.shape == targets.shape
        self.shapes.append(tuple(inputs.shape))
        return super().forward(inputs, targets)


def unequal(lengths: list[int]) -> Batch:
    """Rows whose last scored target is at `lengths`; every other target is ignored, and all after it."""
    whole = toy.batch(0)
    targets = whole.targets.copy()
    for row, length in enumerate(lengths):
        targets[row, length:] = IGNORED
        if length > 1:
            targets[row, length - 2 :: -2] = IGNORED
    return replace(whole, targets=targets)


def test_each_pass_is_as_wide_as_its_longest_row_and_the_whole_is_the_same(tmp_path: Path) -> None:
    batch = unequal([3, 16, 0, 4, 16, 9, 3, 1])
    compute = ComputeSettings(dtype="float32", compile="nothing")
    settings: dict[str, Any] = {"compute": compute, "objective": Noted}
    whole = toy.make_run(tmp_path, tokens_per_pass=10**6, **settings)
    cut = toy.make_run(tmp_path, tokens_per_pass=32, **settings)
    expected, found = whole.update(batch), cut.update(batch)
    assert whole.objective.shapes == [(8, 16)]
    assert cut.objective.shapes == [(2, 16), (3, 9), (3, 3)]
    for name in ("loss", "gradient_norm"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4)
    assert cut.tokens == 3 + 16 + 4 + 16 + 9 + 3 + 1
    n_targets = sum(-(-length // 2) for length in (3, 16, 4, 16, 9, 3, 1))
    assert found["targets_per_second"] / found["tokens_per_second"] == pytest.approx(n_targets / cut.tokens)
    again = toy.make_run(tmp_path, tokens_per_pass=32, **settings)
    assert again.update(batch)["loss"] == found["loss"]


class Graded(Objective):
    """Regression from the last hidden state of each row: the mean of its features, squared errors."""

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        scored = ~targets.isnan()
        return (hidden.mean(-1)[scored] - targets[scored]).square().sum()

    def groups(self) -> list[ParameterGroup]:
        return [ParameterGroup("trunk", list(self.model.transformer.parameters()), "adamw")]


def test_targets_may_be_numbers(tmp_path: Path) -> None:
    grades = np.full((8, 16), np.nan, dtype=np.float32)
    lengths = [3, 16, 5, 4, 16, 9, 3, 1]
    for row, length in enumerate(lengths):
        grades[row, length - 1] = row
    batch = replace(toy.batch(0), targets=grades)
    with pytest.raises(AssertionError, match="every trainable parameter"):
        toy.make_run(tmp_path, objective=Graded)  # the head is in no group

    class Frozen(Graded):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.model.lm_head.requires_grad_(False)

    compute = ComputeSettings(dtype="float32", compile="nothing")
    run = toy.make_run(tmp_path, objective=Frozen, compute=compute)
    assert isinstance(run.objective, Objective)
    with torch.no_grad():
        ids = torch.from_numpy(batch.inputs)
        hidden = run.objective.hidden(run.objective.embedded(ids), ForwardPass())
        last = torch.stack([hidden[row, length - 1].mean() for row, length in enumerate(lengths)])
        expected = (last - torch.arange(8.0)).square().mean()
    head = run.objective.model.lm_head.weight.clone()
    assert run.update(batch)["loss"] == pytest.approx(float(expected), rel=1e-4)
    assert run.tokens == sum(lengths)
    assert torch.equal(run.objective.model.lm_head.weight, head)


class Prompted(Objective):
    """P-tuning at its simplest: vectors before the text learn, the model does not."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.requires_grad_(False)
        self.prompt = torch.nn.Parameter(torch.ones(5, toy.SHAPE.d_model))

    def embedded(self, inputs: Tensor) -> Tensor:
        return torch.cat((self.prompt.expand(len(inputs), -1, -1), super().embedded(inputs)), dim=1)


def test_a_soft_prompt_learns_and_nothing_else_does(tmp_path: Path) -> None:
    compute = ComputeSettings(dtype="float32", compile="nothing")
    run = toy.make_run(tmp_path, objective=Prompted, compute=compute)
    assert run.resume() is False
    model, batch = run.objective.model, toy.batch(0)
    before = {name: value.clone() for name, value in run.objective.state_dict().items()}
    ids = torch.from_numpy(batch.inputs)
    with torch.no_grad():
        prompt = run.objective.get_parameter("prompt").clone()
        x = torch.cat((prompt.expand(8, -1, -1), model.embed(ids)), dim=1)
        logits = model.head(model.trunk(x, torch.arange(21)))[:, 5:]
        targets = torch.from_numpy(batch.targets)
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert run.update(batch)["loss"] == pytest.approx(float(expected), rel=1e-4)
    run.save()
    run.checkpoints.finish()
    after = run.objective.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"prompt"}
    again = toy.make_run(tmp_path, objective=Prompted, compute=compute)
    assert again.resume() and torch.equal(again.objective.get_parameter("prompt"), after["prompt"])


def test_tensorboard_has_every_number_of_the_metrics(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def sitting(steps: int) -> None:
        run = toy.make_run(
            tmp_path,
            validate_every=3,
            save_every=1,
            schedule=Schedule(steps=steps, warmup_steps=2),
            report=Report(tmp_path, tensorboard=True),
        )
        run.resume()
        run.train(toy.batch, lambda step, best: Verdict({"bits_per_byte": {"noise": 5.0 + step}}))

    sitting(3)
    shutil.rmtree(tmp_path / "step_00000003")  # so that the next sitting repeats step 3
    sitting(5)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in (
        "loss",
        "gradient_norm",
        "rate",
        "tokens_per_second",
        "targets_per_second",
        "seconds_per_step",
    ):
        found = {event.step: event.value for event in events.Scalars(name)}
        assert found == pytest.approx(logged(tmp_path, name)) and list(found) == [1, 2, 3, 4, 5], name
    bits = [(event.step, event.value) for event in events.Scalars("bits_per_byte/noise")]
    assert bits == [(3, 8.0), (5, 10.0)]


def test_operations_per_token_are_those_of_the_matrix_products() -> None:
    shape = toy.SHAPE
    products = [s for n, s in shape.tensor_shapes().items() if len(s) == 2 and "wte" not in n]
    length = 16
    attention = sum(2 * 2 * position * shape.d_model for position in range(1, length + 1)) / length
    forward = 2 * sum(np.prod(s) for s in products) + shape.n_layers * attention
    assert flops_per_token(shape, length) == pytest.approx(3 * forward, rel=0.01)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_a_run_on_a_gpu_is_resumed_there(tmp_path: Path) -> None:
    on_gpu = Processes(torch.device("cuda"))
    whole = toy.make_run(tmp_path / "whole", on_gpu)
    whole.resume()
    assert whole.train(toy.batch) is End.DONE
    halves = toy.make_run(tmp_path / "halves", on_gpu)
    halves.resume()
    for step in range(4):
        halves.update(toy.batch(step))
    halves.save()
    halves.checkpoints.finish()
    rest = toy.make_run(tmp_path / "halves", on_gpu)
    assert rest.resume() and rest.step == 4
    assert rest.train(toy.batch) is End.DONE
    for expected, found in zip(whole.objective.parameters(), rest.objective.parameters(), strict=True):
        assert found.is_cuda
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
