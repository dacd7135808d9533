"""KoBEST WiC: has a word the same sense in two sentences?"""

from __future__ import annotations

from kogpt.evaluation import sources
from kogpt.evaluation.data import Row
from kogpt.evaluation.task import Example, Prompt, Task


def _read(row: Row) -> Example:
    fields = {"word": row["Target"], "context1": row["SENTENCE1"], "context2": row["SENTENCE2"]}
    return Example(row["ID"], fields, ("false", "true").index(row["ANSWER"].lower()))


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
    test=sources.kobest("WiC", "test"),
    pool=sources.kobest("WiC", "train"),
    read=_read,
    published_shots=10,
    content=("context1", "context2"),
    contamination="kogpt-mini's corpus has no document with a sentence of this test set",
)
