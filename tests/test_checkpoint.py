"""Model folders: round trips, transformers both ways, the layouts of 2021, the manifest, atomic writing."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from conftest import TINY, plain, random_tensors
from huggingface_hub import errors as hub_errors
from numpy.typing import NDArray
from safetensors.numpy import load_file

from kogpt import checkpoint, hub, native_runner, weights
from kogpt import manifest as manifests
from kogpt.checkpoint import Stored
from kogpt.config import ModelConfig
from kogpt.errors import CheckpointError, DiskError
from kogpt.export.phi import export_gguf, export_phi
from kogpt.generation import KoGPT
from kogpt.native_runner import NativeRunner
from kogpt.placement import Placement, load_runner
from kogpt.rounding import Rounded
from kogpt.runner import Chunk
from kogpt.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("no_fsync")

Tensors = Mapping[str, NDArray[Any]]
DTYPES = ["float64", "float32", "float16", "bfloat16"]
ODD = ModelConfig(
    n_layers=2,
    n_heads=3,
    d_model=30,
    d_ff=50,
    n_vocab=97,
    n_ctx=16,
    rotary_dim=6,
    tied_head=True,
    bos_token_id=5,
)


def in_torch(tensors: Tensors, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array.copy()).to(dtype) for name, array in tensors.items()}


def as_float64(loaded: checkpoint.Checkpoint) -> dict[str, NDArray[np.float64]]:
    return {name: stored.to("float64") for name, stored in loaded.tensors.items()}


# ----------------------------------------------------------------------------------------- save, then load


@pytest.mark.parametrize("config", [TINY, ODD], ids=["tiny", "odd and tied"])
@pytest.mark.parametrize("shard_bytes", [1 << 30, 20_000, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_saved_is_loaded(tmp_path: Path, config: ModelConfig, shard_bytes: int, dtype: str) -> None:
    """Exactly what torch rounds the weights to, in every format, in one file or in many."""
    tensors = random_tensors(config)
    checkpoint.save(tmp_path, config, tensors, dtype, shard_bytes=shard_bytes)
    loaded = checkpoint.load(tmp_path)
    assert loaded.config == config
    assert list(loaded.tensors) == list(config.tensor_shapes())
    assert {stored.dtype for stored in loaded.tensors.values()} == {dtype}
    for name, expected in in_torch(tensors, getattr(torch, dtype)).items():
        assert plain(loaded.tensors)[name].array.flags.aligned, name
        assert (loaded.tensors[name].to("float64") == expected.double().numpy()).all(), name
    n_files = len(list(tmp_path.glob("model*.safetensors")))
    assert (n_files == 1) == (shard_bytes == 1 << 30)
    assert (tmp_path / "model.safetensors.index.json").exists() == (n_files > 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_format_s_own_library_reads_the_file(tmp_path: Path, dtype: str) -> None:
    from safetensors.torch import load_file as load_torch_file

    tensors = random_tensors(TINY)
    checkpoint.save(tmp_path, TINY, tensors, dtype)
    read = load_torch_file(tmp_path / "model.safetensors")
    expected = in_torch(tensors, getattr(torch, dtype))
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], expected[name]) for name in expected)


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
def test_conversions_are_torch_s(source: str, target: str) -> None:
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.standard_normal(4096) * 10.0 ** rng.integers(-9, 4, 4096))
    values[:4] = torch.tensor([0.0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8])  # zeros, and ties of bfloat16
    tensor = values.float().to(getattr(torch, source))
    bits = tensor.view(torch.uint16) if source == "bfloat16" else tensor
    converted = Stored(source, bits.numpy()).to(target)
    expected = tensor.to(getattr(torch, target))
    if target == "bfloat16":
        expected = expected.view(torch.uint16)
    assert converted.dtype == expected.numpy().dtype
    assert (converted == expected.numpy()).all()


@pytest.mark.parametrize("added", [[1], 7, [None], "[EOS]", {"content": "[EOS]"}, [[]]])
def test_odd_added_tokens_are_a_line(added: object, tmp_path: Path) -> None:
    """The tokenizer of a folder without tokenizer_config.json, whose special tokens are looked for."""
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    with pytest.raises(CheckpointError, match=r"tokenizer.json.* added_tokens is not a list of tokens"):
        checkpoint.taken_along(TINY, tmp_path)


@pytest.mark.parametrize("added", [None, [], [{}], [{"content": []}, {"content": "[EOS]"}]])
def test_added_tokens_without_a_text_are_read_past(added: object, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    settings = json.loads(checkpoint.taken_along(TINY, tmp_path)["tokenizer_config.json"])
    assert settings.get("eos_token") == ("[EOS]" if added and len(added) == 2 else None)  # type: ignore[arg-type]


def test_a_double_is_rounded_to_bfloat16_once() -> None:
    """By way of the nearest float32, what lies just beside a tie became one: 1 + 2^-8 + 2^-40 became 1."""
    rng = np.random.default_rng(0)
    ties = (1 + (2 * rng.integers(0, 128, 4096) + 1) * 2.0**-8) * 2.0 ** rng.integers(-140, 128, 4096)
    beside = ties * (1 + rng.choice([0, 1, -1], 4096) * 2.0 ** -rng.integers(20, 53, 4096))
    edges = np.array([0, 1e300, 1e-320, 3.39e38, 3.3961775292304601e38, 2.0**-134, 2.0**-134 * (1 + 2**-40)])
    values = np.concatenate([beside, rng.standard_normal(4096), edges])
    values = np.concatenate([values, -values])
    exponents = np.maximum(np.frexp(values)[1] - 1, -126)
    quantum = 2.0 ** (exponents - 7)  # between neighbours of bfloat16; values / quantum is exact
    nearest = np.rint(values / quantum) * quantum
    expected = np.where(np.abs(nearest) < 2.0**128, nearest, np.copysign(np.inf, nearest))
    with np.errstate(over="ignore"):
        bits = Stored("float64", values).to("bfloat16")
    found = (bits.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(found, expected) and np.array_equal(np.signbit(found), np.signbit(values))


def test_no_nan_becomes_infinite_in_bfloat16() -> None:
    """A NaN whose mantissa has low bits only would, if they were cut off."""
    patterns = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0x7F800000, 0xFF800000], np.uint32)
    bits = Stored("float32", patterns.view(np.float32)).to("bfloat16")
    values = Stored("bfloat16", bits).to("float32")
    assert np.isnan(values[:3]).all() and np.isinf(values[3:]).all()


@pytest.mark.parametrize("limit", [0, weights.MAX_COPIED_BYTES])
def test_nothing_can_be_written(tiny_folder: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a tensor that is read when it is asked for nor in one that was copied at once."""
    monkeypatch.setattr(weights, "MAX_COPIED_BYTES", limit)
    stored = plain(checkpoint.load(tiny_folder).tensors)["transformer.h.1.mlp.fc_in.weight"]
    assert not stored.array.flags.writeable
    assert stored.array.flags.aligned and stored.array.flags.c_contiguous
    assert stored.to("float32") is stored.array


