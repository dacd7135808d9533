"""ModelConfig: the published shape counted, JSON both ways, and shapes that are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import TINY

from kogpt.config import SHAPES, ModelConfig
from kogpt.errors import ConfigError

# The config.json of the published model, as far as it describes a GPT-J.
PUBLISHED = """{
  "activation_function": "gelu_new", "architectures": ["GPTJForCausalLM"], "attn_pdrop": 0.1,
  "bos_token_id": 0, "embd_pdrop": 0.1, "eos_token_id": 1, "initializer_range": 0.02,
  "layer_norm_epsilon": 1e-05, "model_type": "gptj", "n_ctx": 2048, "n_embd": 4096, "n_head": 16,
  "n_inner": null, "n_layer": 28, "n_positions": 2048, "resid_pdrop": 0.0, "rotary_dim": 64,
  "scale_attn_weights": true, "tie_word_embeddings": false, "tokenizer_class": "PreTrainedTokenizerFast",
  "torch_dtype": "float16", "use_cache": true, "vocab_size": 64512
}"""


def test_the_published_config_counts_the_published_parameters() -> None:
    config = ModelConfig.from_json(json.loads(PUBLISHED))
    assert config == SHAPES["kogpt-6b"]
    assert config.n_parameters == 6_166_502_400
    assert (config.d_head, config.d_ff) == (256, 16384)


def test_json_round_trip() -> None:
    tied = {**TINY.to_json(), "tie_word_embeddings": True, "bos_token_id": 5, "layer_norm_epsilon": 1e-6}
    for document in (TINY.to_json(), tied):
        config = ModelConfig.from_json(json.loads(json.dumps(document)))
        assert config.to_json() == document


def test_a_tied_head_is_counted_once() -> None:
    untied = ModelConfig.from_json(TINY.to_json())
    tied = ModelConfig.from_json(TINY.to_json() | {"tie_word_embeddings": True})
    assert untied.n_parameters - tied.n_parameters == TINY.n_vocab * TINY.d_model
    assert untied.tensor_shapes().keys() - tied.tensor_shapes().keys() == {"lm_head.weight"}


def test_a_model_may_have_no_begin_and_several_ends() -> None:
    document = TINY.to_json() | {"bos_token_id": None, "eos_token_id": [1, 7, 511]}
    config = ModelConfig.from_json(document)
    assert config.bos_token_id is None
    assert (config.eos_token_id, config.eos_token_ids) == (1, (1, 7, 511))
    assert config.to_json() == document
    one = ModelConfig.from_json(TINY.to_json() | {"eos_token_id": [7]})
    assert (one.eos_token_id, one.eos_token_ids) == (7, (7,))
    assert one.to_json()["eos_token_id"] == 7


REFUSED: list[tuple[str, Any, str]] = [
    ("model_type", "gpt2", "model_type = 'gpt2'"),
    ("model_type", None, "model_type = None"),
    ("activation_function", "relu", "activation_function = 'relu'"),
    ("scale_attn_weights", False, "scale_attn_weights"),
    ("auto_map", {"AutoModel": "modeling_evil.Evil"}, "auto_map"),
    ("quantization_config", {"bits": 4}, "quantization_config"),
    ("rope_scaling", {"type": "linear"}, "rope_scaling"),
    ("rope_theta", float("nan"), "rope_theta"),
    ("vocab_size", 10**12, "vocab_size is 1000000000000"),
    ("vocab_size", 10**4000, "vocab_size is 1000"),
    ("n_layer", 10**6, "n_layer is 1000000, must be a whole number from 1 to 4096"),
    ("n_layer", 0, "n_layer is 0"),
    ("n_layer", -1, "n_layer is -1"),
    ("n_layer", "28", "n_layer is '28'"),
    ("n_layer", 28.0, "n_layer is 28.0"),
    ("n_layer", True, "n_layer is True"),
    ("n_layer", None, "lacks n_layer"),
    ("n_head", 3, "n_embd is 64, must be a multiple of n_head"),
    ("n_embd", [64], r"n_embd is \[64\]"),
    ("n_inner", "wide", "n_inner is 'wide'"),
    ("rotary_dim", 3, "rotary_dim is 3, must be even and at most 16"),
    ("rotary_dim", 18, "rotary_dim is 18"),
    ("layer_norm_epsilon", float("nan"), "layer_norm_epsilon is nan"),
    ("layer_norm_epsilon", "1e-5", "layer_norm_epsilon"),
    ("layer_norm_epsilon", 1, "layer_norm_epsilon"),
    ("tie_word_embeddings", "false", "tie_word_embeddings is 'false'"),
    ("bos_token_id", 512, "bos_token_id is 512, must be from 0 to 511"),
    ("eos_token_id", -1, "eos_token_id is -1"),
    ("eos_token_id", None, "eos_token_id is None"),
    ("eos_token_id", [], r"eos_token_id is \[\]"),
    ("eos_token_id", [1, 512], "eos_token_id is 512"),
    ("eos_token_id", [1, "2"], "eos_token_id is '2'"),
    ("eos_token_id", [[1]], r"eos_token_id is \[1\]"),
    ("eos_token_id", [1] * 65, "must be at most 64 ids"),
    ("bos_token_id", [0], r"bos_token_id is \[0\]"),
]


@pytest.mark.parametrize(("key", "value", "message"), REFUSED)
def test_impossible_and_foreign_configs_are_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ModelConfig.from_json(TINY.to_json() | {key: value})
    assert len(caught.value.en) < 300


@pytest.mark.parametrize("key", ["model_type", "n_layer", "n_embd", "vocab_size", "rotary_dim"])
def test_a_missing_key_is_named(key: str) -> None:
    document = TINY.to_json()
    del document[key]
    with pytest.raises(ConfigError, match=key):
        ModelConfig.from_json(document)
