"""Which tensors the files of a model hold: names, dtypes and shapes, as its config asks for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from kogpt.config import ModelConfig
from kogpt.errors import CheckpointError
from kogpt.files import damaged
from kogpt.quantize import EMBEDDING, FORMATS, HEAD, Lazy, Part, Quantized, matrices, parts
from kogpt.weights import WIDTHS, Scratch, Source, Stored, WeightsFile, wrong_shape


class _Tensors(Lazy[Stored | Quantized]):
    """A model's tensors, each loaded from its files when it is asked for."""

    def __init__(self, config: ModelConfig, quantization: str | None, found: Mapping[str, Source]) -> None:
        super().__init__(file_layout(config, quantization))
        self._found = found
        self._quantization = quantization
        self._matrices = {} if quantization is None else matrices(config)

    def __getitem__(self, name: str) -> Stored | Quantized:
        return self._load(name, None)

    def passing(self, name: str, scratch: Scratch) -> Stored | Quantized:
        return self._load(name, scratch)

    def _load(self, name: str, scratch: Scratch | None) -> Stored | Quantized:
        if name not in self:
            raise KeyError(name)
        if self._quantization is None or name not in self._matrices:
            return self._found[name].load()
        shape = self._matrices[name]
        stored = {part: self._found[part].load(scratch) for part in parts(name, self._quantization, shape)}
        return Quantized.of_parts(name, self._quantization, shape, stored)


def select(
    config: ModelConfig, shards: Iterable[WeightsFile], quantization: str | None
) -> tuple[Mapping[str, Stored | Quantized], Source | None]:
    """The tensors that the config asks for, in its order: none missing, none left over, all in shape.

    They are loaded when they are asked for. The second value is a tied head that is stored once more, as some
    writers do.
    """
    found: dict[str, Source] = {}
    for shard in shards:
        if twice := next((name for name in shard.tensors if name in found), None):
            raise damaged(shard.path, f"{twice} is in another shard already")
        found |= shard.tensors
    copy = found.pop(HEAD, None) if config.tied_head and quantization is None else None
    # Refuse a config of too many layers before making a layout for each of them.
    if len(found) < config.n_layers:
        require_names(config.tensor_shapes(), found)
    layout = file_layout(config, quantization)
    expected = {part: kind for group in layout.values() for part, kind in group.items()}
    require_names(expected, found)
    for name, (dtype, shape) in expected.items():
        if found[name].shape != shape:
            raise wrong_shape(name, shape, found[name].shape)
        kinds = WIDTHS if dtype in WIDTHS else (dtype,)
        if found[name].dtype not in kinds:
            raise _wrong_dtype(name, " or ".join(kinds), found[name].dtype)
    return _Tensors(config, quantization, found), copy


def file_layout(
    config: ModelConfig, dtype: str | None, embedding: str = "float16"
) -> dict[str, dict[str, Part]]:
    """Each tensor of the model -> the tensors of a file that hold it, with their dtypes and shapes.

    dtype: the format of all tensors, where None stands for any float; or int8 or int4, with which the
    embedding has a format of its own.
    """
    if dtype not in FORMATS:
        return {name: {name: (dtype or "float32", shape)} for name, shape in config.tensor_shapes().items()}
    kinds = {EMBEDDING: embedding}
    layout = {
        name: {name: (kinds.get(name, "float32"), shape)} for name, shape in config.tensor_shapes().items()
    }
    return layout | {name: parts(name, dtype, shape) for name, shape in matrices(config).items()}


def require_names(expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """CheckpointError where names are missing or left over."""
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    if missing or extra:
        parts = [(missing, "missing", "없음"), (extra, "not of this model", "이 모델에 없는 텐서")]
        en = "; ".join(f"{len(names)} {word}: {_some(names)}" for names, word, _ in parts if names)
        ko = "; ".join(f"{word} {len(names)}개: {_some(names)}" for names, _, word in parts if names)
        raise CheckpointError(
            f"tensors do not fit config.json, expected {len(expected)}, found {len(found)}: {en}",
            f"텐서가 config.json과 맞지 않습니다. 필요 {len(expected)}개, 발견 {len(found)}개: {ko}",
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _wrong_dtype(name: str, expected: str, found: str) -> CheckpointError:
    return CheckpointError(
        f"tensor {name}: {expected} expected, found {found}; get the folder again, or export it again",
        f"텐서 {name}: 필요한 형식은 {expected}, 발견한 형식은 {found}. 폴더를 다시 받거나 다시 내보내세요",
    )


def require_copy(head: Stored, embedding: Stored | Quantized) -> None:
    """A tied head may be stored once more, but not with values of its own."""
    assert isinstance(embedding, Stored)
    if (head.dtype, head.array.shape) != (embedding.dtype, embedding.array.shape) or not np.array_equal(
        head.array, embedding.array
    ):
        raise CheckpointError(
            "config.json ties the head to the embedding (tie_word_embeddings), but lm_head.weight is not "
            "transformer.wte.weight: set tie_word_embeddings to false, or remove lm_head.weight",
            "config.json은 tie_word_embeddings인데 lm_head.weight와 transformer.wte.weight가 다릅니다. "
            "tie_word_embeddings를 false로 바꾸거나 lm_head.weight를 빼세요",
        )
