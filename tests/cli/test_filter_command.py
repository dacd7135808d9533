"""`kogpt filter`: covered text, what was found, and judgements with and without the adapter."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from kogpt.cli import main
from kogpt.cli.filter import COLUMNS, FORMATS, MODES, OF_A_MODEL
from kogpt.cli.options import FILTERS, add_model_options
from kogpt.tasks.profanity import judge

CALL = "전화는 010-0123-4567입니다"
HARSH = "야 이 미친놈아"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["filter", *words])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_formats_and_modes(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(MODES) < set(FILTERS) and FORMATS == ("text", "json", "tsv")
    assert run(capsys, CALL)[1] == "전화는 ***-****-****입니다\n"
    assert run(capsys, CALL, "--mode", "block")[1] == "전화는 \n"
    record = json.loads(run(capsys, CALL, "--format", "json")[1])
    assert list(record) == list(COLUMNS)
    assert record["found"] == [{"start": 4, "end": 17, "kind": "mobile"}]
    code, out, _ = run(capsys, CALL, HARSH, "--format", "tsv")
    names, call, harsh = (line.split("\t") for line in out.splitlines())
    assert code == 0 and tuple(names) == COLUMNS
    assert call[1] == "mobile" and "profanity" in harsh[1]
    assert float(harsh[2]) == pytest.approx(judge(HARSH).profanity, abs=1e-6)


def test_an_adapter_judges_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    plain, joint = (
        json.loads(run(capsys, HARSH, "--format", "json", *more)[1])
        for more in ((), ("--adapter", "profanity"))
    )
    assert plain["text"] == joint["text"] and plain["profanity"] != joint["profanity"]
    _, out, _ = run_classify(capsys, HARSH, "--as", "profanity", "--format", "json")
    assert json.loads(out)["probabilities"]["욕설"] == pytest.approx(joint["profanity"], abs=1e-5)


def run_classify(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["classify", *words])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_every_option_of_a_model_is_known() -> None:
    parser = argparse.ArgumentParser()
    add_model_options(parser)
    assert set(OF_A_MODEL) == {action.dest for action in parser._actions} - {"help"}


def test_a_configured_model_is_no_mistake(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = {"MODEL": "other", "REVISION": "x", "DTYPE": "int8", "CACHE_DTYPE": "int8"}
    configured |= {"DEVICE": "cuda:1", "OFFLOAD": "1", "MODEL_PARALLEL": "1"}
    for name, value in configured.items():
        monkeypatch.setenv(f"KOGPT_{name}", value)
    assert run(capsys, CALL) == (0, "전화는 ***-****-****입니다\n", "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["글", "--model", "other"], "--adapter profanity"),
        (["글", "--revision", "x"], "--adapter profanity"),
        (["글", "--dtype=int8", "--device", "cpu"], "--device, --dtype"),
        (["글", "--cache_dtype", "int8"], "--cache_dtype"),
        (["글", "--offload", "1"], "--offload"),
        (["글", "--model_parallel"], "--model_parallel"),
        (["글", "--adapter", "sentiment"], "not tuned on profanity"),
    ],
)
def test_mistakes(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "") and says in err and err.count("\n") == 1


def test_an_empty_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    code, _, err = run(capsys, "--file", str(tmp_path / "empty.txt"))
    assert code == 2 and "no text" in err
