"""A GPT-J in the layout of Phi (transformers' PhiForCausalLM), and back, without loss.

Both have attention and MLP side by side on one LayerNorm, rotary positions on a part of each head, the tanh
approximation of GELU and a biased head. They differ in which dimensions of a head turn together: GPT-J turns
2j with 2j+1, Phi turns j with j + R/2. A permutation of the rows of the q and k matrices changes one into the
other; it leaves every product of q and k as it is. Phi's biases in attention are zero.

Engines that know no GPT-J run this layout: llama.cpp and Ollama (as GGUF), vLLM with LoRA.
Shapes: E model width, R rotary width, N outputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kogpt.adapter import Lora, LowRank
from kogpt.config import MAX_DIMENSION, ModelConfig
from kogpt.errors import CheckpointError, ConfigError
from kogpt.quantize import EMBEDDING, HEAD, Lazy
from kogpt.weights import Source, Stored, WeightsFile

# Key of a Phi config.json -> key of a GPT-J's.
CONFIG_KEYS = {
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "n_positions",
    "layer_norm_eps": "layer_norm_epsilon",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "tie_word_embeddings": "tie_word_embeddings",
    "hidden_act": "activation_function",
}
ROPE_THETA = 10000.0
# A module of a block in GPT-J -> in Phi.
MODULES = {
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.out_proj": "self_attn.dense",
    "mlp.fc_in": "mlp.fc1",
    "mlp.fc_out": "mlp.fc2",
    "ln_1": "input_layernorm",
}
TOP = {
    "transformer.wte": "model.embed_tokens",
    "transformer.ln_f": "model.final_layernorm",
    "lm_head": "lm_head",
}
ROTATED = ("attn.q_proj", "attn.k_proj")
UNBIASED = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj")


def is_phi(document: Mapping[str, Any]) -> bool:
    """Whether the object of a config.json describes a Phi."""
    return document.get("model_type") == "phi"


def to_config(config: ModelConfig) -> dict[str, Any]:
    """The object of a Phi's config.json. A tied head becomes one of its own: vLLM takes no tied one."""
    gptj = config.to_json() | {"tie_word_embeddings": False}
    document: dict[str, Any] = {"architectures": ["PhiForCausalLM"], "model_type": "phi"}
    document |= {key: gptj[own] for key, own in CONFIG_KEYS.items()}
    factor = config.rotary_dim / config.d_head
    rope = {"partial_rotary_factor": factor, "rope_theta": ROPE_THETA}
    # Both places are read: rope_parameters by transformers and vLLM, the keys on top by mlx-lm and SGLang.
    document |= rope | {"rope_parameters": rope | {"rope_type": "default"}}
    document |= {"num_key_value_heads": config.n_heads, "qk_layernorm": False}
    return document | {"attention_dropout": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}


