"""Tuning on made-up reviews: the data's refusals, losses against slow twins, whole runs of a tiny model."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch

from kogpt import checkpoint, data_files, peft
from kogpt.adapter import KeyValuePrefix, Lora, SoftPrompt, merged
from kogpt.cli import main
from kogpt.cli.tune import METHODS, NAMED, _tell
from kogpt.data_files import Table
from kogpt.errors import ConfigError, InputError, NotEnoughMemory
from kogpt.generation import KoGPT
from kogpt.model import GPTJ
from kogpt.training import checkpoints
from kogpt.training.loop import End, Run
from kogpt.training.processes import Processes
from kogpt.training.report import Report
from kogpt.tuning import run as tuning
from kogpt.tuning.data import Choice, Example, Files, Wording, read_data, read_task
from kogpt.tuning.estimate import estimate
from kogpt.tuning.measure import label_scores, measure
from kogpt.tuning.methods import ContrastObjective, TuningObjective, n_trained
from kogpt.tuning.plan import peak
from kogpt.tuning.rows import Batches, Row
from kogpt.tuning.run import Job, TuningSettings, build, prepare, tune
from kogpt.tuning.tasks import TASKS

WORDS = (("나라", "사람"), ("바다", "하늘"))
OTHERS = ("말", "뜻", "글자", "오늘", "학교", "노래")
LABELS = {"0": " 부정", "1": " 긍정"}


def reviews(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts whose label is told by one word."""
    rng = random.Random(seed)
    rows: dict[str, int] = {}
    while len(rows) < count:
        label = rng.randrange(2)
        words = [*rng.sample(OTHERS, rng.randint(1, 4)), rng.choice(WORDS[label])]
        rng.shuffle(words)
        rows[" ".join(words)] = label
    return [{"text": text, "label": label} for text, label in rows.items()]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("rows") / "reviews.jsonl", reviews(120))


@pytest.fixture
def job(rows_file: Path, tiny_folder: Path) -> Callable[..., Job]:
    def make(method: str = "lora", **changes: Any) -> Job:
        data = read_data(Files(train=rows_file), Wording(words=LABELS), Choice(dev_share=0.2))
        wanted = {"method": method, "batch": 16, "dtype": "float32", "virtual_tokens": 5, **changes}
        return prepare(TuningSettings(**wanted), str(tiny_folder), data, "toy")

    return make


# data


def refused(tmp_path: Path, rows: list[dict[str, Any]], **files: Path) -> str:
    with pytest.raises(InputError) as error:
        read_data(Files(train=write(tmp_path / "rows.jsonl", rows), **files), Wording())
    return error.value.en


def test_bad_rows_are_refused_with_their_places(tmp_path: Path) -> None:
    good = reviews(10)
    assert "1 rows are empty" in refused(tmp_path, [*good, {"text": " ", "label": 1}])
    assert "rows.jsonl:11" in refused(tmp_path, [*good, {"text": "말", "label": None}])
    doubled = {**good[0], "text": f"  {good[0]['text']}"}
    assert "1 rows repeat" in refused(tmp_path, [*good, doubled])
    assert "one class only" in refused(tmp_path, [row for row in good if row["label"] == 1])
    assert "rows need prompt" in refused(tmp_path, [{"sentence": "말"}])
    assert "no row" in refused(tmp_path, [])
    test = write(tmp_path / "test.jsonl", good[:2])
    assert "2 training texts are held out" in refused(tmp_path, good, test=test)
    unknown = write(tmp_path / "dev.jsonl", [{"text": "다른 글", "label": 7}])
    assert "label '7' is unknown" in refused(tmp_path, good, dev=unknown)


def test_bad_rows_can_be_left_out_or_insisted_on(tmp_path: Path) -> None:
    good = reviews(10)
    path = write(tmp_path / "rows.jsonl", [*good, good[3], {"text": "", "label": 0}])
    test = write(tmp_path / "test.jsonl", good[:2])
    found = read_data(Files(train=path, test=test), Wording(), Choice(skip_bad=True))
    assert {name: count for name, count in found.skipped.items() if count} == {
        "empty in train": 1,
        "duplicate in train": 1,
        "also in dev or test": 2,
    }
    assert len(found.train) + len(found.dev) == 8
    kept = read_data(Files(train=write(path, good), test=test), Wording(), Choice(allow_overlap=True))
    assert len(kept.train) + len(kept.dev) == 10


def test_the_dev_split_depends_on_the_texts_only(tmp_path: Path) -> None:
    rows = reviews(50)
    choice = Choice(dev_share=0.2)
    first = read_data(Files(train=write(tmp_path / "a.jsonl", rows)), Wording(), choice)
    second = read_data(Files(train=write(tmp_path / "b.jsonl", rows[::-1])), Wording(), choice)
    assert {row.text for row in first.dev} == {row.text for row in second.dev}
    assert len(first.dev) == 10 and not {r.text for r in first.dev} & {r.text for r in first.train}


def test_so_many_rows_are_chosen_by_their_texts(tmp_path: Path) -> None:
    rows = reviews(40)
    choice = Choice(rows=20, dev_share=0.2)
    first = read_data(Files(train=write(tmp_path / "a.jsonl", rows)), Wording(), choice)
    second = read_data(Files(train=write(tmp_path / "b.jsonl", rows[::-1])), Wording(), choice)
    assert {row.text for row in first.train} == {row.text for row in second.train}
    assert len(first.train) == 16 and len(first.dev) == 4


