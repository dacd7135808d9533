"""Recipes, and a whole small run: text -> tokenizer -> shards -> model folder."""

from __future__ import annotations

import hashlib
import math
import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kogpt import checkpoint
from kogpt.config import ModelConfig
from kogpt.errors import CheckpointError, ConfigError, InputError, KoGPTError, NotEnoughMemory
from kogpt.files import lock_folder
from kogpt.model import GPTJ
from kogpt.pretraining import shards, toy
from kogpt.pretraining.mixture import Mixture
from kogpt.pretraining.recipe import Recipe, read_recipe
from kogpt.pretraining.run import export, model_config, pretrain, read_documents
from kogpt.pretraining.tokenizer_training import save_tokenizer, train_tokenizer
from kogpt.tokenizer import Tokenizer
from kogpt.training import checkpoints
from kogpt.training.loop import Batch, End
from kogpt.training.objective import ComputeSettings, Objective
from kogpt.training.processes import Processes
from kogpt.training.report import read_metrics
from kogpt.training.start import initial_model
from kogpt.training.validation import Document, bits_per_byte

RECIPE = """
tokenizer = "tokenizer"
[model]
n_layers = 2
n_heads = 2
d_model = 32
n_ctx = 32
rotary_dim = 8
[sources.text]
shards = "shards"
[[stages]]
length = 32
rows = 8
[schedule]
steps = 30
warmup_steps = 5
decay_steps = 10
[compute]
compile = "nothing"
[loop]
validate_every = 10
[validation]
text = "held_out.txt"
"""
SHORT = ["schedule = { steps = 2, warmup_steps = 1, decay_steps = 1 }"]
WORDS = ["나는", "너를", "오늘", "학교에", "갔다", "비가", "온다", "산과", "바다", "사람이", "말을", "했다"]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=60)) for _ in range(40)]
    tokenizer = train_tokenizer(texts, 300)
    save_tokenizer(tokenizer, folder / "tokenizer", n_ctx=32)
    (folder / "shards").mkdir()
    documents = [np.array([*tokenizer.encode(text).ids, 1]) for text in texts]
    shard = shards.write_shard(folder / "shards", 0, documents, "uint16")
    digest = sha256(folder / "tokenizer" / "tokenizer.json")
    shards.write_index(folder / "shards", shards.Index("uint16", digest, (shard,)))
    (folder / "held_out.txt").write_text(" ".join(rng.choices(WORDS, k=200)), encoding="utf-8")
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(root: Path) -> Path:
    assert pretrain(read_recipe(root / "recipe.toml"), root, root / "out", Processes()) is End.DONE
    return root / "out"


def test_a_run_learns_and_leaves_a_model_folder(root: Path, trained: Path) -> None:
    lines = [line for line in read_metrics(trained / "metrics.jsonl") if "bits_per_byte" in line]
    found = [line["bits_per_byte"]["text"] for line in lines]
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert found[-1] < 0.8 * found[0]
    stored = checkpoint.load(trained / "model")
    assert stored.config.n_ctx == 32 and stored.config.n_vocab == 300
    assert {tensor.dtype for tensor in stored.tensors.values()} == {"float16"}
    tokenizer = Tokenizer.from_file(trained / "model" / "tokenizer.json")
    model = GPTJ(stored.config)
    model.load_state_dict({n: torch.from_numpy(t.to("float32")) for n, t in stored.tensors.items()})
    documents = {"text": list(read_documents(root / "held_out.txt", tokenizer))}
    objective = Objective(model, ComputeSettings(compile="nothing"))
    assert bits_per_byte(objective, documents, 32)["text"] == pytest.approx(found[-1], rel=1e-2)


