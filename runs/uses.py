"""Writes docs/uses.md and docs/ko/uses.md: every use as a command with its real output, on kogpt-mini.

    python runs/uses.py

The pages' texts are runs/uses.en.md and runs/uses.ko.md. A line `$ kogpt ...` in a block is run, and what it
prints follows it. `<!-- official -->` becomes the seven examples of Kakao's KoGPT API (developers.kakao.com),
0.xx the threshold of profanity with the adapter.
The texts of the examples that the API's page leaves out are ours. Seeds are fixed; another processor may
round differently and write other words.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from kogpt import KoGPT, Result
from kogpt.cli import main as kogpt
from kogpt.tasks.ngrams import NgramClassifier
from kogpt.tasks.profanity import CLASSIFIER

ROOT = Path(__file__).parents[1]
PAGES = {"C": ("uses.en.md", "docs/uses.md"), "ko_KR.UTF-8": ("uses.ko.md", "docs/ko/uses.md")}
ARTICLE = (ROOT / "examples" / "article.txt").read_text(encoding="utf-8").strip()
HISTORY = (
    "임진왜란은 1592년에 일본이 조선을 침략하며 시작된 전쟁이다. 그때 조선의 왕은 선조였다. 이순신은 바다에서"
    " 일본 수군을 여러 번 이겼다."
)
SEED = 7
THRESHOLD = "0.xx"  # as wide as what takes its place, so that lines stay wrapped
COMMAND = re.compile(r"^\$ kogpt (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Official:
    """One example of the API: what it is for, the prompt, and the settings."""

    title: str
    english: str
    prompt: str
    settings: Mapping[str, Any]


OFFICIAL = (
    Official(
        "다음 문장 만들기",
        "Continue a text",
        "인간처럼 생각하고, 행동하는 '지능'을 통해 인류가 이제까지 풀지 못했던",
        {"max_tokens": 64, "temperature": 0.7, "top_p": 0.8},
    ),
    Official(
        "문장 분류하기",
        "Classify a sentence",
        "상품 후기를 긍정 또는 부정으로 분류합니다.\n가격대비좀 부족한게많은듯=부정\n"
        "재구매 친구들이 좋은 향 난다고 해요=긍정\n"
        "ㅠㅠ약간 후회가 됩니다..=부정\n이전에 먹고 만족해서 재구매합니다=긍정\n"
        "튼튼하고 잘 쓸수 있을 것 같습니다. 이 가격에 이 퀄리티면 훌륭하죠=",
        {"max_tokens": 1, "temperature": 0.4},
    ),
    Official(
        "뉴스 한 줄 요약하기",
        "Summarise news in a line",
        f"{ARTICLE}\n\n한줄 요약:",
        {"max_tokens": 128, "top_p": 0.7, "temperature": 1.0},
    ),
    Official(
        "질문에 답변하기",
        "Answer a question",
        f"{ARTICLE}\n정책제안서를 제출하는 시기는 언제인가?:",
        {"max_tokens": 128, "temperature": 0.2},
    ),
    Official(
        "특정 정보 추려내기",
        "Find a fact",
        f"{HISTORY}\n\n임진왜란 때 조선의 왕은?\n\n답:",
        {"max_tokens": 1, "temperature": 0.3},
    ),
    Official(
        "말투 바꾸기",
        "Change the tone",
        "주어진 문장을 존댓말 문장으로 바꿔주세요.\n\n문장:하지마!\n존댓말:하지 말아주세요.\n\n"
        "문장:나랑 같이 놀러가자\n존댓말:저랑 같이 놀러가지 않으실래요?\n\n"
        "문장:배고파 밥줘\n존댓말:배가 고픈데 밥을 먹어도 될까요?\n\n"
        "문장:당장 제자리에 돌려놔\n존댓말:",
        {"max_tokens": 10, "temperature": 0.7},
    ),
    Official(
        "채팅하기",
        "Chat",
        "정보:거주지 서울, 나이 30대, 성별 남자, 취미 등산, 말투 친절함\n정보를 바탕으로 질문에 답하세요.\n"
        "Q:안녕하세요 반갑습니다.\nA:안녕하세요. 저도 반갑습니다.\nQ:어디에 사시나요?\n"
        "A:서울에 살고 있습니다.\n"
        "Q:오 그렇군요, 결혼은 하셨나요?\nA:",
        {"max_tokens": 32, "temperature": 0.3, "top_p": 0.85},
    ),
)


def run_official(model: KoGPT) -> Iterator[tuple[Official, Result]]:
    """Every example with what the model writes."""
    for example in OFFICIAL:
        yield example, model.generate(example.prompt, seed=SEED, **example.settings)


def official(model: KoGPT, english: bool) -> str:
    """The section of the seven examples."""
    parts = []
    for number, (example, result) in enumerate(run_official(model), 1):
        settings = ", ".join(f"{name} {value}" for name, value in example.settings.items())
        title = example.english if english else example.title
        prompt = example.prompt.replace(ARTICLE, "{examples/article.txt}")
        written = "  ".join(result.text.split("\n")) or "(...)"
        parts.append(
            f"### {number}. {title}\n\n{settings}\n\n```text\n{prompt}\n```\n\n```text\n→ {written}\n```\n"
        )
    return "\n".join(parts)


def output(words: list[str]) -> str:
    """What a command prints, messages included."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        kogpt(words)
    return shown.getvalue().rstrip("\n")


def with_threshold(template: str) -> str:
    """The template with the threshold that kogpt/tasks/profanity.npz holds."""
    joint = NgramClassifier.load(CLASSIFIER).joint_with_adapter
    assert joint is not None, "the file was trained with the adapter"
    return template.replace(THRESHOLD, f"{joint.thresholds[0]:.2f}")


def render(template: str, model: KoGPT, english: bool) -> str:
    """The page of a template."""
    with TemporaryDirectory() as folder:

        def run(match: re.Match[str]) -> str:
            words = shlex.split(match[1].replace("/tmp/", f"{folder}/"))
            return f"{match[0]}\n{output(words).replace(folder, '/tmp')}".rstrip()

        page = COMMAND.sub(run, template)
    return with_threshold(page).replace("<!-- official -->", official(model, english))


def main() -> None:
    """Write both pages."""
    os.chdir(ROOT)
    model = KoGPT.from_pretrained(device="cpu")
    for locale, (template, page) in PAGES.items():
        with mock.patch.dict(os.environ, {"LC_ALL": locale}):
            text = render((ROOT / "runs" / template).read_text(encoding="utf-8"), model, locale == "C")
        (ROOT / page).write_text(text, encoding="utf-8")
        print(f"{page} written")


if __name__ == "__main__":
    main()
