"""lm-eval's own command line, with `--model cltk`: HFLM's arguments and scores, each shared context computed once.

    python -m cltk.lm_eval --model cltk --model_args pretrained=FOLDER --tasks arc_easy,hellaswag

lm-eval after 0.4.13 reads the entry point group `lm_eval.models`, and knows `--model cltk` under its own command `lm_eval`.
"""

from __future__ import annotations

import sys

from cltk.errors import CltkError
from cltk.secrets import hidden

TARGET = "cltk.measure.scoring:PrefixLM"


def register() -> None:
    """Make the model `cltk` known to lm-eval, where its entry points have not done so."""
    import lm_eval.models  # noqa: F401  lists lm-eval's own models
    from lm_eval.api.registry import model_registry

    if "cltk" not in model_registry:
        model_registry.register("cltk", target=TARGET)


def main() -> int:
    """lm-eval's command line; exit code 2 and one line for what cltk refuses."""
    from lm_eval.__main__ import cli_evaluate

    register()
    try:
        cli_evaluate()
    except CltkError as error:
        print(f"cltk: {hidden(' '.join(str(error).split()))}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
