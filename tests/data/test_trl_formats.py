"""TRL's documented dataset formats, each read by `cltk run` and trained one step beside TRL's trainer; the rest refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from cltk.data import Collator
from cltk.errors import InputError
from cltk.run.prepare import prepare_data
from cltk.run.spec_data import DataSpec
from tests.conftest import write_jsonl
from tests.data.test_conversations import LIGHT, MARKED, TOOLS, by_trl, trl_template

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # TRL's own

ASKED = [{"role": "user", "content": "What color is the sky?"}]
BLUE, GREEN = ([{"role": "assistant", "content": f"It is {color}."}] for color in ("blue", "green"))
TRAINED: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {  # the row as the page has it, a template, TRL's settings
    "standard language modeling": ({"text": "The sky is blue."}, MARKED, {}),
    "conversational language modeling": ({"messages": [*ASKED, *BLUE]}, MARKED, {"assistant_only_loss": True}),
    "standard prompt-completion": ({"prompt": "The sky is", "completion": " blue."}, MARKED, {}),
    "conversational prompt-completion": ({"prompt": ASKED, "completion": BLUE}, MARKED, {}),
    "tool calling": ({"messages": LIGHT, "tools": TOOLS}, "qwen2_5_training", {"assistant_only_loss": True}),
}


@pytest.mark.parametrize("name", list(TRAINED))
def test_a_documented_format_is_trained_on_as_by_trl(name: str, tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Ids and labels as TRL's collator has them, token by token, and the weights of one step of SGD; float32."""
    from transformers import Trainer, TrainingArguments

    row, template, settings = TRAINED[name]
    own = copy.deepcopy(tokenizer)
    own.chat_template = template if "{%" in template else trl_template(template)
    write_jsonl(tmp_path / "rows.jsonl", [row])
    source = {"path": "rows.jsonl", **({"text": "text"} if "text" in row else {})}
    data = prepare_data(DataSpec(train=source, validation=source, heldout=source, max_length=2048), own, tmp_path)
    theirs = by_trl([row], copy.deepcopy(own), tiny, tmp_path, optim="sgd", loss_type="nll", **settings)
    wanted = theirs.data_collator([theirs.train_dataset[0]])
    for part in (data.train, data.validation, data.heldout):
        got = Collator(own.pad_token_id)(list(part))
        for key in ("input_ids", "labels"):
            assert torch.equal(got[key], wanted[key]), key
    theirs.train()
    args = TrainingArguments(
        str(tmp_path / "own"), max_steps=1, per_device_train_batch_size=1, learning_rate=1e-2, report_to="none", use_cpu=True,
        optim="sgd", save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, seed=3, remove_unused_columns=False,
    )  # fmt: skip
    mine = Trainer(tiny(max_position_embeddings=512), args, train_dataset=data.train, data_collator=Collator(own.pad_token_id))
    mine.train()
    moved = 0.0
    for a, b, c in zip(mine.model.parameters(), theirs.model.parameters(), tiny().parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
        moved = max(moved, (a - c).abs().max().item())
    assert moved > 1e-4


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "standard prompt-only": ({"prompt": "The sky is"}, "column 'completion' is missing"),
    "conversational prompt-only": ({"prompt": ASKED}, "column 'completion' is missing"),
    "standard preference": ({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}, "preference pairs"),
    "conversational preference": ({"prompt": ASKED, "chosen": BLUE, "rejected": GREEN}, "preference pairs"),
    "implicit preference": ({"chosen": [*ASKED, *BLUE], "rejected": [*ASKED, *GREEN]}, "messages: chosen"),
    "stepwise supervision": (
        {
            "prompt": "Which is larger, 9.8 or 9.11?",
            "completions": ["9.11 > 9.8.", "It is 9.11."],
            "labels": [True, False],
        },
        "column 'completion' is missing",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_formats_that_are_not_answers_are_one_line(name: str, tokenizer: Any, tmp_path: Path) -> None:
    row, words = REFUSED[name]
    own = copy.deepcopy(tokenizer)
    own.chat_template = MARKED
    write_jsonl(tmp_path / "rows.jsonl", [row])
    with pytest.raises(InputError, match=words) as raised:
        prepare_data(DataSpec(train={"path": "rows.jsonl"}, validation={"path": "rows.jsonl"}), own, tmp_path)
    assert "\n" not in str(raised.value)


def test_the_chosen_of_preference_pairs_can_be_trained_on(tokenizer: Any, tmp_path: Path) -> None:
    own = copy.deepcopy(tokenizer)
    own.chat_template = MARKED
    ways = []
    for row, how in (
        ({"chosen": [*ASKED, *BLUE], "rejected": [*ASKED, *GREEN]}, {"messages": "chosen"}),
        ({"prompt": ASKED, "chosen": BLUE, "rejected": GREEN}, {"completion": "chosen"}),
        ({"messages": [*ASKED, *BLUE]}, {}),
    ):
        write_jsonl(tmp_path / "rows.jsonl", [row])
        source = {"path": "rows.jsonl", **how}
        spec = DataSpec(train=source, validation=source, heldout=source, mask="assistant")
        ways.append(list(prepare_data(spec, own, tmp_path).train))
    assert ways[0] == ways[1] == ways[2]


@pytest.mark.parametrize(
    ("row", "warned"),
    [
        ({"prompt": "The sky is", "completion": " green.", "label": False}, True),
        ({"prompt": ASKED, "completion": GREEN, "label": False}, True),
        ({"prompt": "Is it?", "completion": " no", "label": False, "question": "Is it"}, False),  # a label of the question's
        ({"prompt": "The sky is", "completion": " green."}, False),
    ],
)
def test_unpaired_preferences_are_said_to_train_as_answers(
    row: dict[str, Any], warned: bool, tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = copy.deepcopy(tokenizer)
    own.chat_template = MARKED
    write_jsonl(tmp_path / "rows.jsonl", [row])
    prepare_data(
        DataSpec(train={"path": "rows.jsonl"}, validation={"path": "rows.jsonl"}, heldout={"path": "rows.jsonl"}), own, tmp_path
    )
    assert ("where `label` is false" in caplog.text) == warned