def from_config(document: Mapping[str, Any]) -> dict[str, Any]:
    """The object of the config.json of the GPT-J that a Phi is; ConfigError for one that is none."""
    gptj = {own: document[key] for key, own in CONFIG_KEYS.items() if key in document}
    rope = document.get("rope_parameters")
    rope = rope if type(rope) is dict else {}
    both = {key: rope.get(key, document.get(key)) for key in ("partial_rotary_factor", "rope_theta")}
    only = {"num_key_value_heads": gptj.get("n_head"), "qk_layernorm": False}
    for key, value in only.items():
        if document.get(key, value) not in (value, None):
            raise _no_gptj(key, document[key], value)
    if rope.get("rope_type", "default") != "default":
        raise _no_gptj("rope_type", rope["rope_type"], "default")
    factor, width, heads = both["partial_rotary_factor"], gptj.get("n_embd"), gptj.get("n_head")
    if type(width) is not int or not 0 < width <= MAX_DIMENSION:
        raise _no_gptj("hidden_size", width, f"1 to {MAX_DIMENSION}")
    if type(heads) is not int or not 0 < heads <= MAX_DIMENSION:
        raise _no_gptj("num_attention_heads", heads, f"1 to {MAX_DIMENSION}")
    if type(factor) is not float or not 0 < factor <= 1:
        raise _no_gptj("partial_rotary_factor", factor, "rotary_dim / d_head")
    if both["rope_theta"] is not None:
        gptj["rope_theta"] = both["rope_theta"]
    return gptj | {"model_type": "gptj", "rotary_dim": round(factor * (width // heads))}


def to_name(name: str) -> str:
    """The name of a tensor or module of a GPT-J, in a Phi."""
    if not name.startswith("transformer.h."):
        module, dot, kind = name.rpartition(".")
        return f"{TOP[module]}{dot}{kind}"
    layer, _, rest = name.removeprefix("transformer.h.").partition(".")
    module = rest if rest in MODULES else rest.rpartition(".")[0]
    return f"model.layers.{layer}.{MODULES[module]}{rest.removeprefix(module)}"


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the Phi, with a head of its own and the biases that a GPT-J lacks."""
    own = config.tensor_shapes()
    own.setdefault(HEAD, own[EMBEDDING])
    found = {to_name(name): shape for name, shape in own.items()}
    return found | {to_name(name): (config.d_model,) for name in _missing_biases(config)}


def to_phi(config: ModelConfig, tensors: Mapping[str, Stored]) -> Mapping[str, Stored]:
    """The tensors of a GPT-J under a Phi's names; each is made when it is asked for."""
    return _ToPhi(config, tensors)


def from_phi(config: ModelConfig, tensors: Mapping[str, Source]) -> dict[str, Source]:
    """The tensors of a Phi's files under a GPT-J's names, without the biases that it lacks."""
    names = {to_name(name): name for name in config.tensor_shapes()}
    biases = {to_name(name) for name in _missing_biases(config)}
    own = set(names.values())
    found = {names.get(name, name): source for name, source in tensors.items() if name not in biases}
    order = np.argsort(row_order(config))
    for name, source in found.items():
        if name in own and _is_rotated(name):
            found[name] = replace(source, read=partial(_reordered, source.read, order))
    return found


def require_no_bias(config: ModelConfig, files: Iterable[WeightsFile]) -> None:
    """CheckpointError for a Phi that no GPT-J equals: its attention has biases."""
    biases = {to_name(name) for name in _missing_biases(config)}
    for file in files:
        for name in biases & file.tensors.keys():
            if np.any(file.tensors[name].read()):
                raise CheckpointError(
                    f"{file.path}: {name} is not zero, which no GPT-J has: run this Phi with transformers",
                    f"{file.path}: {name} 값이 0이 아니어서 GPT-J가 아닙니다. transformers로 실행하세요",
                )


def to_lora(config: ModelConfig, lora: Lora) -> Lora:
    """A LoRA of the GPT-J as one of the Phi: of q and k the rows of b move, a stays."""
    order = row_order(config)
    return Lora(
        {
            to_name(module): LowRank(update.a, update.b[order], update.scale)
            if module.endswith(ROTATED)
            else update
            for module, update in lora.updates.items()
        }
    )


def row_order(config: ModelConfig) -> NDArray[np.int64]:
    """(E,) which row of GPT-J's q and k each row of Phi's is."""
    rotary = np.arange(config.rotary_dim).reshape(-1, 2).T.reshape(-1)  # 0, 2, 4, ..., 1, 3, 5, ...
    head = np.concatenate([rotary, np.arange(config.rotary_dim, config.d_head)])
    starts = np.arange(config.n_heads) * config.d_head
    order: NDArray[np.int64] = (starts[:, None] + head).reshape(-1)
    return order


class _ToPhi(Lazy[Stored]):
    def __init__(self, config: ModelConfig, tensors: Mapping[str, Stored]) -> None:
        super().__init__(shapes(config))
        self._tensors = tensors
        self._sources = {to_name(name): name for name in config.tensor_shapes()}
        self._sources.setdefault(to_name(HEAD), EMBEDDING)  # a tied head
        self._order = row_order(config)

    def __getitem__(self, name: str) -> Stored:
        if name not in self._sources:
            return Stored("float32", np.zeros(len(self._order), np.float32))
        own = self._sources[name]
        tensor = self._tensors[own]
        if _is_rotated(own):
            return Stored(tensor.dtype, tensor.array[self._order])
        return tensor


def _is_rotated(name: str) -> bool:
    return name.removesuffix(".weight").endswith(ROTATED)


def _reordered(read: Callable[[], NDArray[Any]], order: NDArray[np.int64]) -> NDArray[Any]:
    rows = read()[order]
    rows.flags.writeable = False
    return rows


def _missing_biases(config: ModelConfig) -> list[str]:
    return [f"transformer.h.{i}.{module}.bias" for i in range(config.n_layers) for module in UNBIASED]


def _no_gptj(key: str, value: object, only: object) -> ConfigError:
    shown = repr(value)[:60]
    return ConfigError(
        f"not a Phi that is a GPT-J as well: config.json has {key} = {shown}, only {only!r} is supported",
        f"GPT-J와 같은 구조의 Phi가 아닙니다: config.json의 {key} = {shown} (지원: {only!r})",
    )
