"""Names with revisions, and arguments by lm-eval's names: what reaches transformers, and what is refused in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers

from cltk import models
from cltk.errors import InputError
from cltk.models.origin import Origin, arguments


def test_a_revision_stands_behind_the_name_or_among_the_arguments(tmp_path: Path) -> None:
    assert Origin.of("org/model@v2.0").files() == {"revision": "v2.0"}
    assert Origin.of("org/model", {"revision": 2}).revision == "2"
    assert str(Origin.of("org/model@main")) == "org/model@main"
    odd = tmp_path / "at@home"
    odd.mkdir()
    assert Origin.of(odd).name == str(odd)  # a folder with such a name is that folder
    with pytest.raises(InputError, match="revision"):
        Origin.of(odd, {"revision": "main"})


def test_arguments_are_read_as_lm_eval_reads_them() -> None:
    from lm_eval.utils import simple_parse_args_string

    text = "revision=main,trust_remote_code=True,load_in_4bit=False,dtype=float32,think_end_token=</think>"
    assert arguments(text, "x") == simple_parse_args_string(text)
    assert arguments('{"device_map": {"": "cpu"}}', "x") == {"device_map": {"": "cpu"}}
    assert arguments("base=a,b/c,dtype=auto", "x") == {"base": "a,b/c", "dtype": "auto"}
    for wrong in ("float32", "dtype float32", "{"):
        with pytest.raises(InputError, match="x"):
            arguments(wrong, "x")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"revison": "main"}, "did you mean revision"), ({"enable_thinking": True}, "needs think_end_token"),
        ({"dtype": "int3"}, "dtype .int3."),
        ({"dtype": 16}, "dtype must be str"),
        ({"trust_remote_code": "yes"}, "trust_remote_code must be bool"), ({"load_in_4bit": True}, "bitsandbytes"),
        ({"quantization_config": {"quant_method": "nothing"}}, "quantization_config cannot be read"),
        ({"gguf_file": "none.gguf"}, "has no none.gguf"), ({"subfolder": "none"}, "has no none/config.json"),
        ({"attn_implementation": "org/kernel"}, "trust_remote_code"), ({"tokenizer": "no/such/thing"}, "tokeniser"),
        ({"attn_implementation": "magic"}, "cannot be loaded"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_line(args: dict[str, Any], words: str, tiny_folder: Path) -> None:
    with pytest.raises(InputError, match=words) as caught:
        models.load_model(Origin(str(tiny_folder), args))
    assert "\n" not in str(caught.value)


def test_what_is_given_reaches_transformers(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub's answer is not to be had here: what is asked of it is looked at."""
    asked: list[Any] = []

    def ask(name: str, **given: Any) -> Any:
        asked.append((name, given))
        raise OSError("no network")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", ask)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", ask)
    for act in (models.load_tokenizer, models.stored_digest):
        with pytest.raises(InputError, match="org/model@abc"):
            act("org/model@abc")
    assert [(name, given["revision"], given["trust_remote_code"]) for name, given in asked] == [("org/model", "abc", False)] * 2


def test_dtype_attention_and_subfolder(tiny_folder: Path, tiny: Any) -> None:
    inside = tiny_folder / "checkpoint-3"
    tiny(seed=4).save_pretrained(inside)
    origin = Origin(str(tiny_folder), {"dtype": "bfloat16", "attn_implementation": "eager"})
    model, _ = models.load_model(origin, dtype="float32")
    assert (str(model.dtype), model.config._attn_implementation) == ("torch.bfloat16", "eager")
    one, _ = models.load_model(Origin(str(tiny_folder), {"subfolder": "checkpoint-3", "tokenizer": str(tiny_folder)}))
    assert one.lm_head.weight.equal(tiny(seed=4).lm_head.weight)
