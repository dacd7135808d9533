"""KLUE-NLI: does a premise entail a hypothesis, contradict it, or neither?"""

from __future__ import annotations

from kogpt.evaluation import sources
from kogpt.evaluation.data import Row
from kogpt.evaluation.task import Example, Prompt, Task

LABELS = ("entailment", "neutral", "contradiction")


def _read(row: Row) -> Example:
    fields = {"premise": row["premise"], "hypothesis": row["hypothesis"]}
    return Example(row["guid"], fields, LABELS.index(row["gold_label"]))


TASK = Task(
    name="klue-nli",
    title="KLUE-NLI",
    version=1,
    labels=LABELS,
    metrics=("accuracy", "macro_f1"),
    prompts=(
        Prompt(
            name="relation",
            source="this project: the three labels by their Korean names",
            question="전제: {premise}\n가설: {hypothesis}\n관계:",
            choices=(" 함의", " 중립", " 모순"),
        ),
        Prompt(
            name="question",
            source="this project, in the form of lm-evaluation-harness' klue_sts question",
            question="질문: 문장 1이 참이면 문장 2도 참인가요?"
            "\n문장 1: {premise}\n문장 2: {hypothesis}\n정답:",
            choices=(" 예", " 알 수 없음", " 아니오"),
        ),
    ),
    test=sources.KLUE_NLI_DEV,
    read=_read,
    content=("premise", "hypothesis"),
    contamination="kogpt-mini's corpus has no document with a sentence of this file",
)
