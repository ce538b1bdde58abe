"""Whatever else is read (experiments, models, tokenisers, data, records): no code, no file outside, no secret out."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cltk.cli import main
from cltk.data import assets, packages
from cltk.errors import InputError
from cltk.measure.journal import Journal, ModelJournal, _line
from cltk.measure.prefix_tree import Requests
from cltk.report.documents import read_documents
from cltk.report.export import _weights
from cltk.run import records
from cltk.secrets import hidden, refuse
from tests.conftest import TINY
from tests.security.attacks import CODE, PASSWORD, SECRET, change, edit, foiled

RUN = ["run", "experiment.yaml", "--out", "out"]
TRY = [*RUN, "--dry-run"]
MEASURE = ["measure", "evil", "evil", "--text", "old.jsonl", "--limit", "2"]
BOTH = [["measure", "evil", "evil", "--text", "old.jsonl", "--limit", "2"], [*RUN]]
TRAIN = 'train: {learning_rate: 3.0e-3, max_steps: 1, per_device_train_batch_size: 4, save_strategy: "no"}\n'


@pytest.fixture(autouse=True)
def _folder(study: Path, experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))
    monkeypatch.setenv("HF_TOKEN", SECRET)
    experiment.write_text(TINY + TRAIN + "evals: {retain: [{text: old.jsonl, limit: 4}], kl_rows: 0}\nkeep_model: false\n")


class Evil:
    """Leaves the file `pwned` when it is unpickled."""

    def __reduce__(self) -> Any:
        return (open, (str(Path("pwned").absolute()), "w"))


# ---- experiments


def line(text: str) -> Callable[[], Any]:
    """One more line in the experiment."""
    return lambda: edit("experiment.yaml", "keep_model: false\n", "keep_model: false\n" + text + "\n")


def train(text: str) -> Callable[[], Any]:
    return lambda: edit("experiment.yaml", "max_steps: 1,", f"max_steps: 1, {text},")


def base(text: str) -> Callable[[], Any]:
    def act() -> None:
        Path("base.yaml").write_text(text)
        line("base: base.yaml")()

    return act


EXPERIMENTS: dict[str, tuple[Callable[[], Any], str]] = {
    "an encoded tag": (line("seed: !!python%2Fobject/apply:os.system ['touch pwned']"), "experiment.yaml"),
    "a tag by its whole name": (
        line("seed: !<tag:yaml.org,2002:python/object/apply:os.system> ['touch pwned']"), "experiment.yaml"),
    "an aliased tag in a base": (base("%TAG !p! tag:yaml.org,2002:python/\n---\nseed: !p!name:os.system\n"), "base.yaml"),
    "a tag behind a merge": (line("speed: {<<: {packing: !function os.system}}"), "experiment.yaml"),
    "a token for the hub": (train(f"hub_token: {SECRET}"), "hub_token"),
    "a token in a base": (base(f"train: {{hub_token: {SECRET}}}\n"), "base.yaml:1: hub_token"),
    "a token in a list": (train(f"hub_token: [{SECRET}]"), "hub_token"),
    "a token in the grid": (line(f"grid: {{train.hub_token: [{SECRET}]}}"), "hub_token"),
    "a token under a misspelt key": (train(f"hub_tokn: {SECRET}"), "hub_tokn"),
    "a token in a stranger's section": (line(f"wandb: {{api_key: {SECRET}}}"), "api_key"),
    "a password in an address of data": (
        lambda: edit("experiment.yaml", "path: new.jsonl", f"path: 'https://me:{PASSWORD}@host/x.jsonl'"), "password"),
    "a password in an address of a model": (
        lambda: edit("experiment.yaml", "tiny-llama", f"'https://me:{PASSWORD}@host/x'"), "password"),
    "a signed address": (
        lambda: edit("experiment.yaml", "path: new.jsonl", f"path: 'https://host/x.jsonl?X-Amz-Signature={PASSWORD}'"),
        "token"),
    "a secret as a name": (line(f"grid: {{mitigators: {{{SECRET}: []}}}}"), "token"),
    "an upload": (train("push_to_hub: true, hub_model_id: evil/x"), "--trust"),
    "an upload of curves": (train("trackio_space_id: evil/x"), "--trust"),
    "a model's Python": (
        lambda: edit("experiment.yaml", "pretrained: tiny-llama", "pretrained: tiny-llama, trust_remote_code: true"),
        "--trust"),
    "consent to code that a model writes": (
        lambda: edit("experiment.yaml", "kl_rows: 0}", "kl_rows: 0, confirm_run_unsafe_code: true}"), "--trust"),
    "that consent in a base": (base("evals: {confirm_run_unsafe_code: true}\n"), "--trust"),
    "that consent in the grid": (line("grid: {evals.confirm_run_unsafe_code: [false, true]}"), "--trust"),
    "an asset outside": (lambda: edit("experiment.yaml", "path: new.jsonl", "path: asset:brown/../../x.jsonl"), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_data(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    act, word = EXPERIMENTS[name]
    act()
    foiled(TRY, capsys, words=[word] if word else [])
    assert not Path("out").exists()


# ---- models and tokenisers


def config(**keys: Any) -> Callable[[], Any]:
    return lambda: change("evil/config.json", **keys)


def tokenizer(**keys: Any) -> Callable[[], Any]:
    return lambda: change("evil/tokenizer_config.json", **keys)


def pickled(name: str, index: bool = False) -> Callable[[], Any]:
    def act() -> None:
        Path("evil/model.safetensors").unlink()
        torch.save({"lm_head.weight": Evil()}, f"evil/{name}")
        if index:
            weights = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
            Path("evil/pytorch_model.bin.index.json").write_text(json.dumps(weights))

    return act


def adapter(**keys: Any) -> Callable[[], Any]:
    def act() -> None:
        Path("evil/adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "base_model_name_or_path": "../evil", "target_modules": ["q_proj"], **keys})
        )
        torch.save({"x": Evil()}, "evil/adapter_model.bin")

    return act


def generates() -> None:
    Path("evil/custom_generate").mkdir()
    Path("evil/custom_generate/generate.py").write_text(CODE)
    Path("evil/generation_config.json").write_text(json.dumps({"custom_generate": "evil", "trust_remote_code": True}))


AUTO = {"AutoConfig": "code.Evil", "AutoModelForCausalLM": "code.Evil", "AutoTokenizer": ["code.Evil", "code.Evil"]}
MODELS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "its own class": (config(model_type="evil", auto_map=AUTO), (2,)),
    "a known class and its own": (config(auto_map=AUTO), (0, 2)),
    "a class elsewhere": (config(model_type="evil", auto_map={"AutoConfig": "evil/other--code.Evil"}), (2,)),
    "attention of a hub": (config(attn_implementation="evil/kernel"), (2,)),
    "attention of a hub, privately": (config(_attn_implementation="evil/kernel@main:run"), (2,)),
    "attention of a hub for a part": (config(attn_implementation={"text_config": "evil/kernel"}), (2,)),
    "experts of a hub": (config(_experts_implementation="evil/kernel"), (2,)),
    "a quantisation of its own": (config(quantization_config={"quant_method": "evil", "modules": "os"}), (0, 2)),
    "a quantisation that needs a package": (
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}), (0, 2)),
    "a GGUF file": (
        lambda: (Path("evil/model.safetensors").unlink(), Path("evil/model.gguf").write_bytes(b"GGUF" + b"\xff" * 64)), (2,)),
    "weights in a pickle": (pickled("pytorch_model.bin"), (2,)),
    "weights in an indexed pickle": (pickled("part.bin", True), (2,)),
    "an adapter in a pickle": (adapter(), (0, 2)),
    "an adapter with a module": (adapter(auto_mapping={"base_model_class": "Evil", "parent_library": "code"}), (0, 2)),
    "generation of its own": (generates, (0, 2)),
    "a tokeniser's own class": (tokenizer(tokenizer_class="Evil", auto_map=AUTO), (0, 2)),
    "a tokeniser's file elsewhere": (tokenizer(tokenizer_file="/etc/hostname", vocab_file="/etc/hostname"), (0, 2)),
    "a config that is no JSON": (lambda: Path("evil/config.json").write_text("[" * 50_000), (2,)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_data(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("tiny-llama", "evil")
    Path("evil/code.py").write_text(CODE)
    act, codes = MODELS[name]
    act()
    foiled(MEASURE, capsys, codes)


@pytest.mark.parametrize("where", ["tokenizer_config.json", "chat_template.jinja"])
@pytest.mark.parametrize(
    "template",
    [
        "{{ cycler.__init__.__globals__.os.system('touch pwned') }}",
        "{{ messages.append.__globals__ }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{% include '/etc/hostname' %}",
    ],
)
def test_a_chat_template_is_text(where: str, template: str, capsys: pytest.CaptureFixture[str]) -> None:
    if where.endswith("jinja"):
        Path("tiny-llama", where).write_text(template)
    else:
        change(f"tiny-llama/{where}", chat_template=template)
    edit("experiment.yaml", "max_length: 64", "max_length: 64\n  chat_template: true")
    foiled(TRY, capsys)


# ---- data


def saved() -> None:
    Path("evil").mkdir()
    Path("evil/dataset_info.json").write_text(json.dumps({"features": {"question": {"_type": "Evil", "dtype": "string"}}}))
    Path("evil/state.json").write_text(json.dumps({"_data_files": [{"filename": "../../../../etc/hostname"}]}))


def loader() -> None:
    Path("evil").mkdir()
    Path("evil/evil.py").write_text(CODE)


def parquet() -> None:
    import pyarrow as pa
    import pyarrow.parquet

    tag = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickle.dumps(Evil())}
    field = pa.field("question", pa.string(), metadata=tag)
    table = pa.table(
        [pa.array(["a"])], schema=pa.schema([field], metadata={b"pandas": b'{"index_columns": [{"kind": "evil"}]}'})
    )
    pyarrow.parquet.write_table(table, "evil.parquet")


def raw(name: str, content: bytes) -> Callable[[], Any]:
    return lambda: Path(name).write_bytes(content)


DATA: dict[str, tuple[Callable[[], Any], str]] = {
    "a saved set that leads elsewhere": (saved, "./evil"),
    "a loading script": (loader, "./evil"),
    "a script of a hub": (lambda: None, "evil/loader"),
    "an extension in Parquet": (parquet, "evil.parquet"),
    "a pickle called Parquet": (raw("evil.parquet", pickle.dumps({})), "evil.parquet"),
    "a pickle called JSON": (raw("evil.jsonl", pickle.dumps({})), "evil.jsonl"),
    "JSON without an end": (raw("evil.json", b"[" * 100_000), "evil.json"),
    "lines without an end": (raw("evil.jsonl", b'{"question": ' + b"[" * 100_000), "evil.jsonl"),
    "a pickle": (raw("evil.pkl", pickle.dumps({})), "evil.pkl"),
    "an array of objects": (raw("evil.npy", pickle.dumps({})), "evil.npy"),
    "a device": (lambda: os.mkfifo("evil.bin"), "evil.bin"),
}


@pytest.mark.parametrize("name", DATA)
def test_data_is_data(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    act, path = DATA[name]
    act()
    edit("experiment.yaml", "path: new.jsonl", f"path: {path}")
    foiled(TRY, capsys)


# ---- records


def test_a_record_s_names_stay_inside(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Names in a record are a stranger's: pages, tables, copies and new folders stay where the user put them."""
    monkeypatch.setattr("sys.argv", ["cltk", "run", "x.yaml", "--ray", f"ray://me:{PASSWORD}@host", f"--x={SECRET}"])
    assert main(RUN) == 0, capsys.readouterr().err
    record = next(Path("out").glob("*/record.json"))
    for text in (record.read_text(), *(path.read_text(errors="replace") for path in Path("out").rglob("*.json"))):
        assert SECRET not in text
        assert PASSWORD not in text
    kept = records.read_json(record)
    evil = {
        "cell": "../../evil",
        "method": "../../evil",
        "experiment": "../../../evil",
        "labels": {"mitigators": "<script>alert(1)"},
    }
    records.write_json(record, kept | evil)
    written = ("page.html", "page.md", "latex", "copy", "runs", "cache", "out")
    report = ["report", "out", "--html", "page.html", "--markdown", "page.md", "--latex", "latex", "--lm-eval", "copy"]
    foiled(report, capsys, (0, 1, 2), own=written)
    assert "<script>alert" not in (Path("page.html").read_text() if Path("page.html").exists() else "")
    foiled(["reproduce", str(record)], capsys, (0, 1, 2), own=written)
    assert all(path.name.startswith("reproduced-") for path in Path("runs").glob("*"))
    for other in ({"model": {**kept["config"]["model"], "trust_remote_code": True}}, {"train": {"push_to_hub": True}}):
        records.write_json(record, kept | {"config": {**kept["config"], **other}})
        foiled(["reproduce", str(record), "--out", "again"], capsys, words=["--trust"], own=written)
    records.write_json(record, kept | {"config": {**kept["config"], "base": "../../etc/x.yaml"}})
    foiled(["reproduce", str(record), "--out", "again"], capsys, (0, 1, 2), own=(*written, "again"))


