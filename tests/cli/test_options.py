"""Options are the fields of Sampling, and say the same."""

from __future__ import annotations

import argparse
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from kogpt import hub
from kogpt.checkpoint import read_config
from kogpt.cli import Parser, bench, command, options
from kogpt.config import SHAPES
from kogpt.errors import KoGPTError
from kogpt.native_runner import CACHE_DTYPES
from kogpt.placement import RUNNERS, Placement, runner_class
from kogpt.pretraining.plan import GPUS
from kogpt.sampling import GRAMMARS, Sampling


def parse(*words: str) -> argparse.Namespace:
    parser = Parser(prog="x")
    options.add_generation_options(parser)
    options.add_model_options(parser)
    return parser.parse_args(words)


def test_what_is_not_given_is_left_to_the_model() -> None:
    assert options.given_settings(parse()) == {}


def test_settings_are_those_of_sampling() -> None:
    hints = get_type_hints(Sampling)
    texts = {setting.name: setting.metadata["help"] for setting in fields(Sampling)}
    assert {name: text for name, (_, text) in options.SETTINGS.items()} == texts
    for name, (kind, _) in options.SETTINGS.items():
        if name not in ("stop", "logit_bias"):
            parts = (hints[name], *get_args(hints[name]))
            assert kind in (*parts, *chain.from_iterable(map(get_args, parts)))


def test_every_field_has_an_option() -> None:
    words = "--temperature 0 --top-p .5 --top-k 3 --min-p .1 --repetition-penalty 1.2 --presence-penalty .3"
    words += " --frequency-penalty .4 --logit-bias 7=-2.5 --logit-bias 8=1 --seed 9 --stop 끝 --stop ."
    words += " --max-tokens 5 --max-length 50 -n 2 --logprobs 1"
    sampling = Sampling(**options.given_settings(parse(*words.split())))
    assert sampling == Sampling(
        temperature=0.0,
        top_p=0.5,
        top_k=3,
        min_p=0.1,
        repetition_penalty=1.2,
        presence_penalty=0.3,
        frequency_penalty=0.4,
        logit_bias={7: -2.5, 8: 1.0},
        seed=9,
        stop=("끝", "."),
        max_tokens=5,
        max_length=50,
        n=2,
        logprobs=1,
    )
    default, others = Sampling(), set(GRAMMARS)
    assert {
        f.name for f in fields(Sampling) if getattr(sampling, f.name) == getattr(default, f.name)
    } == others


def test_every_grammar_has_an_option(tmp_path: Path) -> None:
    schema, file = '{"type": "object"}', tmp_path / "schema.json"
    file.write_text(schema, encoding="utf-8")
    wanted: dict[tuple[str, ...], dict[str, Any]] = {
        ("--regex", "[가-힣]+"): {"regex": "[가-힣]+"},
        ("--choice", "긍정", "--choice", "부정"): {"choice": ("긍정", "부정")},
        ("--json-schema", schema): {"json_schema": schema},
        ("--json-schema", str(file)): {"json_schema": schema},
        ("--hangul",): {"hangul": True},
    }
    for words, settings in wanted.items():
        assert options.given_settings(parse(*words)) == settings
    with pytest.raises(KoGPTError, match="beside"):
        options.given_settings(parse("--hangul", "--regex", "a"))


def test_names_with_underscores_are_known_too() -> None:
    assert parse("--max_tokens", "5").max_tokens == 5
    assert parse("--model_parallel").model_parallel is True


