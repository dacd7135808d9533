"""The dimensions of a GPT-J and the ids of its special tokens; no device, no precision, no batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from kogpt.errors import ConfigError

# Field of ModelConfig -> key in config.json (transformers' GPTJConfig). n_inner (d_ff) may be null there.
JSON_KEYS = {
    "n_layers": "n_layer",
    "n_heads": "n_head",
    "d_model": "n_embd",
    "d_ff": "n_inner",
    "n_vocab": "vocab_size",
    "n_ctx": "n_positions",
    "rotary_dim": "rotary_dim",
    "layer_norm_epsilon": "layer_norm_epsilon",
    "tied_head": "tie_word_embeddings",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
}

# Keys that change the arithmetic, with the only value that KoGPT computes.
FIXED_VALUES: dict[str, Any] = {
    "model_type": "gptj",
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "quantization_config": None,
    "auto_map": None,
}

DIMENSIONS = ("n_layers", "n_heads", "d_model", "d_ff", "n_vocab", "n_ctx", "rotary_dim")
# Limits far above any GPT-J. They keep the numbers small and the list of tensors short for a hostile file.
MAX_DIMENSION = 2**24
MAX_LAYERS = 2**12
MAX_EOS_TOKENS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The shape of one GPT-J. Defaults are those that every published GPT-J shares.

    Names follow the original's table: n_layers, d_model, d_ff, n_heads, d_head, n_ctx, n_vocab.
    eos_token_id separates documents; where the model has several end tokens it is the first of them, and
    `eos_token_ids` are all. bos_token_id is None for a model without one.
    Raises ConfigError for a shape that cannot exist.
    """

    n_layers: int
    n_heads: int
    d_model: int
    d_ff: int
    n_vocab: int
    n_ctx: int
    rotary_dim: int
    layer_norm_epsilon: float = 1e-5
    tied_head: bool = False
    bos_token_id: int | None = 0
    eos_token_id: int = 1
    further_eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in DIMENSIONS:
            _require_count(name, getattr(self, name), MAX_LAYERS if name == "n_layers" else MAX_DIMENSION)
        if self.d_model % self.n_heads:
            raise _impossible(
                "n_embd",
                self.d_model,
                f"a multiple of n_head ({self.n_heads})",
                f"n_head({self.n_heads})의 배수",
            )
        if self.rotary_dim % 2 or self.rotary_dim > self.d_head:
            raise _impossible(
                "rotary_dim", self.rotary_dim, f"even and at most {self.d_head}", f"{self.d_head} 이하의 짝수"
            )
        epsilon = self.layer_norm_epsilon
        if type(epsilon) is not float or not 0.0 < epsilon < 1.0:
            raise _impossible("layer_norm_epsilon", epsilon, "a number between 0 and 1", "0과 1 사이의 수")
        if type(self.tied_head) is not bool:
            raise _impossible("tie_word_embeddings", self.tied_head, "true or false", "true 또는 false")
        if self.bos_token_id is not None:
            require_token("bos_token_id", self.bos_token_id, self.n_vocab)
        if len(self.eos_token_ids) > MAX_EOS_TOKENS:
            rule, rule_ko = f"at most {MAX_EOS_TOKENS} ids", f"ID {MAX_EOS_TOKENS}개 이하"
            raise _impossible("eos_token_id", self.eos_token_ids, rule, rule_ko)
        for token in self.eos_token_ids:
            require_token("eos_token_id", token, self.n_vocab)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All ids that end a text, at least one."""
        return (self.eos_token_id, *self.further_eos_token_ids)

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def n_parameters(self) -> int:
        """Weights and biases of the whole model; a tied head is counted once."""
        return sum(_size(shape) for shape in self.tensor_shapes().values())

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of a checkpoint by its published name; a tied head has no weight of its own."""
        e, f, v = self.d_model, self.d_ff, self.n_vocab
        shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (v, e)}
        for layer in range(self.n_layers):
            block = f"transformer.h.{layer}"
            shapes |= {f"{block}.ln_1.weight": (e,), f"{block}.ln_1.bias": (e,)}
            for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                shapes[f"{block}.attn.{projection}.weight"] = (e, e)
            shapes |= {f"{block}.mlp.fc_in.weight": (f, e), f"{block}.mlp.fc_in.bias": (f,)}
            shapes |= {f"{block}.mlp.fc_out.weight": (e, f), f"{block}.mlp.fc_out.bias": (e,)}
        shapes |= {"transformer.ln_f.weight": (e,), "transformer.ln_f.bias": (e,)}
        if not self.tied_head:
            shapes["lm_head.weight"] = (v, e)
        shapes["lm_head.bias"] = (v,)
        return shapes

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read the object of a config.json; ConfigError if it is no GPT-J or a key is missing."""
        for key, only in FIXED_VALUES.items():
            if document.get(key, only) != only:
                raise _foreign(key, document[key], only)
        if "model_type" not in document:
            raise _foreign("model_type", None, FIXED_VALUES["model_type"])
        values = {name: document[key] for name, key in JSON_KEYS.items() if key in document}
        if values.get("d_ff") is None and type(width := values.get("d_model")) is int:
            values["d_ff"] = 4 * width  # GPTJConfig: n_inner null means 4 * n_embd
        if missing := [JSON_KEYS[name] for name in DIMENSIONS if values.get(name) is None]:
            raise ConfigError(
                f"config.json lacks {', '.join(missing)}: it does not describe a whole GPT-J",
                f"config.json에 {', '.join(missing)} 항목이 없어 GPT-J를 만들 수 없습니다",
            )
        if type(ends := values.get("eos_token_id")) is list and ends:
            values["eos_token_id"], values["further_eos_token_ids"] = ends[0], tuple(ends[1:])
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """The object of a config.json that transformers' AutoConfig reads as a GPTJConfig."""
        document: dict[str, Any] = {"architectures": ["GPTJForCausalLM"], "model_type": "gptj"}
        document |= {key: getattr(self, name) for name, key in JSON_KEYS.items()}
        if self.further_eos_token_ids:
            document["eos_token_id"] = list(self.eos_token_ids)
        document |= {"activation_function": "gelu_new", "scale_attn_weights": True}
        return document | {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}


