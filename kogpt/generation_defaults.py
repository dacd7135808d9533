"""generation_config.json: the end tokens and the sampling settings that come with a model.

The file is transformers' GenerationConfig. Its settings are the model's defaults: they hold where a user
chooses nothing. A folder without the file has the end tokens of config.json and the defaults of Sampling.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kogpt.config import MAX_EOS_TOKENS, ModelConfig, require_token
from kogpt.errors import ConfigError, SamplingError
from kogpt.files import read_json, safe_join
from kogpt.sampling import Sampling

FILE = "generation_config.json"
MAX_FILE_BYTES = 1 << 20  # transformers writes at most a few KB

# Key in the file -> field of Sampling.
SETTINGS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "stop_strings": "stop",
    "max_length": "max_length",
    "max_new_tokens": "max_tokens",
}
LENGTHS = ("max_length", "max_tokens")

# Keys that change the text in transformers and that KoGPT does not have, with the values that change nothing.
UNSUPPORTED = (
    *("num_beams", "penalty_alpha", "guidance_scale", "no_repeat_ngram_size", "encoder_repetition_penalty"),
    *("typical_p", "epsilon_cutoff", "eta_cutoff", "top_h", "min_length", "min_new_tokens", "max_time"),
    *("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "force_words_ids"),
    *(
        "forced_bos_token_id",
        "forced_eos_token_id",
        "exponential_decay_length_penalty",
        "watermarking_config",
    ),
)
NEUTRAL: tuple[object, ...] = (None, 0, 1, [], {})


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What a model's folder recommends for writing text."""

    eos_token_ids: tuple[int, ...]  # every one ends an answer; at least one
    settings: Mapping[str, Any]  # fields of Sampling that the file states
    unsupported: tuple[str, ...]  # keys of the file that KoGPT leaves without effect

    def sampling(self, **chosen: Any) -> Sampling:
        """Settings of one generation: those chosen, else the model's, else Sampling's own.

        A chosen length (max_tokens or max_length) replaces the model's, whichever of the two that is.
        Raises SamplingError as Sampling does.
        """
        own = dict(self.settings)
        if any(chosen.get(name) is not None for name in LENGTHS):
            own = {name: value for name, value in own.items() if name not in LENGTHS}
        return Sampling(**{**own, **chosen})


def read_generation_defaults(folder: Path, config: ModelConfig) -> GenerationDefaults:
    """Read a folder's generation_config.json. ConfigError if a value is outside its range."""
    path, document = folder / FILE, {}
    if os.path.lexists(path):
        document = read_json(safe_join(folder, FILE), MAX_FILE_BYTES, ConfigError)
    settings = {field: document[key] for key, field in SETTINGS.items() if document.get(key) is not None}
    if document.get("do_sample") is False:
        settings["temperature"] = 0.0  # transformers takes the likeliest token, whatever the temperature
    if "max_tokens" in settings:
        settings.pop("max_length", None)  # as in transformers
    try:
        Sampling(**settings)
    except SamplingError as error:
        raise ConfigError(f"{path}: {error.en}", f"{path}: {error.ko}") from error
    return GenerationDefaults(
        eos_token_ids=_eos_token_ids(document.get("eos_token_id"), config, path),
        settings=settings,
        unsupported=tuple(key for key in UNSUPPORTED if document.get(key) not in NEUTRAL),
    )


def _eos_token_ids(stated: object, config: ModelConfig, path: Path) -> tuple[int, ...]:
    """The file's end tokens, one or a list; those of config.json where it states none."""
    if stated is None:
        return config.eos_token_ids
    tokens = stated if type(stated) is list else [stated]
    if not 0 < len(tokens) <= MAX_EOS_TOKENS:
        raise ConfigError(
            f"{path}: eos_token_id has {len(tokens):,} ids, must have 1 to {MAX_EOS_TOKENS}",
            f"{path}: eos_token_id의 ID {len(tokens):,}개 (조건: 1개 이상 {MAX_EOS_TOKENS}개 이하)",
        )
    for token in tokens:
        require_token(f"{FILE}: eos_token_id", token, config.n_vocab)
    return tuple(dict.fromkeys(tokens))