# ---- what is printed and kept


def test_an_error_hides_what_the_environment_holds(capsys: pytest.CaptureFixture[str]) -> None:
    foiled(["measure", f"https://me:{PASSWORD}@host/a/b", "tiny-llama", "--text", "old.jsonl"], capsys, words=["***@host"])
    foiled(["measure", f"./{SECRET}", "tiny-llama", "--text", "old.jsonl"], capsys, words=["***"])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"a {SECRET} b", "a *** b"),
        ("https://user:pass@host/x", "https://***@host/x"),
        ("s3://key:pass@bucket/x and git@host", "s3://***@bucket/x and git@host"),
        ("https://h/x?token=abc&y=1", "https://h/x?token=***&y=1"),
        ("hf_A1b2C3d4E5f6G7 ghp_A1b2C3d4E5f6G7", "hf_*** ghp_***"),
        ("hf_checkpoints/model max_new_tokens=3", "hf_checkpoints/model max_new_tokens=3"),
    ],
)
def test_hidden(text: str, shown: str) -> None:
    assert hidden(text) == shown


def test_special_tokens_are_no_secrets() -> None:
    refuse(
        {"eos_token": "<end>", "max_new_tokens": 5, "tokens": ["a"], "token": None, "use_auth_token": False}, lambda keys: "x"
    )
    for name in ("token", "hub_token", "HF_TOKEN", "password", "api_key", "aws_secret_access_key"):
        with pytest.raises(InputError, match=name):
            refuse([{name: "abcdef"}], lambda keys: "x")


