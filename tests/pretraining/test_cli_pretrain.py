"""`kogpt pretrain` as a person types it: tokenizer, pack, plan, toy; bad input gives one line and code 2."""

from __future__ import annotations

import io
import json
import random
import shlex
from collections import deque
from pathlib import Path

import pytest

from kogpt.cli import main, pretrain
from kogpt.errors import InputError
from kogpt.pretraining import sample, toy
from kogpt.pretraining.corpus import Reading
from kogpt.pretraining.shards import Shards
from kogpt.tokenizer import Tokenizer
from kogpt.training.loop import End

DOCS = Path(__file__).parents[2] / "docs" / "pretraining.md"
PARTS = [
    "나라",
    "말",
    "서로",
    "달라",
    "백성",
    "사람",
    "마침내",
    "뜻",
    "바다",
    "하늘",
    "학교",
    "노래",
    "이야기",
    "오늘",
]
ENDS = ["이", "가", "을", "는", "에서", "으로", "하고", "했다", "한다", "였다"]


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choice(PARTS) + rng.choice(ENDS) for _ in range(rng.randint(8, 30))) + "."


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    lines = [json.dumps({"text": sentence(rng)}, ensure_ascii=False) for _ in range(1500)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer_folder(corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    assert main(["pretrain", "tokenizer", str(corpus_file), "--vocab", "320", "--out", str(out)]) == 0
    return out


def test_tokenizer_has_the_size_asked_for(tokenizer_folder: Path) -> None:
    assert Tokenizer.from_file(tokenizer_folder / "tokenizer.json").n_vocab == 320


def test_tokenizer_is_measured_on_text_it_has_not_seen(
    corpus_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["pretrain", "tokenizer", str(corpus_file), "--vocab", "320", "--out", str(tmp_path), "--json"]
    assert main(command) == 0
    facts = json.loads(capsys.readouterr().out)
    texts = list(sample.read_texts([corpus_file], Reading(), 0))
    held_out = list(sample.held_out_texts(texts))
    assert set(held_out).isdisjoint(sample.training_texts(texts, 1.0))
    assert len(held_out) + len(list(sample.training_texts(texts, 1.0))) == len(texts)
    assert facts["held_out_documents"] == len(held_out) > 5
    tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.json")
    tokens = sum(len(tokenizer.encode(text)) for text in held_out)
    assert facts["characters_per_token"] == round(sum(map(len, held_out)) / tokens, 4)
    assert facts["bytes_per_token"] == round(sum(len(text.encode()) for text in held_out) / tokens, 4)


def test_tokenizer_can_be_measured_on_other_files(
    corpus_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("나라 말이 서로 다르다.\n", encoding="utf-8")
    command = ["pretrain", "tokenizer", str(corpus_file), "--vocab", "300", "--out", str(tmp_path)]
    assert main([*command, "--held-out", str(other)]) == 0
    assert "held out documents: 1\n" in capsys.readouterr().out


def test_bad_records_are_judged_on_the_whole_corpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by `tokenizer`: two of the first block's records are too many of it, but not of all."""
    rng, path = random.Random(2), tmp_path / "a.jsonl"
    lines = ["{oops"] * 2 + [json.dumps({"text": sentence(rng)}, ensure_ascii=False) for _ in range(1998)]
    path.write_text("\n".join(lines), encoding="utf-8")
    reading = Reading(block_bytes=2000)
    assert len(list(sample.read_texts([path], reading, 0.001))) == 1998
    texts = sample.read_texts([path], reading, 0.0009)
    with pytest.raises(InputError, match=r"2 of 2000 records are bad, over 0.09% .*:1: .*; .*:2: "):
        deque(texts, maxlen=0)
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setattr(sample, "MEASURED_BYTES", 100)
    command = ["pretrain", "tokenizer", str(path), "--vocab", "300", "--out", str(tmp_path / "t")]
    assert main([*command, "--max-bad-share", "0.0009"]) == 2
    assert "2 of 2000 records are bad" in capsys.readouterr().err
    other = tmp_path / "other.jsonl"  # bad after what is measured
    other.write_text("\n".join(reversed(lines)), encoding="utf-8")
    assert main([*command, "--held-out", str(other)]) == 0
    command[-1] = str(tmp_path / "u")
    other.write_text("\n".join(reversed(lines[:1000])), encoding="utf-8")
    assert main([*command, "--held-out", str(other)]) == 2
    assert "2 of 1000 records are bad" in capsys.readouterr().err
    assert not (tmp_path / "u").exists()


def test_a_toy_may_have_bad_records(
    corpus_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(corpus_file.read_bytes() + b"{oops\n" * 2)
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setattr(toy, "train", lambda made, live: End.DONE)
    command = ["pretrain", "toy", str(path), "--out", str(tmp_path / "toy")]
    assert main(command) == 2
    assert "2 of 1502 records are bad" in capsys.readouterr().err
    assert main([*command, "--max-bad-share", "0.01"]) == 0
    assert json.loads((tmp_path / "toy/shards/report.json").read_text())["bad"] == 2


def test_a_share_of_the_documents_is_the_same_in_any_order() -> None:
    texts = [str(number) for number in range(10_000)]
    third = set(sample.training_texts(texts, 1 / 3))
    assert third == set(sample.training_texts(reversed(texts), 1 / 3))
    assert len(third) == pytest.approx(3333, rel=0.05)
    assert len(list(sample.held_out_texts(texts))) == pytest.approx(100, rel=0.3)


def test_pack_by_command(
    corpus_file: Path,
    tokenizer_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "shards"
    command = ["pretrain", "pack", str(corpus_file), "--tokenizer", str(tokenizer_folder), "--out", str(out)]
    assert main([*command, "--workers", "1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["records"], facts["documents"], facts["tokens"]) == (1500, 1500, len(Shards(out)))
    assert main([*command, "--workers", "2"]) == 0  # finished already
    assert "documents: 1,500\n" in capsys.readouterr().out
    monkeypatch.chdir(out)
    assert main([*command[:-1], "."]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pack", "nothing.txt", "--tokenizer", "t", "--out", "o"], "nothing.txt: no such file"),
        (["pack", "a.txt", "--tokenizer", "no.json", "--out", "o"], "no.json is missing"),
        (["pack", "a.txt", "--tokenizer", "no.json", "--out", "o", "--near", "7"], "from 0.2 to 1"),
        (["pack", "a.txt", "--tokenizer", "t", "--out", "o", "--without-filter", "x"], "no filter x"),
        (["tokenizer", "a.txt", "--out", "o", "--vocab", "300"], "none of these documents is held out"),
        (["tokenizer", "a.txt", "--held-out", "a.txt", "--out", "o", "--vocab", "9"], "9 is too small"),
        (["tokenizer", "a.txt", "--held-out", "a.txt", "--out", "o", "--vocab", "300"], "vocabulary of"),
        (["tokenizer", "a.txt", "--out", "there"], "there/tokenizer.json exists, and shards and models"),
        (["run", "no.toml", "--out", "o", "--plot", "x.foo"], "--plot x.foo: give the name of a .png"),
        (["run", "no.toml", "--out", "o", "--plot", "no/x.png"], "in a folder that exists"),
        (["run", "no.toml", "--out", "o"], "no.toml cannot be read"),
        (["plan", "--gpu", "tpu"], "GPU 'tpu' is not in the table"),
        (["plan", "--gpus", "1"], "too few GPUs (1)"),
        (["plan", "--gpus", "0"], "GPUs 0: must be above 0"),
        (["plan", "--tokens", "0"], "tokens 0.0: must be above 0"),
        (["plan", "--price", "-1"], "GPU dollars -1.0: must be above 0"),
        (["plan", "--shape", "nothing"], "nothing is no named shape (kogpt-6b"),
        (["plan", "--shape", "list.json"], "list.json is no named shape (kogpt-6b"),
        (["plan", "--shape", "deep.json"], "deep.json is no named shape (kogpt-6b"),
        (["toy", "a.txt", "--out", "o"], "bytes of text are too few for a toy"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LC_ALL", "C")
    Path("a.txt").write_text("나라 말이 서로 달라 어린 백성이 말하고자 하는 바가 있어도\n", encoding="utf-8")
    Path("list.json").write_text("[1]", encoding="utf-8")
    Path("deep.json").write_text("[" * 100_000, encoding="utf-8")
    Path("there").mkdir()
    Path("there/tokenizer.json").touch()
    assert main(["pretrain", *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == "" and not Path("o/tokenizer.json").exists()
    assert output.err.startswith("kogpt: ") and message in output.err and output.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["nothing"], ["pack"], ["pack", "a", "--workers", "0"]),
        *(["tokenizer", "a", "--out", "o", "--share", share] for share in ("nan", "0", "7", "half")),
    ],
)
def test_wrong_commands_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", *arguments])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_plan_takes_other_figures(capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--tflops", "100", "--memory", "80", "--network", "10", "--price", "2", "--mfu", "0.5"]
    own += ["--optimizer", "adamw"]
    assert main(["pretrain", "plan", "--gpus", "8", "--tokens", "1e9", *own, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["mfu"] == pytest.approx(0.5)
    assert facts["dollars"] == pytest.approx(facts["days"] * 24 * 8 * 2)
    assert facts["days"] == pytest.approx(1e9 / facts["tokens_per_day"])


def test_time_left_is_that_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """50 MB are in parts of a run that was killed; 10 more take 20 s by this clock."""
    stderr = Terminal()
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("LC_ALL", "C")
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr("time.monotonic", lambda: float(next(now)))
    with (tmp_path / "corpus.jsonl").open("wb") as file:
        file.truncate(100 * 10**6)
    with pretrain._megabytes([tmp_path / "corpus.jsonl"]) as progress:
        progress(50 * 10**6)
        assert "50/100" in stderr.getvalue() and "left" not in stderr.getvalue()
        progress(60 * 10**6)
        assert stderr.getvalue().endswith("60/100  120 s left")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def documented_plans() -> list[tuple[str, str]]:
    """Every `kogpt pretrain plan` of the page with the output shown below it."""
    blocks = DOCS.read_text(encoding="utf-8").split("```\n$ kogpt ")[1:]
    parts = [block.split("```", 1)[0].split("\n", 1) for block in blocks]
    return [(command, output) for command, output in parts if command.startswith("pretrain plan")]


def test_the_documented_plans_are_current(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page is made by the command: paste its output if this fails."""
    monkeypatch.setenv("LC_ALL", "C")
    assert len(documented_plans()) >= 2
    for command, output in documented_plans():
        assert main(shlex.split(command)) == 0
        assert capsys.readouterr().out == output


def test_every_command_of_the_page_is_possible() -> None:
    """Each is parsed; the files that it names need not exist."""
    from kogpt.cli import command as parser_of

    page = DOCS.read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [
        line.removeprefix("$ ") for line in page.splitlines() if line.startswith(("$ kogpt ", "kogpt "))
    ]
    assert len(commands) >= 6
    for line in commands:
        words = shlex.split(line)[1:]
        if words[0] == "pretrain":
            _, parser = parser_of("pretrain")
            assert parser.parse_known_args(words[1:])[1] == []


def test_a_toy_from_one_text_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way in one command: the model that comes out is loaded and writes."""
    from kogpt import KoGPT, Sampling

    rng = random.Random(1)
    text = tmp_path / "novel.txt"
    text.write_text("\n".join(sentence(rng) for _ in range(400)), encoding="utf-8")
    out = tmp_path / "toy"
    command = ["pretrain", "toy", str(text), "--out", str(out), "--steps", "2"]
    assert main(command) == 0
    model = KoGPT.from_pretrained(str(toy.Toy(out).model))
    result = model.generate("나라", Sampling(max_tokens=4, seed=0))
    assert len(result.tokens) <= 4 and model.config.n_ctx == toy.CONTEXT
    capsys.readouterr()
    assert main(command) == 0  # nothing is left to do
    assert "step" not in capsys.readouterr().err
    assert main([*command[:-1], "3"]) == 2
    assert "recipe.toml says steps = 2: leave --steps out" in capsys.readouterr().err
    picture, other = tmp_path / "loss.png", tmp_path / "other"
    again = ["pretrain", "run", str(out / "recipe.toml"), "--out", str(other), "--plot", str(picture)]
    assert main([*again, "--set", "schedule.steps=1", "--set", "model.n_layers=1"]) == 0
    assert KoGPT.from_pretrained(str(other / "model")).config.n_layers == 1
    assert picture.read_bytes().startswith(b"\x89PNG")
