"""The interactive prompt, typed at a terminal and fed by a pipe."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pty_session import ROOT, Session

from kogpt import checkpoint
from kogpt.config import ModelConfig
from kogpt.generation import KoGPT
from kogpt.manifest import write_manifest
from kogpt.sampling import Sampling

FAREWELL = "terminate KakaoBrain Korean(hangul) Generative Pre-Training Model"

Open = Callable[..., Session]


@pytest.fixture(scope="session")
def long_folder(
    tmp_path_factory: pytest.TempPathFactory,
    tiny: ModelConfig,
    tiny_tensors: Mapping[str, NDArray[np.float32]],
    tiny_tokenizer: Path,
) -> Path:
    """As tiny_folder, with a context that takes seconds to fill."""
    folder = tmp_path_factory.mktemp("long")
    config = replace(tiny, n_ctx=4096)
    checkpoint.save(folder, config, tiny_tensors, dtype="float32", tokenizer=tiny_tokenizer)
    return folder


@pytest.fixture
def open_session(tiny_folder: Path, tmp_path: Path) -> Iterator[Open]:
    sessions = []

    def open_one(*arguments: str, iutf8: bool = True, **environment: str) -> Session:
        settings = {"TERM": "xterm", "LC_ALL": "C.UTF-8", "XDG_STATE_HOME": str(tmp_path)} | environment
        session = Session(arguments or ("--model", str(tiny_folder)), settings, iutf8)
        sessions.append(session)
        return session

    yield open_one
    for session in sessions:
        session.kill()


def answer(session: Session, prompt: str | bytes, temperature: str = "", max_length: str = "") -> None:
    """Give all three answers."""
    session.ask("prompt>", prompt if isinstance(prompt, bytes) else f"{prompt}\r")
    session.ask("temperature(0.8)>", f"{temperature}\r")
    session.ask("max_length(128)>", f"{max_length}\r")


def run(
    folder: Path, given: bytes, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """The prompt with a pipe for standard input."""
    return subprocess.run(
        [sys.executable, "-m", "kogpt", "--model", str(folder), *arguments],
        input=given,
        capture_output=True,
        cwd=ROOT,
        env=os.environ | {"LC_ALL": "C.UTF-8"} | environment,
        check=False,
    )


def test_three_questions_then_prompt_and_continuation(open_session: Open) -> None:
    session = open_session()
    answer(session, "한국어", "0.5", "24")
    session.expect("\n한국어")  # shown again as the beginning of the text
    session.ask("\n\nprompt>", "\x04")
    assert session.end() == 0
    assert FAREWELL in session.text
    assert "[EOS]" not in session.text


def test_answers_are_the_defaults_of_the_next_questions(open_session: Open) -> None:
    session = open_session()
    answer(session, "한국어", "0.5", "24")
    session.ask("\n\nprompt>", "한국어\r")
    session.ask("temperature(0.5)>", "\r")
    session.ask("max_length(24)>", "\r")
    session.ask("\n\nprompt>", f"{'한국어 ' * 30}\r")  # too long for the last length
    session.ask("temperature(0.5)>", "\r")
    session.ask("max_length(128)>", "\x03")
    session.ask("prompt>", "/set temperature 0.9\r")
    session.expect("temperature: 0.9")
    session.ask("prompt>", "한국어\r")
    session.ask("temperature(0.9)>", "\x04")
    assert session.end() == 0


def test_a_pipe_has_the_same_defaults_for_every_prompt(tiny_folder: Path) -> None:
    result = run(tiny_folder, "한국어\n0.5\n24\n한국어\n\n\n".encode())
    assert result.returncode == 0
    assert result.stderr.decode().count("temperature(0.8)>") == 2


def test_an_empty_prompt_asks_again(open_session: Open) -> None:
    session = open_session()
    session.ask("prompt>", "\r")
    session.ask("prompt>", "  \r")
    session.ask("prompt>", "\x04")
    assert session.end() == 0
    assert "temperature" not in session.text


@pytest.mark.parametrize("wrong", ["abc", "-1", "nan", "inf", "1e999"])
def test_a_wrong_temperature_asks_again(open_session: Open, wrong: str) -> None:
    session = open_session()
    session.ask("prompt>", "한국어\r")
    session.ask("temperature(0.8)>", f"{wrong}\r")
    session.expect("must be a number of at least 0")
    session.ask("temperature(0.8)>", "0\r")
    session.ask("max_length(128)>", "\x04")
    assert session.end() == 0


@pytest.mark.parametrize("wrong", ["abc", "0", "-3", "2.5", "1" * 5000])
def test_a_wrong_length_asks_again(open_session: Open, wrong: str) -> None:
    session = open_session()
    session.ask("prompt>", "한국어\r")
    session.ask("temperature(0.8)>", "\r")
    session.ask("max_length(128)>", f"{wrong}\r")
    session.expect("must be a whole number of at least 1")
    session.ask("max_length(128)>", "\x04")
    assert session.end() == 0


@pytest.mark.parametrize("keys", ["\x03", "\r"])
def test_ctrl_c_at_a_number_goes_back_to_the_first_question(open_session: Open, keys: str) -> None:
    session = open_session()
    session.ask("prompt>", "한국어\r")
    session.ask("temperature(0.8)>", keys)
    if keys == "\r":
        session.ask("max_length(128)>", "\x03")
    session.ask("prompt>", "\x03")
    assert session.end() == 130


def test_one_line_says_what_to_know(open_session: Open, tiny_folder: Path) -> None:
    session = open_session()
    session.ask("prompt>", "\x04")
    session.end()
    (line,) = [line for line in session.text.splitlines() if str(tiny_folder) in line]
    assert all(word in line for word in ("/?", "Ctrl-D", "max_length"))


def test_options_and_set_are_the_defaults_of_the_questions(open_session: Open, tiny_folder: Path) -> None:
    session = open_session("--model", str(tiny_folder), "--temperature", "0.5", "--top-p", "0.9")
    session.ask("prompt>", "한국어\r")
    session.ask("temperature(0.5)>", "\x03")
    session.ask("prompt>", "/set temperature 0\r")
    session.expect("temperature: 0.0\ntop_p: 0.9")
    session.ask("prompt>", "/set max_length 20\r")
    session.ask("prompt>", "한국어\r")
    session.ask("temperature(0)>", "\r")
    session.ask("max_length(20)>", "\r")
    session.expect("\n한국어")
    session.ask("prompt>", "/set temperature\r")
    session.ask("prompt>", "한국어\r")
    session.ask("temperature(0.8)>", "\x04")
    assert session.end() == 0


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("/?", "/save"),
        ("/help", "/save"),
        ("/show", "model: "),
        ("/nonsense", "there is no command /nonsense"),
        ("/set", "must be one of temperature"),
        ("/set temperature abc", "must be a number"),
        ("/set temperature 1000", "temperature is 1000"),
        ("/save", "write a text first"),
    ],
)
def test_commands_are_answered_and_wrong_ones_explained(open_session: Open, line: str, shown: str) -> None:
    session = open_session()
    session.ask("prompt>", f"{line}\r")
    session.expect(shown)
    session.ask("prompt>", "/bye\r")
    assert session.end() == 0
    assert FAREWELL in session.text


def test_texts_are_saved_and_no_file_is_replaced(open_session: Open, tmp_path: Path) -> None:
    session = open_session()
    answer(session, "한국어", "0", "24")
    session.ask("\n\nprompt>", f"/save {tmp_path}/글.txt\r")
    session.expect("1 texts saved")
    session.ask("prompt>", f"/save {tmp_path}/글.txt\r")
    session.expect("exists already")
    session.ask("prompt>", "/bye\r")
    assert session.end() == 0
    assert (tmp_path / "글.txt").read_text(encoding="utf-8").startswith("한국어")


def test_quotes_begin_and_end_a_prompt_of_several_lines(open_session: Open) -> None:
    session = open_session()
    session.ask("prompt>", '"""가=1\r')
    session.ask("...", '나=2"""\r')
    session.ask("temperature(0.8)>", "\r")
    session.ask("max_length(128)>", "30\r")
    session.expect("\n가=1\n나=2")
    session.ask("\n\nprompt>", '"""가\r')
    session.ask("...", "\x03")
    session.ask("prompt>", "\x04")
    assert session.end() == 0


