"""KoBEST COPA: which of two sentences is the cause, or the effect, of another?"""

from __future__ import annotations

from kogpt import datasets
from kogpt.evaluation.task import Prompt, Task

TASK = Task(
    name="kobest-copa",
    title="KoBEST COPA",
    version=1,
    labels=("1", "2"),
    metrics=("macro_f1", "accuracy"),
    prompts=(
        Prompt(
            name="harness",
            source="lm-evaluation-harness 0.4, kobest_copa (two spaces before the connector)",
            question="{premise}  {connector}",
            choices=(" {choice1}", " {choice2}"),
        ),
        Prompt(
            name="plain",
            source="this project: one space before the connector, one example a line",
            question="{premise} {connector}",
            choices=(" {choice1}", " {choice2}"),
            separator="\n",
        ),
    ),
    test=datasets.kobest("COPA", "test"),
    pool=datasets.kobest("COPA", "train"),
    read=datasets.read_copa,
    published_shots=10,
    content=("premise", "connector"),
    contamination="kogpt-mini's corpus has no document with a sentence of this test set",
)
