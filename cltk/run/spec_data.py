"""The sections of an experiment's YAML that say what is trained on."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_serializer, model_validator
from pydantic_core import PydanticSerializationError

from cltk.data.conversations import Mask
from cltk.errors import InputError, Leave
from cltk.measure.sampling import check_sample

Fraction = Annotated[float, Field(gt=0, lt=1)]

Count = Annotated[int, Field(ge=1, strict=False)]


class Section(BaseModel):
    """A mapping of the YAML: frozen, and no key that it does not name."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    later: ClassVar[tuple[str, ...]] = ()  # keys younger than the first records: no part of a digest while not given

    def model_dump(self, **settings: Any) -> dict[str, Any]:
        """As pydantic's, which calls an interrupt inside of `_dumped` an error of its own."""
        try:
            return super().model_dump(**settings)
        except PydanticSerializationError as error:
            name, _, text = str(error).rpartition("`: ")[2].partition(":")
            if name in ("KeyboardInterrupt", "Leave"):
                raise (Leave if name == "Leave" else KeyboardInterrupt)(text.strip()) from None
            raise

    @model_serializer(mode="wrap")
    def _dumped(self, dump: Any) -> dict[str, Any]:
        fields = type(self).model_fields
        return {key: value for key, value in dump(self).items() if key not in self.later or value != fields[key].default}


def _is_sample(sample: Any) -> Any:
    try:
        check_sample(sample)
    except InputError as error:
        raise ValueError(str(error).removeprefix("sample: ").partition(", got")[0]) from None
    return sample


Sample = Annotated[int | float, BeforeValidator(_is_sample)]


class Source(Section):
    """Rows of prompts and completions, of conversations, or of plain text."""

    later = ("revision", "messages", "weight", "streaming")
    path: str = Field(description="a .jsonl, .json, .csv, .parquet or .txt file, a saved data set, asset:NAME/FILE or hub id")
    name: str | None = Field(None, description="the configuration of a hub data set")
    split: str | None = Field(None, description="the split of a data set, or a part of one: train[:1000]")
    revision: str | None = Field(None, description="a commit, tag or branch of a hub data set")
    prompt: str | None = Field(None, description="column, or template such as 'Question: {question}\\nAnswer:'")
    completion: str | None = Field(None, description="column or template")
    text: str | None = Field(
        None, description="plain text, a column or template: blocks of max_length tokens, no chat template"
    )
    messages: str | None = Field(
        None, description="column of conversations; `messages`, `conversations` and lists of messages as prompt are found"
    )
    limit: Count | None = Field(None, description="the first N rows")
    sample: Sample | None = Field(None, description="N random rows, or a fraction of them")
    streaming: bool = Field(False, description="read while it is trained on, and never whole; only data.train, with max_steps")
    weight: Annotated[float, Field(gt=0)] | None = Field(None, description="share of the rows, beside those of other sources")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.text and (self.prompt or self.completion):
            raise ValueError("plain text (text) has no prompt and no completion; give the one or the other")
        if self.messages and (self.text or self.prompt or self.completion):
            raise ValueError("a conversation (messages) has no text, prompt and completion; give the one or the other")
        if self.streaming and self.sample is not None:
            raise ValueError(
                "a stream is not sampled, since that takes its length; give limit or split, or take streaming away"
            )
        if self.limit is not None and self.sample is not None:
            raise ValueError("limit takes the first rows and sample random ones; give one of the two (null undoes a base's)")
        return self


Sources = Annotated[
    Annotated[Source, Tag("Source")] | Annotated[list[Source], Field(min_length=1), Tag("list[Source]")],
    Discriminator(lambda given: "list[Source]" if isinstance(given, list) else "Source"),
]


class DataSpec(Section):
    """The new task."""

    later = ("mask",)
    train: Sources = Field(description="rows to train on; a list mixes several sources by their weights")
    validation: Source | Fraction = Field(0.1, description="for choices during training; a fraction is split off by prompt")
    heldout: Source | Fraction = Field(0.1, description="for the reported gain; a fraction is split off by prompt")
    max_length: Count = Field(512, description="tokens; longer sequences are cut on the right")
    chat_template: bool = Field(False, description="one user and one assistant turn")
    completion_only: bool = Field(True, description="whether prompt tokens are left out of the loss")
    mask: Mask | None = Field(
        None,
        description="what counts of a conversation: assistant (every answer), last (the last one) or all; by default every"
        " answer, or the whole completion",
    )
    drop_long: bool = Field(False, description="leave rows out whose prompt alone fills max_length (counted in the record)")

    @property
    def sources(self) -> list[tuple[str, Source]]:
        """The sources to train on, by their places."""
        return (
            [("train", self.train)] if isinstance(self.train, Source) else [(f"train.{i}", s) for i, s in enumerate(self.train)]
        )

    @property
    def weights(self) -> list[float] | None:
        """The sources' weights; None where they have none."""
        found = [source.weight for _, source in self.sources]
        return None if None in found else [weight for weight in found if weight is not None]

    @property
    def streamed(self) -> bool:
        """Whether rows are read while they are trained on."""
        return isinstance(self.train, Source) and self.train.streaming

    @model_validator(mode="after")
    def _streams(self) -> Self:
        others = [source for source in (self.validation, self.heldout) if isinstance(source, Source)]
        if any(source.streaming for _, source in self.sources) and not self.streamed:
            raise ValueError("a stream cannot be mixed with other sources; give one source, or read them without streaming")
        if any(source.streaming for source in others):
            raise ValueError("streaming: validation and heldout are read whole; give `limit` or `split: test[:500]` there")
        if self.streamed and len(others) < 2:
            raise ValueError(
                "streaming: no fraction can be split off a stream; give validation and heldout sources of their own"
            )
        return self

    @model_validator(mode="after")
    def _fits(self) -> Self:
        given = [source for _, source in self.sources if source.weight is not None]
        if given and (isinstance(self.train, Source) or len(given) < len(self.sources)):
            raise ValueError("a weight is a share beside other sources: give every source of data.train one, or none")
        if any(source.weight is not None for source in (self.validation, self.heldout) if isinstance(source, Source)):
            raise ValueError("validation and heldout are one source each, which has no weight")
        if self.mask in ("last", "assistant") and not self.completion_only:
            raise ValueError(f"mask: {self.mask} counts answers, and completion_only: false every token; give one of the two")
        if self.mask in ("last", "assistant") and all(source.text for _, source in self.sources):
            raise ValueError(f"mask: {self.mask} counts answers, and plain text (text) has none")
        return self
