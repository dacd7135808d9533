"""YNAT (KLUE-TC): which of seven topics has a news headline?"""

from __future__ import annotations

from kogpt import datasets
from kogpt.evaluation.task import Prompt, Task

WORDS = ("과학", "경제", "사회", "생활", "세계", "스포츠", "정치")  # lm-evaluation-harness#310


TASK = Task(
    name="ynat",
    title="YNAT",
    version=1,
    labels=datasets.TOPICS,
    metrics=("macro_f1", "accuracy"),
    prompts=(
        Prompt(
            name="brackets",
            source="lm-evaluation-harness#310, after arXiv 2204.13509, table 14",
            question="{title}",
            choices=tuple(f" ({word})" for word in WORDS),
            separator="\n",
        ),
        Prompt(
            name="question",
            source="lm-evaluation-harness#536",
            question="질문: 다음의 제목을 가지는 뉴스는 어느 분야의 뉴스인가요?\n제목: {title}\n분야:",
            choices=tuple(f" {word}" for word in WORDS),
        ),
        Prompt(
            name="equals",
            source="this project, in the form of the original's maintainer (DeepSE/gpt_playground#73)",
            instruction="뉴스 제목을 과학, 경제, 사회, 생활, 세계, 스포츠 또는 정치로 분류합니다.\n",
            question="{title}=",
            choices=WORDS,
            separator="\n",
        ),
    ),
    test=datasets.YNAT_DEV,
    pool=datasets.YNAT_SHOTS,
    read=datasets.read_ynat,
    published_shots=70,
    content=("title",),
    contamination="kogpt-mini's corpus has no document with a headline of these files",
)