SENTENCE = {"sentence1": "말 뜻", "sentence2": "글자"}
COLUMNS: dict[str, dict[str, Any]] = {
    "nsmc": {"id": "1", "document": '"{}', "label": "{}"},
    "ynat": {"guid": "1", "title": "{}", "topic": "IT과학"},
    "klue-sts": {"genre": "a", "filename": "b", "year": "c", "id": "d", "score": "{}.5", **SENTENCE},
    "kobest-boolq": {"ID": "1", "Text": "{}", "Question": "뜻", "Answer": "True"},
    "kobest-copa": {"ID": "1", "sentence": "{}", "question": "원인", "1": "말", "2": "글", "Answer": "2"},
    "kobest-hellaswag": {"context": "{}", **{f"choice{n}": f"말 {n}" for n in range(1, 5)}, "label": "3"},
    "kobest-sentineg": {"ID": "1", "Text": "{}", "Label": "{}"},
    "kobest-wic": {"ID": "1", "Target": "말", "SENTENCE1": "{}", "SENTENCE2": "말 뜻", "ANSWER": "False"},
    "intent": {"text": "{}", "label": "{}", "name": "x"},
    "k-mhas": {"text": "{}", "labels": "1,3"},
    "curse": {"text": "{}", "label": "{}"},
}


