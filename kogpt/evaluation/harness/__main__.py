"""The harness' own command with `kogpt` among its models: python -m kogpt.evaluation.harness run ..."""

from __future__ import annotations

from kogpt.evaluation import harness

if __name__ == "__main__":
    harness.register()
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
