"""KoBEST WiC: has a word the same sense in two sentences?"""

from __future__ import annotations

from kogpt import datasets
from kogpt.evaluation.task import Prompt, Task

TASK = Task(
    name="kobest-wic",
    title="KoBEST WiC",
    version=1,
    labels=("no", "yes"),
    metrics=("macro_f1", "accuracy"),
    prompts=(
        Prompt(
            name="harness",
            source="lm-evaluation-harness 0.4, kobest_wic",
            question="문장1: {context1} 문장2: {context2} 두 문장에서 {word}가 같은 뜻으로 쓰였나?",
            choices=(" 아니오", " 예"),
        ),
        Prompt(
            name="lines",
            source="this project: one part a line",
            question="문장 1: {context1}\n문장 2: {context2}"
            "\n질문: 두 문장에서 '{word}'의 뜻이 같은가?\n답변:",
            choices=(" 아니오", " 예"),
        ),
    ),
    test=datasets.kobest("WiC", "test"),
    pool=datasets.kobest("WiC", "train"),
    read=datasets.read_wic,
    published_shots=10,
    content=("context1", "context2"),
    contamination="kogpt-mini's corpus has no document with a sentence of this test set",
)
