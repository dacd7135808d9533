"""Programs that know OpenAI's API and not KoGPT, unchanged: lm-evaluation-harness, llm and curl.

The openai package is in test_openai.py and test_dialects.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from serving import Running
from small import small_copa

from kogpt import KoGPT
from kogpt.evaluation import harness
from kogpt.evaluation.evaluate import EvaluatedModel, Settings, evaluate, read_data

PROMPT = "옛날 옛적에"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the harness' own, and of what it imports
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_harness_measures_over_http_what_kogpt_eval_measures(
    server: Running, model: KoGPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    for name in ("HF_HUB_OFFLINE", "HF_EVALUATE_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    from lm_eval.api.registry import get_model

    from kogpt.evaluation.harness import rows

    task = small_copa(tmp_path, n_test=20)
    settings = Settings(folder=tmp_path)
    subject = EvaluatedModel("tiny", model, {})
    ours = evaluate(subject, task, task.prompt("harness"), settings).seeds[0]
    scored = read_data(task, settings).scored
    lm = get_model("local-completions")(
        base_url=f"{server.url}/v1/completions",
        model=server.service.base.name,
        tokenizer_backend="huggingface",
        tokenizer=str(model.folder),
        max_length=model.config.n_ctx,
    )
    load = partial(rows.of_examples, "kobest_copa", scored, scored)
    results = harness.evaluate(["kobest_copa"], lm, {"kobest_copa": load}, num_fewshot=0, bootstrap_iters=0)
    samples = sorted(results["samples"]["kobest_copa"], key=lambda sample: sample["doc_id"])
    theirs = np.array([[answer[0][0] for answer in sample["resps"]] for sample in samples])
    assert theirs.shape == (20, 2)
    # The log-probabilities of the tokens are the same bits; the harness adds them one by one, numpy in pairs.
    np.testing.assert_allclose(theirs, np.array(ours.scores), rtol=1e-14)
    assert results["results"]["kobest_copa"]["acc,none"] == pytest.approx(ours.values["accuracy"])


def test_llm_writes_and_streams(server: Running, model: KoGPT, tmp_path: Path) -> None:
    pytest.importorskip("llm")
    entry = f"- model_id: kogpt\n  model_name: {server.service.base.name}\n  api_base: {server.url}/v1\n"
    (tmp_path / "extra-openai-models.yaml").write_text(entry + "  completion: true\n", encoding="utf-8")
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    command = [sys.executable, "-m", "llm", "-m", "kogpt", "-o", "temperature", "0", "-o", "max_tokens", "8"]
    wanted = model.generate(PROMPT, temperature=0, max_tokens=8).text
    for words in ([], ["--no-stream"]):
        done = subprocess.run(
            [*command, *words, PROMPT],
            env=environment,
            capture_output=True,
            encoding="utf-8",
            timeout=600,
        )
        assert done.stdout.removesuffix("\n") == wanted, done.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_writes_and_streams(server: Running, model: KoGPT) -> None:
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 8}
    wanted = model.generate(PROMPT, temperature=0, max_tokens=8).text
    command = ["curl", "-sSN", f"{server.url}/v1/completions", "-H", "Content-Type: application/json", "-d"]

    def curl(document: dict[str, object]) -> str:
        raw = json.dumps(document, ensure_ascii=False)
        return subprocess.run([*command, raw], capture_output=True, check=True, timeout=600).stdout.decode()

    assert json.loads(curl(body))["choices"][0]["text"] == wanted
    *lines, done = [line for line in curl(body | {"stream": True}).splitlines() if line]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert "".join(event["choices"][0]["text"] for event in events) == wanted and done == "data: [DONE]"
