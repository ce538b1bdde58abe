"""The judge's section of an experiment's YAML."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from cltk.run.spec_data import Count, Section

Above = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class JudgeSpec(Section):
    """Answers of the start model and of every cell's, judged: see `cltk judge`."""

    questions: str = Field(description="rows of question_id, category, turns, reference: a file, asset:NAME/FILE or cltk:FILE")
    endpoint: str = Field(description="address of an OpenAI-compatible endpoint; another machine's needs --trust")
    model: str | list[str] = Field(description="of the judge, or of several")
    mode: Literal["single", "pairwise"] = Field(
        "single", description="grades from 1 to 10, or the better of two in both orders"
    )
    key_env: str = Field("CLTK_JUDGE_KEY", description="the environment variable that holds the key; never the key")
    repeats: Count = Field(1, description="judgements of the same by each judge")
    limit: Count | None = Field(None, description="the first questions")
    max_new_tokens: Count = Field(1024, description="of an answer")
    settings: dict[str, Any] = Field(default_factory=dict, description="fields of every request; null leaves one out")
    concurrency: Count = Field(4, description="requests at a time")
    rate: Above | None = Field(None, description="requests a minute at most")
    retries: Annotated[int, Field(ge=0)] = Field(6, description="after 429, 5xx, timeouts")
    timeout: Above = Field(300.0, description="seconds, of a request")

    @property
    def models(self) -> tuple[str, ...]:
        """The judges."""
        return (self.model,) if isinstance(self.model, str) else tuple(self.model)
