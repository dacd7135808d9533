"""KoBEST BoolQ: a yes-or-no question about a paragraph."""

from __future__ import annotations

from kogpt import datasets
from kogpt.evaluation.task import Prompt, Task

TASK = Task(
    name="kobest-boolq",
    title="KoBEST BoolQ",
    version=1,
    labels=("no", "yes"),
    metrics=("macro_f1", "accuracy"),
    prompts=(
        Prompt(
            name="harness",
            source="lm-evaluation-harness 0.4, kobest_boolq (two spaces before the label)",
            question="{paragraph} 질문: {question} 답변:",
            choices=("  아니오", "  예"),
        ),
        Prompt(
            name="lines",
            source="this project: one part a line",
            question="지문: {paragraph}\n질문: {question}\n답변:",
            choices=(" 아니오", " 예"),
        ),
    ),
    test=datasets.kobest("BoolQ", "test"),
    pool=datasets.kobest("BoolQ", "train"),
    read=datasets.read_boolq,
    published_shots=10,
    content=("paragraph", "question"),
    contamination="kogpt-mini's corpus has no document with a sentence of this test set",
)
