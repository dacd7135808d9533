"""A folder exported in every format: what it holds, who reads it and who stops, and what a failure leaves."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, random_tensors
from korean import PROSE
from test_adapter import MODULES, random_lora

from kogpt import checkpoint, manifest, native_runner, peft
from kogpt.adapter import SoftPrompt
from kogpt.checkpoint import Checkpoint
from kogpt.errors import CheckpointError, DiskError, KoGPTError
from kogpt.export import folder as export_folder
from kogpt.export.folder import FLOATS, export, require_place, with_lora
from kogpt.export.phi import export_gguf, export_phi
from kogpt.generation import KoGPT
from kogpt.native_runner import NativeRunner
from kogpt.numpy_runner import NumpyRunner
from kogpt.peft import Origin, SavedAdapter
from kogpt.placement import Placement, load_runner
from kogpt.quantize import Quantized, statement
from kogpt.runner import Array, Chunk, Runner
from kogpt.sampling import Sampling

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.skipif(not native_runner.available(), reason="the kernels were not built"),
    pytest.mark.usefixtures("no_fsync"),
]

IDS = np.arange(5, 60)


def logits(runner: Runner) -> Array:
    return runner.forward([Chunk(runner.open(), IDS, len(IDS))])[0]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard_bytes", [1 << 30, 30_000])
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_quantised_folder_runs_as_the_float_model_rounded_at_load(
    dtype: str,
    shard_bytes: int,
    tied: bool,
    tiny_tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(TINY, tied_head=tied)
    monkeypatch.setattr(checkpoint.model_writers, "__defaults__", (shard_bytes,))
    checkpoint.save(tmp_path / "source", config, random_tensors(config), "bfloat16", tiny_tokenizer)
    source = checkpoint.load(tmp_path / "source")
    export(source, dtype, tmp_path / "out")
    stored = checkpoint.load(tmp_path / "out")
    assert stored.quantization == dtype and stored.config == config
    assert checkpoint.stored_format(tmp_path / "out") == (
        dtype,
        sum(path.stat().st_size for path in tmp_path.glob("out/*.safetensors")),
    )
    assert stored.tensors["transformer.wte.weight"].dtype == "bfloat16"
    assert isinstance(stored.tensors["lm_head.weight"], Quantized)
    found = logits(load_runner(stored, Placement("cpu", "auto")))
    np.testing.assert_array_equal(found, logits(NativeRunner(config, source.tensors, dtype)))
    assert (len(list(tmp_path.glob("out/*.safetensors"))) > 1) == (shard_bytes < 1 << 30)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_quantised_folder_is_unpacked_for_every_other_runner(
    dtype: str, tiny_folder: Path, tmp_path: Path
) -> None:
    export(checkpoint.load(tiny_folder), dtype, tmp_path / "out")
    stored = checkpoint.load(tmp_path / "out")
    native = logits(load_runner(stored, Placement("cpu", dtype)))
    floats = logits(load_runner(stored, Placement("cpu", "float32")))
    np.testing.assert_allclose(floats, native, atol=0.2)
    assert np.abs(floats - native).mean() < 0.02
    other = {"int8": "int4", "int4": "int8"}[dtype]
    with pytest.raises(KoGPTError, match="round it twice"):
        load_runner(stored, Placement("cpu", other))
    with pytest.raises(KoGPTError, match="round it twice"):
        export(stored, other, tmp_path / "again")
    export(stored, "float32", tmp_path / "floats")
    again = checkpoint.load(tmp_path / "floats")
    for name, tensor in stored.floats().items():
        np.testing.assert_array_equal(again.tensors[name].to("float32"), tensor.to("float32"))


def test_numpy_and_torch_read_the_same_weights(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(checkpoint.load(tiny_folder), "int4", tmp_path / "out")
    stored = checkpoint.load(tmp_path / "out")
    native = logits(load_runner(stored, Placement("cpu", "float32")))
    monkeypatch.setattr(native_runner, "available", lambda: False)
    np.testing.assert_allclose(logits(load_runner(stored, Placement("cpu", "auto"))), native, atol=1e-4)
    from kogpt.torch_runner import TorchRunner

    np.testing.assert_allclose(logits(TorchRunner(TINY, stored.floats(), "float32")), native, atol=1e-4)


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_are_read_by_transformers(dtype: str, tiny_folder: Path, tmp_path: Path) -> None:
    from transformers import GPTJForCausalLM

    export(checkpoint.load(tiny_folder), dtype, tmp_path / "out")
    model = GPTJForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert str(model.dtype) == f"torch.{dtype}"
    for name, tensor in checkpoint.load(tmp_path / "out").tensors.items():
        wanted = model.state_dict()[name].float().numpy()
        np.testing.assert_array_equal(tensor.to("float32"), wanted, name)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_transformers_stops_at_a_quantised_folder(dtype: str, tiny_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, GPTJForCausalLM

    export(checkpoint.load(tiny_folder), dtype, tmp_path / "out")
    for reader in (AutoModelForCausalLM, GPTJForCausalLM):
        with pytest.raises(RuntimeError, match="mismatched_sizes"):
            reader.from_pretrained(tmp_path / "out")


def test_the_manifest_states_the_format_and_every_file(tiny_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_folder, source)
    (source / "LICENSE").write_text("theirs")
    (source / "kogpt.manifest.json").unlink()
    out = tmp_path / "out"
    export(checkpoint.load(source), "int4", out)
    document = json.loads((out / "kogpt.manifest.json").read_text())
    names = {path.name for path in out.iterdir()} - {"kogpt.manifest.json"}
    assert set(document["files"]) == names and "LICENSE" in names
    assert document["quantization"] == statement(TINY, "int4")
    assert document["quantization"]["group_size"] == 32 and len(document["quantization"]["tensors"]) == 19
    manifest.write_manifest(out)
    assert json.loads((out / "kogpt.manifest.json").read_text()) == document
    text = KoGPT.from_pretrained(out).generate("옛날", Sampling(max_tokens=4, temperature=0)).tokens
    assert len(text) == 4


def test_end_tokens_and_settings_are_kept(tiny_tokenizer: Path, tmp_path: Path) -> None:
    config = replace(TINY, bos_token_id=None, further_eos_token_ids=(7,))
    checkpoint.save(tmp_path / "source", config, random_tensors(config), "bfloat16", tiny_tokenizer)
    written = json.loads((tmp_path / "source" / "generation_config.json").read_text())
    assert written == {"bos_token_id": None, "eos_token_id": [1, 7], "pad_token_id": 1}
    settings = b'{"eos_token_id": [1, 7, 9], "temperature": 0.7, "num_beams": 4, "of_others": {"a": [1]}}'
    (tmp_path / "source" / "generation_config.json").write_bytes(settings)
    (tmp_path / "source" / "kogpt.manifest.json").unlink()
    export(checkpoint.load(tmp_path / "source"), "float16", tmp_path / "out")
    assert (tmp_path / "out" / "generation_config.json").read_bytes() == settings
    assert checkpoint.load(tmp_path / "out").config == config


def test_a_calibrated_export_is_another_rounding(tiny_folder: Path, tmp_path: Path) -> None:
    text = "\n".join(PROSE) * 20
    done: list[float] = []
    export(checkpoint.load(tiny_folder), "int4", tmp_path / "out", text, done.append)
    export(checkpoint.load(tiny_folder), "int4", tmp_path / "plain")
    one, other = (checkpoint.load(tmp_path / name).floats() for name in ("out", "plain"))
    assert (one["lm_head.weight"].array != other["lm_head.weight"].array).any()
    assert 0.9 * TINY.n_parameters < sum(done) <= TINY.n_parameters
    with pytest.raises(KoGPTError, match="int4 only"):
        export(checkpoint.load(tiny_folder), "int8", tmp_path / "no", text)


# --------------------------------------------------------------------------------------------- the place


def test_where_a_folder_may_be_written(tiny_folder: Path, tmp_path: Path) -> None:
    require_place(tmp_path / "new", tiny_folder, force=False)
    require_place(tmp_path, tiny_folder, force=False)  # there, but empty
    with pytest.raises(CheckpointError, match="the model itself"):
        require_place(tiny_folder / "." / "", tiny_folder, force=True)
    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model)
    with pytest.raises(CheckpointError, match="--force"):
        require_place(model, tiny_folder, force=False)
    require_place(model, tiny_folder, force=True)
    for force in (False, True):
        with pytest.raises(CheckpointError, match="other files"):
            require_place(tmp_path, tiny_folder, force)
        with pytest.raises(CheckpointError, match="not a folder"):
            require_place(model / "config.json", tiny_folder, force)


@pytest.mark.parametrize(
    ("write", "kind"), [(export, "float16"), (export_phi, "float16"), (export_gguf, "F16")]
)
def test_nothing_of_another_model_remains(
    write: Callable[[Checkpoint, str, Path], None], kind: str, tiny_folder: Path, tmp_path: Path
) -> None:
    """Neither its weights nor its licence, which would be another model's."""
    old = ("README.md", "LICENSE", "LICENSE.txt", "LICENSE.cc-by-nc-nd-4.0", "special_tokens_map.json")
    out = tmp_path / "out"
    out.mkdir()
    for name in (*old, "pytorch_model.bin", "notes.txt"):
        (out / name).write_text("old")
    write(checkpoint.load(tiny_folder), kind, out)
    remaining = {path.name for path in out.iterdir() if path.read_bytes() == b"old"}
    assert remaining == {"notes.txt"}
    listed = json.loads((out / "kogpt.manifest.json").read_text())["files"]
    assert listed.keys() == {path.name for path in out.iterdir()} - {"kogpt.manifest.json"}
    assert checkpoint.load(out).config == TINY
    own = tmp_path / "own"
    shutil.copytree(tiny_folder, own)
    for name in old[:3]:
        (own / name).write_text("own")
    (own / "kogpt.manifest.json").unlink()
    write(checkpoint.load(own), kind, out)
    assert {path.name for path in out.iterdir() if path.read_bytes() == b"own"} == set(old[:3])


