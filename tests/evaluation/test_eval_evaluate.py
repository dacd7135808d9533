"""Whole measurements: the same bytes after any kill, what a report holds, and the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard
from conftest import random_tensors
from small import CONFIG, make_model, small_copa, small_nsmc, small_sts

from kogpt import KoGPT, checkpoint, cli, native_runner
from kogpt.cli import eval as command
from kogpt.errors import KoGPTError, columns
from kogpt.evaluation import baselines, perplexity, report, sampling_mode, scoring, store, tasks
from kogpt.evaluation.evaluate import (
    EvaluatedModel,
    Measurement,
    Settings,
    evaluate,
    identify,
    read_data,
)
from kogpt.evaluation.report import Report
from kogpt.request import Event, Request
from kogpt.session import Session

HERE = Path(__file__).parent


class Killed(BaseException):
    """What a kill looks like from inside: no handler sees it."""


def measure(subject: EvaluatedModel, folder: Path, out: Path) -> Path:
    """A report over two tasks, as the command line makes it."""
    made = Report(subject, "kogpt eval (test)")
    for task in (small_nsmc(folder, n_test=23), small_copa(folder)):
        for shots in (0, 3):
            settings = Settings(shots=shots, seeds=(1, 2), folder=folder, out=out)
            made.results.append(evaluate(subject, task, task.prompts[0], settings))
        own = [result for result in made.results if result.task.name == task.name]
        made.baselines[task.name] = baselines.of_task(own[0].task, own, out)
    report.write(made, out)
    return out


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "MAX_ROWS", 5)


def test_killed_after_any_batch_and_resumed_it_is_byte_equal(
    tmp_path: Path, tiny_tokenizer: Path, small_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = make_model(tiny_tokenizer)
    whole = contents(measure(subject, tmp_path, tmp_path / "whole"))
    assert "report.json" in whole and "nsmc.png" in whole and len(whole) > 12
    real, calls = Session.ask, {"left": 0, "all": 0}

    def ask(self: Session, requests: Sequence[Request]) -> list[Event]:
        if requests[0].keep:  # the prefix is no batch
            return real(self, requests)
        if not calls["left"]:
            raise Killed
        calls["left"] -= 1
        calls["all"] += 1
        return real(self, requests)

    monkeypatch.setattr(Session, "ask", ask)
    out = tmp_path / "killed"
    for step in (1, 2, 3, 1, 1, 5, 2, 4, 3, 2, 1000):
        calls["left"] = step
        try:
            measure(subject, tmp_path, out)
        except Killed:
            continue
        break
    assert contents(out) == whole
    n_batches = sum(len(content.splitlines()) - 1 for name, content in whole.items() if "batches" in name)
    assert calls["all"] == n_batches, "no batch was done twice"


SCRIPT = """
import sys
from pathlib import Path
from kogpt.evaluation import scoring
scoring.MAX_ROWS = 5
sys.path[:0] = [{here!r}, {tests!r}]
from test_eval_evaluate import measure
from small import make_model
measure(make_model(Path({tokenizer!r})), Path({folder!r}), Path({out!r}))
"""


def test_kill_minus_9_at_random_moments(tmp_path: Path, tiny_tokenizer: Path, small_batches: None) -> None:
    whole = contents(measure(make_model(tiny_tokenizer), tmp_path, tmp_path / "whole"))
    out = tmp_path / "killed"
    script = SCRIPT.format(
        here=str(HERE),
        tests=str(HERE.parent),
        tokenizer=str(tiny_tokenizer),
        folder=str(tmp_path),
        out=str(out),
    )
    command = [sys.executable, "-c", script]
    for n_files in (1, 3):
        process = subprocess.Popen(command, cwd=HERE.parents[1])
        while process.poll() is None and len(list(out.glob("batches/*"))) < n_files:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=HERE.parents[1], check=True)
    assert contents(out) == whole


def test_what_a_report_holds(tmp_path: Path, tiny_tokenizer: Path) -> None:
    out = measure(make_model(tiny_tokenizer), tmp_path, tmp_path / "out")
    document = json.loads((out / "report.json").read_text())
    assert document["model"]["model_sha256"] and document["versions"]["numpy"] == np.__version__
    shots = next(r for r in document["results"] if r["task"] == "nsmc" and r["shots_wanted"] == 3)
    assert [seed["seed"] for seed in shots["seeds"]] == [1, 2]
    assert all(len(seed["shots"]) == 3 for seed in shots["seeds"])
    assert shots["seeds"][0]["text_before_each_question"].startswith("영화 리뷰 댓글을")
    assert shots["prompt"]["question"] == "{document}=" and shots["test"]["digest"].startswith("sha256:")
    values = [seed["values"]["accuracy"] for seed in shots["seeds"]]
    assert shots["mean"]["accuracy"] == pytest.approx(np.mean(values))
    assert shots["std"]["accuracy"] == pytest.approx(np.std(values, ddof=1))
    low, high = shots["interval_95"]["accuracy"]
    assert low <= shots["mean"]["accuracy"] <= high
    assert set(shots["seeds"][0]["by_scoring"]) == {"raw", "normalised", "calibrated"}
    beside = document["baselines"]["nsmc"]
    assert {"always negative", "always positive"} <= set(beside["constants"])
    assert beside["tfidf_pool"]["accuracy"] >= 0 and len(beside["tfidf_shots"]["3"]) <= 2
    published = [row for row in document["published"] if row["task"] == "nsmc"]
    assert {"model": "KoGPT 6B", "value": 87.8}.items() <= published[5].items()
    text = (out / "report.md").read_text()
    parts = ["mean ± std [95 %]", "published: KoGPT 6B", "always positive", "contamination", "test file"]
    parts += ["seeds 1, 2", "one run", "{document}=\n```", "`부정` `긍정`", f"numpy {np.__version__}"]
    for part in parts:
        assert part in text
    items = (out / "items" / "nsmc.equals.3.1.jsonl").read_text().splitlines()
    keys = {"id", "answer", "prediction", "scores", "grade", "score"}
    assert len(items) == 23 and set(json.loads(items[0])) == keys
    right = np.mean([json.loads(line)["answer"] == json.loads(line)["prediction"] for line in items])
    assert right == pytest.approx(values[0]), "the items give the score"


def test_a_graded_task_is_scored_by_the_expected_grade(tmp_path: Path, tiny_tokenizer: Path) -> None:
    subject, task = make_model(tiny_tokenizer), small_sts(tmp_path)
    result = evaluate(subject, task, task.prompt("grade"), Settings(folder=tmp_path))
    seed = result.seeds[0]
    for row, score, said in zip(seed.scores, seed.outcome.scores, seed.outcome.predictions, strict=True):
        chances = np.exp(row) / np.exp(row).sum()
        assert score == pytest.approx(chances @ np.arange(6)) and said == (score >= 3.0)
    yes = evaluate(subject, task, task.prompt("question"), Settings(folder=tmp_path)).seeds[0]
    assert all(0 <= score <= 1 for score in yes.outcome.scores)
    assert list(yes.outcome.predictions) == [int(score > 0.5) for score in yes.outcome.scores]


def test_zero_shots_are_one_run_and_a_subset_is_named(tmp_path: Path, tiny_tokenizer: Path) -> None:
    task = small_nsmc(tmp_path)
    settings = Settings(folder=tmp_path, limit=7)
    result = evaluate(make_model(tiny_tokenizer), task, task.prompts[0], settings)
    assert len(result.seeds) == 1 and result.std("accuracy") is None
    assert len(result.data.scored) == 7 and result.data.n_test == 23


def test_calibration_and_sampling_need_labels(tmp_path: Path, tiny_tokenizer: Path) -> None:
    task = small_copa(tmp_path)
    for settings in (Settings(folder=tmp_path, scoring="calibrated"), Settings(folder=tmp_path, sample=0.8)):
        with pytest.raises(KoGPTError, match="other choices for every item"):
            evaluate(make_model(tiny_tokenizer), task, task.prompts[0], settings)


def test_sampling_reads_the_label_that_was_written(tmp_path: Path, tiny_tokenizer: Path) -> None:
    """At temperature 0 the first token decides; an answer that is no label is wrong."""
    task = small_nsmc(tmp_path)
    subject = make_model(tiny_tokenizer)
    prompt = replace(task.prompts[0], choices=("가", "나"))
    result = evaluate(subject, task, prompt, Settings(folder=tmp_path, sample=0.0, seeds=(1,)))
    for row, said in zip(result.seeds[0].scores, result.seeds[0].outcome.predictions, strict=True):
        assert said == (row.index(1.0) if 1.0 in row else -1)
    written = subject.tokenizer.decode([int(v) for v in first_tokens(subject, result.seeds[0].encoded)])
    assert (result.seeds[0].outcome.predictions[0] == -1) == (written[:1] not in ("가", "나"))


def test_an_unreadable_answer_has_no_label_on_a_scale_either(tmp_path: Path, tiny_tokenizer: Path) -> None:
    """Its expected grade is 0, which would be right for every item below the threshold."""
    task = small_sts(tmp_path)
    settings = Settings(folder=tmp_path, sample=0.0, seeds=(1,))
    made = Measurement(
        make_model(tiny_tokenizer), task, task.prompt("grade"), settings, read_data(task, settings)
    )
    rows = [[0.0] * 6, [0.0] * 5 + [1.0], [1.0] + [0.0] * 5]
    answers = replace(made, data=replace(made.data, scored=made.data.scored[:3]))
    outcome = answers._outcome(*sampling_mode.decide(rows))
    assert list(outcome.predictions) == [sampling_mode.UNREADABLE, 1, 0]
    assert list(outcome.scores) == [0.0, 5.0, 0.0] and outcome.predictions.dtype == np.int64


def test_only_the_beginning_of_what_was_written_counts() -> None:
    assert sampling_mode._match(" 긍정입니다", ["부정", "긍정"]) == [0.0, 1.0]
    assert sampling_mode._match("아주 긍정", ["부정", "긍정"]) == [0.0, 0.0]
    assert sampling_mode._match("예외", ["예", "예외"]) == [0.0, 1.0], "the longest that fits"


def first_tokens(subject: EvaluatedModel, run) -> Iterator[int]:  # type: ignore[no-untyped-def]
    """The greedy continuation of the first item."""
    from kogpt.runner import Chunk

    row = subject.runner.open()
    ids = np.concatenate([run.prefix, run.items[0].context])
    for _ in range(max(map(len, run.items[0].choices))):
        token = int(subject.runner.forward([Chunk(row, ids)])[0][-1].argmax())
        yield token
        ids = np.array([token])
    subject.runner.close(row)


def test_bits_per_byte_is_the_same_in_one_window_and_in_many(tmp_path: Path, tiny_tokenizer: Path) -> None:
    text = "오늘 서울의 날씨는 맑고 낮 기온은 21도까지 오르겠습니다. " * 3
    path = tmp_path / "text.txt"
    path.write_text(text)
    subject = make_model(tiny_tokenizer, "float64")
    found = perplexity.measure(subject, path, tmp_path / "out")
    ids = subject.tokenizer.encode(text)
    assert found.n_tokens == len(ids) < CONFIG.n_ctx and found.n_bytes == len(text.encode())
    scores = subject_score(subject, ids)
    assert found.bits_per_byte == pytest.approx(-sum(scores) / np.log(2) / len(text.encode()))
    assert perplexity.measure(subject, path, tmp_path / "out") == found, "from the finished batches"
    documents = tmp_path / "texts.jsonl"
    documents.write_text("".join(json.dumps({"text": text}) + "\n" for _ in range(2)))
    twice = perplexity.measure(subject, documents)
    assert twice.nats == pytest.approx(2 * found.nats) and twice.n_documents == 2


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("empty.txt", b"", "holds no text"),
        ("blank.txt", b" \n\n", "holds no text"),
        ("binary.txt", b"\xff\xfd", "neither UTF-8"),
        ("number.jsonl", b'{"text": "a"}\n{"text": 3}\n', "line 2"),
        ("list.jsonl", b"[1]\n", "line 1"),
        ("torn.jsonl", b'{"text": "a', "line 1"),
        ("deep.jsonl", b"[" * 10**6, "line 1"),
        ("cut.jsonl.zst", zstandard.compress(b'{"text": "a"}\n' * 99)[:-5], "cut short"),
        ("noise.txt.zst", b"noise", "noise.txt.zst"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(KoGPTError, match=why):
        perplexity.read_texts(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp949"])
@pytest.mark.parametrize("name", ["a.txt", "a.JSONL"])
def test_a_text_is_the_same_in_every_encoding(tmp_path: Path, encoding: str, name: str) -> None:
    text = "첫째 줄은 이렇습니다.\r\n둘째 줄입니다.\r\n"
    content = json.dumps({"text": text}, ensure_ascii=False) if name == "a.JSONL" else text
    (tmp_path / name).write_bytes(content.encode(encoding))
    expected = text if name == "a.JSONL" else text.replace("\r\n", "\n")
    assert perplexity.read_texts(tmp_path / name) == [expected]


def test_every_frame_of_a_compressed_text_is_read(tmp_path: Path) -> None:
    frames = [zstandard.compress(f'{{"text": "{text}\u2028"}}\n'.encode()) for text in "가나"]
    (tmp_path / "two.jsonl.zst").write_bytes(b"".join(frames))
    assert perplexity.read_texts(tmp_path / "two.jsonl.zst") == ["가\u2028", "나\u2028"]


def subject_score(subject: EvaluatedModel, ids: list[int]) -> list[float]:
    from kogpt.runner import Chunk
    from kogpt.sampling import log_softmax

    row = subject.runner.open()
    whole = np.array([subject.tokenizer.eos_token_id, *ids])
    logits = subject.runner.forward([Chunk(row, whole[:-1], len(ids))])[0]
    subject.runner.close(row)
    return [float(value) for value in log_softmax(logits)[np.arange(len(ids)), ids]]


def test_identity_names_every_file(tmp_path: Path, tiny_folder: Path, tiny_tokenizer: Path) -> None:
    runner = make_model(tiny_tokenizer).runner
    before = identify(tiny_folder, runner)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in tiny_folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert identify(copy, runner) == before
    weights = next(copy.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert identify(copy, runner)["model_sha256"] != before["model_sha256"]


@pytest.mark.skipif(native_runner.library() is None, reason="not built")
def test_identity_names_a_cache_of_another_format(model_folder: Path) -> None:
    """The usual format is not named: batches that were finished before it was a choice stay valid."""

    def identity(dtype: str, cache_dtype: str) -> dict[str, str]:
        with KoGPT.from_pretrained(model_folder, None, "cpu", dtype, cache_dtype) as model:
            return identify(model_folder, model.engine.runner)

    usual = identity("float32", "auto")
    assert "cache_dtype" not in usual and identity("float32", "float32") == usual
    assert identity("float32", "int8") == {**usual, "cache_dtype": "int8"}
    assert identity("bfloat16", "float32")["cache_dtype"] == "float32"
    assert identity("bfloat16", "bfloat16") == identity("bfloat16", "auto")


@pytest.mark.skipif(native_runner.library() is None, reason="not built")
def test_another_cache_is_another_measurement(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = small_nsmc(tmp_path)
    monkeypatch.setattr(tasks, "get", lambda name: small)
    monkeypatch.setenv("KOGPT_DATA", str(tmp_path))
    out = tmp_path / "out"
    words = ["eval", "nsmc", "--shots", "0", "--limit", "3", "--no-tfidf", "--device", "cpu"]
    words += ["--dtype", "float32", "--out", str(out), "--model", str(model_folder)]
    assert cli.main(words) == 0
    assert cli.main([*words, "--cache-dtype", "int8"]) == 2
    assert "float32, --cache-dtype int8" in capsys.readouterr().err
    (out / "report.json").unlink()
    assert cli.main([*words, "--cache-dtype", "int8"]) == 0
    assert len(list((out / "batches").glob("*.jsonl"))) == 2, "no batch of the other cache is reused"
    assert "--cache-dtype int8" in json.loads((out / "report.json").read_text())["command"]


@pytest.fixture
def model_folder(tmp_path: Path, tiny_tokenizer: Path) -> Path:
    folder = tmp_path / "model"
    checkpoint.save(folder, CONFIG, random_tensors(CONFIG), dtype="float32", tokenizer=tiny_tokenizer)
    return folder


def test_the_command_line(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = small_nsmc(tmp_path)
    monkeypatch.setattr(tasks, "get", lambda name: small)
    monkeypatch.setenv("KOGPT_DATA", str(tmp_path))
    words = ["eval", "nsmc", "--model", str(model_folder), "--shots", "0,2", "--seeds", "2", "--json"]
    words += ["--prompt", "all", "--out", str(tmp_path / "out"), "--device", "cpu", "--dtype", "float32"]
    assert cli.main(words) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(
        set(row) == {"task", "prompt", "shots", "seed", "metric", "value", "n", "baselines"} for row in rows
    )
    assert {row["prompt"] for row in rows} == {"equals", "question", "brackets", "emotion"}
    assert len(rows) == 4 * (1 + 2) * 2, "prompts, runs, metrics"
    assert (tmp_path / "out" / "report.md").is_file() and (tmp_path / "out" / "nsmc.png").is_file()


def test_no_run_overwrites_another_model_s_report(
    tmp_path: Path, model_folder: Path, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = small_nsmc(tmp_path)
    monkeypatch.setattr(tasks, "get", lambda name: small)
    monkeypatch.setenv("KOGPT_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other" / "model"
    checkpoint.save(other, CONFIG, random_tensors(CONFIG, seed=9), dtype="float32", tokenizer=tiny_tokenizer)
    words = ["eval", "nsmc", "--shots", "0", "--limit", "3", "--no-tfidf", "--device", "cpu", "--model"]
    assert cli.main([*words, str(model_folder), "--dtype", "float32"]) == 0
    path = tmp_path / "eval-results" / "model" / "report.json"
    kept = path.read_bytes()
    assert cli.main([*words, str(model_folder), "--dtype", "float32"]) == 0, "its own report may be renewed"
    for model, dtype in ((other, "float32"), (model_folder, "int8")):  # the folders have the same name
        assert cli.main([*words, str(model), "--dtype", dtype]) == 2
        assert path.read_bytes() == kept
    assert cli.main([*words, str(other), "--dtype", "float32", "--out", "elsewhere"]) == 0
    path.write_text("{")
    with pytest.raises(KoGPTError, match="not valid JSON"):
        report.require_own_report(make_model(tiny_tokenizer), path.parent)


def test_a_model_whose_name_is_no_utf8_is_reported(tmp_path: Path, tiny_tokenizer: Path) -> None:
    measured = replace(make_model(tiny_tokenizer), name="\udcb8\udcf0")
    report.write(Report(measured, "kogpt eval --model '\udcb8\udcf0'"), tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert r"\udcb8\udcf0" in text
    json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))


def test_a_report_of_another_model_is_named(tmp_path: Path, tiny_tokenizer: Path) -> None:
    measured = make_model(tiny_tokenizer)
    report.write(Report(measured, "kogpt eval"), tmp_path)
    report.require_own_report(measured, tmp_path)
    other = replace(measured, name="big", identity={**measured.identity, "model_sha256": "1"})
    with pytest.raises(KoGPTError, match=r"the report of small \(float32\), which big") as caught:
        report.require_own_report(other, tmp_path)
    assert "--out" in caught.value.ko


def test_the_closing_line_is_in_the_language_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [Path("out") / name for name in ("report.md", "report.json", "nsmc.csv")]
    monkeypatch.setenv("LC_ALL", "C")
    assert command.closing(paths, is_plotted=True) == "out/report.md, report.json and 1 more files"
    assert command.closing(paths, is_plotted=False).endswith("(plots: pip install 'kogpt[eval]')")
    monkeypatch.setenv("LC_ALL", "ko_KR.UTF-8")
    expected = "out/report.md, report.json 외 파일 1개 (그래프: pip install 'kogpt[eval]')"
    assert command.closing(paths, is_plotted=False) == expected


def test_list_shows_every_task(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["eval", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["task", *tasks.NAMES, "ppl"]
    assert lines[1].split()[1:4] == ["accuracy", "70", "equals"]
    assert cli.main(["eval", "list", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["task"] for row in rows] == list(tasks.NAMES) and rows[0]["published_shots"] == 70
    assert cli.main(["eval", "list", "nsmc"]) == 2 and "stands alone" in capsys.readouterr().err
    monkeypatch.setenv("LC_ALL", "ko_KR.UTF-8")
    assert cli.main(["eval", "list"]) == 0
    head, first, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["과제", "지표", "공개된", "예시", "수", "프롬프트"]
    assert columns(head[: head.index("공개된")]) == first.index("70")


def test_one_run_at_a_time_and_what_a_killed_one_left(tmp_path: Path) -> None:
    left = [tmp_path / f".{'0' * 16}.tmp", tmp_path / "items" / f".{'a' * 16}.tmp", tmp_path / ".mine.tmp"]
    (tmp_path / "items").mkdir()
    for path in left:
        path.touch()
    with store.only_run(tmp_path):
        assert [path.exists() for path in left] == [False, False, True]
        with pytest.raises(KoGPTError, match=r"in use \(kogpt eval, process"), store.only_run(tmp_path):
            pass
    with store.only_run(tmp_path):
        pass


def test_mistakes_on_the_command_line(capsys: pytest.CaptureFixture[str], model_folder: Path) -> None:
    assert cli.main(["eval", "nsmcc"]) == 2 and "try nsmc" in capsys.readouterr().err
    assert cli.main(["eval", "ppl"]) == 2 and "--text" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["eval", "nsmc", "--shots", "five"])
    assert "'five'" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="POSIX locales")
def test_without_scikit_learn_the_report_says_so(
    tmp_path: Path, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    task = small_nsmc(tmp_path)
    settings = Settings(folder=tmp_path)
    result = evaluate(make_model(tiny_tokenizer), task, task.prompts[0], settings)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    beside = baselines.of_task(task, [result], tmp_path)
    assert beside.pool is None and "scikit-learn is not installed" in beside.notes[0]


def test_baselines_are_kept_and_made_again_where_the_file_is_torn(
    tmp_path: Path, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = small_nsmc(tmp_path)
    result = evaluate(make_model(tiny_tokenizer), task, task.prompts[0], Settings(folder=tmp_path, shots=4))
    made = baselines.of_task(task, [result], tmp_path)
    (path,) = (tmp_path / "baselines").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:9])
    assert baselines.of_task(task, [result], tmp_path) == made and path.read_bytes() == whole
    monkeypatch.setattr(baselines, "regression", None)
    assert baselines.of_task(task, [result], tmp_path) == made, "from the file"
