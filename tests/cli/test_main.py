"""What the shell sees: exit codes, one line for each mistake, both streams, any locale."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import kogpt
from kogpt import cli
from kogpt.cli import korean, main
from kogpt.cli.examples import EXAMPLES
from kogpt.errors import PromptError

ROOT = Path(__file__).parents[2]


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command line; $KOGPT is the program, $MODEL the tiny model's folder."""
    settings = {"KOGPT": f"{sys.executable} -m kogpt", "MODEL": str(folder), "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env=os.environ | settings | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_in_the_table_exists(name: str) -> None:
    module, parser = cli.command(name)
    assert callable(module.run)
    assert parser.prog == f"kogpt {name}"
    assert import_module(cli.COMMANDS[name][0]) is module


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["generat", "x"], "kogpt: there is no command 'generat', try: kogpt generate (see kogpt --help)"),
        (["오늘 날씨"], "kogpt: there is no command '오늘 날씨', try: kogpt generate TEXT"),
        (["--model", "x", "generate"], "kogpt: write the command first: kogpt generate [options]"),
        (["--mode", "x"], "kogpt: unrecognized arguments: --mode x"),
        (["generate", "--top-k", "x"], "kogpt generate: argument --top-k/--top_k: invalid int value: 'x'"),
        (["generate", "오늘", "날씨"], 'kogpt generate: put the text in quotes: kogpt generate "오늘 날씨"'),
        (["generate", "a", "b", "--bad"], "kogpt generate: unrecognized arguments: b --bad"),
        (["info", "a", "b"], "kogpt info: unrecognized arguments: b"),
        (["hlep"], "kogpt: there is no command 'hlep', try: kogpt help"),
        (["info", "--dtype", "int8"], "kogpt info: unrecognized arguments: --dtype"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(line)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["generat"],
            "kogpt: 'generat' 명령은 없습니다. 다음을 써 보세요: kogpt generate (kogpt --help 참고)",
        ),
        (["--model", "x", "generate"], "kogpt: 명령을 먼저 쓰세요: kogpt generate [옵션]"),
        (["generate", "a", "b"], 'kogpt generate: 글을 따옴표로 묶으세요: kogpt generate "a b" (kogpt'),
        (["info", "a", "b"], "kogpt info: 알 수 없는 인자: b (kogpt info --help 참고)"),
        (["generate", "--top-k", "x"], "kogpt generate: 인자 --top-k/--top_k: int 형식이 아닌 값: 'x'"),
        (["generate", "--dtype", "int3"], "kogpt generate: 인자 --dtype: 없는 선택지 'int3' (가능: 'auto', "),
        (["generate", "--model"], "kogpt generate: 인자 --model: 값이 하나 필요합니다"),
        (["eval"], "kogpt eval: 빠진 인자가 있습니다: TASK"),
        (["info", "--json=1"], "kogpt info: 인자 --json: 값을 받지 않는 옵션에 준 값 '1'"),
    ],
)
def test_argparse_speaks_korean_where_the_locale_does(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "ko_KR.UTF-8")
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(line) and err.count("\n") == 1
    monkeypatch.setenv("LC_ALL", "C")
    with pytest.raises(SystemExit):  # and English again for the next one who asks in English
        main(["generate", "--help"])
    assert capsys.readouterr().out.startswith("usage: ")


def parsers() -> list[argparse.ArgumentParser]:
    """Every command's parser, and those of its subcommands."""
    found: list[argparse.ArgumentParser] = [cli.command(name)[1] for name in (None, *cli.COMMANDS)]
    for parser in found:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                found += action.choices.values()
    return found


def help_texts(parser: argparse.ArgumentParser) -> list[str]:
    """What --help of a parser shows, but for usage, examples and the names of options."""
    texts = [parser.description, (parser.epilog or "").partition("examples:")[0].strip()]
    for group in parser._action_groups:
        texts += [group.title, group.description]
    for action in parser._actions:
        texts.append(action.help)
        if isinstance(action, argparse._SubParsersAction):
            texts += [choice.help for choice in action._choices_actions]
    return [text for text in texts if text and text != argparse.SUPPRESS]


def test_every_help_text_has_a_korean_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    texts = {text for parser in parsers() for text in help_texts(parser)} - set(korean.TEXTS)
    overview = {text for text in texts if text.startswith("Without a command")}
    assert len(overview) == 1
    assert {text for text in texts - overview if korean.korean(text) is None} == set()


def test_no_help_text_is_english_where_the_locale_is_korean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "ko_KR.UTF-8")
    with korean.korean_argparse():
        texts = [text for parser in parsers() for text in help_texts(parser)]
    assert [text for text in texts if not re.search("[가-힣]", text) and "config.json" not in text] == []


