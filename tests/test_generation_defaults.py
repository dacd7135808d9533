"""What generation_config.json says is read as transformers reads it, below what a user chooses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from transformers import GenerationConfig

import kogpt
from kogpt.errors import ConfigError, KoGPTError, SamplingError
from kogpt.generation_defaults import GenerationDefaults, read_generation_defaults
from kogpt.sampling import Sampling


def read(folder: Path, **document: Any) -> GenerationDefaults:
    (folder / "generation_config.json").write_text(json.dumps(document))
    return read_generation_defaults(folder, TINY)


def test_without_the_file_the_config_decides(tmp_path: Path) -> None:
    config = replace(TINY, further_eos_token_ids=(7,))
    defaults = read_generation_defaults(tmp_path, config)
    assert defaults == GenerationDefaults((1, 7), {}, ())
    assert defaults.sampling() == Sampling()


def test_the_built_in_model_s_file_is_read() -> None:
    folder = Path(kogpt.__file__).parent / "mini"
    assert read_generation_defaults(folder, TINY).eos_token_ids == (1,)


@pytest.mark.parametrize(
    ("stated", "expected"), [(None, (1,)), (7, (7,)), ([7], (7,)), ([1, 511, 7], (1, 511, 7)), ([7, 7], (7,))]
)
def test_end_tokens_are_one_or_a_list(stated: Any, expected: tuple[int, ...], tmp_path: Path) -> None:
    assert read(tmp_path, eos_token_id=stated).eos_token_ids == expected


def test_settings_that_transformers_writes_are_the_defaults_below_the_users(tmp_path: Path) -> None:
    stated: dict[str, Any] = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "repetition_penalty": 1.2,
    }
    GenerationConfig(**stated, do_sample=True, max_new_tokens=20, eos_token_id=[1, 7]).save_pretrained(
        tmp_path
    )
    defaults = read_generation_defaults(tmp_path, TINY)
    assert defaults.eos_token_ids == (1, 7)
    assert defaults.sampling() == Sampling(**stated, max_tokens=20)
    assert defaults.sampling(temperature=0.0, seed=3) == Sampling(
        **stated | {"temperature": 0.0}, max_tokens=20, seed=3
    )


def test_a_chosen_length_replaces_either_of_the_model(tmp_path: Path) -> None:
    assert read(tmp_path, max_length=50).sampling() == Sampling(max_length=50)
    assert read(tmp_path, max_length=50).sampling(max_tokens=9) == Sampling(max_tokens=9)
    assert read(tmp_path, max_length=50).sampling(max_tokens=None) == Sampling(max_length=50)
    assert read(tmp_path, max_new_tokens=50).sampling(max_length=9) == Sampling(max_length=9)
    assert read(tmp_path, max_new_tokens=5, max_length=50).sampling() == Sampling(max_tokens=5)


def test_stop_strings_and_greedy(tmp_path: Path) -> None:
    assert read(tmp_path, stop_strings="끝").sampling() == Sampling(stop=("끝",))
    assert read(tmp_path, stop_strings=["끝", "\n"]).sampling() == Sampling(stop=("끝", "\n"))
    assert read(tmp_path, do_sample=False, temperature=0.7).sampling() == Sampling(temperature=0.0)
    assert read(tmp_path, temperature=None, top_k=None, do_sample=None).sampling() == Sampling()


def test_what_kogpt_does_not_have_is_listed(tmp_path: Path) -> None:
    read_as = read(
        tmp_path, num_beams=4, no_repeat_ngram_size=0, typical_p=1.0, bad_words_ids=[[5]], min_length=0
    )
    assert read_as.unsupported == ("num_beams", "bad_words_ids")
    assert read(tmp_path, **GenerationConfig().to_dict()).unsupported == ()


REFUSED = [
    ({"temperature": -1}, "temperature"),
    ({"temperature": "warm"}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_k": [1]}, "top_k"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"max_new_tokens": 0}, "max_tokens"),
    ({"max_length": -1}, "max_length"),
    ({"stop_strings": 5}, "stop"),
    ({"stop_strings": [""]}, "stop"),
    ({"eos_token_id": []}, "eos_token_id has 0 ids, must have 1 to 64"),
    ({"eos_token_id": [1] * 65}, "eos_token_id has 65 ids"),
    ({"eos_token_id": 512}, "eos_token_id is 512, must be from 0 to 511"),
    ({"eos_token_id": [1, True]}, "eos_token_id is True"),
    ({"eos_token_id": "[EOS]"}, "eos_token_id is '\\[EOS\\]'"),
]


@pytest.mark.parametrize(("document", "message"), REFUSED)
def test_values_out_of_range_are_refused(document: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, **document)
    assert "generation_config.json" in caught.value.en and "generation_config.json" in caught.value.ko


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"temperature": NaN}', b'{"top_k": 1, "top_k": 2}', b"{" * 2**21]
)
def test_what_is_not_an_object_of_json_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_bytes(content)
    with pytest.raises(ConfigError):
        read_generation_defaults(tmp_path, TINY)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "secret.json").write_text('{"temperature": 0.5}')
    (tmp_path / "model" / "generation_config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(KoGPTError):
        read_generation_defaults(tmp_path / "model", TINY)


def test_what_a_user_chooses_is_checked(tmp_path: Path) -> None:
    with pytest.raises(SamplingError):
        read(tmp_path).sampling(top_p=2)
