"""A model folder in the layouts that the peers read: GGUF (the Phi-2 layout) and CTranslate2.

GPT-J turns pairs (2j, 2j + 1) of a head, Phi pairs (j, j + r/2): the same weights after a permutation of the
rows of q and k within each head, which leaves every product of q and k as it was.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kogpt import checkpoint
from kogpt.checkpoint import Checkpoint, Stored
from kogpt.config import ModelConfig

# Tensor of a GPT-J layer -> of a GGUF block.
GGUF_LAYER = {
    "ln_1.weight": "attn_norm.weight",
    "ln_1.bias": "attn_norm.bias",
    "attn.q_proj.weight": "attn_q.weight",
    "attn.k_proj.weight": "attn_k.weight",
    "attn.v_proj.weight": "attn_v.weight",
    "attn.out_proj.weight": "attn_output.weight",
    "mlp.fc_in.weight": "ffn_up.weight",
    "mlp.fc_in.bias": "ffn_up.bias",
    "mlp.fc_out.weight": "ffn_down.weight",
    "mlp.fc_out.bias": "ffn_down.bias",
}
GGUF_OUTSIDE = {
    "transformer.wte.weight": "token_embd.weight",
    "transformer.ln_f.weight": "output_norm.weight",
    "transformer.ln_f.bias": "output_norm.bias",
    "lm_head.weight": "output.weight",
    "lm_head.bias": "output.bias",
}


def write_gguf(folder: Path, path: Path, dtype: str) -> None:
    """Write a GPT-J folder as GGUF, architecture phi2, without a tokenizer: ids in, logits out.

    dtype: float32 or bfloat16; vectors are float32, as llama.cpp's own converter has them.
    """
    import gguf

    stored = checkpoint.load(folder)
    config = stored.config
    writer = gguf.GGUFWriter(path, "phi2")
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.n_ctx)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_heads)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_vocab_size(config.n_vocab)
    writer.add_tokenizer_model("no_vocab")
    types = gguf.GGMLQuantizationType
    for name, array in _phi_tensors(stored, dtype):  # once for the header, once for the data
        is_raw = array.dtype == np.uint8
        raw_type = types.BF16 if is_raw else types.F32
        writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes, raw_dtype=raw_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, array in _phi_tensors(stored, dtype):
        writer.write_tensor_data(array)
    writer.close()


def quantize_gguf(source: Path, path: Path, dtype: str) -> None:
    """A bfloat16 GGUF -> Q8_0 (int8) or Q4_0 (int4) in every matrix, by llama.cpp's own quantiser."""
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = {
        "int8": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
        "int4": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    }[dtype]
    settings.pure = True  # the head too, as KoGPT quantises it
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(settings))
    assert not failed, failed


def write_ctranslate2(folder: Path, path: Path, dtype: str) -> None:
    """Write a GPT-J folder for CTranslate2; the name of token i is str(i)."""
    from ctranslate2.converters import TransformersConverter

    n_vocab = checkpoint.load(folder).config.n_vocab

    class Converter(TransformersConverter):  # type: ignore[misc]  # a class without types
        def load_tokenizer(self, *_: object, **__: object) -> _Numbers:
            return _Numbers(n_vocab)

    Converter(str(folder)).convert(str(path), quantization=dtype, force=True)


class _Numbers:
    """What CTranslate2's converter asks of a tokenizer."""

    def __init__(self, n_vocab: int) -> None:
        self._n_vocab = n_vocab
        self.bos_token, self.eos_token, self.unk_token = "0", "1", "2"

    def get_vocab(self) -> dict[str, int]:
        return {str(i): i for i in range(self._n_vocab)}


def phi_order(config: ModelConfig) -> NDArray[np.int64]:
    """Row of q_proj and k_proj that comes to each place of Phi's layout, (E,)."""
    r, d = config.rotary_dim, config.d_head
    head = np.concatenate([np.arange(0, r, 2), np.arange(1, r, 2), np.arange(r, d)])
    order: NDArray[np.int64] = (np.arange(config.n_heads)[:, None] * d + head).reshape(-1)
    return order


def _phi_tensors(stored: Checkpoint, dtype: str) -> Iterator[tuple[str, NDArray[Any]]]:
    """GGUF's names and arrays: float32, or the bytes of bfloat16 rows as uint8."""
    config, tensors = stored.config, stored.floats()
    names = dict(GGUF_OUTSIDE)
    if config.tied_head:
        names["lm_head.weight"] = names.pop("transformer.wte.weight")
    for name, renamed in names.items():
        yield renamed, _converted(tensors[name], dtype)
    zeros = np.zeros(config.d_model, np.float32)
    for layer in range(config.n_layers):
        for name, renamed in GGUF_LAYER.items():
            array = _converted(tensors[f"transformer.h.{layer}.{name}"], dtype)
            if name in ("attn.q_proj.weight", "attn.k_proj.weight"):
                array = array[phi_order(config)]
            yield f"blk.{layer}.{renamed}", array
        yield f"blk.{layer}.attn_output.bias", zeros


def _converted(tensor: Stored, dtype: str) -> NDArray[Any]:
    if dtype == "bfloat16" and tensor.array.ndim == 2:
        return tensor.to("bfloat16").view(np.uint8)
    return tensor.to("float32")
