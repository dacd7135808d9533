"""KorSTS: how similar are two sentences, from 0 to 5? Spearman's rank correlation."""

from __future__ import annotations

from kogpt import datasets
from kogpt.evaluation.grades import GRADE
from kogpt.evaluation.task import Prompt, Task

TASK = Task(
    name="korsts",
    title="KorSTS",
    version=1,
    labels=("different", "similar"),
    metrics=("spearman", "pearson"),
    prompts=(
        GRADE,
        Prompt(
            name="question",
            source="lm-evaluation-harness, branches ko and polyglot (klue_sts), ranked by P(yes)",
            question="질문: 문장 1과 문장 2는 서로 유사한 의미를 가지나요?"
            "\n문장 1: {sentence1}\n문장 2: {sentence2}\n정답:",
            choices=(" 아니오", " 예"),
        ),
    ),
    test=datasets.KORSTS_TEST,
    pool=datasets.KORSTS_TRAIN,
    read=datasets.read_korsts,
    grade_threshold=datasets.GRADE_THRESHOLD,
    content=("sentence1", "sentence2"),
    contamination="kogpt-mini's corpus has no document with a sentence of korsts_test; korsts_train was not"
    " filtered out of it",
)
