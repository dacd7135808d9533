"""Write a model folder of a named shape with random weights: a model to measure where the real one is not.

    python bench/random_checkpoint.py kogpt-6b FOLDER        # float16: 12.3 GB
    kogpt generate --model FOLDER 안녕하세요

Weights are made and written one tensor at a time, so that a large model needs little memory. It writes
nonsense, at the speed of the real one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from kogpt import checkpoint
from kogpt.config import SHAPES, ModelConfig
from kogpt.tokenizer import BYTES

SPECIAL_TOKENS = ("[BOS]", "[EOS]", "[UNK]", "[PAD]", "[MASK]")
NOISE_SIZE = 2**22 - 3  # values, 16 MiB; odd, so that rows of a matrix do not repeat
STANDARD_DEVIATION = 0.02  # of GPT-J's initialisation


class RandomTensors(Mapping[str, NDArray[np.float32]]):
    """The tensors of a shape, made when asked for: one stretch of noise, begun elsewhere for each name."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self._shapes = config.tensor_shapes()
        rng = np.random.default_rng(seed)
        self._noise = STANDARD_DEVIATION * rng.standard_normal(NOISE_SIZE, np.float32)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        shape = self._shapes[name]
        if len(shape) == 1:
            return np.full(shape, 1.0 if "ln_" in name and name.endswith("weight") else 0.0, np.float32)
        start = zlib.crc32(name.encode()) % (NOISE_SIZE // 2)
        return np.resize(self._noise[start:], shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def write_byte_tokenizer(path: Path) -> None:
    """A tokenizer.json without merges: the special tokens, then one token for each byte."""
    import tokenizers

    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *BYTES))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(path))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16", "float32"))
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json to copy (default: one token per byte)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    config = SHAPES[args.shape]
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = args.tokenizer or Path(scratch) / "tokenizer.json"
        if args.tokenizer is None:
            write_byte_tokenizer(tokenizer)
        checkpoint.save(args.folder, config, RandomTensors(config, args.seed), args.dtype, tokenizer)
    n_bytes = sum(path.stat().st_size for path in args.folder.iterdir())
    print(f"{args.folder}: {config.n_parameters:,} parameters, {n_bytes / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
