"""What a task is: its data, its prompts in the published styles, its metrics. No model, no arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from kogpt.data_files import Row, Source
from kogpt.datasets import Example
from kogpt.errors import KoGPTError
from kogpt.metrics import Metric

Scoring = Literal["raw", "normalised", "calibrated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One wording. Templates name an example's fields; a choice begins with its own space, if it has one.

    text of k shots and a question: instruction, then k times (question choice separator), then question.
    """

    name: str
    source: str  # where the wording comes from
    question: str
    choices: tuple[str, ...]
    instruction: str = ""
    separator: str = "\n\n"
    grades: tuple[float, ...] = ()  # what each choice stands for, where the choices are a scale

    @property
    def fixed(self) -> bool:
        """Whether every item has the same choices: labels, not texts of its own."""
        return not any("{" in choice for choice in self.choices)

    @property
    def middle_grade(self) -> float:
        """Half way between the lowest and the highest grade."""
        return (min(self.grades) + max(self.grades)) / 2

    def ask(self, example: Example) -> str:
        """The question of one item, without an answer."""
        return self.question.format_map(example.fields)

    def options(self, example: Example) -> tuple[str, ...]:
        """The choices of one item, each with its leading space."""
        return tuple(choice.format_map(example.fields) for choice in self.choices)

    def answer(self, example: Example) -> int:
        """Index of the right choice; on a scale the nearest grade."""
        if not self.grades:
            return example.answer
        assert example.grade is not None
        grade = example.grade
        return min(range(len(self.grades)), key=lambda index: abs(self.grades[index] - grade))

    def render(self, example: Example) -> str:
        """One solved example, as it stands among the shots, without the separator."""
        return self.ask(example) + self.options(example)[self.answer(example)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One data set and how it is asked, answered and scored."""

    name: str
    title: str
    version: int  # raised whenever a prompt, a metric or a reader changes
    labels: tuple[str, ...]  # what answer 0, 1, ... mean; for texts of their own: their position
    metrics: tuple[Metric, ...]  # the first is the one that was published
    prompts: tuple[Prompt, ...]  # the first is the default
    test: tuple[Source, ...]
    pool: tuple[Source, ...] = ()  # where shots come from; empty: a fixed tenth of the test rows, set apart
    read: Callable[[Row], Example]
    read_pool: Callable[[Row], Example] | None = None  # if the pool is another data set
    published_shots: int | None = None
    scoring: Scoring = "raw"
    grade_threshold: float = 3.0  # a grade from here on is answer 1 (KLUE's definition)
    content: tuple[str, ...]  # the fields that carry an item, for baselines and calibration
    contamination: str

    def prompt(self, name: str | None = None) -> Prompt:
        """A prompt by its name, the default if None; KoGPTError if there is none of that name."""
        for prompt in self.prompts:
            if name in (None, prompt.name):
                return prompt
        names = ", ".join(prompt.name for prompt in self.prompts)
        raise KoGPTError(
            f"task {self.name} has no prompt {name!r}: choose one of {names}",
            f"{self.name} 과제에는 {name!r} 프롬프트가 없습니다 (가능: {names})",
        )
