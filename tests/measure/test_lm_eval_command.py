"""`--model cltk` against `--model hf` on lm-eval's own command line: the same numbers, document by document."""

from __future__ import annotations

import configparser
import json
import sys
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import model_registry
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import cltk
from cltk import lm_eval as command
from cltk.measure.scoring import PrefixLM
from tests import forks
from tests.conftest import WORDS, sentences, write_jsonl

KINDS = {
    "shared": "output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{choices}}'\ndoc_to_target: label\n"
    "num_fewshot: 2\nfewshot_split: validation\nfewshot_config: {sampler: first_n}\n"
    "metric_list: [{metric: acc}, {metric: acc_norm}]\n",
    "last_word": "output_type: loglikelihood\ndoc_to_text: '{{q}}'\ndoc_to_target: ' {{choices[1]}}'\n"
    "metric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}, {metric: acc}]\n",
    "rolling": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{q * 9}}'\n"
    "metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]\n",
    "written": "output_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{choices[0]}}'\n"
    "generation_kwargs: {max_gen_toks: 5, until: ['.']}\nmetric_list: [{metric: exact_match}]\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any, tiny: Any, tokenizer: Any) -> Path:
    """A saved model, and a task of every kind of request."""
    root = tmp_path_factory.mktemp("lm_eval")
    tiny(max_position_embeddings=128).save_pretrained(root / "tiny")
    tokenizer.save_pretrained(root / "tiny")
    rows = [{"q": s, "choices": [w, "zebra", "violet tree"], "label": 1} for s, w in zip(sentences(9, 3), WORDS, strict=False)]
    (root / "tasks").mkdir()
    data = write_jsonl(root / "tasks" / "rows.jsonl", rows)
    for name, text in KINDS.items():
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{validation: {data}}}}}\n"
        (root / "tasks" / f"{name}.yaml").write_text(head + "validation_split: validation\n" + text)
    return root


