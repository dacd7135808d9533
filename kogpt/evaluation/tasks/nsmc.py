"""NSMC: is a film review positive or negative?"""

from __future__ import annotations

from kogpt import datasets
from kogpt.evaluation.task import Prompt, Task

TASK = Task(
    name="nsmc",
    title="NSMC",
    version=1,
    labels=("negative", "positive"),
    metrics=("accuracy", "macro_f1"),
    prompts=(
        Prompt(
            name="equals",
            source="the original's maintainer, DeepSE/gpt_playground#73; Kakao's API manual, example 2",
            instruction="영화 리뷰 댓글을 긍정 또는 부정으로 분류합니다.\n",
            question="{document}=",
            choices=("부정", "긍정"),
            separator="\n",
        ),
        Prompt(
            name="question",
            source="lm-evaluation-harness#303 (KoGPT 20 shots 0.821, 40 shots 0.8325)",
            question="다음 문장은 긍정일까요 부정일까요?\n{document}\n정답:",
            choices=(" 부정", " 긍정"),
        ),
        Prompt(
            name="brackets",
            source="arXiv 2204.13509, table 14 (HyperCLOVA's authors), as in lm-evaluation-harness#338",
            question="{document}",
            choices=(" (부정)", " (긍정)"),
            separator="\n",
        ),
        Prompt(
            name="emotion",
            source="Beomi/KoAlpaca, README (polyglot-ko-5.8b, 10 shots 0.5752)",
            question="문장: {document}\n감정:",
            choices=(" 부정", " 긍정"),
        ),
    ),
    test=datasets.NSMC_TEST,
    pool=datasets.NSMC_TRAIN,
    read=datasets.read_nsmc,
    published_shots=70,
    content=("document",),
    contamination="kogpt-mini's corpus has reviews of nsmc_train without labels, and none of nsmc_test",
)
