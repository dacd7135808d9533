"""The prompt of KLUE-STS and KorSTS that asks for a grade from 0 to 5."""

from __future__ import annotations

from kogpt.evaluation.task import Prompt

GRADE = Prompt(
    name="grade",
    source="this project: the annotators' scale, scored by the expected grade",
    instruction="두 문장의 뜻이 얼마나 비슷한지 0(전혀 다름)부터 5(같음)까지의 점수로 답합니다.\n\n",
    question="문장 1: {sentence1}\n문장 2: {sentence2}\n점수:",
    choices=tuple(f" {grade}" for grade in range(6)),
    grades=tuple(map(float, range(6))),
)