@pytest.mark.parametrize("name", list(TASKS))
def test_a_row_of_every_task_becomes_an_example(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows of each file, written as their publishers do; hashes are evaluation's tests."""
    kind = {"korsts": "klue-sts", "profanity": "curse"}.get(name, name)

    def load(sources: Any, folder: Path | None) -> Table:
        part = sources[0].file
        columns = dict(COLUMNS["k-mhas" if "kmhas" in part else kind])
        if "klue" in part:
            columns |= {"guid": "1", "label": "{}.5"}
        rows = [
            {
                key: value.replace("{}", f"글 {part} {n}" if key not in NUMBERS else str(n % 2))
                for key, value in columns.items()
            }
            for n in range(6)
        ]
        for number, row in enumerate(rows):
            if "sentence1" in row:
                row["sentence1"] += f" {part} {number}"
        return Table(rows, part, "", "")

    monkeypatch.setattr(data_files, "load", load)
    task = TASKS[name]
    if name in ("ynat", "kobest-boolq", "kobest-wic", "k-mhas"):  # one class only
        with pytest.raises(InputError, match="one class only"):
            read_task(task, None)
        return
    found = read_task(task, None)
    example = found.train[0]
    assert len(found.train) + len(found.dev) in (6, 12) and len(found.test) in (6, 12)
    assert "{" not in example.prompt and example.text
    assert found.graded == task.graded == (example.label is None)
    if task.graded:
        assert example.swapped is not None and example.swapped != example.prompt
        assert example.grade in (0.5, 1.5)
    elif task.own_choices:
        assert example.answer == example.choices[example.label or 0]
    else:
        assert example.answer in task.answers == found.wording.labels


NUMBERS = ("label", "Label", "score")


def test_the_command_knows_the_tasks() -> None:
    assert tuple(TASKS) == NAMED


# rows


def test_answers_alone_are_learnt(job: Callable[..., Job]) -> None:
    made = job()
    for row in made.train:
        example = next(e for e in made.data.train if e.origin == row.origin)
        learnt = made.tokenizer.decode([int(token) for token in row.ids[row.first : -1]])
        assert example.answer.endswith(learnt) and row.ids[-1] == made.tokenizer.eos_token_id
        assert made.tokenizer.decode([int(t) for t in row.ids[:-1]]).endswith(example.prompt + example.answer)


def test_a_label_that_begins_another_is_refused(job: Callable[..., Job], tmp_path: Path) -> None:
    rows = [{"text": row["text"], "label": ("가", "가 나")[row["label"]]} for row in reviews(30)]
    data = read_data(Files(train=write(tmp_path / "rows.jsonl", rows)), Wording())
    model, settings = str(job().stored.folder), TuningSettings(method="lora", dtype="float32")
    with pytest.raises(InputError, match="the word '가' begins '가 나', which could never win: use --head"):
        prepare(settings, model, data, None)
    prepare(replace(settings, head=True), model, data, None)
    words = {"가": " 가", "가 나": " 나"}
    prepare(settings, model, read_data(Files(train=tmp_path / "rows.jsonl"), Wording(words=words)), None)


def test_the_order_of_the_labels_is_part_of_the_data(rows_file: Path) -> None:
    turned = dict(reversed(LABELS.items()))
    digests = [read_data(Files(train=rows_file), Wording(words=w)).digest() for w in (LABELS, LABELS, turned)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("kind", ["dev", "test"])
def test_files_to_judge_by_are_read_or_refused(kind: str, tmp_path: Path, rows_file: Path) -> None:
    empty, other = tmp_path / "empty.csv", tmp_path / "other.jsonl"
    empty.write_text("text,label\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"empty\.csv holds no row to judge by"):
        read_data(Files(train=rows_file, **{kind: empty}), Wording())
    write(other, [{"prompt": "질문 하나", "completion": "답"}])
    with pytest.raises(InputError, match="has a text, training rows have a label"):
        read_data(Files(train=rows_file, **{kind: other}), Wording())
    write(other, [{"text": "다른 글", "score": 3.5}])
    with pytest.raises(InputError, match="has a score, training rows have a label"):
        read_data(Files(train=rows_file, **{kind: other}), Wording())


def test_dev_rows_that_are_all_bad_are_not_replaced_by_a_share(tmp_path: Path, rows_file: Path) -> None:
    dev = write(tmp_path / "dev.jsonl", [{"text": " ", "label": 1}])
    with pytest.raises(InputError, match=r"dev\.jsonl holds no row to judge by"):
        read_data(Files(train=rows_file, dev=dev), Wording(), Choice(skip_bad=True))


def test_every_epoch_reads_every_row_in_a_new_order(job: Callable[..., Job]) -> None:
    rows = job().train
    batches = Batches(rows, 7, seed=1)
    epochs = [
        [row.origin for step in range(batches.per_epoch) for row in batches.rows_of(first + step)]
        for first in (0, batches.per_epoch)
    ]
    assert all(set(epoch) == {row.origin for row in rows} for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert batches.rows_of(3) == Batches(rows, 7, seed=1).rows_of(3)


def test_long_rows_are_counted_or_cut(job: Callable[..., Job]) -> None:
    with pytest.raises(InputError, match="rows are longer than 20 tokens"):
        job(length=20)
    cut, whole = job(length=20, truncate=True), job()
    assert max(len(row.ids) for row in cut.train) == 20
    for short, long in zip(cut.train, whole.train, strict=True):
        assert list(short.ids) == list(long.ids[-len(short.ids) :])
        assert list(short.ids[short.first :]) == list(long.ids[long.first :])


# losses and scores against slow twins


def slow_losses(model: GPTJ, row: Row) -> list[float]:
    """Loss of every learnt id, by the plain model, one row alone."""
    logits = model(torch.from_numpy(row.ids[None]))[0].log_softmax(-1)
    return [-float(logits[i - 1, row.ids[i]]) for i in range(row.first, len(row.ids))]


def test_masked_loss_of_a_batch_equals_single_rows_of_the_plain_model(job: Callable[..., Job]) -> None:
    made = job("full")
    objective = build(made, Processes())
    batch = made.batches(0)
    with torch.no_grad():
        found = float(objective(torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)))
        slow = sum(sum(slow_losses(objective.model, row)) for row in made.batches.rows_of(0))
    assert found == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("method", ["full", "lora", "p-tuning", "prefix"])
def test_prompts_are_learnt_by_their_weight_and_by_training_only(
    method: str, head: bool, job: Callable[..., Job]
) -> None:
    made = job(method, head=head, prompt_loss_weight=0.3)
    objective = build(made, Processes())
    batch = made.batches(0)
    inputs, targets = torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)
    with torch.no_grad():
        hidden = objective.hidden(objective.embedded(inputs), objective.forward_pass(inputs))
        answers = float(objective.loss(hidden, targets))
        prompts = sum(_prompt_loss_alone(objective, row) for row in made.batches.rows_of(0))
        assert float(objective(inputs, targets)) == pytest.approx(answers, rel=1e-5)
    learnt = float(objective(inputs, targets).detach())
    assert learnt == pytest.approx(answers + 0.3 * prompts, rel=1e-5)


def _prompt_loss_alone(objective: TuningObjective, row: Row) -> float:
    ids = [int(token) for token in row.context]  # of a head: all
    return -sum(_score_alone(objective, replace(row, first=n), (ids[n],)) for n in range(1, len(ids)))


def test_texts_without_prompts_are_learnt_as_before(tmp_path: Path, tiny_folder: Path) -> None:
    path = write(tmp_path / "texts.jsonl", [{"text": row["text"]} for row in reviews(40)])
    data = read_data(Files(train=path), Wording())
    settings = TuningSettings(method="full", batch=8, dtype="float32")
    made = prepare(settings, str(tiny_folder), data, None)
    batch, objective = made.batches(0), build(made, Processes())
    losses = []
    for weight in (0.0, 1.0):
        objective.prompt_loss_weight = weight
        losses.append(objective(torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)))
    torch.autograd.backward(losses[1])
    assert losses[0].detach() == losses[1].detach()
    with pytest.raises(ConfigError, match="--prompt-loss-weight changes nothing"):
        prepare(replace(settings, prompt_loss_weight=0.1), str(tiny_folder), data, None)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63])
def test_a_seed_that_repeats_another_or_that_no_generator_takes_is_refused(seed: int) -> None:
    with pytest.raises(ConfigError, match=f"seed is {seed}: it must be a whole number from 0"):
        TuningSettings(method="lora", seed=seed)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_prompt_loss_weight_that_cannot_be_meant_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match=f"prompt_loss_weight is {weight}: it must be 0 or a finite number"):
        TuningSettings(method="lora", prompt_loss_weight=weight)


@pytest.mark.parametrize("method", ["full", "lora", "p-tuning", "prefix"])
def test_label_scores_equal_single_rows(method: str, job: Callable[..., Job]) -> None:
    made = job(method)
    objective = build(made, Processes())
    rows = made.dev[:6]
    with torch.no_grad():
        slow = [[_score_alone(objective, row, choice) for choice in row.choices] for row in rows]
    found = label_scores(objective, rows, Processes())
    np.testing.assert_allclose(found, slow, rtol=2e-5, atol=1e-4)


