"""KLUE-STS: do two sentences mean the same? Yes or no, or a grade from 0 to 5; similar is 3.0 and up."""

from __future__ import annotations

from kogpt import datasets
from kogpt.evaluation.grades import GRADE
from kogpt.evaluation.task import Prompt, Task

PROMPTS = (
    Prompt(
        name="question",
        source="lm-evaluation-harness, branches ko and polyglot (klue_sts, after #397)",
        question="질문: 문장 1과 문장 2는 서로 유사한 의미를 가지나요?"
        "\n문장 1: {sentence1}\n문장 2: {sentence2}\n정답:",
        choices=(" 아니오", " 예"),
    ),
    GRADE,
    Prompt(
        name="equals",
        source="this project, in the form of the original's maintainer (DeepSE/gpt_playground#73)",
        instruction="두 문장이 유사하면 예, 유사하지 않으면 아니오로 답합니다.\n",
        question="{sentence1} / {sentence2}=",
        choices=("아니오", "예"),
        separator="\n",
    ),
)

TASK = Task(
    name="klue-sts",
    title="KLUE-STS",
    version=1,
    labels=("different", "similar"),
    metrics=("binary_f1", "pearson", "accuracy"),
    prompts=PROMPTS,
    test=datasets.KLUE_STS_DEV,
    pool=datasets.KORSTS_TRAIN,
    read=datasets.read_klue_sts,
    read_pool=datasets.read_korsts,
    published_shots=40,
    grade_threshold=datasets.GRADE_THRESHOLD,
    content=("sentence1", "sentence2"),
    contamination="kogpt-mini's corpus has no document with a sentence of this file; the shots are KorSTS's"
    " (machine-translated captions, news, forums), another kind of text than KLUE-STS",
)
