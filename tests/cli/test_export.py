"""`kogpt export`, as a user types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import TINY
from korean import PROSE
from test_adapter import MODULES, random_lora

from kogpt import checkpoint, native_runner, peft
from kogpt.cli import main
from kogpt.export.folder import with_lora as merge
from kogpt.export.verify import compare
from kogpt.peft import SavedAdapter

pytestmark = [
    pytest.mark.skipif(not native_runner.available(), reason="the kernels were not built"),
    pytest.mark.usefixtures("no_fsync"),
]


def export(*words: object) -> int:
    return main(["export", *map(str, words)])


def test_export_then_use(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, text = tmp_path / "out", tmp_path / "글.txt"
    text.write_bytes("\n".join(PROSE * 20).encode("cp949"))
    assert export("int4", "--model", tiny_folder, "--out", out, "--calibration", text) == 0
    printed = capsys.readouterr()
    assert printed.out == "" and "int4" in printed.err and "MB" in printed.err
    assert checkpoint.load(out).quantization == "int4"
    assert main(["generate", "옛날", "--model", str(out), "--max-tokens", "3"]) == 0
    assert main(["info", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["stored"] == {
        "format": "int4",
        "bytes": sum(path.stat().st_size for path in out.glob("*.safetensors")),
    }
    assert main(["info", str(out)]) == 0
    assert "stored as  int4" in capsys.readouterr().out
    assert main(["info", str(tiny_folder)]) == 0
    assert "stored as  float32" in capsys.readouterr().out


def test_int4_by_text_that_the_model_writes(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kogpt.export.folder.MAX_WINDOWS", 4)
    assert export("int4", "--model", tiny_folder, "--out", tmp_path / "own", "--own-text") == 0
    assert export("int4", "--model", tiny_folder, "--out", tmp_path / "plain") == 0
    own, plain = (checkpoint.load(tmp_path / name) for name in ("own", "plain"))
    assert own.quantization == "int4"
    assert (own.floats()["lm_head.weight"].array != plain.floats()["lm_head.weight"].array).any()


def test_a_model_is_replaced_only_with_force(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert export("float16", "--model", tiny_folder, "--out", out) == 0
    assert export("int8", "--model", tiny_folder, "--out", out) == 2
    assert "--force" in capsys.readouterr().err
    monkeypatch.setenv("LC_ALL", "ko_KR.UTF-8")
    assert export("int8", "--model", tiny_folder, "--out", out) == 2
    assert "이미 모델이 있습니다" in capsys.readouterr().err
    assert export("int8", "--model", tiny_folder, "--out", out, "--force") == 0
    assert "int8 형식" in capsys.readouterr().err
    assert checkpoint.load(out).quantization == "int8"


@pytest.mark.parametrize("with_lora", [False, True])
def test_a_quantised_model_is_not_quantised_again(
    with_lora: bool, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor with a LoRA in its weights; floats of it are what it computes with."""
    int8, out = tmp_path / "int8", tmp_path / "out"
    peft.save(tmp_path / "lora", SavedAdapter(random_lora(MODULES)), TINY)
    words: list[object] = ["--adapter", tmp_path / "lora"] if with_lora else []
    assert export("int8", "--model", tiny_folder, "--out", int8) == 0
    for dtype in (["int4"], ["int8"], ["gguf", "--type", "Q8_0"], ["gguf", "--type", "Q4_0"]):
        capsys.readouterr()
        assert export(*dtype, "--model", int8, "--out", out, *words) == 2
        error = capsys.readouterr().err
        assert "export it from the original model, or in a float format" in error
        assert "--dtype" not in error and "in int8 and cannot become int8" not in error and not out.exists()
    assert export("float32", "--model", int8, "--out", out, *words, "--verify") == 0
    assert "equal first choices: 64 / 64" in capsys.readouterr().err
    stored = checkpoint.load(int8)
    if with_lora:
        stored = merge(stored, tmp_path / "lora")
    assert stored.quantization == (None if with_lora else "int8")
    assert compare(stored, checkpoint.load(out)).largest == 0


def test_an_adapter_is_replaced_only_with_force(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By one of the same format; never a model, nor an adapter that was tuned."""
    own, out, other = tmp_path / "own", tmp_path / "out", tmp_path / "other"
    peft.save(own, SavedAdapter(random_lora(MODULES)), TINY)
    words = ["peft", "--model", tiny_folder, "--adapter", own]
    assert export(*words, "--out", out) == 0
    assert export(*words, "--out", out) == 2
    assert "holds an adapter already" in capsys.readouterr().err
    assert export(*words, "--out", out, "--force") == 0
    (other / "x").mkdir(parents=True)
    for place in (own, other, shutil.copytree(tiny_folder, tmp_path / "model")):
        before = sorted(place.iterdir())
        assert export(*words, "--out", place, "--force") == 2
        assert "other files than an adapter's" in capsys.readouterr().err
        assert sorted(place.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["peft", "--out", "x", "--verify"], "--verify serves the formats of models"),
        (["gguf-lora", "--out", "x", "--own-text"], "--own-text serves the formats of models"),
        (["int4"], "--out"),
        (["int5", "--out", "x"], "int5"),
        (["int4", "--out", "x", "--model", "gone"], "no model folder"),
        (["int4", "--out", "x", "--calibration", "gone.txt"], "cannot read gone.txt"),
        (["int8", "--out", "x", "--calibration", "README.md"], "--calibration serves int4 only"),
        (["phi", "--out", "x", "--own-text"], "--own-text serves int4 only"),
        (["int4", "--out", "x", "--own-text", "--calibration", "README.md"], "not allowed with"),
        (["int8", "--out", "x", "--adapter", "gone"], "no adapter 'gone'"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("글")
    try:
        code = export(*words)
    except SystemExit as stop:
        code = int(stop.code or 0)
    error = capfd.readouterr().err
    assert code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "x").exists()