def test_a_large_file_is_loaded_in_little_memory(tmp_path: Path) -> None:
    """A float16 file of 256 MB, all of it checked, adds less than 48 MB to the process."""
    config = replace(TINY, n_vocab=1 << 20)
    checkpoint.save(tmp_path, TINY, random_tensors(TINY))
    (tmp_path / "kogpt.manifest.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    header, end = {}, 0
    for name, shape in config.tensor_shapes().items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    assert end > 256 << 20
    code = (
        "import sys; from kogpt import checkpoint; from kogpt.cli.limits import peak_memory\n"
        "before = peak_memory(); model = checkpoint.load(sys.argv[1]); print(peak_memory() - before)"
    )
    path = os.pathsep.join([str(Path(checkpoint.__file__).parents[1]), *sys.path])
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        check=True,
        text=True,
    )
    assert int(run.stdout) < 48 << 20


def test_loading_needs_no_torch(tiny_folder: Path) -> None:
    code = (
        "import sys; from kogpt import checkpoint, tokenizer; from pathlib import Path\n"
        "checkpoint.load(sys.argv[1]); tokenizer.Tokenizer.from_file(Path(sys.argv[1]) / 'tokenizer.json')\n"
        "print(sorted({'torch', 'safetensors', 'huggingface_hub', 'transformers'} & set(sys.modules)))"
    )
    path = os.pathsep.join([str(Path(checkpoint.__file__).parents[1]), *sys.path])
    command = [sys.executable, "-c", code, str(tiny_folder)]
    run = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, check=True, text=True
    )
    assert run.stdout == "[]\n"


# ------------------------------------------------------------------------------------- refused when saving


def test_a_weight_too_large_for_the_format_is_refused(tmp_path: Path) -> None:
    tensors = dict(random_tensors(TINY))
    tensors["lm_head.bias"] = tensors["lm_head.bias"] * 1e6
    folder = tmp_path / "model"
    with pytest.raises(CheckpointError, match=r"tensor lm_head.bias does not fit float16.*bfloat16"):
        checkpoint.save(folder, TINY, tensors, "float16")
    assert not folder.exists()
    checkpoint.save(folder, TINY, tensors, "bfloat16")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path, bad: float) -> None:
    tensors = dict(random_tensors(TINY))
    tensors["transformer.wte.weight"][100, 3] = bad
    with pytest.raises(CheckpointError, match=r"wte\.weight does not fit"):
        checkpoint.save(tmp_path / "model", TINY, tensors, "float32")
    assert not list(tmp_path.iterdir())


