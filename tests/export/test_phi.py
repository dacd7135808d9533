"""The layout of Phi and GGUF files: what is written comes back, and other readers compute the same."""

from __future__ import annotations

import json
import re
import resource
import struct
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, random_tensors
from korean import PROSE
from numpy.typing import NDArray
from test_adapter import MODULES, random_lora

from kogpt import checkpoint, peft, phi
from kogpt.cli import main
from kogpt.config import ModelConfig
from kogpt.errors import CheckpointError, ConfigError, DiskError, KoGPTError
from kogpt.export.phi import GGUF_TYPES, export_gguf, export_lora, export_phi
from kogpt.export.verify import compare
from kogpt.generation import KoGPT
from kogpt.numpy_runner import NumpyRunner
from kogpt.peft import SavedAdapter
from kogpt.runner import Array, Chunk
from kogpt.sampling import Sampling
from kogpt.weights import Stored

pytestmark = pytest.mark.usefixtures("no_fsync")
IDS = np.arange(5, 60)


@pytest.fixture
def folder(tmp_path: Path, tiny_tokenizer: Path) -> Path:
    """A tiny model in float32."""
    checkpoint.save(tmp_path / "own", TINY, random_tensors(TINY), "float32", tiny_tokenizer)
    return tmp_path / "own"


def logits(folder: Path) -> Array:
    stored = checkpoint.load(folder)
    runner = NumpyRunner(stored.config, stored.floats())
    return runner.forward([Chunk(runner.open(), IDS, len(IDS))])[0]


