"""The section of an experiment's YAML that names the start model."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from cltk.errors import InputError
from cltk.models.thinking import KINDS, Thinking
from cltk.run.spec_data import Section


class ModelSpec(Section):
    """The start model; it is never written to."""

    later = ("revision", *KINDS)
    pretrained: str = Field(description="hub id, folder, or asset:NAME")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="what the weights are trained in")
    trust_remote_code: bool = Field(False, description="whether Python that comes with the model may run")
    revision: str | None = Field(None, description="branch, tag or commit on the hub; NAME@REVISION says the same")
    enable_thinking: bool | None = Field(None, description="told to the chat template (evals.chat_template), as lm-eval's")
    think_end_token: str | int | None = Field(None, description="text or token id behind which a generated answer begins")
    chat_template_args: dict[str, Any] | None = Field(None, description="what else the chat template is told, by name")

    @model_validator(mode="after")
    def _ends(self) -> Self:
        try:
            Thinking.of(self.told).check("model")
        except InputError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def args(self) -> dict[str, Any]:
        """What it is loaded with, beside revision and dtype."""
        return {"trust_remote_code": self.trust_remote_code, **self.told}

    @property
    def told(self) -> dict[str, Any]:
        """Of `args` how the model is asked to think, in measurements."""
        return {name: value for name in KINDS if (value := getattr(self, name)) is not None}

    @property
    def spec(self) -> str:
        """The name with its revision."""
        return self.pretrained if self.revision is None else f"{self.pretrained}@{self.revision}"