def test_an_option_without_help_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    actions = [action for parser in parsers() for action in parser._actions]
    assert [a.dest for a in actions if not a.help and not isinstance(a, argparse._SubParsersAction)] == []


def test_every_translation_is_of_a_text_that_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    texts = {text for parser in parsers() for text in help_texts(parser)}
    texts |= {summary for _, summary in cli.COMMANDS.values()} | {"examples:"}
    assert set(korean.HELP) - texts == set()


def test_the_examples_are_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(EXAMPLES) == {parser.prog for parser in parsers()}
    for prog, lines in EXAMPLES.items():
        for line in lines:
            words = shlex.split(line.partition(" > ")[0])
            assert words[: len(prog.split())] == prog.split()
            name = words[1] if words[1:] and words[1] in cli.COMMANDS else None
            cli.command(name)[1].parse_args(words[2 if name else 1 :])


def test_the_frame_of_help_is_korean(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "ko_KR.UTF-8")
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    out = capsys.readouterr().out
    assert all(
        text in out for text in ("사용법: kogpt generate", "위치 인자:", "옵션:", "이 도움말을", "생성:")
    )
    assert "이어 쓸 글" in out and "예:\n  kogpt generate" in out


def test_every_text_that_argparse_shows_to_users_is_known_to_be_its_own() -> None:
    """A text that argparse no longer has, or has in other words, would quietly be English again."""
    source = inspect.getsource(argparse)
    assert [text for text in korean.TEXTS if repr(text) not in source and f'"{text}"' not in source] == []


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "가", "--temperature", "-1"],
        ["generate", "가", "--temperature", "nan"],
        ["generate", "가", "--top-p", "1.5"],
        ["generate", "가", "--max-tokens", "0"],
        ["generate", "가", "--stop", ""],
        ["generate", "가", "--seed", "-1"],
        ["generate", "가", "-n", "0"],
        ["generate", "가", "--logit-bias", "3=inf"],
        ["generate", "가", "--model", "no-such-folder"],
        ["generate", "가", "--model", "no-such-folder", "--revision", "x"],
        ["generate", "가", "--device", "tpu"],
        ["generate", "가", "--file", "x"],
        ["generate", "--file", "no-such-file"],
        ["generate", ""],
        ["info", "no-such-folder"],
        ["info", "kogpt-6b", "--revision", "x"],
    ],
)
@pytest.mark.parametrize("locale", ["C", "ko_KR.UTF-8"])
def test_a_mistake_is_one_line_in_the_users_language(
    words: list[str],
    locale: str,
    tiny_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LC_ALL", locale)
    if words[0] == "generate" and "--model" not in words:
        words = [*words, "--model", str(tiny_folder)]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("kogpt: ") and err.count("\n") == 1
    assert any("가" <= character <= "힣" for character in err) == (locale == "ko_KR.UTF-8")
    assert ("must be" in err or "at least" in err) <= (locale == "C")


def test_debug_shows_the_traceback_before_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "no-such-folder", "-d"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and err.splitlines()[-1].startswith("kogpt: no model folder")


def test_debug_reaches_nested_parsers() -> None:
    parser = cli.Parser(prog="x")
    parser.add_subparsers().add_parser("y")
    assert "debug" in parser.parse_args(["-d", "y"])
    assert "debug" in parser.parse_args(["y", "-d"])
    assert "debug" not in parser.parse_args(["y"])


def test_an_error_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("kogpt.cli.info.run", broken)
    with pytest.raises(ZeroDivisionError):
        main(["info"])


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (PromptError("en", "ko"), 2)])
def test_exit_codes(error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr("kogpt.cli.info.run", fail)
    assert main(["info"]) == code


def test_an_interruption_while_modules_are_imported_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: str) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr("kogpt.cli.import_module", interrupted)
    assert main(["info"]) == 130


def test_a_closed_pipe_is_quiet(tiny_folder: Path) -> None:
    lines = "yes 한국어 | head -200 |"
    command = f"{lines} $KOGPT generate --file - --json --model $MODEL --max-tokens 1 | head -1"
    done = shell(f"set -o pipefail; {command}; echo ${{PIPESTATUS[2]}}", tiny_folder)
    assert done.stderr == b""
    assert done.stdout.count(b"\n") == 2
    assert done.stdout.endswith(b"\n0\n")


