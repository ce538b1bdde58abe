"""Models that lm-eval loads itself, by name: what `PrefixLM` adds to HFLM's constructor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm

from cltk.data import assets
from cltk.measure.settings import options
from cltk.models.thinking import Thinking

Tell = Callable[[int, int, int], None]  # requests done, in all, tokens computed so far
OTHERWISE = {  # HFLM's settings under which a forward is not the plain call of one model
    "mixed_precision_dtype": "mixed_precision_dtype asks for autocast",
    "tp_plan": "tp_plan splits every layer over processes",
}


def checked(batch_size: int | str, settings: Mapping[str, Any]) -> int | str:
    """The batch size: see `options`. Raises InputError for HFLM's settings of thinking without an end, too."""
    Thinking.of(settings).check("PrefixLM")
    return options("prefix", batch_size)


def located(pretrained: str, tokenizer: Any, settings: Mapping[str, Any]) -> tuple[str, Any, dict[str, Any]]:
    """HFLM's arguments with folders for asset:NAME, and a device that this machine has.

    HFLM's own default is "cuda" also where there is none.
    """
    found = {"device": "cuda" if torch.cuda.is_available() else "cpu", **settings}
    tokenizer = _folder(tokenizer) if isinstance(tokenizer, str) else tokenizer
    return _folder(pretrained), tokenizer, found


def _folder(name: str) -> str:
    return str(assets.resolve(name)) if name.startswith(assets.PREFIX) else name


def left_to_stock(settings: Mapping[str, Any]) -> str:
    """Why lm-eval's own scoring is used under these settings of HFLM; "" where trees may be tried."""
    return next((why for name, why in OTHERWISE.items() if settings.get(name) is not None), "")


@contextmanager
def bar(requests: int, hidden: bool, what: str = "loglikelihood") -> Iterator[Tell]:
    """The progress bar that lm-eval's own models draw."""
    with tqdm(total=requests, disable=hidden, desc=f"Running {what} requests") as drawn:

        def tell(done: int, _: int, __: int) -> None:
            drawn.update(done - drawn.n)

        yield tell
