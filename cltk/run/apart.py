"""Which folders an experiment reads, and that its output lies apart from them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from cltk.data import assets
from cltk.errors import InputError
from cltk.run.plans import Plan
from cltk.run.sources import memories


def models(plan: Plan) -> list[Path]:
    """The folders of all start models, and of other models that methods read."""
    specs = {cell.config.model.spec for cell in plan.cells}
    specs |= {one.path for cell in plan.cells for one in memories(cell.config.mitigators)}
    found = []
    for spec in sorted(specs):
        if spec.startswith(assets.PREFIX):
            with suppress(InputError):  # said later, with the key
                found.append(assets.find(spec.removeprefix(assets.PREFIX).split("/")[0]).folder)
        else:
            found += [plan.folder / spec, Path(spec)]  # as it is looked for
    return [folder for folder in found if any((folder / name).exists() for name in ("config.json", "adapter_config.json"))]


def check_apart(out: Path, model: Path) -> None:
    """Raises InputError where the output folder is a model's, lies in it or holds it, by whatever name."""
    there, real = out.resolve(), model.resolve()
    if any(_same(one, there) for one in (real, *real.parents)):
        raise InputError(f"--out {out}: this is the start model's folder (or holds it); choose another output folder")
    if any(_same(one, real) for one in there.parents):
        raise InputError(f"--out {out}: lies inside the start model's folder; choose another output folder")


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are one folder, also where names differ in case or a folder is mounted twice."""
    return one == other or (one.exists() and other.exists() and os.path.samefile(one, other))
