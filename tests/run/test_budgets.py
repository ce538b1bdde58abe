"""Budgets as people write them."""

import pytest

from cltk.errors import InputError
from cltk.run.budgets import read_budgets


def test_lines_and_files(tmp_path):
    file = tmp_path / "budget.yaml"
    file.write_text(
        "acc: 0.01\nnll: 2e-2   # read as text by YAML 1.1\ngsm8k:\n  exact_match: 0.03\n'gsm8k/exact_match,flexible': 0.05\n"
    )
    found = {budget.name: (budget.most, budget.where) for budget in read_budgets([str(file), "acc=0.02", "a=b=1e-3"])}
    assert found == {
        "acc": (0.02, ""),
        "nll": (0.02, f"{file}:2"),
        "gsm8k/exact_match": (0.03, f"{file}:4"),
        "gsm8k/exact_match,flexible": (0.05, f"{file}:5"),
        "a=b": (0.001, ""),
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("acc: 0.01\nnll: a lot\n", ":2: budget nll: 'a lot' is no number"),
        ("acc: 1%\n", ":1: budget acc: '1%' is no number"),
        ("acc: true\n", ":1: budget acc: True is no number"),
        ("acc:\n", ":1: budget acc: None is no number"),
        ("gsm8k:\n  exact_match:\n    strict: 0.1\n", ":2: budget gsm8k/exact_match"),
        ("acc: [0.1]\n", ":1: budget acc"),
        ("acc: 0.01\nacc: 0.02\n", ":2: the key 'acc' stands twice"),
        ("- acc\n", "expected a mapping"),
        ("{}\n", "holds no budget"),
        ("acc: !!python/object/apply:os.getcwd []\n", ":1"),
        ("no: 0.01\n", "put it in quotes"),
    ],
)
def test_files_that_are_no_budgets(text, said, tmp_path):
    file = tmp_path / "budget.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_budgets([str(file)])
    assert said in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["acc=1%"], "--budget acc=1%: '1%' is no number; write 0.01"),
        (["acc=0,01"], "--budget acc=0,01"),
        (["=0.01"], "whose budget"),
        (["acc=0.01", "acc=0.02"], "budget acc stands twice"),
        (["missing.yaml"], "missing.yaml: no such file"),
    ],
)
def test_lines_that_are_no_budgets(given, said):
    with pytest.raises(InputError) as caught:
        read_budgets(given)
    assert said in str(caught.value)
