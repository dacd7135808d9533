"""A model, or a LoRA, in the layout of Phi: for vLLM, and as GGUF for llama.cpp, Ollama and LM Studio.

Tensors pass one at a time, so that a model of any size needs the memory of its largest matrix.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kogpt import gguf_file, peft, phi
from kogpt.adapter import Lora
from kogpt.checkpoint import (
    TOKENIZER,
    WHOLE_MODEL,
    Checkpoint,
    Writer,
    plain_writers,
    settings_documents,
    taken_along,
    weights_writers,
    write_folder,
)
from kogpt.config import ModelConfig
from kogpt.errors import CheckpointError, KoGPTError, MissingExtra, localized
from kogpt.export.folder import Watched, require_tokenizer
from kogpt.export.vocabulary import add_vocabulary, splits_as_gpt2
from kogpt.generation_defaults import read_generation_defaults
from kogpt.manifest import Entry
from kogpt.quantize import Quantized
from kogpt.weights import Stored, is_sound

logger = logging.getLogger(__name__)

GGUF_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
# llama.cpp's numbers of these types as the format of a whole file (LLAMA_FTYPE).
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}
PHI_TYPES = ("float32", "float16", "bfloat16")


def export_phi(
    stored: Checkpoint, dtype: str, out: Path, advance: Callable[[int], None] = lambda n_weights: None
) -> None:
    """Write a folder that transformers, vLLM and KoGPT read as PhiForCausalLM, in one of PHI_TYPES."""
    require_tokenizer(stored)
    config = stored.config
    tensors = Watched(phi.to_phi(config, stored.floats()), advance)
    layout = {name: {name: (dtype, shape)} for name, shape in phi.shapes(config).items()}
    documents = settings_documents(config, phi.to_config(config), dtype) | taken_along(config, stored.folder)
    write_folder(out, weights_writers(layout, tensors) | plain_writers(documents), stale=WHOLE_MODEL)


def export_gguf(
    stored: Checkpoint, kind: str, out: Path, advance: Callable[[int], None] = lambda n_weights: None
) -> None:
    """Write a folder with one GGUF file of the architecture phi2, and an Ollama Modelfile beside it.

    kind: one of GGUF_TYPES, of the matrices; vectors are float32, as llama.cpp wants them. KoGPTError for
    a quantised type where a matrix has a width that 32 does not divide; MissingExtra without `gguf`.
    """
    require_tokenizer(stored)
    config = stored.config
    if kind in gguf_file.BLOCK_BYTES and (config.d_model % gguf_file.BLOCK or config.d_ff % gguf_file.BLOCK):
        raise KoGPTError(
            f"{kind} has blocks of 32 weights, n_embd is {config.d_model} and n_inner {config.d_ff}: use F16",
            f"{kind} 형식은 가중치 32개씩 묶습니다 (n_embd {config.d_model}, n_inner {config.d_ff}). "
            "F16을 쓰세요",
        )
    tensors = Watched(phi.to_phi(config, stored.floats()), advance)
    name = f"model.{kind}.gguf"
    documents = settings_documents(config, phi.to_config(config), kind) | taken_along(config, stored.folder)
    documents["Modelfile"] = _modelfile(stored, name).encode()
    tokenizer = json.loads(documents[TOKENIZER])
    if not splits_as_gpt2(tokenizer):
        logger.warning(
            localized(
                "llama.cpp does not know this tokenizer's rule for splitting text and uses GPT-2's: "
                "long numbers may become other tokens there",
                "llama.cpp에는 이 토크나이저의 텍스트 분할 규칙이 없어 GPT-2의 규칙을 씁니다. "
                "긴 숫자는 그곳에서 다른 토큰이 될 수 있습니다",
            )
        )

    def write(file: IO[bytes]) -> Entry:
        writer = gguf_writer(config, stored.folder.name)
        writer.add_file_type(FILE_TYPES[kind])
        add_vocabulary(writer, tokenizer, config)
        return write_gguf(writer, file, kind, phi.shapes(config), tensors)

    writers: dict[str, Writer] = {name: write}
    write_folder(out, writers | plain_writers(documents), stale=WHOLE_MODEL)


def export_lora(stored: Checkpoint, adapter: str | Path, out: Path) -> None:
    """Write the LoRA of a folder anew, as PEFT reads it for the model in the layout of Phi.

    CheckpointError for an adapter of another kind, which has no such form or needs none: soft prompts carry
    over as they are.
    """
    peft.save_lora(out, phi.to_lora(stored.config, _plain_lora(stored, adapter)))


def export_gguf_lora(stored: Checkpoint, adapter: str | Path, out: Path) -> None:
    """Write the LoRA of a folder as adapter.gguf, for llama.cpp beside the model's own GGUF file.

    Errors as of `export_lora`; MissingExtra without `gguf`. Form: llama.cpp's convert_lora_to_gguf.py. Its
    one alpha for all modules stays 0, "no further scale", and each module's own goes into its b.
    """
    factors: dict[str, Stored] = {}
    for module, update in phi.to_lora(stored.config, _plain_lora(stored, adapter)).updates.items():
        name = gguf_file.to_name(f"{module}.weight")
        factors[f"{name}.lora_a"] = Stored("float32", update.a)
        factors[f"{name}.lora_b"] = Stored("float32", np.float32(update.scale) * update.b)
    shapes = {name: factor.array.shape for name, factor in factors.items()}

    def write(file: IO[bytes]) -> Entry:
        writer = _new_writer()
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", 0.0)
        return write_gguf(writer, file, "F32", shapes, factors, str)

    write_folder(out, {"adapter.gguf": write})


def _plain_lora(stored: Checkpoint, adapter: str | Path) -> Lora:
    saved = peft.load(adapter, stored)
    if not isinstance(saved.adapter, Lora) or saved.head is not None:
        raise CheckpointError(
            f"{adapter} is not a plain LoRA: only LoRA without a head is rewritten, and virtual tokens serve"
            " both layouts as they are",
            f"{adapter}: 헤드가 없는 LoRA만 다시 씁니다. 가상 토큰 어댑터는 그대로 쓸 수 있습니다",
        )
    return saved.adapter


def _new_writer() -> Any:
    """A writer of the architecture phi2 without metadata."""
    try:
        import gguf
    except ImportError:
        raise MissingExtra("kogpt export gguf", "gguf") from None
    logging.getLogger("gguf").setLevel(logging.WARNING)
    return gguf.GGUFWriter(None, "phi2")


def gguf_writer(config: ModelConfig, name: str) -> Any:
    """A writer with the shape of the model in its metadata."""
    writer = _new_writer()
    # llama.cpp takes a name with phi3 in it for another model.
    writer.add_name("kogpt" if "phi" in name.lower() else name)
    writer.add_context_length(config.n_ctx)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_block_count(config.n_layers)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_heads)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_rope_freq_base(phi.ROPE_THETA)
    return writer


def write_gguf(
    writer: Any,
    file: IO[bytes],
    kind: str,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, Stored | Quantized],
    to_name: Callable[[str], str] = gguf_file.to_name,
) -> Entry:
    """Write header and tensors through the gguf package, one tensor at a time; size and digest.

    to_name: the name in the file of a key of `shapes` and `tensors`.
    """
    import gguf
    from gguf.gguf_writer import WriterState

    kinds = {name: _kind(name, kind) if len(shape) == 2 else "F32" for name, shape in shapes.items()}
    for name, shape in shapes.items():
        type_ = gguf.GGMLQuantizationType[kinds[name]]
        n_block, n_bytes = gguf.GGML_QUANT_SIZES[type_]
        size = math.prod(shape) // n_block * n_bytes
        writer.add_tensor_info(to_name(name), shape, np.dtype(np.float32), size, type_)
    writer.fout, writer.state = [file], WriterState.EMPTY  # it would open a path, and not the file's own
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    file.write(bytes(-file.tell() % gguf_file.ALIGNMENT))
    for name in shapes:
        tensor = tensors[name]
        assert isinstance(tensor, Stored), name
        # Not by the package: where a disk is full, numpy's tofile does not say that it is.
        file.write(_converted(tensor, kinds[name]).data)
        file.write(bytes(-file.tell() % gguf_file.ALIGNMENT))
    file.flush()
    with open(file.name, "rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
        return Entry(written.tell(), digest)


def _kind(name: str, kind: str) -> str:
    """The type of a matrix: embedding and head of a Q4_0 file keep 8 bits, as they lose the most."""
    return "Q8_0" if kind == "Q4_0" and not name.startswith("model.layers.") else kind


def _converted(stored: Stored, kind: str) -> NDArray[Any]:
    """A tensor in a type of GGUF, as the bytes that lie in the file."""
    import gguf

    direct = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    if kind in direct:
        with np.errstate(over="ignore"):  # an overflow is refused just below
            array = np.ascontiguousarray(stored.to(direct[kind]))
        if not is_sound(array.reshape(-1).view(np.uint8), direct[kind]):
            raise CheckpointError(
                f"a tensor does not fit {kind}: it holds too large weights; use --type BF16 or F32",
                f"{kind} 형식에 담을 수 없는 큰 값이 있습니다. --type BF16이나 F32를 쓰세요",
            )
        return array
    packed: NDArray[Any] = gguf.quantize(stored.to("float32"), gguf.GGMLQuantizationType[kind])
    return packed


def _modelfile(stored: Checkpoint, name: str) -> str:
    """How Ollama runs the file: the prompt as it is, and the sampling that the model recommends."""
    settings = read_generation_defaults(stored.folder, stored.config).settings
    names = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}
    names["repetition_penalty"] = "repeat_penalty"
    chosen = [f"PARAMETER {names[key]} {settings[key]}" for key in names if key in settings]
    lines = [
        f"FROM ./{name}",
        'TEMPLATE "{{ .Prompt }}"',
        f"PARAMETER num_ctx {stored.config.n_ctx}",
        *chosen,
    ]
    return "\n".join(lines) + "\n"