def _score_alone(objective: TuningObjective, row: Row, choice: tuple[int, ...]) -> float:
    ids = torch.tensor([[*row.context.tolist(), *choice]])
    hidden = objective.hidden(objective.embedded(ids), objective.forward_pass(ids))[:, -ids.shape[1] :]
    logits = objective.model.head(hidden)[0].log_softmax(-1)
    return sum(float(logits[row.first - 1 + n, token]) for n, token in enumerate(choice))


def test_a_prefix_of_a_text_equals_the_text_itself(job: Callable[..., Job]) -> None:
    made = job("prefix")
    objective = build(made, Processes())
    text = tuning._starting_text(made)
    ids = made.train[0].ids[:9]
    with torch.no_grad():
        tokens = torch.from_numpy(ids[None])
        found = objective.hidden(objective.embedded(tokens), objective.forward_pass(tokens))
        inlined = torch.tensor([[*text, *ids.tolist()]])
        whole = objective.model.trunk(objective.model.embed(inlined), torch.arange(inlined.shape[1]))
    torch.testing.assert_close(found, whole[:, len(text) :], rtol=1e-4, atol=1e-4)


def test_virtual_tokens_begin_from_the_text_that_is_given(job: Callable[..., Job]) -> None:
    made = job("p-tuning", encoder="none", init_text="바다 하늘 나라 사람", virtual_tokens=3)
    objective, ids = build(made, Processes()), made.tokenizer.encode("바다 하늘 나라 사람")[:3]
    adapter = objective.adapter()
    assert isinstance(adapter, SoftPrompt) and tuning._starting_text(made) == list(ids)
    words = made.stored.floats()["transformer.wte.weight"].to("float32")[list(ids)]
    np.testing.assert_array_equal(adapter.embeddings, words)
    assert tuning._starting_text(job("prefix", init_text="바다", virtual_tokens=9))[:2] == list(
        (list(made.tokenizer.encode("바다")) * 2)[:2]
    )
    with pytest.raises(ConfigError, match="--init-text"):
        job("p-tuning", init_text="바다")
    with pytest.raises(ConfigError, match="--init-text"):
        job("prefix", init_text=" ")


def test_a_metric_sees_its_own_rows_only(job: Callable[..., Job]) -> None:
    """What is measured on one split does not depend on what was measured before."""
    made = job()
    objective = build(made, Processes())
    before = measure(objective, made.dev)
    measure(objective, made.train)
    assert measure(objective, made.dev) == before


# whole runs


@pytest.mark.parametrize(
    ("method", "kind", "rate", "least"),
    [
        ("lora", Lora, 3e-3, 0.95),
        ("prefix", KeyValuePrefix, 2e-2, 0.0),  # random layers: a prefix steers them little
        ("p-tuning", SoftPrompt, 5e-3, 0.0),
        ("full", type(None), 1e-3, 0.95),
    ],
)
def test_a_separable_task_is_learnt_and_the_result_is_read_back(
    method: str,
    kind: type,
    rate: float,
    least: float,
    job: Callable[..., Job],
    tmp_path: Path,
    no_fsync: None,
) -> None:
    made = job(method, epochs=12, rate=rate, patience=100, checks=1)
    before = measure(build(made, Processes()), made.dev)
    outcome = tune(made, tmp_path / "run", Processes())
    assert outcome.end is End.DONE
    assert outcome.metrics["dev"]["loss"] < 0.8 * before["loss"]
    assert outcome.metrics["dev"]["accuracy"] >= least
    objective = build(made, Processes())
    if method == "full":
        tensors = checkpoint.load(outcome.result).floats()
    else:
        saved = peft.load(outcome.result, made.stored)
        assert isinstance(saved.adapter, kind)
        settings = saved.origin.settings
        assert (settings["method"], settings["rate"], settings["batch"]) == (method, rate, 16)
        assert saved.origin.task == "toy" and saved.origin.labels == (" 부정", " 긍정")
        assert (outcome.result / tuning.ENCODER).exists() == (method == "p-tuning")
        if not isinstance(saved.adapter, Lora):
            return
        tensors = merged(made.stored.floats(), saved.adapter)
    plain = TuningObjective(objective.model, objective.compute)
    with torch.no_grad():
        for name, value in plain.model.named_parameters():
            value.copy_(torch.from_numpy(np.array(tensors[name].to("float32"))))
    again = measure(plain, made.dev)
    assert again["loss"] == pytest.approx(outcome.metrics["dev"]["loss"], rel=2e-3)


@pytest.mark.parametrize("method", ["full", "lora", "p-tuning", "prefix"])
def test_a_stopped_run_goes_on_with_the_same_bits(
    method: str, job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_fsync: None
) -> None:
    made, anew = (job(method, epochs=2, checks=1, patience=100) for _ in range(2))
    whole = tune(made, tmp_path / "whole", Processes())
    update = Run.update

    def stop_at_four(self: Run, batch: Any) -> dict[str, Any]:
        found = update(self, batch)
        self._asked = self.step == 4
        return found

    monkeypatch.setattr(Run, "update", stop_at_four)
    stopped = tune(made, tmp_path / "parts", Processes())
    monkeypatch.undo()
    assert stopped.end is End.STOPPED and not stopped.result.exists()
    resumed = tune(anew, tmp_path / "parts", Processes())
    for name in ("model.safetensors",) if method == "full" else (peft.WEIGHTS, peft.OWN):
        assert (resumed.result / name).read_bytes() == (whole.result / name).read_bytes()
    assert resumed.metrics == whole.metrics
    with pytest.raises(ConfigError, match="rate"):
        tune(replace(made, settings=replace(made.settings, rate=1.0)), tmp_path / "parts", Processes())