def test_a_full_disk_leaves_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands in for the disk: a write beyond it fails as one on a full disk does."""
    stored = checkpoint.load(tiny_folder)
    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model)
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        for out in (tmp_path / "new", model):
            with pytest.raises(DiskError, match="make room"):
                export(stored, "int4", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


KILLED = """
import os, sys
from pathlib import Path
from kogpt import checkpoint, cli
call, count = sys.argv[1], int(sys.argv[2])
original = getattr(Path, call)
def step(*arguments, **options):
    global count
    count -= 1
    if count == 0:
        os._exit(9)  # as after SIGKILL: nothing is cleaned up
    return original(*arguments, **options)
setattr(Path, call, step)
sys.exit(cli.main(["export", "int8", "--model", sys.argv[3], "--out", sys.argv[4]]))
"""


@pytest.mark.parametrize(("call", "count"), [("rename", 1), ("replace", 1), ("replace", 3)])
def test_a_killed_export_can_be_repeated(tiny_folder: Path, tmp_path: Path, call: str, count: int) -> None:
    """Killed before it decided, the same command works; killed after that, with --force."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, call, str(count), str(tiny_folder), str(out)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    assert subprocess.run(command, env=environment, check=False).returncode == 9
    assert list(out.glob(".*"))
    export_folder.require_place(out, tiny_folder, force=call == "replace")
    if call == "replace":
        before = sorted(out.rglob("*"))
        with pytest.raises(CheckpointError, match=r"is not finished, .* write it again"):
            checkpoint.load(out)
        with pytest.raises(CheckpointError, match="holds a model already"):
            export_folder.require_place(out, tiny_folder, force=False)
        assert sorted(out.rglob("*")) == before, "neither changes anything"
    export(checkpoint.load(tiny_folder), "int8", out)
    assert checkpoint.load(out).quantization == "int8" and not list(out.glob(".*"))


