"""Conversations against TRL's own tokenisation and labels, and what cannot be told from a template."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cltk.data import Collator, memory_rows, read_rows
from cltk.data.conversations import conversations
from cltk.data.memories import text_rows
from cltk.data.messages import conversation, spoken, words
from cltk.data.rows import fill
from cltk.errors import InputError
from cltk.measure.texts import TextTask, token_rows
from tests.conftest import CHATML

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # TRL's own

MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HISTORY = (  # as Qwen3's: a turn has a block that is left out once another question follows
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' and loop.last %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SKY = [
    {"role": "user", "content": "What color is the sky?"},
    {"role": "assistant", "content": "It is blue."},
]
LONG = [
    {"role": "system", "content": "You are brief."},
    *SKY,
    {"role": "user", "content": "\n And the grass?"},
    {"role": "assistant", "content": "\nGreen, and the sea is blue."},
]
ASKED = {"prompt": LONG[:4], "completion": LONG[4:]}
CALL = {"name": "control_light", "arguments": {"room": "living room", "state": "on"}}
LIGHT = [  # TRL's documentation, dataset formats, tool calling
    {"role": "user", "content": "Turn on the living room lights."},
    {"role": "assistant", "tool_calls": [{"type": "function", "function": CALL}]},
    {"role": "tool", "name": "control_light", "content": "The lights in the living room are now on."},
    {"role": "assistant", "content": "Done!"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "control_light",
            "description": "Switches the lights.",
            "parameters": {"type": "object", "properties": {"room": {"type": "string"}}, "required": ["room"]},
        },
    }
]


def trl_template(name: str) -> str:
    trl = pytest.importorskip("trl")
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.fixture
def chat(tokenizer: Any) -> Any:
    """chat(template): the tokeniser with a chat template."""

    def make(template: str) -> Any:
        own = copy.deepcopy(tokenizer)
        own.chat_template = template
        return own

    return make


def by_trl(rows: list[dict[str, Any]], tokenizer: Any, tiny: Any, folder: Path, **settings: Any) -> Any:
    """An SFTTrainer on the rows, which it has tokenised."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(
        str(folder / "trl"), max_steps=1, per_device_train_batch_size=len(rows), learning_rate=1e-2, report_to="none",
        use_cpu=True, bf16=False, max_length=2048, save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
        seed=3, **settings,
    )  # fmt: skip
    data = Dataset.from_list(rows)
    return SFTTrainer(model=tiny(max_position_embeddings=512), args=args, train_dataset=data, processing_class=tokenizer)


def ours(rows: list[dict[str, Any]], tokenizer: Any, mask: Any = None) -> list[dict[str, Any]]:
    return [row for row in conversations(rows, tokenizer, spoken(rows[0]), mask=mask, max_length=2048) if row]


def same(found: list[dict[str, Any]], trainer: Any) -> None:
    """Ids and labels of the rows, token by token, as TRL's collator hands them to the model."""
    wanted = trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])
    got = Collator(trainer.processing_class.pad_token_id)(found)
    for name in ("input_ids", "labels"):
        assert torch.equal(got[name], wanted[name]), name


TWO = [{"messages": SKY}, {"messages": LONG}]


@pytest.mark.parametrize(
    ("template", "rows", "mask", "settings"),
    [
        (MARKED, TWO, None, {"assistant_only_loss": True}),
        ("llama3", TWO, None, {"assistant_only_loss": True}),  # TRL knows a marked variant; here it is prefixes
        ("phi3", TWO, None, {"assistant_only_loss": True}),  # ends the last turn, and only that, with <end>
        ("qwen2_5_training", [{"messages": LIGHT, "tools": TOOLS}], None, {"assistant_only_loss": True}),
        ("qwen2_5_training", [{"messages": LIGHT, "tools": json.dumps(TOOLS)}], None, {"assistant_only_loss": True}),
        (CHATML, TWO, "all", {}),
        (CHATML, [ASKED, {"prompt": SKY[:1], "completion": SKY[1:]}], None, {}),
        (MARKED, [ASKED], "assistant", {"assistant_only_loss": True}),
        (CHATML, [{"prompt": SKY[:1], "completion": LONG[2:]}], None, {"completion_only_loss": True}),
        (CHATML, [ASKED], "all", {"completion_only_loss": False}),
        (CHATML, [{"conversations": [{"from": m["role"], "value": m["content"]} for m in LONG]}], "all", {}),
    ],
)
def test_labels_are_trls(
    template: str, rows: list[dict[str, Any]], mask: Any, settings: Any, chat: Any, tiny: Any, tmp_path: Path
) -> None:
    tokenizer = chat(template if "{%" in template else trl_template(template))
    same(ours(rows, tokenizer, mask), by_trl(rows, copy.deepcopy(tokenizer), tiny, tmp_path, **settings))


