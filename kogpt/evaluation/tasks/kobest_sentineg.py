"""KoBEST SentiNeg: is a product review, often with a negation, positive or negative?"""

from __future__ import annotations

from kogpt import datasets
from kogpt.evaluation.task import Prompt, Task

TASK = Task(
    name="kobest-sentineg",
    title="KoBEST SentiNeg",
    version=1,
    labels=("negative", "positive"),
    metrics=("macro_f1", "accuracy"),
    prompts=(
        Prompt(
            name="harness",
            source="lm-evaluation-harness 0.4, kobest_sentineg",
            question="문장: {sentence} 긍부정:",
            choices=(" 부정", " 긍정"),
        ),
        Prompt(
            name="equals",
            source="Kakao's KoGPT API manual, example 2",
            instruction="상품 후기를 긍정 또는 부정으로 분류합니다.\n",
            question="{sentence}=",
            choices=("부정", "긍정"),
            separator="\n",
        ),
    ),
    test=datasets.kobest("SentiNeg", "test"),
    pool=datasets.kobest("SentiNeg", "train"),
    read=datasets.read_sentineg,
    published_shots=50,
    content=("sentence",),
    contamination="kogpt-mini's corpus has no document with a sentence of this test set",
)
