"""The documents say what the program does: they are run, generated or compared."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kogpt import KoGPT, errors, hub
from kogpt.cli import COMMANDS, command
from kogpt.cli.korean import korean_argparse
from kogpt.placement import Placement

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.ko.md")
PAGES = sorted(
    str(path.relative_to(ROOT)) for folder in ("docs", "docs/ko") for path in (ROOT / folder).glob("*.md")
)
WRITTEN = (*READMES, "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "notes/log.md", *PAGES)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def script(name: str) -> ModuleType:
    """A script of scripts/ as a module."""
    loader = SourceFileLoader(f"script_{name}", str(ROOT / "scripts" / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def docs_script() -> ModuleType:
    return script("docs")


@pytest.mark.parametrize(("locale", "name"), [("C", "docs/cli.md"), ("ko_KR.UTF-8", "docs/ko/cli.md")])
def test_the_pages_of_options_are_current(locale: str, name: str) -> None:
    assert text_of(name) == docs_script().render(locale), "run scripts/docs"


@pytest.mark.parametrize("name", ["docs/cli.md", "docs/ko/cli.md"])
def test_the_pages_of_options_name_every_option(name: str) -> None:
    page = text_of(name)
    for command_name in (None, *COMMANDS):
        for action in command(command_name)[1]._actions:
            for option in action.option_strings[:1]:
                assert option in ("-h",) or option in page


@pytest.mark.parametrize(("locale", "name"), [("C", "docs/cli.md"), ("ko_KR.UTF-8", "docs/ko/cli.md")])
def test_the_pages_of_options_say_how_many_values_and_what_groups_say(
    locale: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in --help: N ... for several values, brackets where a value may be left out."""
    page = text_of(name)
    for shown in ("--labels VALUE=WORD ...", "--targets NAME ...", "--gpus N ...", "[PROMPT]", "[TEXT ...]"):
        assert f"| `{shown}` |" in page
    monkeypatch.setenv("LC_ALL", locale)
    with korean_argparse():
        groups = [group for one in (None, *COMMANDS) for group in command(one)[1]._action_groups]
    told = {group.description for group in groups if group.description}
    assert told and all(f"** | {text} |\n" in page for text in told)


@pytest.mark.parametrize("name", [*READMES, "docs/python.md", "docs/ko/python.md"])
def test_python_examples_run(
    name: str, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(hub.BUILT_IN, "kogpt-mini", tiny_folder)
    blocks = BLOCK.findall(text_of(name))
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, name, "exec"), names)
    assert len(names["results"]) == 4
    assert len(names["scores"]) == 2 and max(names["scores"]) < 0
    assert names["vectors"].shape == (2, names["model"].config.d_model)
    assert capsys.readouterr().out


@pytest.mark.parametrize("name", READMES)
def test_shell_examples_are_commands_that_exist(name: str) -> None:
    for block in re.findall(r"^```bash\n(.*?)^```", text_of(name), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            words = shlex.split(line.split("|")[-1].split(" > ")[0], comments=True)
            if words[0] == "kogpt":
                known = words[1] if words[1] in COMMANDS else None
                command(known)[1].parse_args(words[2 if known else 1 :])
            elif words[0] != "pip":
                assert (ROOT / words[0]).stat().st_mode & 0o111, line
            assert [w for w in line.split() if w.startswith("examples/") and not (ROOT / w).is_file()] == []


@pytest.mark.parametrize("name", ["docs/python.md", "docs/ko/python.md"])
def test_the_page_of_the_api_names_calls_and_errors(name: str) -> None:
    page = text_of(name)
    mistakes = {kind.__name__ for kind in vars(errors).values() if isinstance(kind, type)}
    assert "NotFinite" in mistakes
    assert [kind for kind in sorted(mistakes - {"KoGPTError"}) if f"\n| `{kind}` |" not in page] == []
    calls = ["generate", "results", "answers", "stream", "score", "embed", "classify", "label_scores"]
    calls += ["with_adapters", "untuned", "use_screen", "verify", "close", "from_pretrained"]
    assert all(hasattr(KoGPT, call) for call in calls)
    assert [call for call in calls if f"`{call}" not in page and f".{call}(" not in page] == []
    assert [field.name for field in fields(Placement) if field.name not in page] == []


def commands_in(text: str) -> Iterator[str]:
    """Every `kogpt COMMAND ...` of a page: in its blocks and within its lines."""
    for block in re.findall(r"^```(?:bash|console|text)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            yield from (part.strip() for part in line.removeprefix("$ ").split("|"))
    for span in re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)):
        yield " ".join(span.split())