@pytest.mark.parametrize("words", [("--top-k", "1.5"), ("--logit-bias", "x"), ("--dtype", "int3")])
def test_values_of_the_wrong_kind_are_refused(
    words: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(*words)
    assert words[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "n_gpus", "device"),
    [
        ((), 2, "auto"),
        (("--device", "cuda:1"), 2, "cuda:1"),
        (("--model_parallel",), 2, "cuda:all"),
        (("--model_parallel", "--device", "cuda"), 1, "cuda:all"),
        (("--model_parallel", "--device", "cuda:all"), 2, "cuda:all"),
        (("--model_parallel",), 0, "auto"),
    ],
)
def test_model_parallel_means_every_gpu(
    words: tuple[str, ...], n_gpus: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kogpt.cli.machine.gpus", lambda: [None] * n_gpus)
    assert options.device_from(parse(*words)) == device


def test_model_parallel_without_a_gpu_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for n_gpus, said in ((2, 0), (0, 1)):
        monkeypatch.setattr("kogpt.cli.machine.gpus", lambda n=n_gpus: [None] * n)
        options.device_from(parse("--model_parallel"))
        assert len(caplog.records) == said
    assert "--model_parallel has no effect" in caplog.text


def test_choices_are_those_of_the_runners() -> None:
    """The options spell them out, so that --help needs no numpy; float64 is for tests."""
    classes = [runner_class(name) for name in RUNNERS]
    dtypes = {dtype for kind in classes for dtype in kind.dtypes}
    assert set(options.DTYPES) == {"auto", *dtypes} - {"float64"}
    assert ("auto", *CACHE_DTYPES) == options.CACHE_DTYPES
    assert ("auto", *RUNNERS) == bench.RUNNERS


def test_options_make_a_placement() -> None:
    words = ("--device", "cpu", "--dtype", "int8", "--cache-dtype", "float32")
    assert options.placement_from(parse(*words)) == Placement("cpu", "int8", "float32")


@pytest.mark.parametrize("device", ["cpu", "cuda:1", "cuda:0,cuda:1"])
def test_model_parallel_beside_another_choice_is_refused(device: str) -> None:
    with pytest.raises(KoGPTError, match="takes every GPU"):
        options.device_from(parse("--model_parallel", "--device", device))


@pytest.mark.parametrize("locale", ["C.UTF-8", "ko_KR.UTF-8"])
@pytest.mark.parametrize("text", ["0", "-1", "", "1.5", "1e3", "٣", "１", "1000001", "9" * 5000, "a"])
def test_counts_are_whole_numbers(text: str, locale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", locale)
    with pytest.raises(argparse.ArgumentTypeError, match="정수를" if "ko" in locale else "whole number"):
        options.read_count(text)
    assert options.read_count("1") == 1 and options.read_count("1000000") == 1_000_000
    assert options.read_counts("1,4,16,4") == (1, 4, 16) and options.read_counts_from_0("0,5") == (0, 5)
    with pytest.raises(argparse.ArgumentTypeError):
        options.read_counts(f"1,{text}")


@pytest.mark.parametrize("text", ["0", "1.1", "nan", "-1", "x", ""])
def test_a_share_is_above_0_and_at_most_1(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        options.read_share(text)
    assert options.read_share("1") == 1.0


def help_of(prog: str, option: str) -> str:
    """The help of one option, its default filled in."""
    name, *nested = prog.split()
    parser = command(name)[1]
    for word in nested:
        [choices] = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
        parser = choices[word]
    [action] = [action for action in parser._actions if option in action.option_strings]
    return (action.help or "") % vars(action)


def test_the_help_of_revision_names_the_default() -> None:
    assert hub.DEFAULT_REVISIONS == {"kakaobrain/kogpt": "KoGPT6B-ryan1.5b-float16"}
    for prog in ("generate", "info", "export", "bench", "tune full", "tune embed"):
        assert "of kakaobrain/kogpt the float16 one" in help_of(prog, "--revision")


def test_the_help_of_shapes_names_them() -> None:
    plan = help_of("pretrain plan", "--shape")
    assert all(name in plan for name in SHAPES) and "default: kogpt-6b" in plan
    gpu = help_of("pretrain plan", "--gpu")
    assert all(name in gpu for name in GPUS) and "default: h100" in gpu
    assert f"{bench.shape_config('mini').n_parameters:,}" in help_of("bench", "--shape")
    assert f"{read_config(hub.BUILT_IN['kogpt-mini']).n_parameters:,}" in help_of("bench", "--shape")
