"""Adapters as PEFT writes them: read here, written here and read by PEFT, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft as real
import pytest
import torch
from conftest import TINY, random_tensors
from safetensors.numpy import load_file, save_file
from test_adapter import MODULES, random_lora
from transformers import GPTJForCausalLM, GPTJForSequenceClassification

from kogpt import checkpoint, peft
from kogpt.adapter import Adapter, KeyValuePrefix, Lora, LowRank, SoftPrompt, merged
from kogpt.checkpoint import Checkpoint
from kogpt.cli import main
from kogpt.errors import CheckpointError, KoGPTError
from kogpt.generation import KoGPT
from kogpt.numpy_runner import NumpyRunner
from kogpt.peft import Origin, SavedAdapter
from kogpt.placement import Placement
from kogpt.runner import Chunk
from kogpt.sampling import Sampling

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

IDS = np.array([5, 300, 17, 42, 8])
LORAS = {
    "two kinds": real.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "fc_in"]),
    "patterns": real.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "fc_out", "fc_in"],
        rank_pattern={"fc_in": 2, "h.1.attn.q_proj": 6},
        alpha_pattern={r"h\.(0|1)\.mlp\.fc_in": 5, "fc_in": 3, "^transformer.h.2.attn.q_proj": 1},
    ),
    "rank-stabilised": real.LoraConfig(r=9, lora_alpha=6, target_modules=["v_proj"], use_rslora=True),
    "all": real.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"),
    "regex": real.LoraConfig(target_modules=r".*\.h\.[02]\.attn\.(k|out)_proj"),
    "layers": real.LoraConfig(target_modules=["q_proj"], layers_to_transform=[1], layers_pattern="h"),
}
PROMPTS = {
    "prompt tuning": real.PromptTuningConfig(num_virtual_tokens=7, task_type="CAUSAL_LM"),
    "p-tuning": real.PromptEncoderConfig(num_virtual_tokens=7, encoder_hidden_size=16, task_type="CAUSAL_LM"),
    "prefix tuning": real.PrefixTuningConfig(num_virtual_tokens=7, task_type="CAUSAL_LM"),
    "projected prefix": real.PrefixTuningConfig(
        num_virtual_tokens=7, prefix_projection=True, encoder_hidden_size=16, task_type="CAUSAL_LM"
    ),
}


@pytest.fixture
def stored(tiny_folder: Path) -> Checkpoint:
    return checkpoint.load(tiny_folder)


def theirs(folder: Path) -> GPTJForCausalLM:
    model: GPTJForCausalLM = GPTJForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model


def tuned(folder: Path, config: real.PeftConfig) -> real.PeftModel:
    """A model of PEFT with random weights in its adapter, where PEFT would begin with no effect."""
    torch.manual_seed(1)
    model = real.get_peft_model(theirs(folder), config).eval()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1 if "lora" in name else 0.5)
    return model


def their_logits(model: torch.nn.Module, ids: np.ndarray = IDS) -> np.ndarray:
    with torch.no_grad():
        logits: np.ndarray = model(input_ids=torch.from_numpy(ids)[None]).logits[0, -len(ids) :].numpy()
    return logits


def our_rows(runner: NumpyRunner, adapter: Adapter, n: int) -> list[int]:
    """Rows that have read what comes before the text."""
    if isinstance(adapter, Lora):
        handle = runner.add_adapter(adapter)
        return [runner.open(handle) for _ in range(n)]
    rows = [runner.open() for _ in range(n)]
    for row in rows:
        if isinstance(adapter, SoftPrompt):
            runner.forward([Chunk(row, adapter.embeddings, 0)])
        else:
            runner.load_cache(row, adapter.keys, adapter.values)
    return rows


def our_logits(stored: Checkpoint, adapter: Adapter, ids: np.ndarray = IDS) -> np.ndarray:
    runner = NumpyRunner(stored.config, stored.floats())
    (row,) = our_rows(runner, adapter, 1)
    return runner.forward([Chunk(row, ids, len(ids))])[0]


@pytest.mark.parametrize("name", [*LORAS, *PROMPTS])
def test_what_peft_wrote_gives_its_logits(
    name: str, stored: Checkpoint, tiny_folder: Path, tmp_path: Path
) -> None:
    tuned(tiny_folder, (LORAS | PROMPTS)[name]).save_pretrained(tmp_path)
    # PEFT sorts the patterns when it saves them, and the first that matches counts: read by PEFT as by us.
    expected = their_logits(real.PeftModel.from_pretrained(theirs(tiny_folder), tmp_path).eval())
    saved = peft.load(tmp_path, stored)
    assert saved.origin == Origin() and saved.head is None
    np.testing.assert_allclose(our_logits(stored, saved.adapter), expected, atol=1e-4)
    if isinstance(saved.adapter, Lora):
        runner = NumpyRunner(stored.config, merged(stored.floats(), saved.adapter))
        np.testing.assert_allclose(runner.forward([Chunk(runner.open(), IDS, 5)])[0], expected, atol=1e-4)
    base = NumpyRunner(stored.config, stored.floats())
    assert np.abs(base.forward([Chunk(base.open(), IDS, 5)])[0] - expected).max() > 0.05, "it has an effect"


def random_prompt(seed: int = 3) -> SoftPrompt:
    return SoftPrompt(np.random.default_rng(seed).standard_normal((6, 64)).astype(np.float32))


def random_prefix(seed: int = 4) -> KeyValuePrefix:
    keys, values = np.random.default_rng(seed).standard_normal((2, 3, 6, 4, 16)).astype(np.float32)
    return KeyValuePrefix(keys, values)


OURS: dict[str, Callable[[], Adapter]] = {
    "lora": lambda: random_lora(MODULES),
    "one matrix": lambda: random_lora(MODULES[3:4]),
    "prompt": random_prompt,
    "prefix": random_prefix,
}


@pytest.mark.parametrize("name", OURS)
def test_peft_reads_what_is_written_here(
    name: str, stored: Checkpoint, tiny_folder: Path, tmp_path: Path
) -> None:
    adapter = OURS[name]()
    peft.save(tmp_path, SavedAdapter(adapter, origin=Origin.of(stored)), stored.config, "kogpt-mini")
    assert sorted(path.name for path in tmp_path.iterdir()) == [peft.CONFIG, peft.WEIGHTS, peft.OWN]
    model = real.PeftModel.from_pretrained(theirs(tiny_folder), tmp_path).eval()
    assert model.peft_config["default"].base_model_name_or_path == "kogpt-mini"
    np.testing.assert_allclose(our_logits(stored, adapter), their_logits(model), atol=1e-4)


@pytest.mark.parametrize("name", OURS)
def test_an_adapter_comes_back_as_it_was(name: str, stored: Checkpoint, tmp_path: Path) -> None:
    head = np.random.default_rng(5).standard_normal((2, 64)).astype(np.float32)
    origin = Origin.of(stored, "nsmc", ("부정", "긍정"), "{text}\n평가:")
    saved = SavedAdapter(OURS[name](), head, origin)
    peft.save(tmp_path, saved, stored.config)
    again = peft.load(tmp_path, stored)
    assert again.origin == origin
    np.testing.assert_array_equal(again.head, head)
    first, second = peft._tensors(saved.adapter), peft._tensors(again.adapter)
    assert first.keys() == second.keys()
    for tensor in first:
        np.testing.assert_array_equal(first[tensor], second[tensor])
    if isinstance(saved.adapter, Lora) and isinstance(again.adapter, Lora):
        for module, update in saved.adapter.updates.items():
            assert again.adapter.updates[module].scale == pytest.approx(update.scale, rel=1e-12)


@pytest.mark.parametrize("name", OURS)
def test_behind_a_prefix_a_batch_is_its_rows_alone(name: str, stored: Checkpoint) -> None:
    """Positions begin after the virtual tokens, for each row by itself."""
    adapter = OURS[name]()
    texts = [IDS, IDS[:2], np.array([7, 8, 9])]
    runner = NumpyRunner(stored.config, stored.floats())
    rows = our_rows(runner, adapter, 3)
    together = runner.forward([Chunk(row, ids, len(ids)) for row, ids in zip(rows, texts, strict=True)])
    for ids, found in zip(texts, together, strict=True):
        np.testing.assert_allclose(found, our_logits(stored, adapter, ids), atol=1e-5)


def test_a_head_beside_a_lora_is_read(stored: Checkpoint, tiny_folder: Path, tmp_path: Path) -> None:
    base = GPTJForSequenceClassification.from_pretrained(tiny_folder, num_labels=3, dtype=torch.float32)
    model = real.get_peft_model(base, real.LoraConfig(target_modules=["q_proj"], task_type="SEQ_CLS"))
    torch.nn.init.normal_(model.base_model.model.score.modules_to_save["default"].weight)
    model.save_pretrained(tmp_path)
    saved = peft.load(tmp_path, stored)
    assert isinstance(saved.adapter, Lora) and saved.head is not None
    weight = model.base_model.model.score.modules_to_save["default"].weight
    np.testing.assert_array_equal(saved.head, weight.detach().numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_are_read(dtype: torch.dtype, stored: Checkpoint, tiny_folder: Path, tmp_path: Path) -> None:
    model = tuned(tiny_folder, LORAS["two kinds"]).to(dtype)
    model.save_pretrained(tmp_path)
    saved = peft.load(tmp_path, stored)
    assert isinstance(saved.adapter, Lora)
    state = real.get_peft_model_state_dict(model)
    for name, tensor in peft._tensors(saved.adapter).items():
        np.testing.assert_array_equal(tensor, state[name].float().numpy())


@pytest.mark.parametrize("name", OURS)
def test_a_model_reads_writes_and_scores_with_its_adapter(
    name: str, stored: Checkpoint, tiny_folder: Path, tmp_path: Path
) -> None:
    adapter = OURS[name]()
    peft.save(tmp_path, SavedAdapter(adapter, origin=Origin.of(stored)), stored.config)
    placement, greedy = Placement("cpu", "float32", runner="numpy"), Sampling(temperature=0, max_tokens=5)
    model = KoGPT.from_pretrained(tiny_folder, device=placement, adapter=tmp_path)
    prompts = ["옛날 옛적에", "문장 하나", "봄"]
    together = model.generate(prompts, greedy)
    plain = KoGPT.from_pretrained(tiny_folder, device=placement).generate(prompts, greedy)
    assert [result.tokens for result in together] != [result.tokens for result in plain]
    for prompt, result in zip(prompts, together, strict=True):
        ids = list(model.tokenizer.encode(prompt))
        for token in result.tokens:
            assert token == int(our_logits(stored, adapter, np.array(ids))[-1].argmax())
            ids.append(token)
        context, [choice] = model.tokenizer.encode_choices(prompt, [" 끝"])
        logits = our_logits(stored, adapter, np.array([*context, *choice]))[len(context) - 1 : -1]
        logprobs = logits - np.log(np.exp(logits.astype(float)).sum(-1, keepdims=True))
        expected = logprobs[np.arange(len(choice)), choice].sum()
        assert model.score(prompt, " 끝") == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("korean", [False, True])
def test_the_command_takes_an_adapter(
    korean: bool,
    stored: Checkpoint,
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kogpt.native_runner.available", lambda: False)
    words = ["generate", "봄", "--model", str(tiny_folder), "--device", "cpu", "--temperature", "0"]
    peft.save(tmp_path, SavedAdapter(random_prompt(), origin=Origin.of(stored)), stored.config)
    texts = []
    for more in ([], ["--adapter", str(tmp_path)]):
        assert main([*words, *more]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] != texts[1]
    if korean:
        monkeypatch.setenv("LC_ALL", "ko_KR.UTF-8")
    assert main([*words, "--adapter", str(tmp_path / "gone")]) == 2
    assert ("어댑터가 없습니다" if korean else "no adapter") in capsys.readouterr().err


# What is refused


def written(folder: Path, stored: Checkpoint, name: str = "lora") -> Path:
    peft.save(folder, SavedAdapter(OURS[name](), origin=Origin.of(stored)), stored.config)
    return folder


def change_settings(folder: Path, **settings: Any) -> None:
    document = json.loads((folder / peft.CONFIG).read_text("utf-8"))
    (folder / peft.CONFIG).write_text(json.dumps(document | settings), encoding="utf-8")


def change_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Rewrite the tensors as PEFT would, without our file beside."""
    tensors = load_file(folder / peft.WEIGHTS)
    change(tensors)
    save_file(tensors, folder / peft.WEIGHTS)
    (folder / peft.OWN).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"peft_type": "LOHA"}, "the method 'LOHA', KoGPT knows LORA, PROMPT_TUNING"),
        ({"peft_type": None}, "the method None"),
        ({"peft_type": ["LORA"]}, "the method"),
        ({"use_dora": True}, "'use_dora' = True"),
        ({"fan_in_fan_out": True}, "'fan_in_fan_out' = True"),
        ({"bias": "lora_only"}, "'bias' = lora_only"),
        ({"init_lora_weights": "pissa"}, "'init_lora_weights' = pissa"),
        ({"layer_replication": [[0, 2]]}, "'layer_replication'"),
        ({"trainable_token_indices": [1]}, "'trainable_token_indices'"),
        ({"from_the_future": 1}, "'from_the_future' = 1"),
        ({"r": 0}, "r is 0"),
        ({"r": 5.0}, "r is 5.0"),
        ({"r": 11}, "is 11, its factors have"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"lora_alpha": True}, "lora_alpha is True"),
        ({"alpha_pattern": [1]}, "alpha_pattern is not an object"),
        ({"alpha_pattern": {"q_proj": -1}}, "alpha_pattern has -1"),
        ({"alpha_pattern": {"(a*)*b": 1}}, "alpha_pattern has the pattern"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern has the pattern"),
        ({"alpha_pattern": {".?" * 30 + "Z": 1}}, "alpha_pattern has the pattern"),
        ({"rank_pattern": {"(a|b|.)?" * 20 + "Z": 1}}, "rank_pattern has the pattern"),
        ({"rank_pattern": {f".*.*{i}": 1 for i in range(99)}}, r"rank_pattern has the pattern '\.\*\.\*7'"),
        ({"alpha_pattern": {"q" * 201: 1}}, "alpha_pattern has the pattern"),
        ({"rank_pattern": {f"m{i}": 1 for i in range(1025)}}, "at most 1,024"),
    ],
)
def test_settings_that_compute_something_else_are_refused_by_name(
    settings: dict[str, Any], match: str, stored: Checkpoint, tmp_path: Path
) -> None:
    change_settings(written(tmp_path, stored), **settings)
    with pytest.raises(CheckpointError, match=match) as error:
        peft.load(tmp_path, stored)
    assert error.value.ko != error.value.en


