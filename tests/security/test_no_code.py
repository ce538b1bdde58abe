"""Files from a stranger run no code and write nothing outside: YAML, suites, tasks, templates, models, checkpoints, names."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from cltk.cli import main
from cltk.data import packages
from cltk.errors import InputError
from cltk.run.checkpoints import opened, seal
from cltk.run.config import load_config
from tests.conftest import write_jsonl
from tests.run.test_reproduce import edit
from tests.survive.test_checkpoints import EXPERIMENT, stopped  # noqa: F401  a fixture


@pytest.fixture(autouse=True)
def _in_folder(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))


class Evil:
    """Leaves the file `pwned` when it is unpickled."""

    def __reduce__(self) -> Any:
        return (open, (str(Path("pwned").absolute()), "w"))


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], codes: tuple[int, ...] = (2,)) -> str:
    """Run a command; its one line, after checking that nothing was run."""
    capsys.readouterr()
    code = main(arguments)
    said = capsys.readouterr().err
    assert code in codes, said
    assert "Traceback" not in said
    assert not Path("pwned").exists()
    last = said.strip().split("\n")[-1]
    assert last.startswith("cltk: "), said
    return last


def test_the_trap_works() -> None:
    pickle.loads(pickle.dumps(Evil())).close()
    assert Path("pwned").exists()


# ---- YAML


APPLY = "!!python/object/apply:builtins.open ['pwned', 'w']"


@pytest.mark.parametrize("tag", [APPLY, "!!python/object/new:os.system ['touch pwned']", "!!python/name:os.system",
                                 "!function os.system", "!!python/module:os"])  # fmt: skip
def test_yaml_of_an_experiment_its_base_and_its_suite(tag: str, experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = experiment.read_text()
    experiment.write_text(text + f"seed: {tag}\n")
    assert "experiment.yaml" in refused(["run", "experiment.yaml", "--out", "out"], capsys)
    Path("base.yaml").write_text(f"seed: {tag}\n")
    experiment.write_text(text + "base: base.yaml\n")
    assert "base.yaml" in refused(["run", "experiment.yaml", "--out", "out"], capsys)
    Path("suites").mkdir()
    Path("suites/s.yaml").write_text(f"tasks: {tag}\n")
    experiment.write_text(text.replace("retain: [toy,", "retain: [suites/s,"))
    assert "s.yaml" in refused(["run", "experiment.yaml", "--out", "out"], capsys)
    assert not Path("out").exists()


# ---- tasks

MEASURE = ["measure", "tiny-llama", "tiny-llama", "--tasks", "toy", "--include-path", "tasks", "--limit", "4"]


def task(old: str, new: str, name: str = "toy") -> None:
    path = Path("tasks/toy.yaml")
    text = path.read_text()
    assert old in text
    Path(f"tasks/{name}.yaml").write_text(text.replace(old, new).replace("task: toy", f"task: {name}"))


def test_python_tags_in_a_task(capsys: pytest.CaptureFixture[str]) -> None:
    task("doc_to_target: label", f"doc_to_target: label\nmetadata: {APPLY}")
    refused(MEASURE, capsys)


def test_a_template_cannot_reach_python(capsys: pytest.CaptureFixture[str]) -> None:
    for attack in (
        "{{ cycler.__init__.__globals__.os.system('touch pwned') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ q.format.__globals__ }}",
    ):
        task("'{{q}}'", json.dumps(attack), "evil")
        refused(["evil" if word == "toy" else word for word in MEASURE], capsys)


def test_templates_still_do_what_lm_eval_offers(capsys: pytest.CaptureFixture[str]) -> None:
    task("'{{q}}'", json.dumps("{{q|regex_replace('a', 'b')}} {{q.split(' ')[0]}} {% for c in choices %}{{c}}{% endfor %}\n"))
    assert main(MEASURE) == 0, capsys.readouterr().err


def test_a_task_folder_runs_its_python_only_when_the_user_says_so(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("tasks/code.py").write_text("open('pwned', 'w')\ndef text(doc):\n    return doc['q']\n")
    task("'{{q}}'", "!function code.text")
    assert "--trust" in refused(["run", "experiment.yaml", "--out", "out"], capsys)
    assert not Path("out").exists()


def test_a_named_folder_cannot_bring_in_the_python_of_another(capsys: pytest.CaptureFixture[str]) -> None:
    Path("elsewhere").mkdir()
    Path("elsewhere/code.py").write_text("open('pwned', 'w')\ndef text(doc):\n    return doc['q']\n")
    Path("elsewhere/half.yaml").write_text("doc_to_text: !function code.text\n")
    Path("elsewhere/step.yaml").write_text("include: half.yaml\n")
    for target in ("../elsewhere/half.yaml", str(Path("elsewhere/step.yaml").absolute())):
        task("doc_to_text: '{{q}}'", f"include: {target}", "evil")
        said = refused(["evil" if word == "toy" else word for word in MEASURE], capsys)
        assert "half.yaml" in said
        assert "!function" in said


@pytest.mark.parametrize("kind", ["pandas", "generator"])
def test_a_task_cannot_load_pickles(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("evil.pkl").write_bytes(pickle.dumps(Evil()))
    task("dataset_path: json", f"dataset_path: {kind}")
    text = Path("tasks/toy.yaml").read_text()
    Path("tasks/toy.yaml").write_text(text.replace(str(Path("tasks/docs.jsonl").absolute()), str(Path("evil.pkl").absolute())))
    refused(MEASURE, capsys)


# ---- models


def test_a_model_in_a_pickle(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("tiny-llama", "evil")
    Path("evil/model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Evil()}, "evil/pytorch_model.bin")
    assert "evil" in refused(["measure", "evil", "evil", *MEASURE[3:]], capsys)


def test_a_model_with_python(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("tiny-llama", "evil")
    config = json.loads(Path("evil/config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "code.Evil", "AutoModelForCausalLM": "code.Evil"}}
    Path("evil/config.json").write_text(json.dumps(config))
    Path("evil/code.py").write_text("open('pwned', 'w')\nclass Evil: pass\n")
    refused(["measure", "evil", "evil", *MEASURE[3:]], capsys)
    experiment.write_text(experiment.read_text().replace("tiny-llama", "evil"))
    refused(["run", "experiment.yaml", "--out", "out"], capsys, (1, 2))
    shutil.rmtree("out", ignore_errors=True)
    text = experiment.read_text().replace("pretrained: evil", "pretrained: evil, trust_remote_code: true")
    experiment.write_text(text)
    assert "--trust" in refused(["run", "experiment.yaml", "--out", "out"], capsys)
    assert not Path("out").exists()


@pytest.mark.parametrize("memory", ["evil.pkl", "evil.pt", "evil.npy", "evil"])
def test_data_in_a_pickle(memory: str, experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if memory == "evil":
        Path("evil").mkdir()
    (Path("evil/dataset.arrow") if memory == "evil" else Path(memory)).write_bytes(pickle.dumps(Evil()))
    experiment.write_text(experiment.read_text().replace("path: new.jsonl", f"path: ./{memory}"))
    refused(["run", "experiment.yaml", "--out", "out"], capsys)


# ---- checkpoints


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_resumed_checkpoint_is_data_only(
    name: str, stopped: dict[str, Any], capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:  # fmt: skip
    folder = next(Path("out").glob("*/checkpoints/checkpoint-4"))
    kept = opened(folder)
    torch.save(Evil(), folder / name)
    seal(folder, kept)  # a stranger can seal, too
    if name == "training_args.bin":  # nobody reads it
        assert main(["run", "x.yaml", "--out", "out"]) == 0
        assert not Path("pwned").exists()
        return
    said = refused(["run", "x.yaml", "--out", "out"], capsys, (1,))
    assert "holds more than plain data" in said


def test_a_record_is_data_only(study: Path, experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its configuration is run by `cltk reproduce`: what would run code there needs --trust, as in a YAML."""
    experiment.write_text(EXPERIMENT.split("mitigators:")[0] + "keep_model: false\n")
    assert main(["run", "experiment.yaml", "--out", "out"]) == 0
    record = next(Path("out").glob("*/record.json"))
    edit(record, lambda data: data["config"]["model"].update(trust_remote_code=True))
    assert "--trust" in refused(["reproduce", str(record), "--out", "again"], capsys)
    Path("deep.json").write_text("[" * 100_000)
    assert "deep.json: damaged" in refused(["report", "deep.json"], capsys)


