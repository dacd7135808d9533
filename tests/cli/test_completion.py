"""The completion of bash, run in bash; the scripts of the other shells have the same words."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from kogpt.cli import COMMANDS, main
from kogpt.cli.completion import SHELLS


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("ge", {"generate"}),
        ("", set(COMMANDS)),
        ("generate --dt", {"--dtype"}),
        ("generate --dtype int", {"int8", "int4"}),
        ("generate --dtype ", {"auto", "float32", "bfloat16", "float16", "int8", "int4"}),
        ("generate --dtype int8 --max-t", {"--max-tokens"}),
        ("--temp", {"--temperature"}),
        ("pretrain pa", {"pack"}),
        ("pretrain run --in", {"--init"}),
        ("completion z", {"zsh"}),
        ("generate some", set()),
    ],
)
def test_bash_completes(typed: str, expected: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["kogpt", *typed.split(" ")]
    quoted = " ".join(f"'{word}'" for word in words)
    program = f"{script('bash', capsys)}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _kogpt"
    done = subprocess.run(
        ["bash", "-uc", f'{program}; printf "%s\\n" "${{COMPREPLY[@]}}"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert set(done.stdout.split()) == expected


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_and_option_is_in_the_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    assert [name for name in (*COMMANDS, "max-tokens", "max_tokens", "bfloat16") if name not in text] == []


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_can_parse_their_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n"], input=script(shell, capsys), text=True, check=True)