def arrays(tensors: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    return {name: tensors[name].to("float32") for name in tensors}


@pytest.mark.parametrize("shard_bytes", [1 << 30, 30_000])
@pytest.mark.parametrize("tied", [False, True])
def test_a_phi_folder_comes_back(
    tied: bool, shard_bytes: int, tmp_path: Path, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY, tied_head=tied, further_eos_token_ids=(7,))
    checkpoint.save(tmp_path / "own", config, random_tensors(config), "float32", tiny_tokenizer)
    monkeypatch.setattr(checkpoint.weights_writers, "__defaults__", (shard_bytes,))
    export_phi(checkpoint.load(tmp_path / "own"), "float32", tmp_path / "phi")
    assert (len(list(tmp_path.glob("phi/*.safetensors"))) > 1) == (shard_bytes < 1 << 30)
    own, again = checkpoint.load(tmp_path / "own"), checkpoint.load(tmp_path / "phi")
    assert again.config == replace(config, tied_head=False)
    expected = arrays(own.tensors)
    expected.setdefault("lm_head.weight", expected["transformer.wte.weight"])
    found = arrays(again.tensors)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def reference(folder: Path) -> Array:
    """(T, V) logits of transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert type(model).__name__ == "PhiForCausalLM"
    with torch.no_grad():
        found: Array = model(torch.tensor(IDS)[None]).logits[0].numpy()
    return found


def test_transformers_computes_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = checkpoint.load(folder)
    export_phi(stored, "float32", tmp_path / "phi")
    np.testing.assert_allclose(reference(tmp_path / "phi"), logits(folder), atol=1e-4)
    monkeypatch.setattr(phi, "row_order", lambda config: np.arange(config.d_model))
    export_phi(stored, "float32", tmp_path / "unpermuted")
    assert np.abs(reference(tmp_path / "unpermuted") - logits(folder)).max() > 0.1


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_peft_computes_the_same_with_a_converted_lora(folder: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    stored, lora = checkpoint.load(folder), random_lora(MODULES)
    peft.save(tmp_path / "lora", SavedAdapter(lora), TINY)
    export_phi(stored, "float32", tmp_path / "phi")
    export_lora(stored, tmp_path / "lora", tmp_path / "phi-lora")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "phi", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path / "phi-lora")
    with torch.no_grad():
        found = model(torch.tensor(IDS)[None]).logits[0].numpy()
    runner = NumpyRunner(TINY, stored.floats())
    [expected] = runner.forward([Chunk(runner.open(runner.add_adapter(lora)), IDS, len(IDS))])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found - logits(folder)).max() > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qk_layernorm": True}, "qk_layernorm"),
        ({"num_key_value_heads": 2}, "num_key_value_heads"),
        ({"rope_parameters": {"rope_type": "yarn", "partial_rotary_factor": 0.5}}, "rope_type"),
        ({"rope_parameters": None, "partial_rotary_factor": None}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 0.5}}, "rope_theta"),
        ({"hidden_act": "silu"}, "activation_function"),
        *(({"hidden_size": value}, "hidden_size") for value in ("64", 0, True, None, 10**400)),
        *(
            ({"num_attention_heads": value, "num_key_value_heads": None}, "num_attention_heads")
            for value in (0, 2.0, 10**400)
        ),
        *(
            ({"rope_parameters": None, "partial_rotary_factor": value}, "partial_rotary_factor")
            for value in (1e999, -1e999, 0.0, -0.5, 1.5, 10**400, "0.5")
        ),
    ],
)
def test_a_phi_that_is_no_gptj_is_refused(change: dict[str, Any], message: str) -> None:
    document = json.loads(json.dumps(phi.to_config(TINY)))
    assert ModelConfig.from_json(phi.from_config(document)) == TINY
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_json(phi.from_config(document | change))


def test_a_phi_with_biases_in_attention_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = phi._ToPhi.__getitem__

    def biased(self: phi._ToPhi, name: str) -> Stored:
        tensor = make(self, name)
        return Stored("float32", tensor.array + 1) if name.endswith("dense.bias") else tensor

    monkeypatch.setattr(phi._ToPhi, "__getitem__", biased)
    export_phi(checkpoint.load(folder), "float32", tmp_path / "phi")
    with pytest.raises(CheckpointError, match=r"self_attn\.dense\.bias is not zero"):
        checkpoint.load(tmp_path / "phi")


def stored_bytes(folder: Path) -> int:
    [file] = folder.glob("*.gguf")
    return file.stat().st_size


@pytest.mark.parametrize("kind", GGUF_TYPES)
def test_a_gguf_folder_comes_back(kind: str, folder: Path, tmp_path: Path) -> None:
    export_gguf(checkpoint.load(folder), kind, tmp_path / "out")
    again = checkpoint.load(tmp_path / "out")
    assert again.config == TINY
    expected, found = arrays(checkpoint.load(folder).tensors), arrays(again.tensors)
    limits = {"F32": 0.0, "F16": 1e-3, "BF16": 8e-3, "Q8_0": 1e-2, "Q4_0": 0.15}
    for name, array in expected.items():
        limit = limits[kind] if array.ndim == 2 else 0.0
        assert np.abs(found[name] - array).max() <= limit * np.abs(array).max(), name
    assert checkpoint.stored_format(tmp_path / "out") == (f"GGUF {kind}", stored_bytes(tmp_path / "out"))
    assert "FROM ./model." in (tmp_path / "out" / "Modelfile").read_text()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    place = tmp_path_factory.mktemp("gguf")
    checkpoint.save(place / "own", TINY, random_tensors(TINY), "float32", tiny_tokenizer)
    export_gguf(checkpoint.load(place / "own"), "Q8_0", place / "out")
    (place / "out" / "kogpt.manifest.json").unlink()
    return place / "out"


def test_a_damaged_gguf_file_is_an_error(written: Path, tmp_path: Path) -> None:
    """Cut anywhere, or with any of its first 64 bytes and lengths changed: never a crash, never a hang."""
    data = (written / "model.Q8_0.gguf").read_bytes()
    rng = np.random.default_rng(0)
    cases = [data[:n] for n in (0, 3, 4, 8, 20, 24, 40, 100, len(data) // 2, len(data) - 40)]
    for place in [*range(64), *rng.integers(64, 40_000, 60)]:
        for value in (0xFF, 0x00):
            changed = bytearray(data)
            changed[place : place + 8] = bytes([value]) * 8
            cases.append(bytes(changed))
    outcomes = set()
    for number, case in enumerate(cases):
        out = tmp_path / str(number)
        out.mkdir()
        for file in written.iterdir():
            if file.suffix != ".gguf":
                (out / file.name).write_bytes(file.read_bytes())
        (out / "model.Q8_0.gguf").write_bytes(case)
        try:
            arrays(checkpoint.load(out).tensors)
            outcomes.add("read")
        except CheckpointError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}  # metadata may say anything


def test_a_full_disk_is_said(folder: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))  # EFBIG, as ENOSPC
    try:
        with pytest.raises(DiskError, match="make room"):
            export_gguf(checkpoint.load(folder), "F32", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "out").exists()


def test_no_modelfile_stays_without_its_gguf_file(folder: Path, tmp_path: Path) -> None:
    export_gguf(checkpoint.load(folder), "F16", tmp_path / "out")
    assert (tmp_path / "out" / "Modelfile").exists()
    export_phi(checkpoint.load(folder), "float32", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.gguf")) and not (tmp_path / "out" / "Modelfile").exists()
    checkpoint.load(tmp_path / "out")


def test_a_gguf_file_that_lies(written: Path, tmp_path: Path) -> None:
    data = (written / "model.Q8_0.gguf").read_bytes()
    gguf = pytest.importorskip("gguf")
    found = gguf.GGUFReader(written / "model.Q8_0.gguf").tensors
    [scale] = [tensor.data_offset for tensor in found if tensor.name == "blk.0.attn_q.weight"]
    (written / "model.Q8_0.gguf").write_bytes(data[:scale] + b"\0\x7e" + data[scale + 2 :])
    with pytest.raises(CheckpointError, match=r"model\.Q8_0\.gguf is damaged.* NaN or infinite scales"):
        arrays(checkpoint.load(written).tensors)
    for count in (2**17, 2**63):
        (written / "model.Q8_0.gguf").write_bytes(data[:8] + struct.pack("<Q", count) + data[16:])
        with pytest.raises(CheckpointError, match="tensors, at most"):
            checkpoint.load(written)
    (written / "model.Q8_0.gguf").write_bytes(data)
    with pytest.raises(KoGPTError, match="blocks of 32"):
        export_gguf(replace(checkpoint.load(written), config=replace(TINY, d_ff=255)), "Q4_0", tmp_path / "x")


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--model", str(folder)]
    assert main(["export", "phi", *own, "--type", "float32", "--verify", "--out", str(tmp_path / "a")]) == 0
    assert "equal first choices: 64 / 64" in capsys.readouterr().err
    assert main(["export", "gguf", *own, "--type", "float32", "--out", str(tmp_path / "b")]) == 2
    assert main(["export", "float16", *own, "--type", "F16", "--out", str(tmp_path / "b")]) == 2
    assert main(["export", "peft", *own, "--out", str(tmp_path / "b")]) == 2
    assert not (tmp_path / "b").exists()
    found = compare(checkpoint.load(folder), checkpoint.load(tmp_path / "a"))
    assert found.largest == 0 and found.n_equal == found.n_tokens


def llama_server(file: Path, lora: Path | None = None) -> Any:
    """llama.cpp's server with a GGUF file and a LoRA."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx = parameters.n_batch = 512
    parameters.n_parallel = parameters.cpuparams.n_threads = 1  # its threads spin while they wait
    parameters.cpuparams_batch.n_threads = 1
    parameters.warmup = False
    if lora is not None:
        parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora))]
    return xllamacpp.Server(parameters)


