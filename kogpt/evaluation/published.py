"""Numbers that others published, to stand beside what is measured here; never mixed with it.

Few-shot table of the original's README (NSMC accuracy, YNAT macro-F1, KLUE-STS F1); KoBEST macro-F1 of
polyglot-ko's model cards, which measured kakaobrain/kogpt with lm-evaluation-harness.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Published:
    """One model's row: value in percent by (task, shots), shots None where they were not published."""

    model: str
    parameters: float  # in billions
    values: dict[tuple[str, int | None], float]
    source: str


def _readme(model: str, parameters: float, nsmc: float, ynat: float, sts: float) -> Published:
    values: dict[tuple[str, int | None], float] = {
        ("nsmc", None): nsmc,
        ("ynat", None): ynat,
        ("klue-sts", None): sts,
    }
    return Published(model, parameters, values, "README of kakaobrain/kogpt")


README = (
    _readme("HyperCLOVA 1.3B", 1.3, 83.9, 58.7, 60.9),
    _readme("HyperCLOVA 6.9B", 6.9, 83.8, 67.5, 59.3),
    _readme("HyperCLOVA 13B", 13.0, 87.9, 67.9, 60.0),
    _readme("HyperCLOVA 39B", 39.0, 88.0, 71.4, 61.6),
    _readme("HyperCLOVA 82B", 82.0, 88.2, 72.7, 65.1),
    _readme("KoGPT 6B", 6.2, 87.8, 78.0, 64.3),
)


def _kobest(model: str, parameters: float, rows: dict[str, tuple[float, float, float, float]]) -> Published:
    values: dict[tuple[str, int | None], float] = {
        (f"kobest-{task}", shots): 100 * value
        for task, row in rows.items()
        for shots, value in zip((0, 5, 10, 50), row, strict=True)
    }
    return Published(model, parameters, values, "model card of polyglot-ko")


KOBEST = (
    _kobest(
        "KoGPT 6B",
        6.2,
        {
            "copa": (0.7345, 0.7287, 0.7277, 0.7479),
            "hellaswag": (0.5590, 0.5833, 0.5828, 0.5907),
            "boolq": (0.4514, 0.5981, 0.5499, 0.5202),
            "sentineg": (0.3747, 0.8942, 0.9294, 0.9698),
            "wic": (0.3526, 0.4775, 0.4358, 0.4061),
        },
    ),
    _kobest(
        "polyglot-ko 1.3B",
        1.3,
        {
            "copa": (0.7196, 0.7193, 0.7204, 0.7206),
            "hellaswag": (0.5247, 0.5260, 0.5278, 0.5427),
            "boolq": (0.3552, 0.4751, 0.4109, 0.4038),
            "sentineg": (0.6790, 0.6257, 0.5514, 0.7851),
        },
    ),
    _kobest(
        "polyglot-ko 12.8B",
        12.8,
        {
            "copa": (0.7937, 0.8108, 0.8037, 0.8369),
            "hellaswag": (0.5954, 0.6306, 0.6098, 0.6118),
            "boolq": (0.4818, 0.6041, 0.6289, 0.6448),
            "sentineg": (0.9117, 0.9015, 0.9345, 0.9723),
        },
    ),
)

OTHERS = (
    Published("KoGPT 6B", 6.2, {("nsmc", 20): 82.1, ("nsmc", 40): 83.25}, "lm-evaluation-harness#303"),
    Published("ko-gpt-trinity 1.2B", 1.2, {("nsmc", 20): 70.76}, "lm-evaluation-harness#303"),
    Published("polyglot-ko 5.8B", 5.8, {("nsmc", 10): 57.52}, "README of Beomi/KoAlpaca, 500 reviews"),
)

ALL = README + KOBEST + OTHERS


def of_task(task: str) -> list[tuple[Published, int | None, float]]:
    """(row, shots, value in percent) of every published value of a task."""
    return [(row, shots, value) for row in ALL for (name, shots), value in row.values.items() if name == task]
