"""`kogpt generate`: the same text as the library gives, in order, in two formats."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kogpt.cli import main
from kogpt.cli.generate import _Answer, _in_order
from kogpt.errors import KoGPTError, PromptError
from kogpt.generation import KoGPT, Result
from kogpt.manifest import write_manifest
from kogpt.sampling import Sampling

PROMPTS = ["한국어", "옛날 옛적에 한 나무꾼이", "값", "모델", "오늘"]
GREEDY = ["--temperature", "0", "--max-tokens", "6"]

Run = Callable[..., str]


@pytest.fixture
def run(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run_one(*words: str, code: int = 0) -> str:
        assert main(["generate", *words, "--model", str(tiny_folder)]) == code
        return capsys.readouterr().out

    return run_one


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> KoGPT:
    return KoGPT.from_pretrained(tiny_folder)


def give_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


def records(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_an_argument_is_continued(run: Run, model: KoGPT) -> None:
    expected = model.generate("한국어", Sampling(temperature=0, max_tokens=6))
    assert run("한국어", *GREEDY) == f"{expected.text}\n"


@pytest.mark.parametrize("words", [["-"], []])
def test_standard_input_is_one_prompt_without_its_last_line_end(
    run: Run, model: KoGPT, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    give_stdin(monkeypatch, "가=1\r\n나=\r\n".encode())
    (record,) = records(run(*words, "--json", *GREEDY))
    assert record["prompt"] == "가=1\n나="
    assert record["text"] == model.generate("가=1\n나=", Sampling(temperature=0, max_tokens=6)).text


def test_json_has_the_stable_names(run: Run, model: KoGPT) -> None:
    expected = model.generate("한국어", Sampling(seed=3, max_tokens=6))
    (record,) = records(run("한국어", "--json", "--seed", "3", "--max-tokens", "6"))
    assert record.pop("seconds") > 0
    assert record == {
        "prompt": "한국어",
        "sample": 0,
        "seed": 3,
        "text": expected.text,
        "tokens": list(expected.tokens),
        "finish_reason": expected.finish_reason,
        "prompt_tokens": expected.prompt_tokens,
        "completion_tokens": expected.completion_tokens,
    }


def test_json_is_utf8_and_not_escaped(run: Run) -> None:
    assert '"prompt": "한국어"' in run("한국어", "--json", *GREEDY)


def test_logprobs_are_reported_when_asked_for(run: Run, model: KoGPT) -> None:
    expected = model.generate("한국어", Sampling(temperature=0, max_tokens=6, logprobs=2)).logprobs
    (record,) = records(run("한국어", "--json", "--logprobs", "2", *GREEDY))
    assert expected is not None
    for entry, drawn in zip(record["logprobs"], expected, strict=True):
        assert entry["token"] == drawn.token
        assert entry["logprob"] == pytest.approx(drawn.logprob)
        assert [token for token, _ in entry["top"]] == [top.token for top in drawn.top_logprobs]


@pytest.mark.parametrize("more", [[], ["-n", "2"], ["--filter", "mask"], ["--workers", "2"]])
def test_logprobs_that_nothing_would_show_are_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    """The input's format changes nothing: JSON Lines are answered in plain text without --json."""
    (tmp_path / "p.jsonl").write_text('{"prompt": "한국어"}', encoding="utf-8")
    for prompt in (["한국어"], ["--file", str(tmp_path / "p.jsonl")]):
        with monkeypatch.context() as patched, contextlib.redirect_stderr(io.StringIO()) as told:
            patched.setattr("kogpt.cli.generate.load_model", lambda _: pytest.fail("a model was loaded"))
            assert run(*prompt, "--logprobs", "2", *more, *GREEDY, code=2) == ""
        assert "add --json" in told.getvalue() and told.getvalue().count("\n") == 1