def test_records_hide_secrets_and_keep_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "12345678")
    records.write_json(tmp_path / "r.json", {"a": [0.12345678, {"b 12345678": f"x {SECRET}"}], "n": None, "t": True})
    assert {k: v for k, v in records.read_json(tmp_path / "r.json").items() if k != "sha256"} == {
        "a": [0.12345678, {"b ***": "x ***"}], "n": None, "t": True,
    }  # fmt: skip


# ---- assets


@pytest.mark.parametrize("name", ["brown/../../x", "brown//etc/hostname", "brown/a\\..\\x", "../brown", "brown/C:x"])
def test_an_asset_s_file_is_inside(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = assets.find("brown").folder
    folder.mkdir(parents=True)
    monkeypatch.setattr(assets, "path", lambda name: folder)
    with pytest.raises(InputError):
        assets.resolve(f"asset:{name}")


def test_a_manifest_names_files_inside(tmp_path: Path) -> None:
    folder = assets.find("brown").folder
    folder.mkdir(parents=True)
    (folder / "MANIFEST.json").write_text(json.dumps({"files": {"../../x": {"sha256": "", "size": 0}}}))
    with pytest.raises(InputError, match="leaves"):
        assets.verify("brown")


def test_an_asset_s_link_does_not_lead_out(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/link").symlink_to("/etc")
    with pytest.raises(InputError, match="leaves"):
        packages.inside(tmp_path / "a", "link/hostname")


# ---- journals


@pytest.mark.parametrize(
    ("key", "answer"),
    [
        ("k", {"text": {"a": 1}}), ("k", {"text": None}), (["k"], {"logprob": -1.0, "greedy": True}),
        ("k", {"logprob": -1.0, "greedy": "yes"}), ("k", {"logprob": -1.0, "greedy": [1]}),
    ],
)  # fmt: skip
def test_a_journal_s_line_with_a_right_checksum_has_an_answer_s_types(tmp_path: Path, key: Any, answer: Any) -> None:
    """A stranger can compute the checksum, too: what is no answer is a damaged line."""
    good, evil = _line("a", {"logprob": -2.0, "greedy": False}), _line(key, answer)
    (tmp_path / "journal.jsonl").write_text(good + evil + good)
    with pytest.raises(InputError, match="line 2: the line is damaged"):
        Journal(tmp_path / "journal.jsonl")


def test_a_journal_s_text_is_no_score(tmp_path: Path) -> None:
    requests = Requests([([1, 2, 3], 1)])
    journal = Journal(tmp_path / "journal.jsonl")
    journal.put(ModelJournal(journal, "d")._key(requests, 0, False), {"text": "evil"})
    assert ModelJournal(Journal(tmp_path / "journal.jsonl"), "d").get(requests, False) == {}


# ---- what lm-eval wrote

SAMPLE = {"doc_hash": "h", "arguments": {"gen_args_0": {"arg_0": "p", "arg_1": "c"}}, "filtered_resps": [[-1.0]], "target": 0}


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000, '{"doc_hash": ' + "1" * 6000 + "}", '"x"', "\x00",
        *(json.dumps(SAMPLE | odd) for odd in (
            {"doc_hash": ["h"]}, {"arguments": 3}, {"arguments": {"gen_args_0": "x"}}, {"filtered_resps": [[10**400]]},
            {"filtered_resps": {"a": 1}}, {"filtered_resps": [[[1]]]},
        )),
    ],
    ids=range(10),
)  # fmt: skip
def test_an_odd_line_of_lm_eval_s_samples_leaves_the_others(line: str, tmp_path: Path) -> None:
    (tmp_path / "lm_eval").mkdir()
    (tmp_path / "lm_eval" / "samples_toy_2026-01-01T00-00-00.0.jsonl").write_text(f"{line}\n{json.dumps(SAMPLE)}\n")
    assert read_documents(tmp_path, "toy", {"h"})["h"].prompt == "p"


def test_an_odd_results_file_names_no_weights(tmp_path: Path) -> None:
    for text in ("[" * 100_000, "[]", '{"config": 3}', "\x00"):
        (tmp_path / "results.json").write_text(text)
        assert _weights(tmp_path / "results.json") is None
