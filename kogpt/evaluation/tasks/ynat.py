"""YNAT (KLUE-TC): which of seven topics has a news headline?"""

from __future__ import annotations

from kogpt.evaluation import sources
from kogpt.evaluation.data import Row
from kogpt.evaluation.task import Example, Prompt, Task

TOPICS = ("IT과학", "경제", "사회", "생활문화", "세계", "스포츠", "정치")  # KLUE's order
WORDS = ("과학", "경제", "사회", "생활", "세계", "스포츠", "정치")  # lm-evaluation-harness#310


def _read(row: Row) -> Example:
    topic = row["topic"] if "topic" in row else row["label"]
    return Example(row["guid"], {"title": row["title"]}, TOPICS.index(topic))


TASK = Task(
    name="ynat",
    title="YNAT",
    version=1,
    labels=TOPICS,
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
    test=sources.YNAT_DEV,
    pool=sources.YNAT_SHOTS,
    read=_read,
    published_shots=70,
    content=("title",),
    contamination="kogpt-mini's corpus has no document with a headline of these files",
)
