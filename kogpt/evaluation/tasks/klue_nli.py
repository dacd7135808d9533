"""KLUE-NLI: does a premise entail a hypothesis, contradict it, or neither?"""

from __future__ import annotations

from kogpt import datasets
from kogpt.evaluation.task import Prompt, Task

TASK = Task(
    name="klue-nli",
    title="KLUE-NLI",
    version=1,
    labels=datasets.ENTAILMENT,
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
    test=datasets.KLUE_NLI_DEV,
    read=datasets.read_klue_nli,
    content=("premise", "hypothesis"),
    contamination="kogpt-mini's corpus has no document with a sentence of this file",
)