@pytest.mark.parametrize(
    ("write", "kind"), [(export, "float16"), (export_phi, "float16"), (export_gguf, "F16")]
)
def test_a_tokenizer_that_nothing_can_load_is_not_exported(
    write: Callable[[Checkpoint, str, Path], None], kind: str, tiny_folder: Path, tmp_path: Path
) -> None:
    for name, content in (
        ("empty", "{}"),
        ("torn", '{"model": '),
        ("foreign", '{"model": {"type": "WordPiece"}}'),
    ):
        model = tmp_path / name
        shutil.copytree(tiny_folder, model)
        (model / "tokenizer.json").write_text(content)
        (model / "kogpt.manifest.json").unlink()
        with pytest.raises(KoGPTError, match=r"tokenizer\.json"):
            write(checkpoint.load(model), kind, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_lora_is_added_before_rounding(dtype: str, tiny_folder: Path, tmp_path: Path) -> None:
    source, lora = checkpoint.load(tiny_folder), random_lora(MODULES)
    peft.save(tmp_path / "lora", SavedAdapter(lora, origin=Origin.of(source)), TINY)
    export(with_lora(source, tmp_path / "lora"), dtype, tmp_path / "out")
    found = logits(load_runner(checkpoint.load(tmp_path / "out"), Placement("cpu", "float32")))
    runner = NumpyRunner(TINY, source.floats())
    (expected,) = runner.forward([Chunk(runner.open(runner.add_adapter(lora)), IDS, len(IDS))])
    np.testing.assert_allclose(found, expected, atol={"float32": 1e-4, "float16": 0.02, "int8": 0.3}[dtype])
    assert np.abs(logits(load_runner(source, Placement("cpu", "float32"))) - expected).max() > 0.5


def test_an_adapter_that_no_weights_can_hold_is_not_merged(tiny_folder: Path, tmp_path: Path) -> None:
    source = checkpoint.load(tiny_folder)
    prompt = SoftPrompt(np.ones((3, 64), np.float32))
    peft.save(tmp_path, SavedAdapter(prompt), TINY)
    with pytest.raises(CheckpointError, match="only LoRA is merged"):
        with_lora(source, tmp_path)
    peft.save(tmp_path, SavedAdapter(random_lora(MODULES), np.ones((2, 64), np.float32)), TINY)
    with pytest.raises(CheckpointError, match="a head for labels"):
        with_lora(source, tmp_path)
