"""The sections of an experiment's YAML, their keys and types."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from cltk.data.conversations import Mask
from cltk.run.spec_data import Count, DataSpec, Sample, Section
from cltk.run.spec_judge import JudgeSpec
from cltk.run.spec_model import ModelSpec
from cltk.run.spec_search import SearchSpec, SplitSpec

Dtype = Literal["auto", "float32", "bfloat16", "float16", "float64"]


class TaskSpec(Section):
    """An lm-eval task, group, tag, pattern or file with documents of its own number."""

    task: str = Field(description="its name")
    sample: Sample | None = Field(
        None, description="random documents of each task, or a fraction of them, instead of evals.sample"
    )

    @property
    def label(self) -> str:
        """What tables call it."""
        return self.task


class TextSpec(Section):
    """Held-out text, pairs or conversations whose token NLL is measured (of the answers)."""

    later = ("config", "split", "revision", "prompt", "completion", "messages", "mask")
    text: str = Field(description="file, asset:NAME/FILE or hub id")
    config: str | None = Field(None, description="the configuration of a hub data set")
    split: str | None = Field(None, description="the split of a data set, or a part of one")
    revision: str | None = Field(None, description="a commit, tag or branch of a hub data set")
    prompt: str | None = Field(None, description="column or template of what is asked, where it has another name")
    completion: str | None = Field(None, description="column or template of what is answered")
    messages: str | None = Field(None, description="column of conversations, where it has another name")
    mask: Mask | None = Field(None, description="what counts of a conversation, as data.mask")
    name: str | None = Field(None, description="the row's name in tables; the file's name when not given")
    limit: Count | None = Field(None, description="N rows, evenly spread over the file")
    sample: Sample | None = Field(None, description="N random rows, or a fraction of them, instead of evals.sample")
    cluster: str | None = Field(None, description="column that groups dependent rows; samples take them whole")
    stratum: str | None = Field(None, description="column of the sources or subjects that samples are spread over")

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if self.limit is not None and self.sample is not None:
            raise ValueError("limit takes evenly spread rows and sample random ones; give one of the two")
        if self.messages and (self.prompt or self.completion):
            raise ValueError("a conversation (messages) has no prompt and completion; give the one or the other")
        return self

    @property
    def label(self) -> str:
        """What tables call it."""
        return self.name or Path(self.text).stem


def _kind(entry: Any) -> str:
    """Which of the three an entry is; what is none of them is told that a name was expected."""
    if isinstance(entry, dict):
        return "TaskSpec" if "task" in entry else "TextSpec"
    return type(entry).__name__ if isinstance(entry, TaskSpec | TextSpec) else "str"


Entry = Annotated[
    Annotated[str, Tag("str")] | Annotated[TaskSpec, Tag("TaskSpec")] | Annotated[TextSpec, Tag("TextSpec")],
    Discriminator(_kind),
]


class DocumentsSpec(Section):
    """All documents for the start model and the references, part of them for the other cells."""

    later = ("draw",)
    total: Sample | None = Field(None, description="evals.sample by another name: documents of each task and text")
    scored: Count | Literal["auto"] = Field(description="random ones of them that other cells score; auto: see half_width")
    reference: str | Annotated[list[str], Field(min_length=1)] = Field(
        "plain", description="methods whose first cell scores all documents"
    )
    half_width: Annotated[float, Field(gt=0)] | None = Field(
        None, description="with scored: auto, the half width of every headline's interval at which a cell is scored enough"
    )
    draw: Literal["equal", "margin"] = Field(
        "equal", description="margin: of tasks with an accuracy, more often the documents near the start model's boundary"
    )

    @model_validator(mode="after")
    def _belongs(self) -> Self:
        if (self.scored == "auto") != (self.half_width is not None):
            raise ValueError("half_width belongs to `scored: auto`, and that needs it")
        if self.draw == "margin" and self.scored == "auto":
            raise ValueError("draw: margin needs a number of documents, as every look of `scored: auto` draws anew")
        return self

    @property
    def references(self) -> list[str]:
        """The names of the reference methods."""
        return [self.reference] if isinstance(self.reference, str) else self.reference


Budget = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class DuringSpec(Section):
    """A watch on evals.retain while a cell is trained: see `cltk.Watch`."""

    every: Count = Field(50, description="steps between two moments")
    sample: Sample | None = Field(50, description="random documents of each task and text; null: all")
    retain: list[str] | None = Field(
        None, description="names of the entries of evals.retain that are watched; all when not given"
    )
    stop_at: dict[str, Budget] = Field(
        default_factory=dict, description="{row or macro: loss}: stop where more is lost, surely"
    )
    keep_best: bool | dict[str, Budget] = Field(
        False, description="end with the best moment; {row or macro: loss} within these"
    )
    score: str = Field("validation", description="what is best: validation NLL, or an entry of evals.learn")


class EvalSpec(Section):
    """What is measured before and after."""

    later = ("judge", "split", "dtype")
    retain: list[Entry] = Field(default_factory=list, description="lm-eval tasks, groups, tags, patterns, suite files, texts")
    learn: list[Entry] = Field(default_factory=list, description="more measures of the gain, beside held-out NLL")
    limit: Count | None = Field(None, description="the first documents of each lm-eval task")
    sample: Sample | None = Field(
        None, description="random documents of each lm-eval task and text, or a fraction of them; the same for every cell"
    )
    sample_seed: int | None = Field(None, description="of the samples; 0 when not given")
    documents: DocumentsSpec | None = Field(None, description="score part of the documents; predict the others")
    during: DuringSpec | None = Field(None, description="measure the old tasks while training, too")
    judge: JudgeSpec | None = Field(None, description="have a judge grade or compare the answers of both models")
    split: SplitSpec | None = Field(None, description="measure one of two parts of the documents; `search` sets it itself")
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    include_path: str | None = Field(None, description="folder of task YAML; its !function runs Python")
    chat_template: bool = Field(False, description="apply the tokenizer's chat template")
    system_instruction: str | None = Field(None, description="text before every prompt")
    fewshot_as_multiturn: bool = Field(True, description="examples are turns of the conversation in a chat template")
    gen_kwargs: dict[str, Any] = Field(default_factory=dict, description="of generation, over the task's own")
    confirm_run_unsafe_code: bool = Field(False, description="consent to tasks that run code which the model writes")
    members: bool = Field(False, description="rows for the tasks of a group, beside the group's")
    batch_size: Count | Literal["auto"] = "auto"
    kl_rows: Annotated[int, Field(ge=0)] = Field(16, description="rows of each text on which KL(start || tuned) is measured")
    margins: dict[str, float] = Field(default_factory=dict, description="{metric: loss that does not matter}")
    scorer: Literal["prefix", "stock"] = Field("prefix", description="contexts computed once, or lm-eval's own HFLM")
    dtype: Literal["float32", "bfloat16"] | None = Field(
        None, description="of the weights while tasks and texts are scored, before and after; their own when not given"
    )

    @property
    def chats(self) -> bool:
        """Whether anything is asked in the chat template."""
        return self.chat_template or self.judge is not None

    @model_validator(mode="before")
    @classmethod
    def _total(cls, data: Any) -> Any:
        """`documents.total` is the sample of everything."""
        documents = data.get("documents") if isinstance(data, dict) else None
        if documents is not None and data.get("limit") is not None:
            raise ValueError("documents are drawn at random and limit takes the first; give documents.total in its place")
        total = documents.get("total") if isinstance(documents, dict) else None
        if total is None or data.get("sample") == total:
            return data
        if data.get("sample") is not None:
            raise ValueError("documents.total is a sample; give one of the two")
        return {**data, "sample": total}

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        own = [entry.task for entry in [*self.retain, *self.learn] if isinstance(entry, TaskSpec) and entry.sample is not None]
        if self.limit is not None and (self.sample is not None or own):
            where = "sample" if self.sample is not None else f"sample of {own[0]}"
            raise ValueError(
                f"limit takes the first documents and {where} random ones; give one of the two (null undoes a base's)"
            )
        for name in ("documents", "during") if self.split is not None else ():
            if getattr(self, name) is not None:
                raise ValueError(f"{name} and split (or a search) each choose documents in their own way; give one of the two")
        return self


Switch = Literal["auto", True, False]


class SpeedSpec(Section):
    """What makes training faster with the same result: auto (where exact), true (or an error), false."""

    packing: Switch = Field("auto", description="sequences end to end instead of padding")
    attention: Switch = Field("auto", description="of packed rows one sequence after the other; processors only")
    grouping: Switch = Field("auto", description="batches of like lengths; auto: where packing is not exact")
    label_head: Switch = Field("auto", description="the output head only where a label is")
    autocast: Switch = Field("auto", description="bfloat16 autocast; auto: where its products are faster")
    fused: Switch = Field("auto", description="AdamW in one kernel")
    onednn: Switch = Field("auto", description="float32 products through oneDNN; auto: where float32 and faster")
    allocator: Switch = Field("auto", description="freed memory is kept; `cltk run` on glibc only")


class StageSpec(Section):
    """One training of a stream: it goes on with the weights, and with what the mitigators keep, of the training before."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,60}$")] = Field(description="in tables and folders")
    data: DataSpec
    train: dict[str, Any] = Field(default_factory=dict, description="training arguments that go before the experiment's")
    score: str | None = Field(None, description="the entry of evals.learn that ACC, BWT, FWT take; else held-out NLL")


class Experiment(Section):
    """One experiment: a cell for every combination of the grid."""

    later = ("search",)
    base: str | None = Field(None, description="a YAML file whose keys hold where this one has none")
    model: ModelSpec
    data: DataSpec | None = Field(None, description="the new task; a stream has `stages` instead")
    stages: list[StageSpec] = Field(default_factory=list, description="trainings in a row, each on a new task")
    seed: int = Field(0, description="of training: data order, dropout, sampled labels")
    train: dict[str, Any] = Field(default_factory=dict, description="transformers.TrainingArguments, by their names")
    mitigators: list[Any] = Field(default_factory=list, description="applied in this order: name -> arguments")
    evals: EvalSpec = Field(default_factory=lambda: EvalSpec())
    speed: SpeedSpec = Field(default_factory=lambda: SpeedSpec())
    grid: dict[str, list[Any] | dict[str, Any]] = Field(default_factory=dict, description="key -> values, or name -> value")
    search: SearchSpec | None = Field(None, description="the best setting of a method within a budget, on validation documents")
    keep_model: bool = Field(True, description="whether the fine-tuned weights are kept")