def called(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The command in this process; lm-eval's own list of tasks takes seconds to read."""
    monkeypatch.setattr(sys, "argv", ["lm_eval", *words])
    monkeypatch.setattr("lm_eval.__main__.setup_logging", lambda: None)  # of the whole process
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
    return command.main()


def run(model: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The results and samples files of `python -m cltk.lm_eval --model MODEL ...`."""
    out = folder / f"out-{model}"
    words = ["--model", model, "--model_args", f"pretrained={folder / 'tiny'},dtype=float32", "--tasks", *KINDS]
    words += ["--include_path", str(folder / "tasks"), "--output_path", str(out), "--log_samples", "--device", "cpu", *more]
    assert called(words, monkeypatch) == 0
    (results,) = out.rglob("results_*.json")
    samples = {name: next(out.rglob(f"samples_{name}_*.jsonl")).read_text().splitlines() for name in KINDS}
    return json.loads(results.read_text()), {name: [json.loads(row) for row in rows] for name, rows in samples.items()}


def leaves(found: Any) -> list[str]:
    return [leaf for one in found for leaf in leaves(one)] if isinstance(found, list) else [str(found)]


def answers(rows: list[dict[str, Any]]) -> list[str]:
    """Every log-probability, greedy flag and text, in order."""
    return [leaf for row in sorted(rows, key=lambda row: row["doc_id"]) for leaf in leaves(row["resps"])]


def same(mine: str, other: str) -> bool:
    try:
        return float(mine) == pytest.approx(float(other), rel=2e-6)
    except ValueError:  # a flag, a text
        return mine == other


def test_the_two_models_say_the_same_of_every_document(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    batches = []
    whole = PrefixLM._tree_answers
    monkeypatch.setattr(PrefixLM, "_tree_answers", lambda lm, *rest: batches.append(1) or whole(lm, *rest))
    stock, theirs = run("hf", folder, monkeypatch, "--batch_size", "3")
    assert not batches
    found, ours = run("cltk", folder, monkeypatch, "--batch_size", "3")
    assert batches  # contexts were shared
    assert "|acc_norm" in capsys.readouterr().out  # lm-eval's own table
    for name in KINDS:
        assert answers(theirs[name])
        pairs = zip(answers(ours[name]), answers(theirs[name]), strict=True)
        assert [(name, *pair) for pair in pairs if not same(*pair)] == []
        for key, value in stock["results"][name].items():
            if "stderr" not in key:  # lm-eval bootstraps some
                assert found["results"][name][key] == (pytest.approx(value, rel=2e-6) if isinstance(value, float) else value)
    kept = ("n-shot", "versions", "higher_is_better", "n-samples", "task_hashes", "max_length", "eot_token_id", "chat_template")
    assert {key: found.get(key) for key in kept} == {key: stock.get(key) for key in kept}


def test_what_cltk_refuses_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, tiny: Any) -> None:
    small = folder / "small"
    tiny(vocab_size=60).save_pretrained(small)
    for file in (folder / "tiny").glob("token*"):
        (small / file.name).write_bytes(file.read_bytes())
    words = [
        "--model",
        "cltk",
        "--model_args",
        f"pretrained={small}",
        "--include_path",
        str(folder / "tasks"),
        "--device",
        "cpu",
    ]
    assert called([*words, "--tasks", "last_word"], monkeypatch) == 2
    assert "outside the model's embedding of 60 rows" in capsys.readouterr().err.splitlines()[-1]


def test_the_entry_point_is_what_later_versions_register() -> None:
    config = configparser.ConfigParser()
    config.read(Path(cltk.__file__).parent.parent / "setup.cfg")
    name, target = config["options.entry_points"]["lm_eval.models"].strip().split(" = ")
    assert (name, target) == ("cltk", command.TARGET)
    point = metadata.EntryPoint(name, target, "lm_eval.models")
    model_registry.register("cltk-by-entry-point", target=point)  # what lm-eval does with the group (its #4013)
    assert model_registry.get("cltk-by-entry-point") is PrefixLM
    command.register()
    command.register()  # a name that is known already stays
    assert model_registry.get("cltk") is PrefixLM


def pairs() -> list[Instance]:
    asked = [(s, f" {w}") for s in sentences(4, 7) for w in ("red", "blue cat", "green")] + [("", "a cat"), ("a " * 150, "dog")]
    return [Instance("loglikelihood", {}, args, i) for i, args in enumerate(asked)]


SETTINGS = [
    {},
    {"max_length": 40},
    {"add_bos_token": True},
    {"prefix_token_id": 5},
    {"dtype": "bfloat16", "softmax_dtype": "float32"},
    {"batch_size": "auto", "max_batch_size": 4},
    {"logits_cache": False, "truncation": True, "use_fast_tokenizer": True, "backend": "causal"},
    {"device_map": "cpu", "attn_implementation": "eager"},
    {"subfolder": "inner"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda found: "-".join(found) or "plain")
def test_every_argument_of_hf_means_the_same(folder: Path, settings: dict[str, Any]) -> None:
    root = folder / "tiny"
    if "subfolder" in settings:
        (root / "inner").mkdir(exist_ok=True)
        for file in root.glob("*.*"):
            (root / "inner" / file.name).write_bytes(file.read_bytes())
    given = {"dtype": "float32", "device": "cpu", **settings}
    ours, stock = (cls(pretrained=str(root), **given) for cls in (PrefixLM, HFLM))
    assert ours._trees is not None
    assert (ours.max_length, ours.prefix_token_id, ours.tokenizer_name) == (
        stock.max_length, stock.prefix_token_id, stock.tokenizer_name,
    )  # fmt: skip
    mine, theirs = (lm.loglikelihood(pairs(), disable_tqdm=True) for lm in (ours, stock))
    wide = 2e-6 if given["dtype"] == "float32" else 2e-2  # of the rounding of bfloat16 in two layers
    assert [a for a, _ in mine] == pytest.approx([a for a, _ in theirs], rel=wide)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of peft's own code
def test_an_adapter_is_loaded_on_its_base(folder: Path, tiny: Any) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny(), peft.LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "up_proj"]))
    model.save_pretrained(folder / "adapter")
    given: dict[str, Any] = {"pretrained": str(folder / "tiny"), "device": "cpu", "dtype": "float32"}
    stock, ours = (cls(**given, peft=str(folder / "adapter")) for cls in (HFLM, PrefixLM))
    mine, theirs, base = (lm.loglikelihood(pairs(), disable_tqdm=True) for lm in (ours, stock, PrefixLM(**given)))
    assert ours._trees is not None
    assert [a for a, _ in mine] == pytest.approx([a for a, _ in theirs], rel=2e-6)
    assert [a for a, _ in mine] != pytest.approx([a for a, _ in base], rel=1e-3)


def test_autocast_is_left_to_lm_evals_own_forwards(folder: Path) -> None:
    given: dict[str, Any] = {"pretrained": str(folder / "tiny"), "device": "cpu", "dtype": "float32", "batch_size": 2}
    given["mixed_precision_dtype"] = "bfloat16"
    with pytest.warns(UserWarning, match="contexts are not shared.*autocast"):
        ours = PrefixLM(**given)
    assert ours.loglikelihood(pairs(), disable_tqdm=True) == HFLM(**given).loglikelihood(pairs(), disable_tqdm=True)


def test_where_lm_eval_shares_documents_the_requests_are_not_shared_again(folder: Path, monkeypatch: Any) -> None:
    """Under `accelerate launch` every process has other documents: exchanging answers would mix them."""

    def never(_: Any) -> Any:
        raise AssertionError("the processes exchanged answers")

    lm = PrefixLM(pretrained=str(folder / "tiny"), device="cpu", dtype="float32")
    alone = lm.loglikelihood(pairs(), disable_tqdm=True)
    monkeypatch.setattr("cltk.measure.scoring.ranks", lambda: (1, 2))
    monkeypatch.setattr("cltk.measure.scoring.gathered", never)
    monkeypatch.setattr("cltk.measure.generation.shared", never)
    other = PrefixLM(pretrained=str(folder / "tiny"), device="cpu", dtype="float32")
    assert other.loglikelihood(pairs(), disable_tqdm=True) == alone
    asked = Instance("generate_until", {}, ("the cat", {"until": ["."], "max_gen_toks": 3}), 0)
    assert len(other.generate_until([asked], disable_tqdm=True)) == 1


def test_python_gives_it_by_name_too(folder: Path) -> None:
    command.register()
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    asked: dict[str, Any] = {"tasks": ["shared"], "task_manager": manager, "device": "cpu", "bootstrap_iters": 0}
    found = [
        lm_eval.simple_evaluate(model=model, model_args=f"pretrained={folder / 'tiny'},dtype=float32", **asked)["results"]
        for model in ("cltk", "hf")
    ]
    assert found[0]["shared"]["acc,none"] == found[1]["shared"]["acc,none"]


@pytest.mark.slow
def test_the_command_on_a_real_model(tmp_path: Path) -> None:
    """Each run a process of its own; the seconds, side by side, are in the file and judged nowhere."""
    script = Path(cltk.__file__).parent.parent / "benchmarks" / "lm_eval_command.py"
    words = ["--limit", "3", "--rounds", "1", "--tasks", "local_arc_easy,local_piqa", "--out", str(tmp_path / "found.json")]
    done = forks.run([sys.executable, str(script), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["documents"] == 6
    assert found["difference"] < 1e-5
    assert all(mine == theirs for theirs, mine in found["metrics"].values())
    assert "| the whole command |" in done.stdout
