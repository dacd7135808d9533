"""CTranslate2 converts a folder of ours as it is, and computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kogpt import checkpoint
from kogpt.numpy_runner import NumpyRunner
from kogpt.runner import Chunk

ctranslate2 = pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed")
IDS = np.arange(5, 60)


def test_ctranslate2_computes_the_same(tiny_folder: Path, tmp_path: Path) -> None:
    converter = ctranslate2.converters.TransformersConverter(str(tiny_folder))
    converter.convert(str(tmp_path / "converted"))
    generator = ctranslate2.Generator(str(tmp_path / "converted"), device="cpu", intra_threads=1)
    [found] = np.array(generator.forward_batch([IDS.tolist()]))
    stored = checkpoint.load(tiny_folder)
    runner = NumpyRunner(stored.config, stored.floats())
    [expected] = runner.forward([Chunk(runner.open(), IDS, len(IDS))])
    np.testing.assert_allclose(found, expected, atol=1e-4)