# ---- names

LABELS = ["../../x", "..", ".", "/etc/x", "a/../../b", "..\\x", "C:\\x", "\u202e..", "x" * 300, "\u4e2d" * 300, ".hidden", "-"]


@pytest.mark.parametrize("label", LABELS)
def test_a_cell_stays_in_the_output_folder(label: str, experiment: Path, tmp_path: Path) -> None:
    head = experiment.read_text().split("grid:")[0]
    experiment.write_text(head + f"grid: {{mitigators: {{{json.dumps(label, ensure_ascii=False)}: []}}}}\n", encoding="utf-8")
    (cell,) = load_config(experiment).cells
    made = tmp_path / "runs" / f"{cell.name}-0123456789"
    made.mkdir(parents=True)  # the system takes the name
    assert made.resolve().parent == (tmp_path / "runs").resolve()
    assert not cell.name.startswith(".")


@pytest.mark.parametrize("name", ["data/../../x", "/data/x", "data/../x"])
def test_an_archive_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr(name, "x")
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    for file in ("a.whl", "a.tgz"):
        with pytest.raises(InputError, match="refused"):
            list(packages.members(tmp_path / file, "*"))


def test_a_text_name_is_no_path(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = EXPERIMENT.split("mitigators:")[0].replace("name: old_text", 'name: "../../../evil"') + "keep_model: false\n"
    experiment.write_text(text)
    before = set(Path().parent.absolute().parent.glob("*"))
    assert main(["run", "experiment.yaml", "--out", "out"]) == 0, capsys.readouterr().err
    assert set(Path().parent.absolute().parent.glob("*")) == before
    assert not list(Path().rglob("*evil*"))


def test_a_task_name_is_no_path(capsys: pytest.CaptureFixture[str], experiment: Path) -> None:
    text = Path("tasks/toy.yaml").read_text()
    Path("tasks/toy.yaml").write_text(text.replace("task: toy", "task: ../../../../evil"))
    Path("tasks/group.yaml").write_text("group: several\ntask: ['../../../../evil']\n")
    experiment.write_text(EXPERIMENT.split("mitigators:")[0].replace("[toy,", "[several,") + "keep_model: false\n")
    above = Path().absolute().parent.parent
    before = set(above.glob("*evil*")) | set(above.glob("*/*evil*"))
    code = main(["run", "experiment.yaml", "--out", "out"])
    said = capsys.readouterr().err
    assert code in (0, 1, 2)
    assert "Traceback" not in said
    assert set(above.glob("*evil*")) | set(above.glob("*/*evil*")) == before
    assert not [path for path in Path().rglob("*evil*") if Path("out") not in path.parents]


def test_labels_are_text_in_a_page(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label = "<script>alert(1)</script>"
    text = EXPERIMENT.split("mitigators:")[0] + f'grid: {{mitigators: {{"{label}": [], plain: []}}}}\nkeep_model: false\n'
    experiment.write_text(text)
    assert main(["run", "experiment.yaml", "--out", "out"]) == 0, capsys.readouterr().err
    assert main(["report", "out", "--html", "page.html"]) == 0, capsys.readouterr().err
    assert label not in Path("page.html").read_text()


def test_lines_of_data_are_not_templates(study: Path, experiment: Path) -> None:
    from cltk.data import fill

    row = {"question": "{answer.__class__}", "answer": "x"}
    write_jsonl(study / "new.jsonl", [row])
    assert fill("Q: {question}", row, "here") == "Q: {answer.__class__}"
    with pytest.raises(InputError, match="missing"):
        fill("{question.__class__}", row, "here")