def test_the_default_length_leaves_room_for_an_answer(open_session: Open, long_folder: Path) -> None:
    session = open_session("--model", str(long_folder))
    session.ask("prompt>", "한국어 모델 " * 40 + "\r")
    session.expect("temperature(0.8)>")
    session.editor_ready()
    session.send("\r")
    session.expect("max_length(")
    n_tokens = len(KoGPT.from_pretrained(long_folder).tokenizer.encode_prompt("한국어 모델 " * 40))
    session.expect(f"{-(-(n_tokens + 64) // 128) * 128})>")
    assert n_tokens > 128
    session.kill()


def test_the_models_own_settings_are_the_defaults(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    text = '{"temperature": 0.5, "repetition_penalty": 1.5, "max_length": 40}'
    (folder / "generation_config.json").write_text(text)
    write_manifest(folder)
    done = run(folder, "한국어\n\n\n".encode(), "--seed", "1")
    assert b"temperature(0.5)> \nmax_length(40)> \n" in done.stderr
    sampling = Sampling(temperature=0.5, repetition_penalty=1.5, max_length=40, seed=1)
    expected = KoGPT.from_pretrained(folder).generate("한국어", sampling).text
    assert done.stdout.decode() == f"한국어{expected}\n\n"


def test_a_prompt_longer_than_max_length_is_explained_and_asked_again(open_session: Open) -> None:
    session = open_session()
    answer(session, "한국어 모델", max_length="1")
    session.expect("max_length is 1")
    session.ask("prompt>", "\x04")
    assert session.end() == 0


@pytest.mark.parametrize(
    "environment",
    [{}, {"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"TERM": "dumb"}],
    ids=["utf8", "c", "ascii", "dumb"],
)
@pytest.mark.parametrize("iutf8", [True, False])
def test_backspace_takes_a_whole_syllable(
    open_session: Open, environment: dict[str, str], iutf8: bool
) -> None:
    session = open_session(iutf8=iutf8, **environment)
    answer(session, "가나다\x7f\x7f힣\r".encode(), max_length="16")
    session.expect("\n가힣")
    session.ask("prompt>", "\x04")
    assert session.end() == 0
    assert "\udcea" not in session.text


def test_bytes_that_are_no_text_are_refused_and_asked_again(open_session: Open) -> None:
    session = open_session()
    session.ask("prompt>", b"\xff\xff\xff\r")
    session.expect("what was typed is neither UTF-8")
    session.ask("prompt>", "\x04")
    assert session.end() == 0


def test_ctrl_c_stops_the_text_and_again_leaves(open_session: Open, long_folder: Path) -> None:
    session = open_session("--model", str(long_folder))
    answer(session, "한국어", max_length="4000")
    session.expect("\n한국어")
    session.send("\x03")
    session.ask("prompt>", "\x03")
    assert session.end() == 130
    assert FAREWELL in session.text
    assert "Traceback" not in session.text


def test_a_failed_load_ends_the_question(open_session: Open) -> None:
    session = open_session("--model", "no-such-folder")
    session.expect("kogpt: no model folder 'no-such-folder'")
    assert session.end() == 2
    assert "Traceback" not in session.text


def test_earlier_prompts_come_back(open_session: Open, tmp_path: Path) -> None:
    first = open_session()
    answer(first, "옛날 옛적에", max_length="30")
    first.ask("\n\nprompt>", "\x04")
    first.end()
    second = open_session()
    second.ask("prompt>", "\x1b[A\r")  # arrow up
    second.expect("옛날 옛적에")
    second.ask("temperature(0.8)>", "\x04")
    assert second.end() == 0
    assert (tmp_path / "kogpt" / "history").stat().st_mode & 0o777 == 0o600


def test_no_colour_where_it_is_not_wanted(open_session: Open) -> None:
    session = open_session(NO_COLOR="1")
    answer(session, "한국어", max_length="16")
    session.ask("\n\nprompt>", "\x04")
    session.end()
    assert b"\x1b[3" not in session._output and b";5;" not in session._output


def test_a_pasted_text_of_several_lines_is_one_prompt(open_session: Open) -> None:
    session = open_session()
    answer(session, "\x1b[200~가=1\n나=2\x1b[201~\r".encode(), max_length="30")
    session.expect("\n가=1\n나=2")
    session.ask("\n\nprompt>", "\x04")
    assert session.end() == 0


def test_a_pipe_answers_and_stdout_holds_the_text_only(tiny_folder: Path) -> None:
    done = run(tiny_folder, "한국어\n0\n24\n".encode(), "--seed", "1")
    assert done.returncode == 0
    assert done.stdout.decode().startswith("한국어") and done.stdout.endswith(b"\n\n")
    assert b"prompt>" not in done.stdout
    assert done.stderr.decode() == f"prompt> \ntemperature(0.8)> \nmax_length(128)> \nprompt> \n{FAREWELL}\n"


def test_a_pipe_that_ends_early_means_the_defaults(tiny_folder: Path) -> None:
    explicit = run(tiny_folder, "한국어\n0.8\n128\n".encode(), "--seed", "1")
    implied = run(tiny_folder, "한국어".encode(), "--seed", "1")
    assert implied.returncode == 0
    assert implied.stdout == explicit.stdout != b""


@pytest.mark.parametrize("numbers", ["abc\n40\n", "0.5\nabc\n", "0.5\nabc\n40\n"])
def test_a_wrong_number_ends_a_pipe_and_shifts_nothing(tiny_folder: Path, numbers: str) -> None:
    done = run(tiny_folder, f"한국어\n{numbers}바다는\n\n\n".encode())
    assert done.returncode == 2
    assert done.stdout == b""
    assert "'abc', must be" in done.stderr.splitlines()[-1].decode()


def test_a_slash_in_a_pipe_is_text(tiny_folder: Path) -> None:
    done = run(tiny_folder, b"/bye\n0\n24\n")
    assert done.stdout.startswith(b"/bye")


def test_a_pipe_of_cp949_is_read(tiny_folder: Path) -> None:
    utf8 = run(tiny_folder, "한국어 모델\n0\n24\n".encode())
    cp949 = run(tiny_folder, "한국어 모델\n0\n24\n".encode("cp949"), LC_ALL="C")
    assert cp949.returncode == 0
    assert cp949.stdout == utf8.stdout


@pytest.mark.parametrize("given", [b"\xff\xff\n", "한국어 모델\n1\n1\n".encode()])
def test_a_pipe_with_an_impossible_prompt_fails(tiny_folder: Path, given: bytes) -> None:
    done = run(tiny_folder, given)
    assert done.returncode == 2
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(b"kogpt: ")