def test_other_settings_on_a_run_of_before_are_told_and_nothing_is_called_damaged(
    job: Callable[..., Job], rows_file: Path, tmp_path: Path, no_fsync: None
) -> None:
    folder = tmp_path / "run"
    tune(job(epochs=1, checks=1), folder, Processes())
    for changes, told in (
        ({"head": True}, "began with head False, not True"),
        ({"targets": ("q_proj",)}, "began with targets"),
        ({"rank": 8}, "began with rank 16, not 8"),
        ({"rate": 1e-4}, "began with rate 0.0005, not 0.0001"),
        ({"prompt_loss_weight": 0.1}, "began with prompt_loss_weight 0.0, not 0.1"),
    ):
        with pytest.raises(ConfigError, match=told):
            tune(job(epochs=1, checks=1, **changes), folder, Processes())
    turned = read_data(
        Files(train=rows_file), Wording(words=dict(reversed(LABELS.items()))), Choice(dev_share=0.2)
    )
    with pytest.raises(ConfigError, match="began with other rows, or other words for them"):
        tune(replace(job(epochs=1, checks=1), data=turned), folder, Processes())
    # The usual rate, said aloud; and a run that began before a usual rate was noted, or a weight for prompts.
    metrics = folder / "metrics.jsonl"
    first, *rest = metrics.read_text(encoding="utf-8").splitlines()
    noted = json.loads(first) | {"rate": "None"}
    del noted["prompt_loss_weight"]
    metrics.write_text("\n".join([json.dumps(noted), *rest, ""]), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"began with rate 0\.0005, not 0\.0001"):
        tune(job(epochs=1, checks=1, rate=1e-4), folder, Processes())
    for rate in (5e-4, None):
        assert tune(job(epochs=1, checks=1, rate=rate), folder, Processes()).end is End.DONE


@pytest.mark.parametrize("method", ["full", "lora", "p-tuning", "prefix"])
def test_a_killed_run_goes_on_from_its_checkpoint_with_the_same_bits(
    method: str, job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_fsync: None
) -> None:
    """Nothing is saved at the kill: what came after the last checkpoint is done again."""
    made = job(method, epochs=2, checks=2, patience=100)
    whole = tune(made, tmp_path / "whole", Processes())
    update = Run.update

    def die_at_ten(self: Run, batch: Any) -> dict[str, Any]:
        if self.step == 10:
            self.checkpoints.finish()
            raise SystemExit
        return update(self, batch)

    monkeypatch.setattr(Run, "update", die_at_ten)
    with pytest.raises(SystemExit):
        tune(made, tmp_path / "parts", Processes())
    monkeypatch.undo()
    last = checkpoints.latest(tmp_path / "parts")
    assert last is not None and last.name < "step_00000010"
    resumed = tune(job(method, epochs=2, checks=2, patience=100), tmp_path / "parts", Processes())
    for path in whole.result.iterdir():
        assert (resumed.result / path.name).read_bytes() == path.read_bytes(), path.name
    assert resumed.metrics == whole.metrics


def test_passes_of_any_size_learn_alike(job: Callable[..., Job], tmp_path: Path, no_fsync: None) -> None:
    """Gradients of one pass, of several, and of blocks that are computed twice."""
    ways: list[dict[str, Any]] = [{}, {"tokens_per_pass": 64}, {"checkpoint_blocks": True}]
    found = [
        tune(job("lora", epochs=1, checks=1, **way), tmp_path / str(number), Processes())
        for number, way in enumerate(ways)
    ]
    for outcome in found[1:]:
        assert outcome.metrics["dev"]["loss"] == pytest.approx(found[0].metrics["dev"]["loss"], rel=1e-4)


def test_a_run_tells_what_the_model_answers(job: Callable[..., Job], tmp_path: Path, no_fsync: None) -> None:
    made = job("lora", epochs=12, rate=3e-3, checks=1, patience=100)
    tune(made, tmp_path / "run", Processes())
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    samples = [line["samples"] for line in lines if "samples" in line]
    example = made.data.dev[0]
    assert samples[-1][0]["prompt"].endswith(example.prompt) and samples[-1][0]["wanted"] in example.answer
    assert [sample["answer"] for sample in samples[-1]] == [sample["wanted"] for sample in samples[-1]]


