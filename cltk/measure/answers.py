"""A suite's lm-eval tasks on one model: what is asked, and what each task makes of the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cltk.errors import InputError
from cltk.measure.documents import fails_on_made_up, task_scores
from cltk.measure.faults import run
from cltk.measure.harness import by_document, fits_positions, has_start, make_lm
from cltk.measure.isolation import isolated
from cltk.measure.prompting import restore
from cltk.measure.scores import TaskScores
from cltk.measure.stderr import fill_stderr

if TYPE_CHECKING:
    from cltk.measure.evaluate import Suite


def score_tasks(
    suite: Suite, model: Any, tokenizer: Any, *, digest: str, batch_size: Any, journal: Any, progress: Any,
    scorer: str,
) -> tuple[dict[str, TaskScores], dict[str, Any]]:  # fmt: skip
    """Task -> its scores, and lm-eval's own results; nothing on any rank but the first. See `answered`.

    Raises:
        InputError: no task can be scored; the model's forward fails, or cannot do what a task asks of it.
    """
    loaded = suite.load()
    if loaded is None:
        return {}, {}
    has_start(tokenizer)
    documents = sum(one.count for one in suite.chosen.values())
    lm = make_lm(model, tokenizer, digest, batch_size, journal, progress and by_document(progress, documents), scorer)
    lm.seeds = suite.prompting.seeds
    fits_positions(loaded["tasks"], model.config, tokenizer)
    found = answered(suite, lm, tokenizer, lambda: make_lm(model, tokenizer, digest, 1, None, None, "stock"))
    if unended := getattr(lm, "unended", 0):
        who = getattr(model, "name_or_path", "") or type(model).__name__
        suite.notes.append(
            f"{who}: {unended} generated texts do not come to {lm.think_end_token!r}: as by lm-eval, all of such a text is the"
            " answer; leave room for it (gen_kwargs max_gen_toks)"
        )
    return found


def answered(suite: Suite, lm: Any, tokenizer: Any, single: Callable[[], Any]) -> tuple[dict[str, TaskScores], dict[str, Any]]:
    """What the suite's tasks make of an lm-eval model's answers: see `score_tasks`.

    A task whose own code raises has no scores, and says why in `left_out`. Code that fails on made-up answers already is run
    on the answer to the first document, of the model that `single` gives, before the others are asked for.
    """
    loaded = suite.load()
    tasks = loaded["tasks"]
    sampled = {name: one.indices for name, one in suite.chosen.items() if one.indices is not None}
    suspects = {name: task for name, task in tasks.items() if fails_on_made_up(task)}
    lost: dict[str, str] = {}
    if suspects:
        plain = single()
        first = {name: sampled.get(name, [0])[:1] for name in suspects}
        lost = _evaluate(suite, plain, {"tasks": suspects, "groups": {}}, samples=first)[1]
    rest = {name: task for name, task in tasks.items() if name not in lost}
    whole = {name: group for name, group in loaded["groups"].items() if all(one in rest for one in _members(group))}
    raw: Any = {}
    later: dict[str, str] = {}
    if rest:
        raw, later = _evaluate(
            suite, lm, {**loaded, "tasks": rest, "groups": whole}, limit=suite.limit, samples=sampled or None
        )
    lost |= later
    if len(lost) == len(tasks) and not suite.texts:
        raise InputError("; ".join(f"task {name}: {why}" for name, why in lost.items()))
    if raw is None:  # not the first rank
        return {}, {}
    for name in [*later, *(group for group in whole if set(_members(whole[group])) & set(later))]:
        for part in ("results", "groups", "samples", "n-samples"):  # made of some of its documents
            raw.get(part, {}).pop(name, None)
    return _scores(suite, tasks, raw, lost), _exported(suite, raw, tokenizer, sampled) if rest else {}


def _members(group: Any) -> list[str]:
    return [task.task_name for task in group.get_all_tasks()]


def _evaluate(suite: Suite, lm: Any, loaded: dict[str, Any], **chosen: Any) -> tuple[Any, dict[str, str]]:
    """lm-eval's results, and why tasks have none."""
    from lm_eval.evaluator import evaluate

    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=suite.prompting.seeds[3])
    restore(suite.seeded)
    settings = {**suite.prompting.arguments(), "confirm_run_unsafe_code": suite.confirm_run_unsafe_code, **chosen}
    with isolated(loaded["tasks"]) as failures, np.errstate(all="ignore"):  # what is not finite is named later
        raw = run(loaded["tasks"], lambda: evaluate(lm, loaded, bootstrap_iters=0, **settings))
    lost = {
        name: f"its own code fails ({'; '.join(f'{what}: {why}' for what, why in found.items())})"
        for name, found in failures.items() if found
    }  # fmt: skip
    return raw, lost


def _scores(suite: Suite, tasks: Mapping[str, Any], raw: dict[str, Any], lost: Mapping[str, str]) -> dict[str, TaskScores]:
    settings = {**suite.prompting.settings(), "limit": suite.limit}
    return {
        name: TaskScores(name, {}, {}, [], [], left_out={"every metric": lost[name]}) if name in lost
        else task_scores(task, name, raw["samples"][name], raw, {**settings, **suite.chosen[name].settings})
        for name, task in tasks.items()
    }  # fmt: skip


def _exported(suite: Suite, raw: dict[str, Any], tokenizer: Any, sampled: dict[str, list[int]]) -> dict[str, Any]:
    fill_stderr(raw)
    raw["config"] = {**suite.prompting.exported(tokenizer), "limit": suite.limit}
    raw["config"] |= {"samples": sampled, "sample_seed": suite.selection.seed} if sampled else {}
    return raw
