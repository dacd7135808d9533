"""A model folder -> a model folder in another precision: floats, int8 or int4.

Tensors pass one at a time, so that a model of any size needs the memory of its largest matrix, or with a
calibration that of calibration.needed_memory. The new folder takes its place as a whole or not at all;
nothing is written into a folder that is there, unless it is a model to replace.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from kogpt import peft
from kogpt.adapter import Lora, merged
from kogpt.checkpoint import (
    WHOLE_MODEL,
    Checkpoint,
    Stored,
    model_writers,
    plain_writers,
    taken_along,
    write_folder,
)
from kogpt.errors import CheckpointError, KoGPTError, josa
from kogpt.export.calibration import MAX_WINDOWS, WINDOW, Calibrated
from kogpt.export.own_text import own_text
from kogpt.files import settled_names
from kogpt.gguf_file import BLOCK_BYTES
from kogpt.placement import Placement, load_runner
from kogpt.quantize import FORMATS, Lazy, Quantized, statement
from kogpt.rounding import Rounded, kernels
from kogpt.tokenizer import Tokenizer

FLOATS = ("float32", "float16", "bfloat16")
CALIBRATION_CHARACTERS = 1_000_000  # calibration reads no more of a text


def require_tokenizer(stored: Checkpoint) -> Tokenizer:
    """The tokenizer that goes along; KoGPTError for one that does not load or does not fit the model."""
    tokenizer = Tokenizer.from_file(stored.folder / "tokenizer.json")
    tokenizer.check_fits(stored.config)
    return tokenizer


def export(
    stored: Checkpoint,
    dtype: str,
    out: Path,
    calibration: str | None = None,
    advance: Callable[[int], None] = lambda n_weights: None,
    by_own_text: bool = False,
) -> None:
    """Write `stored` to the folder `out` in one of FLOATS or quantize.FORMATS.

    calibration: a text, for GPTQ; int4 only. by_own_text: GPTQ on text that the model writes for it.
    advance(n) is called after every n weights. KoGPTError where a quantised model would be quantised again,
    for a tokenizer that does not load or fit, for a calibration of another format, or without the kernels.
    """
    assert calibration is None or not by_own_text
    for option, is_used in (("--calibration", calibration is not None), ("--own-text", by_own_text)):
        if is_used:
            require_calibrated(dtype, option)
    tokenizer = require_tokenizer(stored)
    require_unrounded(stored, dtype)
    floats = stored.floats()
    tensors: Mapping[str, Stored | Quantized] = floats
    if dtype in FORMATS:
        kernels()
        tensors = Rounded(stored.config, floats, dtype)
    if calibration is not None:
        ids = np.array(tokenizer.encode(calibration[:CALIBRATION_CHARACTERS]), np.int64)
        tensors = Calibrated(stored.config, floats, ids)
    if by_own_text:
        window = min(WINDOW, stored.config.n_ctx)
        # In int8 the model writes as well as in floats, and takes half of the memory.
        ids = own_text(load_runner(stored, Placement("cpu", "int8")), tokenizer, MAX_WINDOWS * window, window)
        tensors = Calibrated(stored.config, floats, ids)
    writers = model_writers(stored.config, Watched(tensors, advance), dtype)
    writers |= plain_writers(taken_along(stored.config, stored.folder))
    stated = statement(stored.config, dtype) if dtype in FORMATS else None
    write_folder(out, writers, stated, stale=WHOLE_MODEL)


def require_unrounded(stored: Checkpoint, dtype: str) -> None:
    """KoGPTError where the weights of a quantised model, or of it and a LoRA, would be quantised again."""
    if dtype in (*FORMATS, *BLOCK_BYTES) and stored.quantization is not None:
        raise KoGPTError(
            f"the model is stored in {stored.quantization}, and {dtype} would round it twice: export it from "
            "the original model, or in a float format",
            f"모델이 {stored.quantization} 형식으로 저장되어 있어 {dtype} 형식으로 다시 양자화하지 않습니다. "
            "원래 모델에서 내보내거나 실수 형식으로 내보내세요",
        )


def require_calibrated(dtype: str, option: str) -> None:
    """KoGPTError where an option of the calibration stands beside a format that has none."""
    if dtype != "int4":
        raise KoGPTError(
            f"{option} serves int4 only, the format is {dtype}: leave {option} out",
            f"{option} 옵션은 int4에만 쓰입니다 (지정한 형식: {dtype}). {option} 옵션을 빼세요",
        )


def with_lora(stored: Checkpoint, folder: str | Path) -> Checkpoint:
    """A model of floats whose weights contain the LoRA of a folder.

    CheckpointError for another kind of adapter.
    """
    saved = peft.load(folder, stored)
    if not isinstance(saved.adapter, Lora):
        raise CheckpointError(
            f"{folder} puts virtual tokens before the text, which no weights can hold: only LoRA is merged",
            f"{folder}: 글 앞에 가상 토큰을 두는 어댑터는 가중치에 합칠 수 없습니다. LoRA만 합칩니다",
        )
    if saved.head is not None:
        raise CheckpointError(
            f"{folder} has a head for labels beside its LoRA, which a GPT-J cannot hold: it is not merged",
            f"{folder}: LoRA 옆에 있는 분류 헤드를 담을 곳이 GPT-J에는 없어 합치지 않습니다",
        )
    return replace(stored, tensors=merged(stored.floats(), saved.adapter), quantization=None)


def require_place(out: Path, source: Path, force: bool, adapter_files: Collection[str] = ()) -> None:
    """CheckpointError where a new folder must not be written: see the module's docstring.

    adapter_files: the files of an adapter, if one is to be written and not a model; it replaces a folder of
    nothing else. What a killed export left half written does not count.
    """
    if not os.path.lexists(out):
        return
    if out.resolve() == source.resolve():
        raise CheckpointError(
            f"{out} is the model itself: name another folder",
            f"{out}: 원래 모델의 폴더입니다. 다른 폴더를 지정하세요",
        )
    if not out.is_dir():
        raise CheckpointError(
            f"{out} is not a folder: name a new one", f"{out}: 폴더가 아닙니다. 새 폴더를 지정하세요"
        )
    names = settled_names(out)  # files of an export that was killed while it replaced others count too
    if not names:
        return
    if adapter_files:
        (en, ko), is_alike = ("an adapter", "어댑터"), names <= set(adapter_files)
    else:
        (en, ko), is_alike = ("a model", "모델"), "config.json" in names
    if not is_alike:
        raise CheckpointError(
            f"{out} holds other files than {en}'s: name a new folder",
            f"{out}: {josa(ko, '이/가')} 아닌 파일이 들어 있습니다. 새 폴더를 지정하세요",
        )
    if not force:
        raise CheckpointError(
            f"{out} holds {en} already: name a new folder, or replace it with --force",
            f"{out}: 이미 {josa(ko, '이/가')} 있습니다. 새 폴더를 지정하거나 --force로 바꾸세요",
        )


class Watched(Lazy[Stored | Quantized]):
    """Tensors; asking for the next one gives back the memory of the last, and counts it."""

    def __init__(self, tensors: Mapping[str, Stored | Quantized], advance: Callable[[int], None]) -> None:
        super().__init__(tensors)
        self._tensors = tensors
        self._advance = advance
        self._last: tuple[str, Stored | Quantized] | None = None

    def __getitem__(self, name: str) -> Stored | Quantized:
        if self._last is not None and self._last[0] == name:
            return self._last[1]
        if self._last is not None:
            last, self._last = self._last[1], None
            self._advance(math.prod(last.array.shape if isinstance(last, Stored) else last.shape))
            del last
        self._last = name, self._tensors[name]
        return self._last[1]