def test_a_model_that_does_not_fit_is_refused_with_options_that_do(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = job("lora", batch=16)
    free = int(0.9 * peak(made.stored.config, tuning.work_of(made, Processes()), "cpu"))
    monkeypatch.setattr(tuning, "free_memory", lambda processes: free)
    with pytest.raises(NotEnoughMemory, match=r"use --batch 16 .*--base-dtype"):
        build(made, Processes())


def test_tuning_stops_early_and_keeps_the_best(
    job: Callable[..., Job], tmp_path: Path, no_fsync: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def count(
        objective: TuningObjective, rows: Sequence[Row], *args: Any, **options: Any
    ) -> dict[str, float]:
        calls.append(len(rows))
        return measure(objective, rows, *args, **options)

    monkeypatch.setattr(tuning, "measure", count)
    made = job("full", epochs=50, rate=0.05, patience=1, checks=1)  # far too fast: dev gets worse
    outcome = tune(made, tmp_path / "run", Processes())
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["dev_loss"] for line in lines if "dev_loss" in line]
    assert outcome.end is End.ENOUGH
    assert outcome.metrics["dev"]["loss"] == pytest.approx(min(losses), rel=1e-4)
    assert calls == [len(made.dev)] * len(losses)  # the best is not measured twice
    kept = build(replace(made, stored=checkpoint.load(outcome.result)), Processes())
    assert measure(kept, made.dev)["loss"] == pytest.approx(
        min(losses), rel=1e-2
    )  # its weights are in float16


def test_plain_text_and_completions_are_learnt_whole(tmp_path: Path, tiny_folder: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(f"글자 {n} 뜻" for n in range(9)), encoding="utf-8")
    pairs = write(
        tmp_path / "pairs.jsonl", [{"prompt": f"물음 {n}:", "completion": f" 답 {n}"} for n in range(9)]
    )
    for path in (lines, pairs):
        made = prepare(
            TuningSettings(method="lora"), str(tiny_folder), read_data(Files(train=path), Wording()), None
        )
        row, example = made.train[0], made.data.train[0]
        assert isinstance(example, Example) and example.label is None
        text = made.tokenizer.decode([int(token) for token in row.ids[row.first : -1]])
        assert text == example.answer.strip(" ") or text == example.answer
        assert set(measure(build(made, Processes()), made.dev)) == {"loss"}
        assert tuning._origin(made, made.stored).template is None  # the rows have prompts of their own


def test_the_command_dry_runs_tunes_and_refuses(
    rows_file: Path,
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    no_fsync: None,
) -> None:
    common = ["--data", str(rows_file), "--model", str(tiny_folder), "--device", "cpu", "--dtype", "float32"]
    common += ["--labels", "0= 부정", "1= 긍정", "--epochs", "1", "--json"]
    out = tmp_path / "run"
    assert main(["tune", "lora", *common, "--out", str(out), "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["steps"] == 4 and plan["memory_bytes"] > 0 and plan["fits"] and plan["seconds"] > 0
    assert not out.exists()
    assert main(["tune", "lora", *common, "--out", str(out)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["end"] == "done" and set(found["dev"]) >= {"loss", "accuracy", "macro_f1"}
    assert found["trained_weights"] == plan["trained_weights"]
    assert (out / "metrics.png").stat().st_size > 1000
    assert main(["tune", "lora", "--out", str(out)]) == 2
    assert main(["tune", "lora", *common, "--out", str(out), "--targets", "wte"]) == 2
    with pytest.raises(SystemExit, match="2"):
        main(["tune", "lora", *common, "--out", str(out), "--labels", "0"])
    assert main(["tune", "lora", *common, "--out", str(out), "--score-test"]) == 2
    assert main(["tune", "lora", "nsmc", *common, "--out", str(out), "--test", str(rows_file)]) == 2
    assert main(["tune", "lora", "nsmc", "--out", str(out), "--test", str(rows_file)]) == 2
    assert main(["tune", "embed", "--out", str(out)]) == 2
    plain = write(tmp_path / "plain.jsonl", [{"text": row["text"]} for row in reviews(20)])
    own = ["tune", "lora", "--data", str(plain), "--out", str(out), "--template", "{text}"]
    assert main(own) == 2
    assert (
        main(["tune", "lora", *common, "--out", str(out), "--dev", str(rows_file), "--dev-share", "0.1"]) == 2
    )
    monkeypatch.setattr("kogpt.cli.tune.find_spec", lambda name: None if name == "matplotlib" else name)
    assert main(["tune", "lora", *common, "--out", str(out)]) == 2
    assert capsys.readouterr().err.count("kogpt: ") == 9


def test_embed_is_not_asked_for_a_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method in METHODS:
        assert main(["tune", method, "--out", str(tmp_path)]) == 2
        assert ("TASK" in capsys.readouterr().err) == (method != "embed")
        with pytest.raises(SystemExit):
            main(["tune", method, "--help"])
        assert ("TASK" in capsys.readouterr().out) == (method != "embed")


def test_a_dry_run_tells_its_facts_in_the_language_of_the_user(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"rows": 1200, "memory_bytes": 3 * 10**9, "fits": True, "instead": None, "seconds": 90.0}
    told = {
        "C": ["rows: 1,200", "memory: 3.0 GB", "fits: yes", "time: 1.5 min"],
        "ko_KR.UTF-8": ["학습 행: 1,200", "메모리 합계: 3.0 GB", "들어가는지: 예", "시간: 1.5분"],
    }
    for locale, lines in told.items():
        monkeypatch.setenv("LC_ALL", locale)
        _tell(facts, as_json=False)
        assert capsys.readouterr().out.splitlines() == lines
        _tell({**facts, "fits": False, "instead": ["--batch", "2"], "seconds": None}, as_json=False)
        assert "--batch 2" in capsys.readouterr().out
        _tell({**facts, "fits": False, "seconds": None}, as_json=False)
        shown = capsys.readouterr().out
        assert "None" not in shown and "False" not in shown and ": -" not in shown


def test_a_run_tells_its_splits_in_the_language_of_the_user(
    rows_file: Path,
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    no_fsync: None,
) -> None:
    monkeypatch.setenv("LC_ALL", "ko_KR.UTF-8")
    words = ["tune", "lora", "--data", str(rows_file), "--model", str(tiny_folder), "--device", "cpu"]
    words += ["--out", str(tmp_path / "run"), "--epochs", "0.1", "--checks", "1", "--test", str(rows_file)]
    assert main([*words, "--score-test", "--allow-overlap"]) == 0
    captured = capsys.readouterr()
    assert [line.split(":")[0] for line in captured.out.splitlines()[:2]] == ["검증", "시험"]
    assert "시험 행 120개를 재는 중 ..." in captured.err and "loss 4" not in captured.err


def test_every_fact_of_a_dry_run_has_a_korean_name(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LC_ALL", "ko_KR.UTF-8")
    _tell(estimate(job(batch=4), Processes()), as_json=False)
    assert not re.search("[A-Za-z]{3}", capsys.readouterr().out)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_a_revision(
    method: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(name: str, revision: str, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        return str(tiny_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    if method == "embed":
        rows: list[dict[str, Any]] = [{"text1": f"글 {n}", "text2": f"말 {n}"} for n in range(40)]
    else:
        rows = reviews(40)
    words = ["tune", method, "--data", str(write(tmp_path / "rows.jsonl", rows)), "--device", "cpu"]
    words += ["--out", str(tmp_path / "out"), "--model", "kakaobrain/kogpt", "--batch", "2", "--dry-run"]
    for revision in ([], ["--revision", "KoGPT6B-ryan1.5b"]):
        assert main([*words, *revision]) == 0
    assert asked == [("kakaobrain/kogpt", f"KoGPT6B-ryan1.5b{end}") for end in ("-float16", "")]


def test_lora_learns_six_matrices_of_every_block(job: Callable[..., Job]) -> None:
    objective = build(job(rank=4), Processes())
    config = objective.model.config
    adapter = objective.adapter()
    assert isinstance(adapter, Lora) and len(adapter.updates) == 6 * config.n_layers
    assert {update.scale for update in adapter.updates.values()} == {16 / 2}
    per_block = 4 * 2 * config.d_model + 2 * (config.d_model + config.d_ff)
    assert n_trained(objective) == 4 * config.n_layers * per_block


@pytest.mark.parametrize("method", ["lora", "p-tuning", "prefix"])
def test_an_adapter_serves_the_scores_that_it_was_measured_by(
    method: str, job: Callable[..., Job], tiny_folder: Path, tmp_path: Path, no_fsync: None
) -> None:
    made = job(method, epochs=1, rate=0.01, checks=1)
    outcome = tune(made, tmp_path / "run", Processes())
    served = KoGPT.from_pretrained(tiny_folder, adapter=outcome.result)
    examples = made.data.dev[:4]
    found = [served.score(example.prompt, made.data.wording.labels) for example in examples]
    plain = KoGPT.from_pretrained(tiny_folder)
    guesses = [int(np.argmax(scores)) for scores in found]
    assert (
        np.abs(np.subtract(found, [plain.score(e.prompt, made.data.wording.labels) for e in examples])).max()
        > 0.1
    )
    objective = build(made, Processes())
    path = checkpoints.best(tmp_path / "run")
    assert path is not None
    run = Run(
        tmp_path / "run",
        objective,
        made.settings.training(made.batches),
        Processes(),
        Report(tmp_path / "run"),
        tuning._identity(made),
    )
    checkpoints.restore(path, run.learner, run.identity, Processes())
    slow = label_scores(objective, made.dev[:4], Processes())
    assert guesses == [int(np.argmax(scores)) for scores in slow]
    np.testing.assert_allclose(found, slow, rtol=1e-3, atol=2e-3)


# heads and embeddings


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # of peft
def test_a_head_learns_and_answers_alike_here_and_in_transformers(
    job: Callable[..., Job], tiny_folder: Path, tmp_path: Path, no_fsync: None
) -> None:
    from peft import PeftModel
    from transformers import GPTJForSequenceClassification

    made = job("lora", head=True, epochs=8, rate=3e-3, patience=100, checks=1)
    outcome = tune(made, tmp_path / "run", Processes())
    assert outcome.metrics["dev"]["accuracy"] >= 0.95
    examples = made.data.dev[:5]
    served = KoGPT.from_pretrained(tiny_folder, adapter=outcome.result)
    found = served.label_scores([example.text for example in examples])
    base = GPTJForSequenceClassification.from_pretrained(tiny_folder, num_labels=2)
    theirs = PeftModel.from_pretrained(base, outcome.result).eval()
    for example, scores in zip(examples, found, strict=True):
        ids = torch.tensor([made.tokenizer.encode_prompt(example.prompt)])
        with torch.no_grad():
            logits = theirs(input_ids=ids).logits[0]
        np.testing.assert_allclose(scores, logits.numpy(), rtol=1e-3, atol=2e-3)
    assert [int(np.argmax(scores)) for scores in found] == [example.label for example in examples]


def pairs(count: int) -> list[dict[str, Any]]:
    """Pairs of texts that share a word, and its grade."""
    rows = reviews(count, seed=3)
    return [{"text1": row["text"], "text2": f"{row['text']} 말", "score": 5.0 * row["label"]} for row in rows]


def test_grades_are_learnt_in_both_orders(tiny_folder: Path, tmp_path: Path, no_fsync: None) -> None:
    path = write(tmp_path / "pairs.jsonl", pairs(60))
    data = read_data(Files(train=path), Wording("{text1}/{text2}="), Choice(dev_share=0.3))
    settings = TuningSettings(
        method="lora", head=True, batch=8, epochs=5, rate=5e-3, checks=1, patience=100, dtype="float32"
    )
    made = prepare(settings, str(tiny_folder), data, None)
    assert len(made.train) == 2 * len(data.train) and made.train[0].item == made.train[1].item
    assert made.tokenizer.decode([int(token) for token in made.train[1].ids]) == data.train[0].swapped
    outcome = tune(made, tmp_path / "run", Processes())
    assert outcome.metrics["dev"]["spearman"] > 0.8
    served = KoGPT.from_pretrained(tiny_folder, adapter=outcome.result)
    one, other = data.dev[0].text.split("\n")
    [[score], [same]] = served.label_scores([(one, other), (other, one)])
    assert score == pytest.approx(same, abs=1e-3)
    assert score == pytest.approx(data.dev[0].grade, abs=2.0)
    with pytest.raises(ConfigError, match="--head"):
        prepare(replace(settings, head=False), str(tiny_folder), data, None)


@pytest.mark.parametrize("method", ["full", "p-tuning", "prefix"])
def test_a_head_learns_beside_every_method(
    method: str, job: Callable[..., Job], tiny_folder: Path, tmp_path: Path, no_fsync: None
) -> None:
    made = job(method, head=True, epochs=4, rate=1e-2, patience=100, checks=1)
    outcome = tune(made, tmp_path / "run", Processes())
    model = outcome.result if method == "full" else tiny_folder
    served = KoGPT.from_pretrained(model, adapter=tmp_path / "run" / "adapter")
    found = served.label_scores([example.text for example in made.data.dev]).argmax(axis=1)
    right = float(np.mean(found == [example.label for example in made.data.dev]))
    assert right == pytest.approx(outcome.metrics["dev"]["accuracy"], abs=0.04) and right >= 0.7


def slow_contrast(texts: list[str], vectors: list[np.ndarray[Any, Any]], temperature: float) -> float:
    """InfoNCE of pairs (0, 1), (2, 3), ..., one text after the other; equal texts are one text."""
    units = [vector / np.linalg.norm(vector) for vector in vectors]
    total = 0.0
    for number, own in enumerate(units):
        known = {texts[number]} | {texts[n ^ 1] for n, text in enumerate(texts) if text == texts[number]}
        strangers = [n for n, text in enumerate(texts) if text not in known]
        likeness = {n: own @ units[n] / temperature for n in (number ^ 1, *strangers)}
        total += np.log(sum(np.exp(value) for value in likeness.values())) - likeness[number ^ 1]
    return total


@pytest.mark.parametrize("batch", [6, 100])  # the second holds the text that stands in two pairs
def test_contrastive_loss_equals_its_slow_twin_and_serves_embeddings(
    batch: int, tiny_folder: Path, tmp_path: Path, no_fsync: None
) -> None:
    again = {"text1": pairs(1)[0]["text1"], "text2": "다른 짝"}
    path = write(tmp_path / "pairs.jsonl", [*pairs(40), again])
    data = read_data(Files(train=path), Wording(), Choice(dev_share=0.2), pairs=True)
    made = prepare(
        TuningSettings(method="embed", batch=batch, epochs=4, rate=1e-3, dtype="float32", patience=100),
        str(tiny_folder),
        data,
        None,
    )
    objective = build(made, Processes())
    assert isinstance(objective, ContrastObjective)
    plain = KoGPT.from_pretrained(tiny_folder)
    rows = made.batches.rows_of(0)
    texts = [
        text for row in rows for text in next(e for e in data.train if e.origin == row.origin).pair or ()
    ]
    inputs, targets = made.batches(0).inputs, made.batches(0).targets
    with torch.no_grad():
        found = float(objective(torch.from_numpy(inputs), torch.from_numpy(targets)))
    assert found == pytest.approx(
        slow_contrast(texts, list(plain.embed(texts)), objective.temperature), rel=1e-3
    )
    [dev] = [[text for e in data.dev for text in e.pair or ()]]
    alone = slow_contrast(dev, list(plain.embed(dev)), objective.temperature) / len(dev)
    assert measure(objective, made.dev)["loss"] == pytest.approx(alone, rel=1e-3)
    before = measure(objective, made.dev)
    outcome = tune(made, tmp_path / "run", Processes())
    assert outcome.metrics["dev"]["loss"] < before["loss"]
    tuned = KoGPT.from_pretrained(tiny_folder, adapter=outcome.result)
    one, other = data.dev[0].pair or ("", "")
    assert np.abs(tuned.embed([one]) - plain.embed([one])).max() > 1e-3
    assert tuned.embed([one, other]).shape == (2, made.stored.config.d_model)
