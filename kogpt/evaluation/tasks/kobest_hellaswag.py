"""KoBEST HellaSwag: which of four sentences goes on with a story?"""

from __future__ import annotations

from hashlib import sha256

from kogpt.evaluation import sources
from kogpt.evaluation.data import Row
from kogpt.evaluation.task import Example, Prompt, Task

CHOICES = ("choice1", "choice2", "choice3", "choice4")


def _read(row: Row) -> Example:
    name = sha256("\t".join(row.values()).encode()).hexdigest()[:12]  # the file has no ids
    fields = {key: row[key] for key in ("context", *CHOICES)}
    return Example(name, fields, int(row["label"]))


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
            choices=tuple(f" {{{choice}}}" for choice in CHOICES),
        ),
        Prompt(
            name="plain",
            source="this project: the story alone",
            question="{context}",
            choices=tuple(f" {{{choice}}}" for choice in CHOICES),
        ),
    ),
    test=sources.kobest("HellaSwag", "test"),
    pool=sources.kobest("HellaSwag", "train"),
    read=_read,
    published_shots=10,
    scoring="normalised",  # as published: raw scores gave .4599 where .5590 was meant
    content=("context",),
    contamination="kogpt-mini's corpus has no document with a sentence of this test set",
)
