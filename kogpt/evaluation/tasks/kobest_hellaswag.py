"""KoBEST HellaSwag: which of four sentences goes on with a story?"""

from __future__ import annotations

from kogpt import datasets
from kogpt.evaluation.task import Prompt, Task

TASK = Task(
    name="kobest-hellaswag",
    title="KoBEST HellaSwag",
    version=1,
    labels=("1", "2", "3", "4"),
    metrics=("macro_f1", "accuracy"),
    prompts=(
        Prompt(
            name="harness",
            source="lm-evaluation-harness 0.4, kobest_hellaswag",
            question="문장: {context}",
            choices=tuple(f" {{{choice}}}" for choice in datasets.ENDINGS),
        ),
        Prompt(
            name="plain",
            source="this project: the story alone",
            question="{context}",
            choices=tuple(f" {{{choice}}}" for choice in datasets.ENDINGS),
        ),
    ),
    test=datasets.kobest("HellaSwag", "test"),
    pool=datasets.kobest("HellaSwag", "train"),
    read=datasets.read_hellaswag,
    published_shots=10,
    scoring="normalised",  # as published: raw scores gave .4599 where .5590 was meant
    content=("context",),
    contamination="kogpt-mini's corpus has no document with a sentence of this test set",
)
