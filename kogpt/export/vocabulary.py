"""A byte-level BPE in the metadata of a GGUF file: llama.cpp's tokenizer model "gpt2".

llama.cpp splits text before the BPE by rules that it knows by name. The rule of GPT-2 is written; a tokenizer
with another rule, such as kogpt-mini's, which cuts numbers into pairs of digits, gives other tokens where the
rules differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kogpt.config import ModelConfig

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama.cpp's types of tokens


def splits_as_gpt2(document: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json splits text by the rule of GPT-2, so that llama.cpp gives the same tokens."""
    split = document.get("pre_tokenizer") or {}
    return split.get("type") == "ByteLevel" and split.get("use_regex") is not False


def add_vocabulary(writer: Any, document: Mapping[str, Any], config: ModelConfig) -> None:
    """Add tokens, merges and special tokens of a tokenizer.json to a GGUFWriter."""
    tokens = [f"[UNUSED{i}]" for i in range(config.n_vocab)]
    kinds = [UNUSED] * config.n_vocab
    for token, index in document["model"]["vocab"].items():
        tokens[index], kinds[index] = token, NORMAL
    for added in document.get("added_tokens") or ():
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    merges = document["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    if config.bos_token_id is not None:
        writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