def test_a_full_disk_is_said_and_is_no_traceback(tiny_folder: Path) -> None:
    done = shell("$KOGPT generate 한국어 --model $MODEL > /dev/full", tiny_folder)
    assert done.returncode == 1
    assert done.stderr == b"kogpt: system error: No space left on device\n"


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"{kogpt.__version__}\n"


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["help"], ["--help"]),
        (["help", "generate"], ["generate", "--help"]),
        (["help", "pretrain", "run"], ["pretrain", "run", "--help"]),
        (["version"], ["--version"]),
    ],
)
def test_words_that_people_try_are_answered(
    words: list[str], meant: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for line in (words, meant):
        with pytest.raises(SystemExit, match=r"^0$"):
            main(line)
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != ""


def test_memory_that_runs_out_is_said_and_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: argparse.Namespace) -> int:
        raise MemoryError("Unable to allocate 9 EiB")

    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setattr(cli.command("info")[0], "run", run)
    assert main(["info"]) == 1
    assert capsys.readouterr().err == "kogpt: not enough memory: Unable to allocate 9 EiB\n"


def test_closed_streams_are_no_traceback(tiny_folder: Path) -> None:
    mute = shell("$KOGPT info --json $MODEL >&-", tiny_folder)
    assert mute.returncode == 1 and mute.stderr == b"kogpt: standard output is closed\n"
    done = shell("$KOGPT generate --model $MODEL <&-", tiny_folder)
    assert (done.returncode, b"Traceback" in done.stderr) == (2, False)


def test_ctrl_c_leaves_with_130_and_without_a_traceback(tiny_folder: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "kogpt", "--model", str(tiny_folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell's background job starts with Ctrl-C ignored, and hands that down to whatever it runs.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"prompt> \n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr.read().startswith(b"terminate KakaoBrain")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LC_ALL": "C"},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1"},
    ],
    ids=["utf8", "c", "ascii", "latin1"],
)
def test_korean_goes_in_and_out_in_any_locale(environment: dict[str, str], tiny_folder: Path) -> None:
    command = "$KOGPT generate --json --model $MODEL --max-tokens 2 --seed 1 --stop 한국어"
    by_argument = shell(f"{command} '한국어 값'", tiny_folder, **environment)
    by_pipe = shell(f"printf '한국어 값\\n' | {command}", tiny_folder, **environment)
    in_cp949 = shell(
        f"printf '한국어 값\\n' | iconv -f utf-8 -t cp949 | {command} -", tiny_folder, **environment
    )
    for done in (by_argument, by_pipe, in_cp949):
        assert done.returncode == 0, done.stderr
        assert '"prompt": "한국어 값"' in done.stdout.decode("utf-8")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from kogpt.cli import command; command(None);"
        "print({'numpy', 'torch', 'tokenizers', 'prompt_toolkit', 'asyncio'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
@pytest.mark.parametrize(
    "line",
    [
        *("generate --file NAME", "generate 글 --json-schema NAME", "generate 글 --model NAME"),
        *("generate 글 --adapter NAME", "generate 글 --file x --config NAME"),
        *("classify --labels 가,나 --file NAME", "classify 글 --labels 가,나 --examples NAME"),
        *("summarize NAME", "filter --file NAME", "ask 글 --file NAME", "ask 글 --index NAME"),
        *("search index NAME --out x", "search index f.txt --out NAME", "search query NAME 글"),
        *("report --prompt 가 --text 나 --out NAME.eml", "export int8 --out NAME", "eval NAME.toml"),
        *("eval ppl --text NAME", "tune lora --data NAME --out x", "tune lora --data rows.tsv --out NAME"),
        *("serve --index NAME", "serve --api-key-file NAME", "serve --tls-certificate NAME --tls-key x"),
        *("serve --uds NAME", "info NAME", "bench --model NAME", "pretrain run NAME --out x"),
    ],
)
def test_a_name_that_no_file_can_have_is_one_line(
    line: str,
    name: str,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A file of defaults may hold NUL, a caller from Python both."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KOGPT_MODEL", str(tiny_folder))
    (tmp_path / "f.txt").write_text("하늘\n", encoding="utf-8")
    rows = "".join(f"글 {n}\t{n % 2}\n" for n in range(40))
    (tmp_path / "rows.tsv").write_text(f"text\tlabel\n{rows}", encoding="utf-8")
    code = main([word.replace("NAME", name) for word in line.split()])
    lines = [shown for shown in capsys.readouterr().err.splitlines() if shown.startswith("kogpt: ")]
    assert code in (1, 2) and len(lines) == 1, lines


def test_a_configured_name_with_nul_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.toml").write_text('[filter]\nfile = "a\\u0000b"', encoding="utf-8")
    assert main(["filter", "--config", str(tmp_path / "config.toml")]) == 2
    assert "NUL" in capsys.readouterr().err
