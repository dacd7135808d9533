"""Fixtures shared by the suite: small random models and a small tokenizer; no network, weights or GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tokenizers
from korean import PROSE
from numpy.typing import NDArray

from kogpt import KoGPT, checkpoint
from kogpt.config import ModelConfig
from kogpt.quantize import Quantized
from kogpt.weights import Stored

if TYPE_CHECKING:
    from serving import Running

os.environ["XDG_CONFIG_HOME"] = os.devnull  # nobody's own defaults

TINY = ModelConfig(n_layers=3, n_heads=4, d_model=64, d_ff=256, n_vocab=512, n_ctx=128, rotary_dim=8)


def random_tensors(config: ModelConfig, seed: int = 0) -> Mapping[str, NDArray[np.float32]]:
    """Weights large enough that every term of the model shows in the logits."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in config.tensor_shapes().items():
        noise = rng.standard_normal(shape).astype(np.float32)
        is_norm_weight = name.endswith(("ln_1.weight", "ln_f.weight"))
        tensors[name] = 1 + 0.1 * noise if is_norm_weight else noise * (shape[-1] ** -0.5)
    return tensors


@pytest.fixture(scope="session")
def tiny() -> ModelConfig:
    return TINY


@pytest.fixture(scope="session")
def tiny_tensors() -> Mapping[str, NDArray[np.float32]]:
    return random_tensors(TINY)


def train_tokenizer(path: Path) -> None:
    """tokenizer.json: 512 ids, byte-level BPE over tests/korean.py, [BOS] [EOS] [UNK] [PAD] [MASK] first."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=TINY.n_vocab,
        special_tokens=["[BOS]", "[EOS]", "[UNK]", "[PAD]", "[MASK]"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(PROSE, trainer)
    tokenizer.save(str(path))


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that `train_tokenizer` writes."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(path)
    return path


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """A whole model folder of TINY's shape: random float32 weights and `tiny_tokenizer`. Do not change it."""
    folder = tmp_path_factory.mktemp("tiny")
    checkpoint.save(folder, TINY, random_tensors(TINY), dtype="float32", tokenizer=tiny_tokenizer)
    return folder


@pytest.fixture(scope="session")
def model(tiny_folder: Path) -> KoGPT:
    return KoGPT.from_pretrained(tiny_folder, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def server(model: KoGPT) -> Iterator[Running]:
    """One server for all tests of kogpt/server that leave it as it was."""
    from serving import serving  # FastAPI, for nobody else

    with serving(model) as running:
        yield running


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test cuts the power: without waiting for the disk, those that write many files are fast."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def plain(tensors: Mapping[str, Stored | Quantized]) -> dict[str, Stored]:
    """The tensors of a folder that is not quantised, as they are."""
    found = {}
    for name, tensor in tensors.items():
        assert isinstance(tensor, Stored), name
        found[name] = tensor
    return found