def test_tensors_that_do_not_fit_the_config_are_not_saved(tmp_path: Path) -> None:
    tensors = random_tensors(TINY)
    without = {name: array for name, array in tensors.items() if name != "lm_head.bias"}
    turned = {name: array.T for name, array in tensors.items()}
    for wrong, message in (
        (without, "1 missing: lm_head.bias"),
        ({**tensors, "x": tensors["lm_head.bias"]}, "1 not of this model: x"),
        (turned, r"wte.weight: config.json asks for shape \[512, 64\], found \[64, 512\]"),
    ):
        with pytest.raises(CheckpointError, match=message):
            checkpoint.save(tmp_path / "model", TINY, wrong)
    with pytest.raises(CheckpointError, match="'int3', only as float64"):
        checkpoint.save(tmp_path / "model", TINY, tensors, "int3")
    with pytest.raises(CheckpointError, match=r"has no tokenizer.json"):
        checkpoint.save(tmp_path / "model", TINY, tensors, tokenizer=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_the_old_model_as_it_was(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    tensors = dict(random_tensors(TINY, seed=1))
    tensors["lm_head.bias"][7] = np.inf  # the last tensor: all others are written by then
    with pytest.raises(CheckpointError, match=r"lm_head\.bias"):
        checkpoint.save(folder, TINY, tensors)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# -------------------------------------------------------------------------------------------- saving anew


def test_saving_over_a_loaded_model(tmp_path: Path) -> None:
    """The loaded tensors keep their values: the new file is another inode. Also onto itself."""
    old, new = random_tensors(TINY, seed=1), random_tensors(TINY, seed=2)
    checkpoint.save(tmp_path, TINY, old, "float32")
    loaded = checkpoint.load(tmp_path)
    checkpoint.save(tmp_path, TINY, new, "float32")
    assert all((plain(loaded.tensors)[name].array == old[name]).all() for name in old)
    assert all((value == new[name]).all() for name, value in as_float64(checkpoint.load(tmp_path)).items())
    again = checkpoint.load(tmp_path)
    checkpoint.save(tmp_path, TINY, again.tensors, "float64")
    assert all((value == new[name]).all() for name, value in as_float64(checkpoint.load(tmp_path)).items())


def test_no_file_of_the_older_model_remains(tmp_path: Path, tiny_tokenizer: Path) -> None:
    tensors = random_tensors(TINY)
    checkpoint.save(tmp_path, TINY, tensors, tokenizer=tiny_tokenizer)
    (tmp_path / "README.md").write_text("읽어 보세요")
    for shard_bytes in (100_000, 50_000, 1 << 30):
        checkpoint.save(tmp_path, TINY, tensors, shard_bytes=shard_bytes)
        checkpoint.load(tmp_path)
        on_disk = {path.name for path in tmp_path.iterdir()}
        assert on_disk == set(manifest(tmp_path)["files"]) | {"kogpt.manifest.json"}
        assert {"README.md", "tokenizer.json", "tokenizer_config.json"} < on_disk


def test_no_weights_of_2021_remain(tmp_path: Path) -> None:
    old = ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"]
    for name in (*old, "training_args.bin"):
        (tmp_path / name).write_text("old")
    checkpoint.save(tmp_path, TINY, random_tensors(TINY))
    assert not any((tmp_path / name).exists() for name in old)
    assert (tmp_path / "training_args.bin").exists(), "nobody takes it for weights"
    assert not manifest(tmp_path)["files"].keys() & set(old)


def test_lazy_tensors_are_asked_for_once(tmp_path: Path) -> None:
    tensors = random_tensors(TINY)
    asked: list[str] = []

    class Lazy(Mapping[str, NDArray[Any]]):
        def __getitem__(self, name: str) -> NDArray[Any]:
            asked.append(name)
            return tensors[name]

        def __iter__(self) -> Any:
            return iter(tensors)

        def __len__(self) -> int:
            return len(tensors)

        def __contains__(self, name: object) -> bool:
            return name in tensors

    checkpoint.save(tmp_path, TINY, Lazy(), shard_bytes=50_000)
    assert sorted(asked) == sorted(tensors)
    checkpoint.load(tmp_path)


def test_readers_beside_writers_see_one_model_or_the_other(tmp_path: Path) -> None:
    """Four threads save two models over one another while others load: every load is one of the two."""
    models = [
        {name: np.full(shape, value, np.float32) for name, shape in TINY.tensor_shapes().items()}
        for value in (1, 2)
    ]
    folder = tmp_path / "model"
    checkpoint.save(folder, TINY, models[0])
    stop, seen, failures = threading.Event(), set(), []

    def write(model: Tensors, shard_bytes: int) -> None:
        while not stop.is_set():
            checkpoint.save(folder, TINY, model, shard_bytes=shard_bytes)

    def read() -> None:
        while not stop.is_set():
            try:
                values = {float(s.array.flat[0]) for s in plain(checkpoint.load(folder).tensors).values()}
            except CheckpointError as error:
                failures.append(error)
            else:
                seen.add(tuple(values))

    threads = [
        threading.Thread(target=write, args=(model, n)) for model in models for n in (1 << 30, 100_000)
    ]
    threads += [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(1.5)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures and seen <= {(1.0,), (2.0,)} and seen
    checkpoint.load(folder)
    assert not list(folder.glob(".*"))


# -------------------------------------------------------------------------------------------- the manifest


def manifest(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "kogpt.manifest.json").read_text())
    return document


def test_the_manifest_has_every_file(tiny_folder: Path) -> None:
    document = manifest(tiny_folder)
    expected = {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in tiny_folder.iterdir()
        if path.name != "kogpt.manifest.json"
    }
    assert document == {"version": 1, "files": expected, "quantization": None}


def test_a_manifest_may_be_rewritten(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / "pictures").mkdir()
    (folder / "pictures" / "손실.png").write_bytes(b"png")
    (folder / ".hidden").write_text("")
    with (folder / "tokenizer_config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json is not as kogpt.manifest.json"):
        checkpoint.load(folder)
    manifests.write_manifest(folder)
    checkpoint.load(folder)
    assert manifest(folder)["files"].keys() - manifest(tiny_folder)["files"].keys() == {"pictures/손실.png"}
    (folder / "pictures" / "손실.png").write_bytes(b"PNG")
    with pytest.raises(CheckpointError, match=r"손실.png is not as"):
        checkpoint.load(folder)


def test_a_folder_without_a_manifest_loads_with_one_line_in_the_log(
    tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    with caplog.at_level(logging.WARNING):
        checkpoint.load(folder)
        assert not caplog.records
        (folder / "kogpt.manifest.json").unlink()
        checkpoint.load(folder)
    assert len(caplog.records) == 1 and "could not be verified" in caplog.text


# -------------------------------------------------------------------------------------------- transformers


def transformers_model(folder: Path) -> tuple[Any, Any]:
    """The snippet of the original's README, unchanged but for the name."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    NAME = str(folder)
    tokenizer = AutoTokenizer.from_pretrained(
        NAME,
        bos_token="[BOS]", eos_token="[EOS]", unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]",
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        NAME, pad_token_id=tokenizer.eos_token_id, torch_dtype="auto", low_cpu_mem_usage=True
    )
    return tokenizer, model


@pytest.mark.parametrize("shard_bytes", [1 << 30, 100_000])
def test_transformers_reads_our_folder_by_the_original_s_snippet(
    tmp_path: Path, tiny_tokenizer: Path, shard_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = random_tensors(TINY)
    checkpoint.save(tmp_path, TINY, tensors, "float16", tiny_tokenizer, shard_bytes)
    tokenizer, model = transformers_model(tmp_path)
    tokens = tokenizer.encode("옛날 옛적에", return_tensors="pt")
    generated = model.generate(tokens, do_sample=True, temperature=0.8, max_length=64)
    assert model.dtype == torch.float16 and tokens.shape[1] < generated.shape[1] <= 64
    assert model.generation_config.pad_token_id == model.config.pad_token_id == 1
    ours = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert tokens[0].tolist() == ours.encode("옛날 옛적에")
    state = model.state_dict()
    for name, expected in in_torch(tensors, torch.float16).items():
        assert torch.equal(state[name], expected), name
    assert "newly initialized" not in caplog.text


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("max_shard_size", ["5GB", "100KB"])
def test_a_folder_that_transformers_wrote_loads_here(tmp_path: Path, tied: bool, max_shard_size: str) -> None:
    from transformers import GPTJConfig, GPTJForCausalLM

    config = replace(TINY, tied_head=tied)
    torch.manual_seed(0)
    model = GPTJForCausalLM(GPTJConfig(**config.to_json())).bfloat16()
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    loaded = checkpoint.load(tmp_path)
    assert loaded.config == config
    state = model.state_dict()
    for name, stored in loaded.tensors.items():
        assert torch.equal(torch.from_numpy(stored.to("float32")), state[name].float()), name
    if max_shard_size != "5GB":
        assert len(list(tmp_path.glob("*.safetensors"))) > 1


def test_the_tokenizer_s_files_are_taken_along(
    tiny_folder: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    assert (tiny_folder / "tokenizer.json").read_bytes() == tiny_tokenizer.read_bytes()
    settings = json.loads((tiny_folder / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == TINY.n_ctx
    assert [settings[f"{role}_token"] for role in ("bos", "eos", "mask")] == ["[BOS]", "[EOS]", "[MASK]"]
    source = tmp_path / "source"
    shutil.copytree(tiny_folder, source)
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    checkpoint.save(tmp_path / "copy", TINY, random_tensors(TINY), tokenizer=source)
    copied = (tmp_path / "copy" / "tokenizer_config.json").read_text()
    assert copied == '{"tokenizer_class": "PreTrainedTokenizerFast"}'


# -------------------------------------------------------------------------------- the layouts of 2021


def masks(config: ModelConfig) -> dict[str, torch.Tensor]:
    """What transformers stored with every layer until 2023; -1e9 overflows float16, as published files do."""
    found = {}
    for layer in range(config.n_layers):
        causal = torch.ones(config.n_ctx, config.n_ctx, dtype=torch.uint8).tril()
        found[f"transformer.h.{layer}.attn.bias"] = causal[None, None]
        found[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e9).half()
    return found


CONFIG_OF_2021 = {"n_ctx": 128, "summary_type": "cls_index", "gradient_checkpointing": False, "n_inner": None}


def write_2021(folder: Path, dtype: torch.dtype, n_shards: int) -> Tensors:
    tensors = random_tensors(TINY)
    state = in_torch(tensors, dtype) | masks(TINY)
    names = sorted(state)
    (folder / "config.json").write_text(json.dumps(TINY.to_json() | CONFIG_OF_2021))
    if n_shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return tensors
    weight_map: dict[str, str] = {}
    for number in range(n_shards):
        file = f"pytorch_model-{number + 1:05}-of-{n_shards:05}.bin"
        part = names[number::n_shards]
        torch.save({name: state[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return tensors


@pytest.mark.parametrize("n_shards", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_pytorch_model_bin_loads_without_its_masks(tmp_path: Path, dtype: str, n_shards: int) -> None:
    tensors = write_2021(tmp_path, getattr(torch, dtype), n_shards)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = checkpoint.load(tmp_path)
    assert loaded.config == TINY
    for name, expected in in_torch(tensors, getattr(torch, dtype)).items():
        assert loaded.tensors[name].dtype == dtype
        assert not plain(loaded.tensors)[name].array.flags.writeable
        assert (loaded.tensors[name].to("float64") == expected.double().numpy()).all(), name
    manifests.write_manifest(tmp_path)
    checkpoint.load(tmp_path)
    first = min(tmp_path.glob("*.bin"))
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path)


def test_masks_in_a_safetensors_file_are_read_over(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = random_tensors(TINY)
    masked = in_torch(tensors, torch.float16) | masks(TINY)
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_json()))
    save_file(masked, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = checkpoint.load(tmp_path)
    assert loaded.tensors.keys() == tensors.keys()
    assert (plain(loaded.tensors)["lm_head.bias"].array == tensors["lm_head.bias"].astype(np.float16)).all()


def test_safetensors_are_preferred(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    checkpoint.load(folder)


def test_an_equal_copy_of_a_tied_head_is_dropped(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    config = replace(TINY, tied_head=True)
    tensors = dict(random_tensors(config))
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    save_file(
        tensors | {"lm_head.weight": tensors["transformer.wte.weight"].copy()}, tmp_path / "model.safetensors"
    )
    assert "lm_head.weight" not in checkpoint.load(tmp_path).tensors
    save_file(
        tensors | {"lm_head.weight": tensors["transformer.wte.weight"] * 2}, tmp_path / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"lm_head.weight is not transformer.wte.weight"):
        checkpoint.load(tmp_path)


def test_the_layout_of_2021_needs_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = write_2021(tmp_path, torch.float32, 1)
    monkeypatch.setitem(sys.modules, "torch", None)
    loaded = checkpoint.load(tmp_path)
    assert all((plain(loaded.tensors)[name].array == tensors[name]).all() for name in tensors)


def test_views_and_parameters_of_the_layout_of_2021(tmp_path: Path) -> None:
    """A transposed view, a slice with an offset, a parameter, two names for one storage."""
    config = replace(TINY, tied_head=True)
    state = in_torch(dict(random_tensors(config)), torch.float16)
    name = "transformer.h.0.attn.q_proj.weight"
    state[name] = state[name].t()
    state["lm_head.bias"] = torch.cat([state["lm_head.bias"], state["lm_head.bias"]])[7 : 7 + config.n_vocab]
    state["lm_head.weight"] = state["transformer.wte.weight"]
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    module = torch.nn.ParameterDict({"x": torch.nn.Parameter(state["transformer.ln_f.bias"])})
    parameters = {"transformer.ln_f.bias": module["x"]}
    torch.save(OrderedDict(state | parameters), tmp_path / "pytorch_model.bin")
    loaded = checkpoint.load(tmp_path)
    for name in config.tensor_shapes():
        assert (plain(loaded.tensors)[name].array == state[name].numpy()).all(), name


@pytest.mark.parametrize("layout", ["safetensors", "2021"])
def test_a_small_model_survives_its_file(tmp_path: Path, layout: str) -> None:
    """A file that is cut or written over in place would end a process that has it mapped (SIGBUS)."""
    if layout == "2021":
        tensors = write_2021(tmp_path, torch.float32, 1)
    else:
        tensors = random_tensors(TINY)
        checkpoint.save(tmp_path, TINY, tensors, "float32")
    loaded = checkpoint.load(tmp_path)
    for path in (*tmp_path.glob("*.safetensors"), *tmp_path.glob("*.bin")):
        os.truncate(path, 0)
    assert all((plain(loaded.tensors)[name].array == tensors[name]).all() for name in tensors)


SERVER = """
import os, sys
from pathlib import Path
from kogpt import weights
weights.MAX_COPIED_BYTES = int(sys.argv[2])
from kogpt import KoGPT, Sampling
model = KoGPT.from_pretrained(Path(sys.argv[1]), dtype=sys.argv[3])
greedy = Sampling(temperature=0, max_tokens=8)
before = model.generate("가나다", greedy).tokens
os.truncate(Path(sys.argv[1]) / "model.safetensors", 0)
assert model.generate("가나다", greedy).tokens == before
"""


@pytest.mark.skipif(not native_runner.available(), reason="the kernels were not built")
@pytest.mark.parametrize("limit", [weights.MAX_COPIED_BYTES, 0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_serving_process_survives_a_truncated_file(
    tiny_folder: Path, tmp_path: Path, limit: int, dtype: str
) -> None:
    """Nothing is mapped, also of a large model whose weights are used as they are stored."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    path = os.pathsep.join([str(Path(checkpoint.__file__).parents[1]), *sys.path])
    command = [sys.executable, "-c", SERVER, str(folder), str(limit), dtype]
    run = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr.decode()[-500:]


def test_a_file_that_shrinks_while_it_is_loaded_is_an_error(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    read = manifests.verify_weights

    def shrink(*arguments: Any) -> None:
        os.truncate(folder / "model.safetensors", 100_000)
        read(*arguments)

    monkeypatch.setattr(checkpoint, "verify_weights", shrink)
    (folder / "kogpt.manifest.json").unlink()
    with pytest.raises(CheckpointError, match="it ends within"):
        checkpoint.load(folder)


@pytest.mark.parametrize("layout", ["safetensors", "2021"])
@pytest.mark.parametrize("change", ["cut", "written over"])
def test_a_large_file_that_changes_before_it_is_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, change: str
) -> None:
    """Weights of a large model are read after they were checked: what is read must be what was checked."""
    monkeypatch.setattr(weights, "MAX_COPIED_BYTES", 0)
    if layout == "2021":
        write_2021(tmp_path, torch.float32, 1)
    else:
        checkpoint.save(tmp_path, TINY, random_tensors(TINY), "float32")
    loaded = checkpoint.load(tmp_path)
    path = next(path for path in tmp_path.iterdir() if path.suffix in (".safetensors", ".bin"))
    if change == "cut":
        os.truncate(path, 200_000)
    else:
        old = path.read_bytes()
        path.write_bytes(bytes(len(old)))
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000_000))  # as if it took a while
    with pytest.raises(CheckpointError, match="cut or written over"):
        dict(loaded.tensors)


def test_a_large_model_that_is_replaced_is_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "MAX_COPIED_BYTES", 0)
    old, new = random_tensors(TINY), random_tensors(TINY, seed=1)
    checkpoint.save(tmp_path, TINY, old, "float32")
    loaded = checkpoint.load(tmp_path)
    checkpoint.save(tmp_path, TINY, new, "float32")
    assert all((plain(loaded.tensors)[name].array == old[name]).all() for name in old)


