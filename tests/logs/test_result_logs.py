"""`cltk measure --json`, read back by compare, report and power; its schema; what `cltk run` keeps."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import cltk
from cltk.cli import main
from cltk.errors import InputError
from cltk.logs.comparing import compare, compare_all
from cltk.logs.reading import read
from cltk.logs.schema import schema
from cltk.measure.evaluate import Suite, TextTask
from cltk.run.records import write_json

TEXT = TextTask("text", [{"text": f"the cat sat on the {word} mat."} for word in ("red", "blue", "big", "small")])


@pytest.fixture(scope="module")
def measured(tiny: Any, tokenizer: Any, task_folder: Path) -> Any:
    """Tasks with clusters, choices, two filters, corpus scores, ratios; a group with members; a text with KL."""
    pairs = [(tiny(seed=seed), tokenizer) for seed in (0, 1)]
    names = ["both", "words", "rolling", "written"]
    return cltk.measure(*pairs, names, include_path=task_folder, texts=[TEXT], members=True, kl_rows=2)


@pytest.fixture
def file(measured: Any, tmp_path: Path) -> Path:
    write_json(tmp_path / "result.json", measured.to_json())
    return tmp_path / "result.json"


def test_reads_back_as_it_was(file: Path, measured: Any) -> None:
    again = compare(file, file)
    assert again.rows == measured.rows
    assert again.macro == measured.macro
    assert again.samples == measured.samples
    assert (again.headline, again.members, again.corpus) == (measured.headline, measured.members, measured.corpus)
    assert any(row.metric == "word_perplexity" for row in again.rows)


def test_command_prints_the_table_of_one_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "both" in shown
    assert "macro" in shown


def test_fits_its_schema(file: Path, measured: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    data = json.loads(file.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    jsonschema.validate(data, schema())
    alone = replace(measured, macro=replace(measured.macro, se=math.nan, ci=(-math.inf, math.inf)))
    jsonschema.validate({**alone.to_json(), "sha256": ""}, schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**data, "headline": 3}, schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({key: value for key, value in data.items() if key != "macro"}, schema())


def test_command_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "result"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(schema()))


def test_names_models_versions_and_settings(measured: Any) -> None:
    settings = measured.to_json()["settings"]
    assert settings["base"].startswith("LlamaForCausalLM")
    assert settings["dtype"] == "float32"
    assert settings["scorer"] == "prefix"
    assert settings["tasks"]["words"]["num_fewshot"] == 0
    assert {"limit", "batch_size", "cltk_version", "lm_eval_version", "chat_template"} <= settings.keys()


def test_edited_later_and_foreign_files_are_one_line(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(file.read_text())
    file.write_text(json.dumps({**data, "headline": {}}))
    with pytest.raises(InputError, match="edited by hand"):
        compare(file, file)
    write_json(file, {**data, "format": 99})
    with pytest.raises(InputError, match="format 99"):
        compare(file, file)
    (tmp_path / "other.json").write_text("{}")
    assert main(["compare", str(tmp_path / "other.json")]) == 2
    assert "no results of lm-eval" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "nothing")]) == 2
    (tmp_path / "empty").mkdir()
    assert main(["compare", str(tmp_path / "empty")]) == 2
    assert "lm_eval --output_path" in capsys.readouterr().err


def test_the_scores_of_runs(file: Path, measured: Any, tmp_path: Path) -> None:
    """base-*/scores.json and a cell's, in one output folder."""
    for name, model in (("base-0", "base"), ("plain_seed=0", "tuned"), ("ewc_seed=0", "tuned")):
        side = read(file, measured.settings[model] if model == "base" else next(n for n in _names(file) if "(tuned)" in n))
        (tmp_path / "runs" / name).mkdir(parents=True)
        write_json(tmp_path / "runs" / name / "scores.json", side.scores.to_json())
    found = compare_all(tmp_path / "runs", [tmp_path / "runs"])
    assert list(found) == ["ewc_seed=0", "plain_seed=0"]
    assert found["plain_seed=0"].rows == measured.rows
    assert compare(tmp_path / "runs" / "base-0", tmp_path / "runs" / "ewc_seed=0").macro == measured.macro


def test_scores_of_two_dtypes_say_so(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Of one model: what changed is rounding, and gemma-3-12b-it lost 9 points to it (huggingface/transformers#36832)."""
    model, suite = tiny(seed=0), Suite([], texts=[TEXT])
    for name, dtype in (("wide", torch.float32), ("again", torch.float32), ("narrow", torch.bfloat16)):
        write_json(tmp_path / name / "scores.json", suite.evaluate(model.to(dtype), tokenizer, digest=name).to_json())
    said = "base and tuned were scored with different dtype float32 and bfloat16"
    assert said in compare(tmp_path / "wide", tmp_path / "narrow").notes
    assert not [note for note in compare(tmp_path / "wide", tmp_path / "again").notes if "dtype" in note]
    old = json.loads((tmp_path / "narrow" / "scores.json").read_text())
    del old["dtype"]  # as an older cltk wrote it
    write_json(tmp_path / "old" / "scores.json", old)
    assert not [note for note in compare(tmp_path / "wide", tmp_path / "old").notes if "dtype" in note]


def test_what_one_tuned_model_lacks_others_keep(tiny: Any, tokenizer: Any, task_folder: Path, tmp_path: Path) -> None:
    """The base was that of the first result, without what that one could not compare."""
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["cat"])  # cuts the text otherwise
    odd, base, tuned = tiny(seed=2), tiny(seed=0), tiny(seed=1)
    odd.resize_token_embeddings(len(other), mean_resizing=False)
    results = cltk.measure((base, tokenizer), [(odd, other), (tuned, tokenizer)], texts=[TEXT])
    assert [{row.metric for row in one.rows} for one in results] == [{"bits_per_byte"}, {"nll", "bits_per_byte"}]
    write_json(tmp_path / "r.json", {"results": {name: one.to_json() for name, one in zip("ab", results, strict=True)}})
    again = compare_all(tmp_path / "r.json", [tmp_path / "r.json"])
    assert [one.rows for one in again.values()] == [one.rows for one in results]
    assert [one.left_out for one in again.values()] == [one.left_out for one in results]


def _names(file: Path) -> list[str]:
    from cltk.logs.reading import open_log

    return open_log(file).models


def test_report_and_power_read_it_too(file: Path, measured: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cltk.measure.power import plan

    assert main(["report", str(file), "--markdown", str(tmp_path / "r.md")]) == 0
    assert "| macro |" in (tmp_path / "r.md").read_text()
    assert main(["report", str(file), "--latex", str(tmp_path / "tex")]) == 2
    capsys.readouterr()
    assert main(["power", "--log", str(file), "--json", str(tmp_path / "p.json")]) == 0
    row = next(row for row in json.loads((tmp_path / "p.json").read_text())["rows"] if row["task"] == "both")
    own = next(one for one in measured.rows if (one.task, one.metric) == ("both", "acc"))
    clusters = [2] * 12 + [1] * 24  # toy's sources have two documents each, labels' are alone
    (expected,) = plan(
        {"both": 48}, {"both": own.pre}, {"both": 3.0}, clusters={"both": clusters}, discordance=0.1, effect=0.03
    )
    assert (row["n"], row["mde"], row["base"]) == (48, expected.mde, pytest.approx(own.pre))
    assert main(["power", "--log", str(file), "--tasks", "toy"]) == 2
    assert main(["power"]) == 2
    assert "--log" in capsys.readouterr().err
