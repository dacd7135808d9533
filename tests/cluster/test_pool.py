"""Batch work by Ray on a local cluster: the output of one process, whatever happens to the workers."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kogpt.cli import main, workers
from kogpt.cluster.pool import Kept, Pool, spread
from kogpt.errors import KoGPTError, PromptError

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """One cluster for all tests, as `ray start --head` would leave it; it takes seconds to begin."""
    context = ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 << 20, log_to_driver=False)
    address = context.address_info["gcs_address"]
    os.environ["RAY_ADDRESS"] = address
    yield address
    os.environ.pop("RAY_ADDRESS", None)
    ray.shutdown()


@pytest.fixture(autouse=True)
def connected(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run joins the cluster of the module and leaves it running."""
    monkeypatch.setattr(ray, "init", lambda *_, **__: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)


def doubled(log: Path) -> Callable[[], Callable[[int], list[int]]]:
    """What makes the work; nested, so that workers need not import this file."""

    def make() -> Callable[[int], list[int]]:
        return work

    def work(part: int) -> list[int]:
        with (log / f"{part}").open("a") as file:
            file.write("x")
        if part == 3 and not (log / "killed").exists():
            (log / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05 if part == 0 else 0)  # the first ends after others
        return [part, 2 * part]

    return make


def test_a_killed_worker_is_replaced_and_nothing_is_lost(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    parts = list(range(9))
    kept = Kept(tmp_path / "parts", {"run": 1})
    make = doubled(tmp_path / "log")
    assert list(spread(Pool(2, "auto"), make, parts, kept)) == [[n, 2 * n] for n in parts]
    assert (tmp_path / "log" / "killed").exists()
    tries = {n: len((tmp_path / "log" / str(n)).read_text()) for n in parts}
    assert tries[3] == 2 and sorted(path.name for path in (tmp_path / "parts").glob("0*")) == [
        f"{n:06}.json" for n in parts
    ]
    # The same run again reads what is there; without a part, it computes that one.
    (tmp_path / "parts" / "000005.json").unlink()
    again = Kept(tmp_path / "parts", {"run": 1})
    assert list(spread(Pool(2, "auto"), make, parts, again)) == [[n, 2 * n] for n in parts]
    assert {n: len((tmp_path / "log" / str(n)).read_text()) for n in parts} == tries | {5: tries[5] + 1}
    with pytest.raises(KoGPTError, match="parts of another run"):
        Kept(tmp_path / "parts", {"run": 2})


def test_what_a_worker_raises_reaches_the_caller() -> None:
    def refuse() -> Callable[[int], int]:
        raise PromptError("no model", "모델 없음")

    with pytest.raises(PromptError, match="no model"):
        list(spread(Pool(1, "auto"), refuse, [1, 2]))
    with pytest.raises(KoGPTError, match="from 1 to"):
        Pool(0)


def records(out: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in out.splitlines()]


def test_generate_and_classify_print_what_one_process_prints(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kogpt.cli.generate.PART", 3)
    file = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"prompt": f"{n}번째 글은", "id": n}, ensure_ascii=False) for n in range(10)]
    lines[4] = json.dumps({"prompt": ""})
    file.write_text("\n".join(lines), encoding="utf-8")
    model = ["--model", str(tiny_folder), "--device", "cpu"]
    command = [
        "generate",
        "--file",
        str(file),
        "--json",
        "--seed",
        "3",
        "-n",
        "2",
        "--max-tokens",
        "6",
        *model,
    ]
    assert main(command) == 2  # one prompt is empty
    alone = capsys.readouterr().out
    assert main([*command, "--workers", "2", "--ray", "auto", "--parts", str(tmp_path / "parts")]) == 2
    assert records(capsys.readouterr().out) == records(alone) and len(records(alone)) == 19
    command = ["classify", "--labels", "긍정,부정", "--format", "tsv", "--file", str(file), *model]
    lines[4] = lines[5]
    file.write_text("\n".join(line.replace("prompt", "text") for line in lines), encoding="utf-8")
    assert main(command) == 0
    alone = capsys.readouterr().out
    assert main([*command, "--workers", "2", "--ray", "auto"]) == 0
    assert capsys.readouterr().out == alone


TASK = """
data = "data.tsv"
label = "label"
prompt = "{document}\\n정답:"
labels = { "0" = " 부정", "1" = " 긍정" }
metric = ["accuracy", "macro_f1"]
"""


def test_eval_reports_what_one_process_reports(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        "document\tlabel",
        *(f"글 {n}은 {'좋다' if n % 3 else '싫다'}\t{int(n % 3 > 0)}" for n in range(30)),
    ]
    (tmp_path / "data.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (tmp_path / "own.toml").write_text(TASK, encoding="utf-8")
    command = [
        "eval",
        str(tmp_path / "own.toml"),
        "--shots",
        "0,1",
        "--seeds",
        "1",
        "--limit",
        "8",
        "--no-tfidf",
        "--json",
    ]
    command += ["--model", str(tiny_folder), "--device", "cpu"]
    made: list[str] = []

    def watched(*args: Any) -> Iterator[Any]:
        for files in workers.spread(*args):
            made.extend(files)
            yield files

    monkeypatch.setattr("kogpt.cli.eval.spread", watched)
    assert main([*command, "--out", str(tmp_path / "alone")]) == 0
    alone = capsys.readouterr().out
    assert main([*command, "--out", str(tmp_path / "spread"), "--workers", "2", "--ray", "auto"]) == 0
    assert capsys.readouterr().out == alone and '"own"' in alone
    for path in (tmp_path / "alone").glob("**/*.[cj]s*"):
        twin = tmp_path / "spread" / path.relative_to(tmp_path / "alone")
        assert twin.read_bytes() == path.read_bytes(), path
    assert sorted(made) == sorted(path.name for path in (tmp_path / "alone" / "batches").glob("*.jsonl"))


def test_options_that_need_workers_say_so(tmp_path: Path) -> None:
    assert main(["generate", "--parts", str(tmp_path), "가"]) == 2
    assert main(["eval", "nsmc", "--ray", "auto"]) == 2