# ----------------------------------------------------------------- verified beside the first step


@pytest.fixture
def large(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own whose weights count as large."""
    monkeypatch.setattr(weights, "MAX_COPIED_BYTES", 0)
    return Path(shutil.copytree(tiny_folder, tmp_path / "large"))


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-4] ^= 1  # the lowest of a float's fraction: nothing but the digest tells
    path.write_bytes(data)


@pytest.mark.skipif(not native_runner.available(), reason="the kernels were not built")
def test_large_weights_are_verified_beside_the_first_step(large: Path) -> None:
    chosen = Placement("cpu", "float32")
    with KoGPT.from_pretrained(large, device=chosen) as sound:
        text = sound.generate("가", max_tokens=3, temperature=0.0).text
        sound.verify()
    flip_a_bit(large / "model.safetensors")
    with pytest.raises(CheckpointError, match="is not as kogpt"):
        checkpoint.load(large)
    with KoGPT.from_pretrained(large, device=chosen) as damaged:
        for _ in range(2):
            with pytest.raises(CheckpointError, match="is not as kogpt"):
                damaged.generate("가", max_tokens=3, temperature=0.0)
        with pytest.raises(CheckpointError, match="not as"):
            damaged.embed(["가"])
        with pytest.raises(CheckpointError, match="not as"):
            damaged.verify()
    with pytest.raises(CheckpointError, match="not as"):
        load_runner(checkpoint.load(large, beside=True), Placement("cpu", runner="numpy"))
    assert text


def test_a_scratch_is_read_into_again() -> None:
    scratch = weights.Scratch()
    first = scratch.take(100)
    first[:] = 1
    second = scratch.take(300)  # more than there is: the first keeps its memory
    second[:] = 2
    assert (first == 1).all()
    scratch.clear()
    again = scratch.take(50)
    again[:] = 3
    assert (second[:50] == 3).all() and scratch.take(60).ctypes.data % 64 == again.ctypes.data % 64


@pytest.mark.skipif(not native_runner.available(), reason="the kernels were not built")
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_codes_read_into_a_scratch_are_those_of_the_file(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "MAX_COPIED_BYTES", 0)
    tensors = {name: Stored("float32", array) for name, array in random_tensors(TINY).items()}
    checkpoint.save(tmp_path, TINY, Rounded(TINY, tensors, dtype), dtype)
    loaded = checkpoint.load(tmp_path)
    ids = np.arange(20)
    copied = {name: loaded.tensors[name] for name in loaded.tensors}  # a dict knows no scratch
    found, wanted = (
        runner.forward([Chunk(runner.open(), ids, 20)])[0]
        for runner in (NativeRunner(TINY, source, dtype) for source in (loaded.tensors, copied))
    )
    np.testing.assert_array_equal(found, wanted)


def test_settings_are_verified_at_once(large: Path) -> None:
    path = large / "generation_config.json"
    path.write_bytes(path.read_bytes().replace(b"1", b"2"))
    with pytest.raises(CheckpointError, match="is not as kogpt"):
        checkpoint.load(large, beside=True)


def test_weights_that_change_after_they_were_read_are_an_error(large: Path) -> None:
    stored = checkpoint.load(large, beside=True)
    assert stored.verification is not None
    dict(stored.tensors)
    path = large / "model.safetensors"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000_000))
    with pytest.raises(CheckpointError, match="cut or written over"):
        stored.verification.wait()
    assert checkpoint.load(large, beside=True).verification is not None  # never begun: its files are closed


def test_a_verification_runs_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    verification = manifests.Verification(lambda: runs.append(1))
    for _ in range(2):
        verification.begin()
        verification.wait()
    assert runs == [1]
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)  # a forked child: its parent's thread is not there
    verification.wait()
    assert runs == [1, 1]


def test_several_gguf_files_are_named(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        checkpoint.load(tmp_path / "model")
    for kind in ("Q8_0", "F16"):
        (tmp_path / "model" / f"model.{kind}.gguf").touch()
    both = r"several GGUF files \(model\.F16\.gguf, model\.Q8_0\.gguf\): keep one"
    with pytest.raises(CheckpointError, match=both) as caught:
        checkpoint.load(tmp_path / "model")
    assert "GGUF 파일이 여러 개" in caught.value.ko


# ---------------------------------------------------------------------------------------------- the hub


def test_built_in_names_go_before_folders_and_folders_before_hub_names(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(hub.BUILT_IN, "kogpt-mini", tiny_folder)
    for name in ("kogpt-mini", "someone/else"):
        shutil.copytree(tiny_folder, tmp_path / name)
    assert hub.find_folder("kogpt-mini") == tiny_folder
    for path in ("./kogpt-mini", Path("kogpt-mini"), "someone/else"):
        assert hub.find_folder(path) == Path(path)
    with pytest.raises(CheckpointError, match="no model folder 'no/folder'"):
        hub.find_folder(Path("no/folder"))


def snapshot(folder: Path, asked: list[tuple[Any, ...]]) -> Any:
    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, tuple(allow_patterns)))
        return str(folder)

    return download


def test_hub_names_are_downloaded_at_their_revision(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot(tiny_folder, asked))
    for name, revision, expected in (
        ("kakaobrain/kogpt", None, "KoGPT6B-ryan1.5b-float16"),
        ("kakaobrain/kogpt", "KoGPT6B-ryan1.5b", "KoGPT6B-ryan1.5b"),
        ("someone/else", None, None),
    ):
        assert checkpoint.load(name, revision).folder == tiny_folder
        # The manifest lists what is there: nothing more is asked for.
        assert asked.pop() == (name, expected, ("*.json", "README.md", "LICENSE*")) and not asked
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot(tmp_path, asked))
    assert hub.find_folder("someone/else", "main") == tmp_path
    kinds = [(tmp_path.name, (kind,)) for kind in ("*.safetensors", "*.bin", "model.*.gguf")]
    assert [(revision, patterns) for _, revision, patterns in asked[1:]] == kinds, "of the same commit"


def upload(repository: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the hub have a repository; the names of the files that are fetched from it, as they come."""
    fetched: list[str] = []
    copy = repository.parent / "models--me--it" / "snapshots" / ("0" * 40)

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        for path in sorted(path for path in repository.rglob("*") if path.is_file()):
            file = path.relative_to(repository).as_posix()
            is_wanted = any(fnmatchcase(file, pattern) for pattern in allow_patterns)
            if is_wanted and not (copy / file).exists():
                (copy / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy / file)
                fetched.append(file)
        return str(copy)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return fetched


@pytest.mark.parametrize("weights", ["one file", "shards", "phi", "GGUF"])
def test_a_folder_that_kogpt_wrote_loads_from_the_hub(
    weights: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it that its manifest lists is fetched, and nothing else that lies beside it."""
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(tiny_folder, source)
    for name in ("README.md", "LICENSE"):
        (source / name).write_text(name)
    (source / "kogpt.manifest.json").unlink()
    stored = checkpoint.load(source)
    if weights == "GGUF":
        pytest.importorskip("gguf")
        export_gguf(stored, "F16", out)
    elif weights == "phi":
        export_phi(stored, "float16", out)
    else:
        shard_bytes = 100_000 if weights == "shards" else 1 << 30
        checkpoint.save(out, TINY, stored.tensors, "float16", source, shard_bytes)
    (out / "pictures").mkdir()
    (out / "pictures" / "[1] 손실.png").write_bytes(b"\x89PNG")
    manifests.write_manifest(out)
    listed = manifest(out)["files"].keys()
    for name in ("int4/model.safetensors", "other.safetensors", "pytorch_model.bin", "model.Q8_0.gguf"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("of no use here")
    fetched = upload(out, monkeypatch)
    folder = hub.find_folder("me/it")
    checkpoint.load(folder)
    assert {"README.md", "LICENSE"} < set(fetched) == {*listed, "kogpt.manifest.json"}
    assert len(fetched) == len(set(fetched)), "nothing twice"


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (("model.safetensors", "pytorch_model.bin", "model.F16.gguf"), "model.safetensors"),
        (("pytorch_model.bin", "model.F16.gguf"), "pytorch_model.bin"),
        (("model.F16.gguf", "another.Q4_K_M.gguf"), "model.F16.gguf"),
        ((), None),
    ],
)
def test_one_kind_of_weights_is_fetched_where_there_is_no_manifest(
    there: tuple[str, ...], expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    small = {"config.json", "README.md", "LICENSE.txt"}
    for name in (*small, *there, "training.log"):
        (repository / name).write_text("{}")
    fetched = upload(repository, monkeypatch)
    hub.find_folder("me/it", weights=False)
    assert set(fetched) == small
    hub.find_folder("me/it")
    assert set(fetched) == small | ({expected} if expected else set()) and len(fetched) == len(set(fetched))


def test_without_network_a_model_needs_no_card(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client refuses a cache that lacks a file it is asked for; older ones lack card and licence."""

    def incomplete(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        if "README.md" in allow_patterns:
            raise hub_errors.LocalEntryNotFoundError("incomplete")
        return str(tiny_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", incomplete)
    assert checkpoint.load("someone/else").folder == tiny_folder


HTTP_ERROR = vars(hub_errors)["HTTPError"]  # of whichever HTTP library the hub's client uses


def http_error(kind: type[hub_errors.HfHubHTTPError]) -> hub_errors.HfHubHTTPError:
    return kind("401", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (hub_errors.LocalEntryNotFoundError("no network\nat all"), "connect to the network"),
        (hub_errors.OfflineModeIsEnabled("offline"), "connect to the network"),
        (OSError(28, "No space left on device"), "could not be downloaded"),
        (http_error(hub_errors.RepositoryNotFoundError), "the hub has no kakaobrain/kogpt .*check the name"),
        (http_error(hub_errors.RevisionNotFoundError), "the hub has no kakaobrain/kogpt"),
        (http_error(hub_errors.GatedRepoError), "hf auth login"),
        (http_error(hub_errors.HfHubHTTPError), "could not be downloaded"),
        (HTTP_ERROR("connection reset"), "could not be downloaded"),
        (hub_errors.HFValidationError("bad name"), "could not be downloaded"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.load("kakaobrain/kogpt")
    assert "\n" not in caught.value.en and "\n" not in caught.value.ko


def test_the_real_client_without_network(tmp_path: Path) -> None:
    code = (
        "from kogpt import checkpoint, errors\n"
        "try: checkpoint.load('kakaobrain/kogpt')\n"
        "except errors.CheckpointError as error: print(error.en)"
    )
    path = os.pathsep.join([str(Path(checkpoint.__file__).parents[1]), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
    assert run.stdout.count("\n") == 1 and "connect to the network" in run.stdout


# ------------------------------------------------------------------------------------------- failed saves


@pytest.mark.parametrize("call", ["fsync", "rename", "replace", "unlink"])
def test_a_failure_at_any_step_of_a_save_leaves_the_old_model_or_the_new_one(
    call: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The k-th sync, rename or removal fails, for every k: a whole model loads, and nothing is left over."""
    new = {name: np.full(shape, 2, np.float32) for name, shape in TINY.tensor_shapes().items()}
    target = os if call == "fsync" else Path
    original = getattr(target, call)
    outcomes = []
    for k in range(1, 100):
        folder = tmp_path / str(k)
        shutil.copytree(tiny_folder, folder)
        countdown = iter(range(k - 1, -1, -1))

        def fail_once(*arguments: Any, countdown: Any = countdown, **options: Any) -> Any:
            if next(countdown, None) == 0:
                raise OSError(5, "Input/output error")
            return original(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(target, call, fail_once)
            try:
                checkpoint.save(folder, TINY, new, "float32", shard_bytes=400_000)
            except (OSError, DiskError):
                failed = True
            else:
                failed = False
        values = {float(stored.array.flat[0]) for stored in plain(checkpoint.load(folder).tensors).values()}
        outcomes.append("new" if values == {2.0} else "old" if 2.0 not in values else "mixture")
        assert not list(folder.glob(".*"))
        if not failed:
            break
    decided = outcomes.index("new")
    assert outcomes == ["old"] * decided + ["new"] * (len(outcomes) - decided)
    if call in ("fsync", "rename"):  # the rename that decides comes after every file is on the disk
        assert decided >= 1
    n_files = len(list(folder.iterdir())) - 2  # the two files of the tokenizer are not written again
    if call == "replace":
        assert decided == 0 and len(outcomes) == n_files + 1


def test_every_core_test_folder_loads_with_the_library(tiny_folder: Path) -> None:
    """The fixture that other tests build on is what it claims to be."""
    expected = random_tensors(TINY)
    read = load_file(tiny_folder / "model.safetensors")
    assert all((read[name] == expected[name]).all() for name in expected)
    tokenizer = Tokenizer.from_file(tiny_folder / "tokenizer.json")
    tokenizer.check_fits(checkpoint.load(tiny_folder).config)