def trained_by_hand(recipe: Recipe, root: Path) -> tuple[GPTJ, list[float], list[float]]:
    """The twin of a run: one plain pass a step, Muon and AdamW written out; the model, losses and norms."""
    tokenizer = Tokenizer.from_file(root / "tokenizer" / "tokenizer.json")
    model = initial_model(model_config(recipe, tokenizer), recipe.seed)
    mixture = Mixture(recipe.sources, recipe.stages, recipe.seed, root)
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if ".h." in name and p.ndim == 2]
    others = [p for name, p in named.items() if ".h." not in name or p.ndim == 1]
    settings = recipe.optimizer
    adamw = torch.optim.AdamW(others, lr=0.0, betas=settings.betas, weight_decay=0.0, foreach=False)
    means = [torch.zeros_like(matrix) for matrix in matrices]
    losses, norms = [], []
    for step in range(recipe.schedule.steps):
        batch = mixture.batch(step)
        logits = model(torch.from_numpy(batch.inputs)).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch.targets).flatten())
        torch.autograd.backward(loss)
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in named.values() if p.grad is not None))
        factor = recipe.schedule.factor(step)
        with torch.no_grad():
            for parameter in named.values():
                assert parameter.grad is not None
                parameter.grad *= min(1.0, recipe.loop.clip / norm)
            for matrix, mean in zip(matrices, means, strict=True):
                assert matrix.grad is not None
                mean.mul_(0.95).add_(0.05 * matrix.grad)
                rate = factor * settings.muon_rate
                matrix.mul_(1 - rate * settings.muon_decay)
                height = math.sqrt(max(1.0, matrix.shape[0] / matrix.shape[1]))
                matrix.sub_(rate * height * newton_schulz(0.05 * matrix.grad + 0.95 * mean))
            adamw.param_groups[0]["lr"] = factor * settings.adamw_rate
            adamw.step()
        model.zero_grad()
        losses.append(float(loss.detach()))
        norms.append(norm)
    return model, losses, norms


def newton_schulz(matrix: torch.Tensor) -> torch.Tensor:
    x: torch.Tensor = matrix / matrix.norm().clamp(min=1e-7)  # the first gradients of most matrices are 0
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x - 4.7750 * square @ x + 2.0315 * square @ square @ x
    return x


@pytest.mark.parametrize("passes", [1, 3])
def test_the_recipe_of_the_toy_trains_as_written_out_by_hand(
    passes: int, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kogpt.pretraining.run.measure_peak", lambda *_: 1e12)
    text = toy.RECIPE.format(context=32, steps=6, warmup=2, decay=2)
    (tmp_path / "recipe.toml").write_text(text, encoding="utf-8")
    changes = ["model.n_layers = 2", "loop.log_every = 1", f"loop.tokens_per_pass = {8 * 32 // passes}"]
    recipe = read_recipe(tmp_path / "recipe.toml", changes)
    assert pretrain(recipe, root, tmp_path / "run", Processes()) is End.DONE
    model, losses, norms = trained_by_hand(recipe, root)
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-5)
    assert [line["gradient_norm"] for line in lines] == pytest.approx(norms, rel=1e-4)
    assert [line["tokens_per_second"] for line in lines] == [line["targets_per_second"] for line in lines]
    path = checkpoints.latest(tmp_path / "run")
    assert path is not None
    saved = checkpoints.SavedTensors(path, model.config.tensor_shapes(), "model.")
    start = initial_model(model.config, recipe.seed).state_dict()
    for name, expected in model.state_dict().items():
        moved = (expected - start[name]).norm()
        assert moved > 0 and (torch.from_numpy(saved[name]) - expected).norm() < 1e-3 * moved, name