def _size(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) == 2 else 1)


def require_token(key: str, token: object, n_vocab: int) -> None:
    """Raise ConfigError unless a token id is a row of the vocabulary."""
    if type(token) is not int or not 0 <= token < n_vocab:
        raise _impossible(key, token, f"from 0 to {n_vocab - 1}", f"0 이상 {n_vocab - 1} 이하")


def _require_count(name: str, value: object, limit: int) -> None:
    if type(value) is not int or not 0 < value <= limit:
        raise _impossible(
            JSON_KEYS[name], value, f"a whole number from 1 to {limit}", f"1 이상 {limit} 이하의 정수"
        )


def _impossible(key: str, value: object, rule: str, rule_ko: str) -> ConfigError:
    shown = repr(value)[:60]
    return ConfigError(
        f"impossible model shape: {key} is {shown}, must be {rule}",
        f"불가능한 모델 구조: {key} 값 {shown} (조건: {rule_ko})",
    )


def _foreign(key: str, value: object, only: object) -> ConfigError:
    shown = repr(value)[:60]
    return ConfigError(
        f"not a GPT-J that KoGPT can run: config.json has {key} = {shown}, only {only!r} is supported",
        f"KoGPT로 실행할 수 있는 GPT-J가 아닙니다: config.json의 {key} = {shown} (지원: {only!r})",
    )


# Shapes known by name, without weights: the published model, and the shape of the benchmarks.
SHAPES = {
    "kogpt-6b": ModelConfig(
        n_layers=28, n_heads=16, d_model=4096, d_ff=16384, n_vocab=64512, n_ctx=2048, rotary_dim=64
    ),
    "kogpt-1b": ModelConfig(
        n_layers=16, n_heads=16, d_model=2048, d_ff=8192, n_vocab=64512, n_ctx=2048, rotary_dim=64
    ),
}