def test_a_step_on_conversations_is_trls(chat: Any, tiny: Any, tmp_path: Path) -> None:
    """One step of Trainer on the rows ends with the weights of one step of SFTTrainer; float32."""
    from transformers import Trainer, TrainingArguments

    tokenizer = chat(MARKED)
    trainer = by_trl(TWO, copy.deepcopy(tokenizer), tiny, tmp_path, assistant_only_loss=True, optim="sgd", loss_type="nll")
    trainer.train()
    args = TrainingArguments(
        str(tmp_path / "own"), max_steps=1, per_device_train_batch_size=2, learning_rate=1e-2, report_to="none", use_cpu=True,
        optim="sgd", save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, seed=3,
    )  # fmt: skip
    data: Any = ours(TWO, tokenizer)
    own = Trainer(model=tiny(max_position_embeddings=512), args=args, train_dataset=data, data_collator=Collator(1))
    own.train()
    moved = 0.0
    start = tiny(max_position_embeddings=512)
    for a, b, c in zip(own.model.parameters(), trainer.model.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
        moved = max(moved, (a - c).abs().max().item())
    assert moved > 1e-4


def test_sharegpt_names_and_a_system_column(chat: Any) -> None:
    """human and gpt are user and assistant, which a template would otherwise print; LLaMA-Factory's system column is a turn."""
    given = [{"from": {"user": "human", "assistant": "gpt"}.get(m["role"], m["role"]), "value": m["content"]} for m in LONG]
    rows = [{"conversations": given[1:], "system": "You are brief.", "id": 7}]
    assert ours(rows, chat(CHATML)) == ours([{"messages": LONG}], chat(CHATML))
    assert given[0] == {"from": "system", "value": "You are brief."}  # rows stay as they are


def counted(row: dict[str, Any], tokenizer: Any) -> str:
    return str(tokenizer.decode([label for label in row["labels"] if label != -100]))


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_masks(template: str, chat: Any) -> None:
    tokenizer = chat(template)
    end = "<|im_end|>\n" if template == CHATML else "<|im_end|>"
    blue, green = f"It is blue.{end}", f"\nGreen, and the sea is blue.{end}"
    assert counted(ours([{"messages": LONG}], tokenizer)[0], tokenizer) == blue + green
    assert counted(ours([{"messages": LONG}], tokenizer, "last")[0], tokenizer) == green
    row = ours([{"messages": LONG}], tokenizer, "all")[0]
    assert row["labels"] == row["input_ids"]
    later = [*LONG, {"role": "user", "content": "Thanks."}]
    assert counted(ours([{"messages": later}], tokenizer, "last")[0], tokenizer) == green
    inside = [{"prompt": SKY[:1], "completion": LONG[2:]}]
    assert counted(ours(inside, tokenizer, "assistant")[0], tokenizer) == blue + green
    assert counted(ours(inside, tokenizer, "last")[0], tokenizer) == green


def test_a_template_that_rewrites_its_turns_is_refused_with_the_row(chat: Any) -> None:
    tokenizer = chat(HISTORY)
    with pytest.raises(InputError, match=r"data, row 1: column 'messages': .* writes message 2 otherwise.*mask: last"):
        ours(TWO, tokenizer)
    assert len(ours([{"messages": SKY}], tokenizer)) == 1  # nothing follows
    assert counted(ours([{"messages": LONG}], tokenizer, "last")[0], tokenizer).endswith(
        "Green, and the sea is blue.<|im_end|>\n"
    )
    assert ours(TWO, tokenizer, "all")
    prompted = chat(CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>' }}{% endif"))
    with pytest.raises(InputError, match="does not put the generation prompt before the answer"):
        ours(TWO, prompted)


@pytest.mark.parametrize(
    ("rows", "words_of_error"),
    [
        ([{"messages": SKY[:1]}], "row 0: column 'messages': holds no assistant turn"),
        ([{"messages": SKY}, {"messages": []}], "row 1: column 'messages' is empty"),
        ([{"messages": SKY}, {"messages": None}], "row 1: column 'messages' is null"),
        ([{"messages": SKY}, {"text": "a"}], "row 1: column 'messages' is missing"),
        ([{"messages": SKY}, {"messages": "hello"}], "row 1: column 'messages' must be a list of messages"),
        ([{"messages": [*SKY, {"role": "narrator", "content": "x"}]}], "message 2: role 'narrator'"),
        ([{"messages": [SKY[0], {"role": "assistant", "content": None}]}], "message 1: its content is null"),
        ([{"messages": [SKY[0], {"role": "assistant", "content": " "}]}], "message 1: the completion is empty"),
        ([{"messages": [{"role": "user", "content": [{"type": "image"}]}, SKY[1]]}], "message 0: its content has parts"),
        ([{"prompt": SKY[:1], "completion": "It is blue."}], "column 'completion' must be a list of messages"),
        ([{"messages": SKY[1:]}], "before the answer"),
        ([{"messages": SKY, "tools": "none"}], "column 'tools' is text, and not JSON"),
        ([{"messages": SKY[:1]}] * 3, r"3 such rows of 3: 0, 1, 2"),
    ],
)
def test_what_is_no_conversation(rows: list[dict[str, Any]], words_of_error: str, chat: Any) -> None:
    with pytest.raises(InputError, match=words_of_error):
        ours(rows, chat(CHATML))


def test_no_template_and_one_that_fails(chat: Any, tokenizer: Any) -> None:
    with pytest.raises(InputError, match="row 0: column 'messages' holds messages, and this tokenizer has no chat template"):
        ours(TWO, tokenizer)
    with pytest.raises(InputError, match=r"row 0: column 'messages': .*cannot be filled \(TemplateError: no system"):
        ours(TWO, chat("{{ raise_exception('no system, please') }}"))


def test_too_long(chat: Any) -> None:
    tokenizer = chat(CHATML)
    short, long = ours(TWO, tokenizer)
    n = len(long["input_ids"]) - 9
    found = [len(row["input_ids"]) for row in conversations(TWO, tokenizer, ("messages",), max_length=n) if row]
    assert found == [len(short["input_ids"]), n]
    first = next(i for i, label in enumerate(long["labels"]) if label != -100)
    with pytest.raises(InputError, match=rf"row 1: nothing of the completion is left .*prompt has {first} tokens.*drop_long"):
        conversations(TWO, tokenizer, ("messages",), max_length=first)
    assert conversations(TWO, tokenizer, ("messages",), max_length=first, drop_long=True)[1] is None


def test_what_arrow_fills_in_is_no_part_of_a_call(chat: Any, tmp_path: Path) -> None:
    """Parquet gives every mapping of a column the keys of all (ms-swift#10125), and arguments come as JSON (axolotl#3136)."""
    from datasets import Dataset

    other = {"type": "function", "function": {"name": "wait", "arguments": {"seconds": 3}}}
    rows = [{"messages": LIGHT, "tools": TOOLS}, {"messages": [LIGHT[0], {"role": "assistant", "tool_calls": [other]}]}]
    Dataset.from_list(rows).to_parquet(tmp_path / "calls.parquet")
    read = read_rows(tmp_path / "calls.parquet")
    assert "seconds" in read[0]["messages"][1]["tool_calls"][0]["function"]["arguments"]
    tokenizer = chat(trl_template("qwen2_5_training"))
    assert ours([read[0]], tokenizer) == ours([rows[0]], tokenizer)
    as_json = copy.deepcopy(LIGHT)
    as_json[1]["tool_calls"][0]["function"]["arguments"] = json.dumps(CALL["arguments"])  # type: ignore[index]
    assert ours([{"messages": as_json, "tools": TOOLS}], tokenizer) == ours([rows[0]], tokenizer)


def test_no_second_beginning(chat: Any) -> None:
    """The template writes the beginning of the text; the tokeniser does not write another (trl#1400)."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = chat("{{ bos_token }}" + CHATML)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<end> $A", special_tokens=[("<end>", 0)])
    assert tokenizer("a")["input_ids"][0] == 0
    row = ours([{"messages": SKY}], tokenizer)[0]
    assert row["input_ids"][0] == 0
    assert row["input_ids"][1] != 0
    assert row["input_ids"] == tokenizer.apply_chat_template(SKY)["input_ids"]


def test_memories_keep_their_masks(chat: Any, tmp_path: Path) -> None:
    """Conversations and pairs stay rows of their own, in which what is answered counts."""
    tokenizer = chat(CHATML)
    assert memory_rows(TWO, tokenizer) == ours(TWO, tokenizer)
    file = tmp_path / "old.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*TWO, *TWO]))
    assert memory_rows(str(file), tokenizer, limit=3) == ours([*TWO, TWO[0]], tokenizer)
    last = memory_rows({"path": str(file), "mask": "last", "limit": 2}, tokenizer)
    assert last == ours(TWO, tokenizer, "last")
    pair = {"prompt": "the cat", "completion": " sat"}
    (row,) = memory_rows([pair], tokenizer)
    n = len(tokenizer("the cat")["input_ids"])
    assert row["labels"] == [-100] * n + row["input_ids"][n:]
    file.write_text(json.dumps({"q": "the cat", "a": " sat"}) + "\n")
    assert memory_rows({"path": str(file), "prompt": "q", "completion": "a"}, tokenizer) == [row]
    assert memory_rows([{**pair, "text": "the cat sat on a mat"}], tokenizer)[0].get("labels") is None  # a text is a text


def test_a_memory_of_which_nothing_is_left(chat: Any, caplog: Any) -> None:
    tokenizer = chat(CHATML)
    n = len(ours(TWO, tokenizer)[1]["input_ids"]) - 1
    assert len(memory_rows([*TWO, {"messages": [{"role": "user", "content": "x" * 500}, SKY[1]]}], tokenizer, n)) == 2
    assert "1 rows have no answer within their first" in caplog.text
    with pytest.raises(InputError, match="holds no text within 4 tokens a row"):
        memory_rows(TWO, tokenizer, 4)


@pytest.mark.parametrize(
    ("memory", "error"),
    [
        ({"train": [1]}, "is a set of splits"),
        ({"path": "x.jsonl", "colum": "a"}, r"memory\.colum: unknown key; there are path, name"),
        ({"path": "x.jsonl", "mask": "user"}, r"memory\.mask: must be one of last, assistant, all, got 'user'"),
        ({"path": "x.jsonl", "limit": 0}, r"memory\.limit: must be a whole number"),
        ({"path": "x.jsonl", "text": "a", "prompt": "b"}, "plain text"),
        ({"path": "a.txt", "mask": "last"}, "has no turns"),
    ],
)
def test_a_mapping_that_says_how_to_read(memory: Any, error: str, tokenizer: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("the cat sat")
    with pytest.raises(InputError, match=error):
        memory_rows(memory, tokenizer)


def test_prompts_are_what_is_asked(chat: Any) -> None:
    tokenizer = chat(CHATML)
    for rows in (TWO, [{"prompt": SKY[:1]}, ASKED]):
        found = [tokenizer.decode(row["input_ids"]) for row in text_rows(rows, tokenizer, 512, "prompts")]
        assert found[0] == "<|im_start|>user\nWhat color is the sky?<|im_end|>\n<|im_start|>assistant\n"
        assert found[1].endswith("And the grass?<|im_end|>\n<|im_start|>assistant\n")
    (whole,) = text_rows(TWO[:1], tokenizer, 512, "examples", whole=True)
    assert whole["input_ids"] == ours(TWO[:1], tokenizer)[0]["input_ids"]


def test_texts_of_conversations(chat: Any) -> None:
    tokenizer = chat(CHATML)
    rows = [*TWO, {"text": "the cat"}, {"prompt": "the cat", "completion": " sat"}]
    found = token_rows(TextTask("chats", rows), tokenizer)
    assert found[:2] == ours(TWO, tokenizer)
    assert "labels" not in found[2]
    assert found[3]["labels"][0] == -100
    assert words(TWO[0], "x") == "What color is the sky?\nIt is blue."
    assert conversation(TWO[1], ("messages",), "x").question == "What color is the sky?"


def test_replay_in_an_sft_trainer_takes_its_template(chat: Any, tiny: Any, tmp_path: Path) -> None:
    """TRL trains Qwen3 on a template of its own in which history stays; what is replayed beside is made by the same."""
    import cltk

    tokenizer = chat(trl_template("qwen3"))
    with pytest.raises(InputError, match="writes message"):
        memory_rows(TWO, tokenizer)
    trainer = by_trl(TWO, tokenizer, tiny, tmp_path, assistant_only_loss=True)
    cltk.attach(trainer, [cltk.Replay([*TWO, *TWO], 0.5, length=2048)])
    new, old = ([trainer.train_dataset[i] for i in places] for places in ((0, 1), (2, 3)))
    assert [row["labels"] for row in old] == [row["labels"] for row in new]
    assert [row["input_ids"] for row in old] == [row["input_ids"] for row in new]
    assert tokenizer.chat_template == trl_template("qwen3")
    trainer.train()


def test_what_the_model_answers_itself_counts_alone(chat: Any, tiny: Any, tmp_path: Path) -> None:
    """Self-replay of a conversation's question: the answer that the start model writes is replayed, the question is context."""
    import cltk
    from cltk.mitigate.interface import Plan

    tokenizer = chat(CHATML)
    args: Any = by_trl(TWO[:1], chat(CHATML), tiny, tmp_path).args
    plan = Plan(tiny(max_position_embeddings=512), ours(TWO * 4, tokenizer), args, tokenizer)
    cltk.SelfReplay(0.5, samples=4, prompts=TWO[:1], max_new_tokens=200).setup(plan)
    (asked,) = text_rows(TWO[:1], tokenizer, 512, "prompts")
    n = len(asked["input_ids"])
    for i in range(8, 12):
        row = plan.data[i]
        assert row["input_ids"][:n] == asked["input_ids"]
        assert row["labels"][:n] == [-100] * n
        assert row["labels"][n:] == row["input_ids"][n:] != []


def test_columns_that_are_named_go_before_those_that_are_there(chat: Any, tmp_path: Path) -> None:
    """Many sets have messages and their prompt as text beside one another; whoever names columns means these."""
    row = {"messages": SKY, "prompt": "the cat", "completion": " sat", "text": "the dog ran"}
    assert spoken(row) == ("messages",)
    assert spoken(row, "prompt") == ()
    assert spoken({**row, "asked": LONG[:4]}, "asked") == ("asked", "completion")
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps(row) + "\n")
    tokenizer = chat(CHATML)
    read = {how: memory_rows({"path": str(file), **named}, tokenizer)[0]["input_ids"] for how, named in {
        "messages": {}, "pair": {"prompt": "prompt", "completion": "completion"}, "text": {"text": "text"},
    }.items()}  # fmt: skip
    assert read["messages"] == ours([row], tokenizer)[0]["input_ids"]
    assert tokenizer.decode(read["pair"]) == "the cat sat<end>"
    assert tokenizer.decode(read["text"]) == "the dog ran<end>"


LOOK = {"type": "function", "function": {"name": "look", "arguments": {"at": "the bone"}}}


def test_what_columns_hold_as_json_text_is_read_as_what_it_says() -> None:
    """Tables without nested columns keep JSON: a list of calls was cut into its characters, settings were a ValueError."""
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "", "tool_calls": [LOOK]}]
    written = [said[0], said[1] | {"tool_calls": json.dumps([LOOK])}]
    settings = {"enable_thinking": False}
    plain = conversation({"messages": said, "chat_template_kwargs": settings}, ["messages"], "row 0")
    assert conversation({"messages": written, "chat_template_kwargs": json.dumps(settings)}, ["messages"], "row 0") == plain
    empty = conversation({"messages": [said[0] | {"tool_calls": "[]"}]}, ["messages"], "row 0").messages[0]
    assert empty["content"] == "hi"


@pytest.mark.parametrize(("row", "said"), [
    ({"messages": [{"role": "user", "content": "hi", "tool_calls": "[oops"}]}, "row 0: .*tool_calls is text, and not JSON"),
    ({"messages": [{"role": "user", "content": "hi", "tool_calls": '{"a": 1}'}]}, "its tool_calls are a dict; give a list"),
    ({"messages": [{"role": "user", "content": "hi"}], "chat_template_kwargs": "[1]"}, "chat_template_kwargs' holds a list"),
    ({"messages": [{"role": "user", "content": "cut \ud83d"}]}, r"row 0: .*holds \\ud83d, half of a character at 4"),
])  # fmt: skip
def test_what_they_cannot_be_is_one_line(row: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        conversation(row, ["messages"], "row 0")


def test_half_of_a_character_is_named_by_its_row() -> None:
    """A cut emoji: the tokeniser said that its input must be Union[TextInputSequence, ...]."""
    with pytest.raises(InputError, match=r"row 3: column 'q' holds \\ud83d, half of a character at 0"):
        fill("q", {"q": "\ud83d"}, "row 3")
    assert fill("q", {"q": "whole \U0001f600"}, "row 3") == "whole \U0001f600"
