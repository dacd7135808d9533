"""KoBEST COPA: which of two sentences is the cause, or the effect, of another?"""

from __future__ import annotations

from kogpt.evaluation import sources
from kogpt.evaluation.data import Row
from kogpt.evaluation.task import Example, Prompt, Task

CONNECTORS = {"원인": "왜냐하면", "결과": "그래서"}  # cause: "because"; effect: "so"


def _read(row: Row) -> Example:
    fields = {
        "premise": row["sentence"],
        "connector": CONNECTORS[row["question"]],
        "choice1": row["1"],
        "choice2": row["2"],
    }
    return Example(row["ID"], fields, int(row["Answer"]) - 1)


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
    test=sources.kobest("COPA", "test"),
    pool=sources.kobest("COPA", "train"),
    read=_read,
    published_shots=10,
    content=("premise", "connector"),
    contamination="kogpt-mini's corpus has no document with a sentence of this test set",
)