def test_configured_logprobs_are_no_mistake(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run("한국어", *GREEDY)
    monkeypatch.setenv("KOGPT_LOGPROBS", "2")
    assert run("한국어", *GREEDY) == plain and '"logprobs"' in run("한국어", "--json", *GREEDY)


@pytest.mark.parametrize("jsonl", [False, True])
def test_a_file_of_prompts_is_answered_in_order(run: Run, tmp_path: Path, jsonl: bool) -> None:
    path = tmp_path / ("prompts.jsonl" if jsonl else "prompts.txt")
    lines = [json.dumps({"prompt": prompt}) for prompt in PROMPTS] if jsonl else PROMPTS
    path.write_text("\n\n".join(lines), encoding="utf-8")
    got = records(run("--file", str(path), "--json", "-n", "3", "--seed", "1", "--max-tokens", "6"))
    assert [record["prompt"] for record in got] == [prompt for prompt in PROMPTS for _ in range(3)]
    alone = [
        records(run(prompt, "--json", "-n", "3", "--seed", "1", "--max-tokens", "6")) for prompt in PROMPTS
    ]
    assert [r["tokens"] for r in got] == [r["tokens"] for answers in alone for r in answers]
    assert got[0]["tokens"] != got[1]["tokens"]


def test_several_answers_are_parted_by_an_empty_line(run: Run) -> None:
    texts = [
        r["text"] for r in records(run("한국어", "--json", "-n", "2", "--seed", "1", "--max-tokens", "6"))
    ]
    assert run("한국어", "-n", "2", "--seed", "1", "--max-tokens", "6") == f"{texts[0]}\n\n{texts[1]}\n"


def test_stop_strings_and_length_reach_the_model(run: Run, model: KoGPT) -> None:
    text = model.generate("한국어", Sampling(temperature=0, max_tokens=40)).text
    middle = text[len(text) // 2 : len(text) // 2 + 2]
    (record,) = records(run("한국어", "--json", "--temperature", "0", "--max-tokens", "40", "--stop", middle))
    assert record["text"] == text[: text.index(middle)]
    assert record["finish_reason"] == "stop"
    (record,) = records(run("한국어", "--json", "--max-length", "20"))
    assert record["prompt_tokens"] + record["completion_tokens"] <= 20


def test_an_answer_without_a_seed_can_be_had_again(run: Run) -> None:
    first = records(run("한국어", "--json", "-n", "3", "--max-tokens", "6"))
    again = records(run("한국어", "--json", "-n", "3", "--max-tokens", "6", "--seed", str(first[0]["seed"])))
    assert [(r["sample"], r["tokens"]) for r in first] == [(r["sample"], r["tokens"]) for r in again]
    assert [record["sample"] for record in first] == [0, 1, 2]


def test_equal_prompts_have_seeds_of_their_own(run: Run, tmp_path: Path) -> None:
    (tmp_path / "same.txt").write_text("가\n가\n", encoding="utf-8")
    one, two = records(run("--file", str(tmp_path / "same.txt"), "--json", "--max-tokens", "6"))
    assert one["seed"] != two["seed"]


def test_the_users_own_keys_come_back_beside_ours(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "가", "text": "정답", "id": [7]}\n{"prompt": "나"}\n', encoding="utf-8")
    one, two = records(run("--file", str(path), "--json", *GREEDY))
    assert one["input"] == {"text": "정답", "id": [7]}
    assert one["text"] != "정답"
    assert "input" not in two


@pytest.mark.parametrize(("locale", "reason"), [("C", "the text has"), ("ko_KR.UTF-8", "글이")])
def test_a_prompt_that_is_refused_fails_alone(
    tiny_folder: Path,
    model: KoGPT,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    locale: str,
    reason: str,
) -> None:
    monkeypatch.setenv("LC_ALL", locale)
    path = tmp_path / "prompts.jsonl"
    prompts = ["가", "나" * 500, "다", ""]
    lines = [json.dumps({"prompt": prompt, "id": number}) for number, prompt in enumerate(prompts)]
    path.write_text("\n\n".join(lines), encoding="utf-8")
    assert main(["generate", "--file", str(path), "--json", *GREEDY, "--model", str(tiny_folder)]) == 2
    out, err = capsys.readouterr()
    got = records(out)
    assert [record["prompt"] for record in got] == prompts
    assert [record["input"]["id"] for record in got] == [0, 1, 2, 3]
    assert got[2]["text"] == model.generate("다", Sampling(temperature=0, max_tokens=6)).text
    assert got[1].keys() == {"prompt", "error", "input"} and reason in got[1]["error"]
    where = f"{path} line 3" if locale == "C" else f"{path} 3행"
    assert err.splitlines()[0].startswith(f"kogpt: {where}: {reason}")
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize(
    "bad",
    ['{"prompt": "봄\\ud83d"}', '{"prompt": "봄", "id": NaN}', '{"prompt": "봄", "id": 1e999}', "봄", "3"],
)
def test_a_line_that_is_refused_does_not_lose_the_others(run: Run, tmp_path: Path, bad: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "가"}}\n{bad}\n{{"prompt": "나", "id": 3}}\n', encoding="utf-8")
    out = run("--file", str(path), "--json", *GREEDY, code=2)
    assert "NaN" not in out and "Infinity" not in out
    one, refused, two = records(out)
    assert (one["prompt"], two["prompt"], two["input"]) == ("가", "나", {"id": 3})
    assert refused.keys() == {"prompt", "error"} and "line 2" in refused["error"]
    assert len(run("--file", str(path), "-n", "2", *GREEDY, code=2).split("\n\n")) == 4


def test_a_file_without_one_good_line_is_a_mistake(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "봄\\ud83d"}\n3\n', encoding="utf-8")
    assert main(["generate", "--file", str(tmp_path / "prompts.jsonl"), "--json"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_what_is_not_given_comes_from_the_model(tiny_folder: Path, tmp_path: Path, words: list[str]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    text = '{"temperature": 0.0, "repetition_penalty": 1.5, "max_new_tokens": 7}'
    (folder / "generation_config.json").write_text(text)
    write_manifest(folder)
    model = KoGPT.from_pretrained(folder)
    for given, sampling in [
        ([], Sampling(temperature=0, repetition_penalty=1.5, max_tokens=7)),
        (["--max-length", "20"], Sampling(temperature=0, repetition_penalty=1.5, max_length=20)),
        (["--repetition-penalty", "1"], Sampling(temperature=0, max_tokens=7)),
    ]:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert main(["generate", "한국어", *given, *words, "--model", str(folder)]) == 0
        text = records(out.getvalue())[0]["text"] if words else out.getvalue().removesuffix("\n")
        assert text == model.generate("한국어", sampling).text


def test_without_json_the_others_are_printed_too(run: Run, model: KoGPT, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("나" * 500 + "\n다\n", encoding="utf-8")
    expected = model.generate("다", Sampling(temperature=0, max_tokens=6)).text
    assert run("--file", str(tmp_path / "prompts.txt"), *GREEDY, code=2) == f"{expected}\n"


def test_a_single_prompt_that_is_refused_is_a_mistake(run: Run) -> None:
    assert run("나" * 500, "--json", code=2) == ""


def test_a_file_without_prompts_is_a_mistake(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"\n \n")
    run("--file", str(tmp_path / "empty"), code=2)


def test_prompts_are_read_before_the_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"\xff\xff")
    assert main(["generate", "--file", str(tmp_path / "bad"), "--model", "no-such-folder"]) == 2
    assert "bad is neither UTF-8" in capsys.readouterr().err


def test_a_terminal_without_prompt_is_told_what_to_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give_stdin(monkeypatch, b"")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert main(["generate"]) == 2
    assert "kogpt generate PROMPT" in capsys.readouterr().err


def test_numbers_that_are_not_finite_fail_in_the_end(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kogpt.placement.Placement.runner_name", lambda self: "numpy")
    monkeypatch.setattr(
        "kogpt.numpy_runner.NumpyRunner.forward",
        lambda self, chunks: [np.full((chunk.n_outputs, 512), np.nan, np.float32) for chunk in chunks],
    )
    (record,) = records(run("한국어", "--json", code=1))
    assert record["finish_reason"] == "failed"
    run("한국어", code=1)


def test_results_wait_for_those_before_them() -> None:
    def result(number: int, sample: int) -> _Answer:
        return _Answer({"prompt": str(number), "sample": sample}, None)

    refused = PromptError("en", "ko")
    finished: Iterator[tuple[int, _Answer | KoGPTError]] = iter(
        [
            (3, refused),
            (1, result(1, 0)),
            (0, result(0, 1)),
            (1, result(1, 1)),
            (2, refused),
            (0, result(0, 0)),
        ]
    )
    ordered = [
        (number, None if isinstance(answer, KoGPTError) else answer.record["sample"])
        for number, answer in _in_order(finished, 2)
    ]
    assert ordered == [(0, 0), (0, 1), (1, 0), (1, 1), (2, None), (3, None)]


def test_kogpt_mini_does_not_loop_where_nothing_is_chosen() -> None:
    """At temperature 0, the likeliest text: without the penalty of its generation_config.json it repeats."""
    mini = KoGPT.from_pretrained()
    prompts = ["조선 시대의 왕은", "이 영화는 정말", "바다는"]

    def share_of_new_fours(result: Result) -> float:
        fours = [result.tokens[i : i + 4] for i in range(len(result.tokens) - 3)]
        return len(set(fours)) / len(fours)

    own = mini.generate(prompts, temperature=0, max_tokens=96)
    bare = mini.generate(prompts, temperature=0, max_tokens=96, repetition_penalty=1.0)
    assert min(map(share_of_new_fours, own)) > 0.8
    assert max(map(share_of_new_fours, bare)) < 0.5
