"""Mistakes and odd surroundings: each ends in one line, before anything slow begins."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kogpt.cli import main
from kogpt.errors import InputError, KoGPTError
from kogpt.texts import decode_argument

ROOT = Path(__file__).parents[2]
CP949_NAME = os.fsdecode(b"\xb8\xf0\xb5\xa8")
ESCAPE = "\x1b[2J"


def kogpt(
    *words: str, streams: str = "", code: str | None = None, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run the program in a shell, with redirections."""
    program = [sys.executable, *(["-m", "kogpt"] if code is None else ["-c", code])]
    return subprocess.run(
        ["bash", "-c", f'exec "$@" {streams}', "-", *program, *words],
        cwd=ROOT,
        env=os.environ | {"LC_ALL": "C.UTF-8"} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The line with which a command line is refused as a mistake."""
    try:
        code: Any = main(words)
    except SystemExit as error:
        code = error.code
    err = capsys.readouterr().err
    assert code == 2, err
    assert "Traceback" not in err
    return err


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model is loaded first")

    monkeypatch.setattr("kogpt.generation.KoGPT.from_pretrained", load)


def test_an_encoding_that_is_not_utf8_is_left_before_words_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[str, list[bytes], dict[bytes, bytes]]] = []
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "iso8859-1")
    monkeypatch.delenv("PYTHONUTF8", raising=False)
    monkeypatch.setattr("os.execve", lambda *words: begun.append(words))
    monkeypatch.setattr("sys.argv", ["kogpt", "config"])  # of a process that is replaced
    main(["config"])
    assert not begun, "words that are given are no command line"
    main()
    [(path, words, environment)] = begun
    assert path == sys.executable and words[0] == os.fsencode(sys.executable)
    assert words[1:] == Path("/proc/self/cmdline").read_bytes().split(b"\0")[1:-1]
    assert environment[b"PYTHONUTF8"] == b"1" and environment[b"LC_ALL"] == b"C.UTF-8"
    monkeypatch.setenv("PYTHONUTF8", "1")
    main()
    assert len(begun) == 1, "it begins again once"


@pytest.mark.parametrize("locale", ["en_US.ISO-8859-1", "ko_KR.EUC-KR"])
def test_words_are_utf8_in_a_locale_of_another_encoding(locale: str, tmp_path: Path) -> None:
    name, _, encoding = locale.partition(".")
    if shutil.which("localedef") is not None:
        words = ["localedef", "-c", "-i", name, "-f", encoding, str(tmp_path / locale)]
        subprocess.run(words, capture_output=True, check=False)
    if not (tmp_path / locale).exists():
        pytest.skip(f"{locale} cannot be made here")
    done = kogpt("config", "--config", "가나다값.toml", LOCPATH=str(tmp_path), LC_ALL=locale)
    assert done.returncode == 2
    assert "가나다값.toml" in done.stderr.decode()
    assert ("파일이 없습니다" in done.stderr.decode()) == name.startswith("ko")


def test_names_that_are_not_utf8_are_printed_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = f"import sys, kogpt.cli as c; c._speak_utf8(); import json; print({CP949_NAME!r});" + (
        f"print(json.dumps({CP949_NAME!r}, ensure_ascii=False))"
    )
    plain, as_json = kogpt(code=code).stdout.decode().splitlines()
    assert json.loads(as_json) == CP949_NAME and plain.startswith("\\udcb8")
    for name in ("r.eml", "r.json"):
        out = tmp_path / name
        words = ["report", "--prompt", "가", "--text", "나", "--model", CP949_NAME, "--out", str(out)]
        assert main(words) == 0
        assert out.stat().st_size


def test_help_and_version_flush_what_they_print() -> None:
    for words, unbuffered in ((["--version"], ""), (["help", "config"], ""), (["--version"], "1")):
        full = kogpt(*words, streams="> /dev/full", PYTHONUNBUFFERED=unbuffered)
        assert full.returncode == 1
        assert full.stderr == b"kogpt: system error: No space left on device\n"
    closed = kogpt("--version", streams="> >(exec 0<&-)", PYTHONUNBUFFERED="")
    assert closed.stderr == b""


def test_without_stderr_messages_do_not_go_to_stdout() -> None:
    done = kogpt("info", "no-such-folder", streams="2>&-")
    assert (done.returncode, done.stdout) == (2, b"")


def test_a_document_does_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "f.txt"
    path.write_text(f"하늘은 {ESCAPE}파랗다. 바다도 파랗다.\n", encoding="utf-8")
    assert main(["ask", "하늘은 어떤가?", "--file", str(path), "--no-answer"]) == 0
    assert main(["summarize", str(path), "--sentences", "1"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "파랗다" in out
    assert main(["summarize", str(path), "--json"]) == 0
    assert ESCAPE in json.loads(capsys.readouterr().out)["summary"][0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("eval nsmc --sample nan", "'nan' is not a number from 0 on"),
        ("eval nsmc --sample -1", "'-1' is not a number from 0 on"),
        ("eval ppl --text {file} --sample 1", "leave --sample out"),
        ("eval ppl --text {file} --shots 1 --limit 3", "leave --shots, --limit out"),
        ("eval nsmc --out {file}", "is a file, where a folder"),
        ("eval nsmc --out {file}/under", "is a file, where a folder"),
        ("search index {file} --out {file}", "is a file, where a folder"),
        ("generate 글 --workers 1 --parts {file}", "is a file, where a folder"),
        ("pretrain tokenizer {file} --out {file}", "is a file, where a folder"),
        ("pretrain toy {file} --out {file}", "is a file, where a folder"),
        ("pretrain run {file} --out {file}", "is a file, where a folder"),
        ("pretrain tokenizer {file} --out {new} --max-bad-share nan", "share of bad records nan"),
        ("pretrain tokenizer {file} --out {new} --max-bad-share -1", "share of bad records -1"),
        ("report --prompt 가 --text 나 --out {new}/r.eml", "there is no folder"),
        ("demo --port 70000", "the last port is 65535"),
        ("demo --host nowhere.invalid", "cannot listen on nowhere.invalid"),
        ("search index {file} --out {new} --adapter nonsense", "leave --adapter out"),
        ("search index {file} --out {new} --model nonsense", "leave --model out"),
        ("classify --as sentiment --no-calibration 글", "leave it out"),
        ("classify --adapter sentiment --no-calibration 글", "leave it out"),
        ("classify --as sentiment --file {table} --label-column lable", "no row has this column"),
        ("--config {long} info", "File name too long"),
        ("mcp --model nonsense", "no model folder"),
        ("serve --rows 00000001" + "0" * 5000, "is not a whole number"),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_mistakes_are_told_before_a_model_is_loaded(
    words: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if words.startswith("demo"):
        pytest.importorskip("gradio")
    if words.startswith("mcp"):
        pytest.importorskip("mcp")
    file, table = tmp_path / "f.txt", tmp_path / "t.tsv"
    file.write_text("하늘은 파랗다.\n", encoding="utf-8")
    table.write_text("text\tlabel\n좋다\t긍정\n", encoding="utf-8")
    names = {"file": file, "table": table, "new": tmp_path / "new", "long": "x" * 300}
    assert says in refused(capsys, *words.format(**names).split())


def test_options_of_a_model_that_a_query_does_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_model: None
) -> None:
    file, index = tmp_path / "f.txt", str(tmp_path / "index")
    file.write_text("하늘은 파랗다.\n", encoding="utf-8")
    assert main(["search", "index", str(file), "--out", index]) == 0
    assert "leave --device out" in refused(capsys, "search", "query", index, "하늘", "--device", "cpu")


def test_another_encoding_is_a_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, words = tmp_path / "f.txt", ["--out", str(tmp_path / "index")]
    file.write_bytes("하늘은 파랗다. 바다는 넓다.\n".encode("cp949"))
    assert main(["search", "index", str(file), *words]) == 0
    assert main(["search", "index", str(file), *words]) == 0
    assert "0 changed" in capsys.readouterr().err
    assert main(["search", "index", str(file), *words, "--encoding", "cp949"]) == 0
    assert "1 changed" in capsys.readouterr().err


def test_a_label_of_many_digits_is_named_in_short(tmp_path: Path) -> None:
    from kogpt.cli.classify import _right_answers
    from kogpt.cli.texts import Item

    with pytest.raises(InputError, match="is none of 가, 나") as caught:
        _right_answers([Item("글", 1, "1" * 5000)], ["가", "나"])
    assert len(str(caught.value)) < 200
    assert _right_answers([Item("글", 1, "1")], ["가", "나"]) == ["나"]


def test_a_user_whom_nobody_knows_has_no_file_of_defaults(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kogpt.cli.questions import _history

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", nobody)
    assert main(["config"]) == 0
    assert type(_history()).__name__ == "InMemoryHistory"


def test_an_empty_list_for_an_option_that_needs_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[pretrain.plan]\ngpus = []\n", encoding="utf-8")
    assert "at least one value" in refused(capsys, "pretrain", "plan", "--config", str(path))


def test_a_cache_that_is_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    path = tmp_path / "cache"
    path.touch()
    scan = huggingface_hub.scan_cache_dir
    monkeypatch.setattr("huggingface_hub.scan_cache_dir", lambda: scan(path))
    assert "set HF_HUB_CACHE to a folder" in refused(capsys, "models")


def test_a_history_that_cannot_be_written_costs_no_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kogpt.cli.questions import _history

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    history = _history()
    (tmp_path / "kogpt" / "history").unlink()
    (tmp_path / "kogpt" / "history").mkdir()
    history.append_string("하늘")
    assert history.get_strings() == ["하늘"]


def test_keys_in_a_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    from kogpt.cli.serve import read_keys

    path = tmp_path / "keys"
    path.write_text("secret\n", encoding="utf-8-sig")
    assert read_keys(str(path)) == ("secret",)


@pytest.mark.parametrize(("name", "value"), [("seed", "1.5"), ("top_k", "1e3")])
def test_set_says_that_a_whole_number_is_wanted(name: str, value: str) -> None:
    from kogpt.cli.conversation import Conversation

    with pytest.raises(InputError, match="must be a whole number"):
        Conversation("m", {}).obey(f"/set {name} {value}")


def test_a_refused_temperature_is_not_offered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from kogpt.cli import prompt
    from kogpt.cli.conversation import Conversation
    from kogpt.errors import SamplingError
    from kogpt.sampling import Sampling

    class Model:
        defaults = argparse.Namespace(settings={})
        config = argparse.Namespace(n_ctx=64)
        tokenizer = argparse.Namespace(encode_prompt=lambda text: [1])

        def sampling(self, **chosen: Any) -> Sampling:
            return Sampling(**chosen)

    class Person:
        patient = True
        answers = iter(["1e300", ""])

        def ask(self, question: str, keep: bool = False) -> str:
            return next(self.answers)

    model: Any = Model()
    monkeypatch.setattr(prompt, "_wait", lambda *_: model)
    conversation = Conversation("m", {})
    before = conversation.temperature()
    with pytest.raises(SamplingError):
        prompt._ask_the_rest(Person(), model, conversation, "하늘")
    assert conversation.temperature() == before


def test_no_particle_follows_a_value_in_korean(monkeypatch: pytest.MonkeyPatch) -> None:
    from kogpt.cli.options import device_from
    from kogpt.texts import decode

    with pytest.raises(KoGPTError) as device:
        device_from(argparse.Namespace(device="cuda:0", model_parallel=True))
    assert "cuda:0와" not in device.value.ko and device.value.ko.endswith("cuda:0")
    with pytest.raises(InputError) as bytes_:
        decode(b"caf\xe9 \xff", "f.txt")
    assert "로 읽힙니다" not in bytes_.value.ko


def test_the_fixture_name_is_no_utf8() -> None:
    assert decode_argument(CP949_NAME, "x") == "모델"