def test_the_model_is_the_average_where_a_recipe_asks_for_one(root: Path, tmp_path: Path) -> None:
    changes = [
        "schedule = { steps = 4, warmup_steps = 1, decay_steps = 0 }",
        'order = "epochs"',
        "average.first_step = 2",
    ]
    recipe = read_recipe(root / "recipe.toml", [*changes, "average.every = 1", "loop.log_every = 1"])
    assert pretrain(recipe, root, tmp_path, Processes()) is End.DONE
    path = checkpoints.latest(tmp_path)
    assert path is not None and checkpoints.verify(path).averaged == 3
    stored = checkpoint.load(tmp_path / "model")
    shapes = stored.config.tensor_shapes()
    mean, newest = (checkpoints.SavedTensors(path, shapes, "model.", part) for part in ("average", "module"))
    for name, tensor in stored.tensors.items():
        assert np.array_equal(tensor.to("float32"), mean[name].astype(np.float16).astype(np.float32)), name
        assert not np.array_equal(mean[name], newest[name])
    mixture = Mixture(recipe.sources, recipe.stages, recipe.seed, root, "epochs")
    tokens = [line["tokens"] for line in read_metrics(tmp_path / "metrics.jsonl") if "loss" in line]
    assert tokens == [mixture.batch(step).inputs.size * (step + 1) for step in range(4)]


@pytest.mark.parametrize("has_another", [False, True])
def test_a_tokenizer_of_another_name_is_the_one_of_the_model(
    has_another: bool, root: Path, trained: Path, tmp_path: Path
) -> None:
    own, folder = root / "tokenizer" / "tokenizer.json", tmp_path / "tokenizers"
    folder.mkdir()
    shutil.copy(own, folder / "my.json")
    if has_another:
        other = own.read_text(encoding="utf-8") + " "
        (folder / "tokenizer.json").write_text(other, encoding="utf-8")
    recipe = read_recipe(root / "recipe.toml", [f'tokenizer = "{folder / "my.json"}"'])
    export(recipe, root, trained, tmp_path / "model")
    assert sha256(tmp_path / "model" / "tokenizer.json") == sha256(own)


def test_an_end_before_the_steps_made_is_refused(root: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "out")
    recipe = read_recipe(root / "recipe.toml", ["schedule.steps = 29"])
    with pytest.raises(ConfigError, match=r"has made 30 steps, more than schedule\.steps, 29: ") as refused:
        pretrain(recipe, root, tmp_path / "out", Processes())
    assert "이미 30스텝까지" in refused.value.ko and "29입니다" in refused.value.ko


def test_a_finished_run_is_not_run_again(root: Path, trained: Path) -> None:
    before = (trained / "metrics.jsonl").read_bytes()
    assert pretrain(read_recipe(root / "recipe.toml"), root, trained, Processes()) is End.DONE
    assert (trained / "metrics.jsonl").read_bytes() == before


def continued(root: Path, start: Path, *changes: str) -> Recipe:
    return read_recipe(
        root / "recipe.toml",
        ["schedule = { steps = 4, warmup_steps = 1, decay_steps = 1 }", *changes],
        str(start),
    )


def test_a_run_starts_from_the_weights_and_shape_of_a_model_folder(
    root: Path, trained: Path, tmp_path: Path
) -> None:
    start = trained / "model"
    rates = "optimizer = { muon_rate = 0.0, adamw_rate = 0.0 }"
    assert pretrain(continued(root, start, rates), root, tmp_path, Processes()) is End.DONE
    assert checkpoint.digest(tmp_path / "model") == checkpoint.digest(start)
    first = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert first["init"] == str(start) and first["init_sha256"] == checkpoint.digest(start)