def test_llama_cpp_writes_the_same_with_a_lora(folder: Path, tmp_path: Path) -> None:
    lora = random_lora(MODULES)
    peft.save(tmp_path / "lora", SavedAdapter(lora), TINY)
    command = ["export", "gguf-lora", "--model", str(folder), "--out", str(tmp_path / "out")]
    assert main([*command, "--adapter", str(tmp_path / "lora")]) == 0
    export_gguf(checkpoint.load(folder), "F32", tmp_path / "base")
    own = KoGPT.from_pretrained(folder, device="cpu", dtype="float32", adapter=tmp_path / "lora")
    expected = own.generate(PROMPTS[0], Sampling(temperature=0, max_tokens=24)).text
    settings = {"prompt": own.tokenizer.encode(PROMPTS[0]), "max_tokens": 24, "temperature": 0}
    texts = []
    for adapter in (None, tmp_path / "out" / "adapter.gguf"):
        server = llama_server(tmp_path / "base" / "model.F32.gguf", adapter)
        texts.append(server.handle_completions(settings | {"repeat_penalty": 1.0})["choices"][0]["text"])
        del server
    plain, tuned = (text.rstrip("\ufffd") for text in texts)
    assert tuned == expected.rstrip("\ufffd") != plain


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """llama.cpp's server with kogpt-mini in float32."""
    out = tmp_path_factory.mktemp("llama") / "mini"
    export_gguf(checkpoint.load("kogpt-mini"), "F32", out)
    server = llama_server(out / "model.F32.gguf")
    yield server
    del server


PROMPTS = (
    *(
        "제1조(목적) 이 법은",
        "조선 시대의 왕은",
        "이 영화는 정말",
        "파이썬에서 리스트를",
        "대한민국의 수도는",
    ),
    *("서울특별시는", "물은", "한국의 전통 음식", "컴퓨터 과학에서 알고리즘은", "제2조(정의) 이 법에서"),
    *(
        "배우들의 연기가",
        "함수를 호출하면",
        "고려는",
        "태양계의 행성은",
        "국회는",
        "문서를 저장하려면",
        "그는 12월에",
    ),
    *("나무가 많은", "음악은", "다음 예제는"),
)


def test_llama_cpp_writes_the_same_greedy_text(llama: Any) -> None:
    model = KoGPT.from_pretrained(device="cpu", dtype="float32")
    own = model.generate(PROMPTS, Sampling(temperature=0, max_tokens=64))
    for prompt, result in zip(PROMPTS, own, strict=True):
        ids = model.tokenizer.encode(prompt)
        settings = {"prompt": ids, "max_tokens": 64, "temperature": 0, "repeat_penalty": 1.0}
        found = llama.handle_completions(settings)["choices"][0]["text"]
        assert found.rstrip("\ufffd") == result.text.rstrip("\ufffd"), prompt


def test_llama_cpp_splits_korean_text_alike(llama: Any) -> None:
    """Runs of three digits are the exception: llama.cpp has no rule that cuts them into pairs."""
    tokenizer = KoGPT.from_pretrained(device="cpu").tokenizer
    texts = [text for text in (*PROSE, *PROMPTS) if not re.search(r"\d{3}", text)]
    assert len(texts) > 25
    for text in [*texts, "줄\n\n바꿈  과 \t 탭\n", "값은 12,34.5입니다!?"]:
        body = json.dumps({"content": text}).encode()
        request = urllib.request.Request(
            f"{llama.listening_address}/tokenize", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["tokens"] == tokenizer.encode(text), text