def test_dora_of_peft_is_refused(stored: Checkpoint, tiny_folder: Path, tmp_path: Path) -> None:
    tuned(tiny_folder, real.LoraConfig(target_modules=["q_proj"], use_dora=True)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="use_dora"):
        peft.load(tmp_path, stored)


def test_modules_that_were_tuned_whole_are_refused(
    stored: Checkpoint, tiny_folder: Path, tmp_path: Path
) -> None:
    config = real.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    tuned(tiny_folder, config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"lm_head.*KoGPT cannot use"):
        peft.load(tmp_path, stored)


A = "base_model.model.transformer.h.0.attn.q_proj.lora_A.weight"
CHANGES: dict[str, tuple[str, Callable[[dict[str, np.ndarray]], object], str]] = {
    "one factor": ("lora", lambda t: t.pop(A), "has one factor"),
    "none": ("lora", lambda t: [t.pop(name) for name in list(t)[1:]], "has one factor"),
    "another width": ("lora", lambda t: t.update({A: np.ones((4, 32), np.float32)}), "must be"),
    "vectors": ("lora", lambda t: t.update({A: np.ones(4, np.float32)}), "must be"),
    "a number instead of a matrix": (
        "lora",
        lambda t: t.update({A: np.array(1, np.float32)}),
        "is a single number",
    ),
    "float64": ("lora", lambda t: t.update({A: t[A].astype(np.float64)}), "float64"),
    "integers": ("lora", lambda t: t.update({A: t[A].astype(np.int8)}), "dtype"),
    "NaN": ("lora", lambda t: t.update({A: t[A] * np.nan}), "NaN or infinite"),
    "infinite": ("lora", lambda t: t.update({A: np.full_like(t[A], np.inf)}), "NaN or infinite"),
    "another layer": (
        "lora",
        lambda t: t.update({A.replace("h.0", "h.9"): t.pop(A)}),
        "has one factor",
    ),
    "the head": ("lora", lambda t: t.update({"base_model.model.lm_head.lora_A.weight": t[A]}), "cannot use"),
    "score of another width": (
        "lora",
        lambda t: t.update({peft.HEAD: np.ones((2, 32), np.float32)}),
        "this model needs",
    ),
    "no prompt": ("prompt", lambda t: t.update({"x": t.pop(peft.PROMPT)}), "cannot use"),
    "fewer": ("prompt", lambda t: t.update({peft.PROMPT: t[peft.PROMPT][:5]}), "this model needs"),
    "narrower": (
        "prefix",
        lambda t: t.update({peft.PROMPT: t[peft.PROMPT][:, :64].copy()}),
        "this model needs",
    ),
    "larger than the model": (
        "prompt",
        lambda t: t.update({peft.PROMPT: np.zeros((TINY.n_parameters // 64 + 1, 64), np.float32)}),
        "the whole model has",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_tensors_that_do_not_fit_are_refused(name: str, stored: Checkpoint, tmp_path: Path) -> None:
    kind, change, match = CHANGES[name]
    change_tensors(written(tmp_path, stored, kind), change)
    with pytest.raises(KoGPTError, match=match):
        peft.load(tmp_path, stored)


def test_virtual_tokens_leave_room_for_a_text(stored: Checkpoint, tmp_path: Path) -> None:
    for n in (TINY.n_ctx - 1, TINY.n_ctx):
        prompt = SoftPrompt(np.zeros((n, 64), np.float32))
        peft.save(tmp_path, SavedAdapter(prompt), stored.config)
        if n < TINY.n_ctx:
            peft.load(tmp_path, stored)
            continue
        with pytest.raises(CheckpointError, match="128 virtual tokens, the model reads 128"):
            peft.load(tmp_path, stored)


def test_a_pickle_is_refused_with_the_remedy(stored: Checkpoint, tmp_path: Path) -> None:
    (written(tmp_path, stored) / peft.WEIGHTS).unlink()
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(CheckpointError, match="safe_serialization=True"):
        peft.load(tmp_path, stored)


@pytest.mark.parametrize("name", [peft.CONFIG, peft.WEIGHTS, peft.OWN])
def test_hostile_files_are_refused(name: str, stored: Checkpoint, tmp_path: Path) -> None:
    folder = written(tmp_path / "adapter", stored)
    whole = (folder / name).read_bytes()
    for data in (b"", whole[: len(whole) // 2], b"[]", b'{"a":' * 5000, b"\xff" * len(whole), whole * 400):
        (folder / name).write_bytes(data)
        with pytest.raises(CheckpointError):
            peft.load(folder, stored)
    (folder / name).unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(whole)
    (folder / name).symlink_to(elsewhere)
    with pytest.raises(CheckpointError, match="outside itself"):
        peft.load(folder, stored)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match="not a regular file"):
        peft.load(folder, stored)


def test_a_flipped_bit_is_found(stored: Checkpoint, tmp_path: Path) -> None:
    path = written(tmp_path, stored) / peft.WEIGHTS
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"not the file that kogpt_adapter\.json describes"):
        peft.load(tmp_path, stored)


def test_a_folder_without_an_adapter_says_what_to_give(stored: Checkpoint, tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(CheckpointError, match="no adapter"):
            peft.load(folder, stored)


def test_an_adapter_of_another_model_or_tokenizer_is_refused_by_name(
    stored: Checkpoint, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    folder = written(tmp_path / "adapter", stored)
    checkpoint.save(tmp_path / "other", TINY, random_tensors(TINY, seed=1), "float32", tiny_tokenizer)
    with pytest.raises(CheckpointError, match=r"on another model than .*other: use the model"):
        peft.load(folder, checkpoint.load(tmp_path / "other"))
    document = json.loads(tiny_tokenizer.read_text("utf-8"))
    swapped = {token: id for id, token in enumerate(reversed(list(document["model"]["vocab"])))}
    document["model"]["vocab"] = swapped
    other = tmp_path / "tokenizer.json"
    other.write_text(json.dumps(document), encoding="utf-8")
    copy = tmp_path / "copy"
    shutil.copytree(stored.folder, copy)
    shutil.copy(other, copy / "tokenizer.json")
    with pytest.raises(CheckpointError, match="with another tokenizer than that of") as error:
        peft.load(folder, replace(stored, folder=copy))
    assert "토크나이저와 다른 토크나이저로" in error.value.ko


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "int4"])
def test_an_adapter_fits_every_export_of_its_model(dtype: str, stored: Checkpoint, tmp_path: Path) -> None:
    from kogpt import native_runner
    from kogpt.export.folder import export

    if dtype.startswith("int") and not native_runner.available():
        pytest.skip("the kernels were not built")
    export(stored, dtype, tmp_path / "out")
    exported = checkpoint.load(tmp_path / "out")
    peft.load(written(tmp_path / "adapter", stored), exported)
    peft.load(written(tmp_path / "back", exported), exported)
    changed = dict(random_tensors(TINY)) | {"transformer.ln_f.bias": np.zeros(64, np.float32)}
    checkpoint.save(tmp_path / "tuned", TINY, changed, "float32", stored.folder)
    with pytest.raises(CheckpointError, match="another model"):
        peft.load(tmp_path / "adapter", checkpoint.load(tmp_path / "tuned"))


def test_a_save_that_fails_leaves_what_was_there(stored: Checkpoint, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in written(tmp_path, stored).iterdir()}
    bad = LowRank(np.full((1, 64), np.nan, np.float32), np.ones((64, 1), np.float32), 1.0)
    with pytest.raises(CheckpointError, match="NaN"):
        peft.save(tmp_path, SavedAdapter(Lora({MODULES[0]: bad})), stored.config)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(KoGPTError, match="no matrix"):
        peft.save(tmp_path, SavedAdapter(Lora({"lm_head": bad})), stored.config)
    written(tmp_path, stored, "prompt")
    assert isinstance(peft.load(tmp_path, stored).adapter, SoftPrompt)