@pytest.mark.parametrize("name", [*READMES, *PAGES, "runs/uses.en.md", "runs/uses.ko.md"])
def test_no_page_gives_a_command_an_option_that_it_lacks(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in commands_in(text_of(name)):
        words = shlex.split(text.split(" > ")[0], comments=True) if text.startswith("kogpt ") else []
        if len(words) < 3 or words[1] not in COMMANDS:
            continue
        with contextlib.suppress(SystemExit):  # an example within a line may leave arguments out
            command(words[1])[1].parse_args(words[2:])
        assert "unrecognized" not in capsys.readouterr().err, text


@pytest.mark.parametrize("name", READMES)
def test_the_table_of_hyperparameters_is_current(name: str) -> None:
    assert text_of(name) == docs_script().fill(text_of(name)), "run scripts/docs"
    assert text_of(name).count("| 6,166,502,400 |") == 1


@pytest.mark.parametrize("name", READMES)
def test_the_scores_are_those_of_the_page(name: str) -> None:
    """The rows, without the column of items; so is the text, or scripts/docs would change it (above)."""
    page = re.search(r"<!-- scores -->\n\| task .*?\n\n", text_of("docs/evaluation.md"), re.DOTALL)
    assert page is not None
    lines = [line.strip("| ").split(" | ") for line in page[0].splitlines()[3:-1]]
    for title, metric, items, *values in lines:
        assert " of " in items and len(values) == 6
        assert f"| {title} | {metric} | {' | '.join(values)} |\n" in text_of(name)


@pytest.mark.parametrize("name", READMES)
def test_the_tree_of_files_is_complete(name: str) -> None:
    shown = set(re.findall(r"^(kogpt/\w+(?:\.py|/))  ", text_of(name), re.MULTILINE))
    files = {f"kogpt/{path.name}" for path in (ROOT / "kogpt").glob("[a-z]*.py")}
    inside = (path.relative_to(ROOT / "kogpt") for path in (ROOT / "kogpt").glob("[a-z]*/**/[a-z_]*.*"))
    folders = {f"kogpt/{path.parts[0]}/" for path in inside}
    assert shown == files | folders


@pytest.mark.parametrize("name", WRITTEN)
def test_links_lead_somewhere(name: str) -> None:
    """Files exist, and so do the headings behind a #."""
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(name)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", ["README.md", "docs/README.md", "docs/ko/README.md"])
def test_the_index_names_every_page(name: str) -> None:
    links = {(ROOT / name).parent / link for link in re.findall(r"\]\(([^)#\s]+)", text_of(name))}
    found = {path.resolve() for path in links}
    if name != "README.md":
        mine = [page for page in PAGES if ("/ko/" in page) == ("/ko/" in name)]
        assert {(ROOT / page).resolve() for page in mine} - found <= {(ROOT / name).resolve()}
    else:
        assert (ROOT / "docs/README.md").resolve() in found


@pytest.mark.parametrize("name", [page for page in PAGES if "/ko/" in page])
def test_a_korean_page_and_its_english_one_name_each_other(name: str) -> None:
    english = name.replace("/ko/", "/")
    assert f"[English](../{Path(name).name})" in text_of(name)
    assert f"[한국어](ko/{Path(name).name})" in text_of(english)


def test_markdown_is_wrapped() -> None:
    assert script("markdown").main([]) == 0, "run scripts/markdown --fix"


def test_wide_lines_are_found_and_mended() -> None:
    markdown = script("markdown")
    long = "word " * 30
    text = f"# {long}\n\n{long}\n\n- {long}\n- 한글 {'가나다 ' * 30}\n\n| {long} |\n\n```\n{long}\n```\n"
    assert [number for number, _ in markdown.too_wide(text)] == [3, 5, 6]
    mended = markdown.wrapped(text)
    assert list(markdown.too_wide(mended)) == []
    assert mended.split() == text.split()
    assert markdown.wrapped(mended) == mended
    assert mended.count(f"| {long} |") == mended.count(f"\n{long}\n") == 1


def test_front_matter_stays_as_it_is() -> None:
    markdown = script("markdown")
    front, long = "---\ntitle: KoGPT\nsdk: gradio\n---\n", "word " * 30
    mended = markdown.wrapped(f"{front}\n{long}\n")
    assert mended.startswith(f"{front}\nword") and list(markdown.too_wide(mended)) == []
    assert [number for number, _ in markdown.too_wide(f"{front}\n{long}\n")] == [6]
    rule = f"text\n\n---\n\n{long}\n"  # a line between paragraphs is no front matter
    assert [number for number, _ in markdown.too_wide(rule)] == [5]


def test_the_settings_of_the_space_can_be_read() -> None:
    """Front matter of examples/space/README.md: one `name: value` a line, or the hub shows no app."""
    _, front, body = text_of("examples/space/README.md").split("---\n", 2)
    settings = dict(line.split(": ", 1) for line in front.splitlines())
    assert settings["sdk"] == "gradio" and settings["license"] == "apache-2.0"
    assert (ROOT / "examples" / "space" / settings["app_file"]).is_file()
    assert [link for link in re.findall(r"\]\(([^)\s]+)\)", body) if "://" not in link] == []


def test_start_up_is_measured_by_a_command(tiny_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "bench/start.py", "--runs", "1", "--model", str(tiny_folder)],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    result = json.loads(done.stdout)
    assert set(result["limits"]) <= set(result["measured"])
    assert 0 < result["measured"]["import_kogpt"] < result["measured"]["first_token"]


def test_the_card_of_kogpt_mini_tells_the_mix_of_its_recipe() -> None:
    sources = tomllib.loads(text_of("runs/mini.toml"))["sources"]
    total = sum(source["weight"] for source in sources.values())
    shares = re.findall(r"\((\w+)\) \|[^|]*\| ([\d.]+) % \|", text_of("kogpt/mini/README.md"))
    assert dict(shares) == {name: f"{100 * source['weight'] / total:.2g}" for name, source in sources.items()}