def test_a_run_from_a_model_folder_resumes_bit_for_bit(
    root: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = continued(root, trained / "model")
    assert pretrain(recipe, root, tmp_path / "whole", Processes()) is End.DONE
    assert checkpoint.digest(tmp_path / "whole" / "model") != checkpoint.digest(trained / "model")
    batch = Mixture.batch

    def interrupted(mixture: Mixture, step: int) -> Batch:
        if step == 1:
            signal.raise_signal(signal.SIGTERM)
        return batch(mixture, step)

    with monkeypatch.context() as patch:
        patch.setattr(Mixture, "batch", interrupted)
        assert pretrain(recipe, root, tmp_path / "broken", Processes()) is End.STOPPED
    before = read_metrics(tmp_path / "broken" / "metrics.jsonl")[0]
    other = tmp_path / "other"
    checkpoint.save(other, *random_start(recipe, root, trained), tokenizer=root / "tokenizer")
    with pytest.raises(ConfigError, match=r"began from .*not from .*other"):
        pretrain(continued(root, other), root, tmp_path / "broken", Processes())
    assert pretrain(recipe, root, tmp_path / "broken", Processes()) is End.DONE
    assert read_metrics(tmp_path / "broken" / "metrics.jsonl")[0] == before
    assert checkpoint.digest(tmp_path / "broken" / "model") == checkpoint.digest(tmp_path / "whole" / "model")


def random_start(
    recipe: Recipe, root: Path, trained: Path
) -> tuple[ModelConfig, dict[str, NDArray[np.float32]]]:
    config = checkpoint.load(trained / "model").config
    state = initial_model(config, seed=5).state_dict()
    return config, {name: state[name].numpy() for name in config.tensor_shapes()}


def test_a_run_from_random_weights_does_not_go_on_as_one_from_a_model(root: Path, trained: Path) -> None:
    recipe = read_recipe(root / "recipe.toml", (), str(trained / "model"))
    with pytest.raises(ConfigError, match="began from random weights"):
        pretrain(recipe, root, trained, Processes())


def test_a_run_notes_the_dtype_of_its_products_and_refuses_to_go_on_in_another(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kogpt.pretraining.run.measure_peak", lambda *_: 1e12)  # slow where it is imitated
    monkeypatch.setattr("kogpt.training.objective._multiplies_bfloat16", lambda device: False)
    recipe = read_recipe(root / "recipe.toml", SHORT)
    assert pretrain(recipe, root, tmp_path, Processes()) is End.DONE
    first = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert first["step"] == 0 and first["dtype"] == "float32"
    monkeypatch.setattr("kogpt.training.objective._multiplies_bfloat16", lambda device: True)
    with pytest.raises(
        ConfigError, match=r'began with dtype float32, not bfloat16: set compute\.dtype = "float32", or'
    ) as refused:
        pretrain(recipe, root, tmp_path, Processes())
    assert 'compute.dtype = "float32"로 지정하거나' in refused.value.ko
    same = read_recipe(root / "recipe.toml", [*SHORT, 'compute.dtype = "float32"'])
    assert pretrain(same, root, tmp_path, Processes()) is End.DONE


@pytest.mark.parametrize("init", [False, True])
@pytest.mark.parametrize(
    ("left", "why", "why_ko"),
    [
        (None, r"\(metrics.jsonl is missing\)", "(metrics.jsonl 파일이 없습니다)"),
        ('{"step": 0}\n', r"\(metrics.jsonl lacks dtype\)", "(metrics.jsonl 파일에 dtype 값이 없습니다)"),
        ("", "lacks dtype", "dtype 값이 없습니다"),
    ],
)
def test_a_start_that_is_not_noted_is_called_so(
    init: bool, left: str | None, why: str, why_ko: str, root: Path, trained: Path, tmp_path: Path
) -> None:
    """Also with weights to start from: they are not compared with random ones that nobody noted."""
    shutil.copytree(trained, tmp_path / "out")
    metrics = tmp_path / "out" / "metrics.jsonl"
    metrics.unlink()
    if left is not None:
        metrics.write_text(left, encoding="utf-8")
    recipe = read_recipe(root / "recipe.toml", (), str(trained / "model") if init else None)
    with pytest.raises(ConfigError, match=f"its start is not noted .*{why}") as refused:
        pretrain(recipe, root, tmp_path / "out", Processes())
    assert why_ko in refused.value.ko
    assert not any("None" in text for text in (refused.value.en, refused.value.ko))


def test_another_tokenizer_than_that_of_the_shards_is_refused(
    root: Path, trained: Path, tmp_path: Path
) -> None:
    save_tokenizer(train_tokenizer(["나라 말이 서로 달라 "] * 9 + WORDS * 3, 290), tmp_path / "own", n_ctx=32)
    recipe = read_recipe(root / "recipe.toml", [f'tokenizer = "{tmp_path / "own"}"'])
    with pytest.raises(ConfigError, match=r"packed with another tokenizer .*own"):
        pretrain(recipe, root, tmp_path / "out", Processes())
    start = tmp_path / "start"
    config = replace(checkpoint.load(trained / "model").config, n_vocab=290)
    tensors = {name: np.zeros(size, np.float32) for name, size in config.tensor_shapes().items()}
    checkpoint.save(start, config, tensors, tokenizer=tmp_path / "own")
    with pytest.raises(ConfigError, match=r"packed with another tokenizer .*start"):
        pretrain(continued(root, start), root, tmp_path / "out", Processes())


def test_a_bad_record_in_a_validation_file_is_refused(root: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(root / "tokenizer" / "tokenizer.json")
    path = tmp_path / "v.jsonl"
    path.write_text('{"text": "오늘 비가 온다"}\n' * 2000 + '{"text": 3}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"1 of 2001 records are bad.*v\.jsonl"):
        list(read_documents(path, tokenizer))


def test_export_without_a_checkpoint_says_so(root: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        export(read_recipe(root / "recipe.toml"), root, tmp_path, tmp_path / "model")


def test_bits_per_byte_is_the_loss_of_every_token_once(root: Path) -> None:
    recipe = read_recipe(root / "recipe.toml")
    tokenizer = Tokenizer.from_file(root / "tokenizer" / "tokenizer.json")
    model = initial_model(model_config(recipe, tokenizer), seed=3)
    torch.nn.init.normal_(model.lm_head.weight)
    ids = np.random.default_rng(0).integers(5, 300, 30)
    line = torch.tensor([[1, *ids]])
    losses = torch.nn.functional.cross_entropy(model(line)[0, :-1], line[0, 1:], reduction="sum")
    objective = Objective(model, ComputeSettings(dtype="float32", compile="nothing"))
    short = [Document(ids[:7], 21)]  # padded beside the long one
    found = bits_per_byte(objective, {"all": [Document(ids, 90)], "two": [Document(ids, 90), *short]}, 32)
    assert found["all"] == pytest.approx(float(losses.detach()) / math.log(2) / 90, rel=1e-5)
    part = bits_per_byte(objective, {"short": short}, 32)["short"]
    assert found["two"] == pytest.approx((found["all"] * 90 + part * 21) / 111, rel=1e-5)


def test_validation_takes_whole_documents_up_to_a_size(tmp_path: Path, root: Path) -> None:
    tokenizer = Tokenizer.from_file(root / "tokenizer" / "tokenizer.json")
    lines = ["가" * 10, "나" * 1000, "다" * 10]
    (tmp_path / "v.jsonl").write_text("".join(f'{{"text": "{line}"}}\n' for line in lines), encoding="utf-8")
    sizes = [document.n_bytes for document in read_documents(tmp_path / "v.jsonl", tokenizer, 100)]
    assert sizes == [30, 30]


def test_changes_on_the_command_line_reach_the_recipe(root: Path) -> None:
    recipe = read_recipe(root / "recipe.toml", ["schedule.steps = 99", 'optimizer.name = "adamw"', "seed=4"])
    assert recipe.schedule.steps == 99 and recipe.schedule.warmup_steps == 5
    assert recipe.optimizer.name == "adamw" and recipe.seed == 4
    assert read_recipe(root / "recipe.toml", ["loop.clip = 2"]).loop.clip == 2.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("modell.n_layers = 1", "unknown setting modell: choose one of schedule, .*tokenizer"),
        ("schedule.step = 1", r"unknown setting schedule\.step: "),
        ('schedule.steps = "9"', r"schedule\.steps is '9'"),
        ("loop.keep = true", r"loop\.keep is True"),
        ("stages = 3", "stages is 3"),
        ("stages = [{ rows = 1 }]", r"stages\[0\]\.length is missing"),
        ("sources.text.weigth = 1.0", r"unknown setting sources\.text\.weigth: choose one of shards, weight"),
        ("seed = ", "--set seed =  is not a line of TOML"),
        ("tokenizer = abc", "--set tokenizer = abc is not a line of TOML"),
        ("seed = -1", "seed is -1: it must be a whole number from 0"),
        ("seed = 4294967296", r"seed is 4294967296: .* below 2\^32"),
        ("seed = 9223372036854775808", r"64 bits: write one from -2\^63 to below 2\^63"),
        pytest.param("a = " + "[" * 5000, "is not a line of TOML", id="deep"),
        pytest.param("seed" + ".a" * 5000 + " = 1", "deep", id="deep tables"),
        pytest.param("seed = " + "1" * 5000, r"is not a line of TOML \(.*5000 digits", id="digits"),
        pytest.param("seed = 0x" + "f" * 5000, "20,000 bits: write one from", id="bits"),
        pytest.param("stages = [0x" + "f" * 5000 + "]", "20,000 bits", id="bits of a list"),
        pytest.param("optimizer.adamw_rate = 1" + "0" * 400, "1,329 bits", id="bits of a float"),
        ("compute.z_loss = -1.0", "z_loss is -1.0, must be a finite"),
        ("compute.z_loss = nan", "z_loss is nan"),
        ("loop.log_every = 0", r"loop\.log_every is 0: it must be a number above 0"),
        ("loop.clip = nan", r"loop\.clip is nan"),
        ("validation_bytes = 0", "validation_bytes is 0: it must be a number above 0"),
        ("schedule.steps = 0", r"schedule\.steps is 0"),
        ("schedule.decay_steps = 99", r"decay \(99\) must be 0 or more and fit into 30 steps: shorten"),
        ('optimizer.name = "sgd"', "'sgd' is unknown"),
        ('order = "sorted"', "order 'sorted' is unknown: choose one of random, epochs"),
        ("average.first_step = 31", "first average is due at step 31, after the last, 30: lower average"),
        ("average.every = 31", "first average is due at step 31"),
        ("average.decay = 2", r"average\.decay is 2\.0: it must be above 0"),
        ('init = "kogpt-mini"', r"either \[model\]"),
        ("init = 3", "init is 3"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(root: Path, change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_recipe(root / "recipe.toml", [change])


def test_a_run_does_not_go_on_with_another_tokenizer_of_the_same_size(
    root: Path, trained: Path, tmp_path: Path
) -> None:
    for name in ("shards", "tokenizer"):
        shutil.copytree(root / name, tmp_path / name)
    shutil.copytree(trained, tmp_path / "out")
    own = tmp_path / "tokenizer" / "tokenizer.json"
    own.write_text(own.read_text(encoding="utf-8") + " ", encoding="utf-8")
    index = tmp_path / "shards" / "index.json"
    before, after = (sha256(folder / "tokenizer" / "tokenizer.json") for folder in (root, tmp_path))
    index.write_text(index.read_text(encoding="utf-8").replace(before, after), encoding="utf-8")
    changes = ["schedule.steps = 31", f'validation.text = "{root / "held_out.txt"}"']
    recipe = read_recipe(root / "recipe.toml", changes)
    with pytest.raises(CheckpointError, match=f"trained with tokenizer_sha256 = '{before}', not '{after}'"):
        pretrain(recipe, tmp_path, tmp_path / "out", Processes())
    assert sha256(tmp_path / "out" / "model" / "tokenizer.json") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sources.text.weight = nan", "every weight a number above 0"),
        ("stages = [{ length = 1, rows = 2 }]", "length 1, rows 2: at least 2 and 1"),
        ("stages = [{ length = 8, rows = 2, first_step = 3 }]", r"start at steps \[3\]: one must start at 0"),
        ("stages = [{ length = 8, rows = 2 }, { length = 9, rows = 2 }]", r"\[0, 0\].* no two"),
        ("stages = [{ length = 8, rows = 2 }, { length = 8, rows = 2, first_step = -1 }]", r"\[-1, 0\]"),
        ("model.d_ff = 0", "n_inner is 0"),
        ("model.d_model = 4000000", "training this model needs"),
    ],
)
def test_what_cannot_be_trained_is_refused(root: Path, tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(KoGPTError, match=message):
        pretrain(read_recipe(root / "recipe.toml", [change]), root, tmp_path, Processes())


@pytest.mark.parametrize("average", [False, True])
def test_too_little_memory_names_what_a_recipe_has(average: bool, root: Path, tmp_path: Path) -> None:
    changes = ["model.d_model = 4000000", *(["average.first_step = 2"] if average else [])]
    with pytest.raises(NotEnoughMemory) as refused:
        pretrain(read_recipe(root / "recipe.toml", changes), root, tmp_path, Processes())
    for text in (refused.value.en, refused.value.ko):
        assert "[model]" in text and ("[average]" in text) == average
        assert not any(word in text for word in ("--dtype", "texts", "글"))
    assert "more processes" in refused.value.en and "프로세스를 늘리세요" in refused.value.ko


def test_rows_that_do_not_divide_among_the_processes_are_refused(root: Path, tmp_path: Path) -> None:
    recipe = read_recipe(root / "recipe.toml")
    with pytest.raises(
        ConfigError, match="8 rows does not divide among 3 processes: make rows a multiple of 3"
    ):
        pretrain(recipe, root, tmp_path, Processes(rank=1, count=3))


def test_a_run_has_its_folder_to_itself(root: Path, tmp_path: Path) -> None:
    with lock_folder(tmp_path, "kogpt pretrain run"), pytest.raises(InputError, match="is in use"):
        pretrain(read_recipe(root / "recipe.toml"), root, tmp_path, Processes())


def test_damaged_shards_are_found_before_anything_is_trained(root: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "shards"
    shutil.copytree(root / "shards", damaged)
    raw = bytearray((damaged / "shard_00000.bin").read_bytes())
    raw[100] ^= 1
    (damaged / "shard_00000.bin").write_bytes(raw)
    recipe = read_recipe(root / "recipe.toml", [f'sources.text.shards = "{damaged}"'])
    with pytest.raises(InputError, match=r"shard_00000\.bin"):
        pretrain(recipe, root, tmp_path / "out", Processes())


def test_a_validation_set_is_never_empty(root: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(root / "tokenizer" / "tokenizer.json")
    (tmp_path / "long.txt").write_text("가" * 1000, encoding="utf-8")
    assert [document.n_bytes for document in read_documents(tmp_path / "long.txt", tokenizer, 100)] == [99]
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    recipe = read_recipe(root / "recipe.toml", [f'validation.text = "{tmp_path / "empty.txt"}"'])
    with pytest.raises(ConfigError, match=r"empty\.txt has no text"):
        pretrain(recipe, root, tmp_path / "out", Processes())


def test_the_model_ends_texts_as_its_tokenizer_does(root: Path) -> None:
    tokenizer = Tokenizer.from_file(root / "tokenizer" / "tokenizer.json")
    tokenizer.bos_token_id, tokenizer.eos_token_id = 2, 3
    config = model_config(read_recipe(root / "recipe.toml"), tokenizer)
    assert (config.bos_token_id, config.eos_token_id) == (2, 3)


@pytest.mark.parametrize("number", ["1" * 5000, "0x" + "f" * 5000, "1" + "0" * 400])
def test_a_number_without_end_in_a_recipe_is_one_line(root: Path, number: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    text = (root / "recipe.toml").read_text(encoding="utf-8")
    recipe.write_text(f"validation_bytes = {number}\n{text}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"recipe .*recipe\.toml cannot be read: ") as caught:
        read_recipe(recipe)
    assert len(caught.value.en) < 500 and "\n" not in caught.value.en


def test_a_recipe_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_recipe(tmp_path / "none.toml")


def test_a_stage_longer_than_the_context_is_refused(root: Path) -> None:
    recipe = read_recipe(root / "recipe.toml", ["stages = [{ length = 33, rows = 1 }]"])
    with pytest.raises(ConfigError, match="33 tokens is longer"):
        model_config(recipe, Tokenizer.from_file(root / "tokenizer" / "tokenizer.json"))
