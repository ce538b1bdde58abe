"""Watch: the old tasks, measured at intervals while a model is trained. It changes no weight and no random number."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cltk import tensors
from cltk.errors import InputError
from cltk.forward.causal import check_causal
from cltk.forward.probe import mean_nll
from cltk.hosts.reading import WholeCopy, fingerprint, readable
from cltk.hosts.watched import margins, suite_of
from cltk.measure.evaluate import Suite, TextTask
from cltk.measure.moments import MACRO, Point, Spending, moment
from cltk.measure.results import finite
from cltk.measure.sampling import Sample
from cltk.measure.scores import Scores
from cltk.measure.settings import options
from cltk.mitigate.interface import Mitigator, Plan, Run
from cltk.mitigate.memory import probe_rows
from cltk.ranks import decided, first, gathered, ranks

VALIDATION = "validation"
ROWS = 64  # of the validation set, for the new-task score
log = logging.getLogger(__name__)


class Watch(Mitigator):
    """Measure old tasks and texts every `every` steps, paired document by document with the start model.

    The same random documents each time, through lm-eval's tasks and the shared-prefix scorer. The intervals of a row hold for
    all moments of the training together at 95 % (`cltk.measure.moments`), so looking often makes none of them false.
    Every moment is a log line of its own (`eval_forgetting_NAME`, `_low`, `_high`): TensorBoard, W&B, MLflow and trackio have
    the curve. The first time that a row is shown to be forgotten, a warning is logged.

    The weights, optimiser, random states, modes, hooks and gradients of training are bit for bit as without it. In a loop of
    your own `session.metrics` holds the last moment.

    Args:
        tasks: names of lm-eval tasks, as for `cltk.measure`; or a `Suite`, with its own texts and sample.
        texts: held-out texts whose NLL is watched too: files, or `TextTask`s.
        every: optimiser steps between moments; the last step is always one. 0 switches the watch off.
        sample: random documents of each task and text.
        stop_at: {row: margin}: stop at the first moment at which a row is shown to have lost more than the margin, that is when
            its interval lies above it. Of a training that loses no more, at most 2.5 % are stopped, however many moments
            there are. Rows are tasks, texts and "macro", margins are in the metric's unit (0.02 of an accuracy is 2 pp).
        keep_best: end with the weights of the best moment on `score`, the start among them: {row: budget} counts the moments at
            which each row has lost no more than its budget (by its mean: a choice, and no claim); True: the budgets of
            `stop_at`, or none. Measure what is kept on other documents.
        score: the new task's: "validation" is the mean NLL of 64 rows of the trainer's eval_dataset; or a row, which `macro`
            then leaves out.
        batch_size: as for `cltk.measure`.
        **suite: what else `Suite` takes (include_path, num_fewshot, chat_template, ...).

    Attributes:
        trace: the moments, a flat row each. final: the moment of the weights that training ends with, and its verdicts.

    Raises:
        InputError: an unknown task or row, no tokenizer, a number out of range; at attach, before anything is trained.
    """

    once = True

    def __init__(
        self,
        tasks: Suite | Sequence[str] | str = (),
        *,
        texts: Sequence[TextTask | str | Path] | TextTask | str | Path = (),
        every: int = 50,
        sample: Sample | Mapping[str, Sample] | None = 50,
        stop_at: Mapping[str, float] | None = None,
        keep_best: bool | Mapping[str, float] = False,
        score: str = VALIDATION,
        batch_size: int | str = "auto",
        **suite: Any,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 0:
            raise InputError(f"watch.every: expected a whole number of steps from 0, got {every!r}")
        self.every, self.score, self.batch_size = every, score, options("prefix", batch_size)
        self.stop_at = margins(stop_at, "stop_at")
        self.keeps = keep_best is True or isinstance(keep_best, Mapping)
        self.budget = margins(keep_best, "keep_best") if isinstance(keep_best, Mapping) else self.stop_at
        self.suite = tasks if isinstance(tasks, Suite) else suite_of(tasks, texts, sample, suite)
        self.replaces = "best" if every and self.keeps else ""
        self.paired: Scores | None = None  # the start model's scores, where training begins at other weights
        self.copy: WholeCopy | None = None
        self.rows: list[Any] = []
        self.trace: list[Point] = []
        self.final: Point = {}
        self._clear()

    def _clear(self) -> None:
        self.pre, self.spending, self.best, self.told = self.paired, Spending(), dict[str, Any](), list[str]()
        self.last: tuple[list[float], Point] | None = None  # the weights that were read last, and what they gave
        self.trace.clear()
        self.final.clear()

    def setup(self, plan: Plan) -> None:
        if not self.every:
            return
        if plan.tokenizer is None:
            raise InputError("watch: needs the tokenizer; give it to the trainer as processing_class")
        check_causal(plan.model, "watch")
        self.tokenizer = copy.deepcopy(plan.tokenizer)  # lm-eval sets padding and truncation
        self.check(self.tokenizer)
        if self.keeps and self.score == VALIDATION:
            self.rows = probe_rows(plan.validation, ROWS, "watch.keep_best")
        if ranks()[1] > 1:
            self.copy = WholeCopy(plan.model)
        told = {"every": self.every, "documents": self.suite.sizes(), "stop_at": self.stop_at, "alpha": self.spending.alpha}
        plan.notes["watch"] = {**told, "trace": self.trace, "final": self.final}

    def check(self, tokenizer: Any = None) -> None:
        """What can be found wrong without weights. Raises InputError: a task, or a row that nothing measures."""
        self.suite.check({"watch": tokenizer} if tokenizer is not None else {})
        known = [*self.suite.sizes(), MACRO]
        for key, names in (("stop_at", self.stop_at), ("keep_best", self.budget), ("score", [self.score])):
            for name in names:
                if name not in known and (key, name) != ("score", VALIDATION):
                    raise InputError(f"watch.{key}: nothing that is watched is called {name!r}; rows are {', '.join(known)}")

    def start(self, run: Run) -> None:
        self._clear()

    def look(self, run: Run) -> None:
        if not self.every:
            return
        if run.ended:
            self._end(run)
        elif not self.trace:
            self._begin(run)
        elif self.trace[-1]["step"] != run.step and (run.step % self.every == 0 or run.step == run.max_steps):
            self._rules(run, self._moment(run))  # a resumed training begins with a step that was read

    def _begin(self, run: Run) -> None:
        """The start model's scores; of a stage that begins at other weights, its first moment."""
        if run.step:
            raise InputError(f"watch: the checkpoint of step {run.step} does not say what the start model scored; start anew")
        if self.pre is None:
            self.pre = self._scores(run)
            self._keep(run, self._point(run, self.pre, 0.0))
        else:
            self._keep(run, self._moment(run))

    def _scores(self, run: Run) -> Scores:
        """The weights as they are, scored. Every rank must call it; the first has the scores."""
        with readable(run.model, self.copy) as model:
            return self.suite.evaluate(model, self.tokenizer, digest=f"step {run.step}", batch_size=self.batch_size)

    def _moment(self, run: Run, last: bool = False) -> Point:
        """Score and compare; what cannot be scored now is said, and training goes on."""
        share = self.spending.share(1 if last else self._remaining(run))
        try:
            return self._point(run, self._scores(run), share)
        except InputError as error:
            if first():
                log.warning("watch: step %d could not be measured: %s", run.step, error)
            self.trace.append({"step": run.step, "failed": str(error)})
            return self.trace[-1]

    def _remaining(self, run: Run) -> int | None:
        """Moments to come, this one and the end among them."""
        return 1 + math.ceil((run.max_steps - run.step) / self.every) + 1 if run.max_steps > 0 else None

    def _point(self, run: Run, post: Scores, share: float) -> Point:
        """A moment of the curve, logged and kept."""
        pre = self.pre or post
        point: Point = decided(lambda: moment(pre, post, run.step, share, self.stop_at, [self.score], self.told))
        if self.rows:  # each rank takes part, as the model may be in pieces
            point["validation_nll"] = float(gathered(mean_nll(run.model, self.rows))[0])
        self.trace.append(finite({name: value for name, value in point.items() if name != "alerts"}))
        self._tell(run, point)
        self.last = (self._weights(run), self.trace[-1])
        return self.trace[-1]

    def _tell(self, run: Run, point: Point) -> None:
        line = {
            f"eval_{name}": value
            for name, value in point.items()
            if name != "step" and isinstance(value, float) and math.isfinite(value)
        }
        run.tell(line)
        for name, words in point["alerts"]:
            self.told.append(name)
            if first():
                log.warning("watch: step %d: %s", run.step, words)

    def _rules(self, run: Run, point: Point) -> None:
        """Stop where non-inferiority is lost; keep the best."""
        self._keep(run, point)
        if why := point.get("lost"):
            if first():
                log.warning("watch: step %d: training stops: %s", run.step, why)
            run.stop(f"watch: {why}")

    def _keep(self, run: Run, point: Point) -> None:
        name = "validation_nll" if self.score == VALIDATION else f"forgetting_{self.score}"
        if not self.keeps or name not in point:
            return
        if any(point.get(f"forgetting_{row}", math.inf) > most for row, most in self.budget.items()):
            return
        if not self.best or point[name] < self.best["score"]:
            weights = {key: value.cpu() for key, value in tensors.snapshot(run.model).items()}
            self.best = {"score": point[name], "step": run.step, "weights": weights}

    def finish(self, run: Run) -> None:
        if self.every and self.best:
            for name, parameter in tensors.trainable(run.model):
                parameter.data.copy_(tensors.like(parameter, self.best["weights"][name]))

    def _end(self, run: Run) -> None:
        """The weights that training ends with, which averages, merges and the best moment may have changed."""
        if self.pre is None:
            return
        if self.last is None or self.last[0] != self._weights(run) or "failed" in self.last[1]:
            self.last = (self._weights(run), self._moment(run, last=True))
        self.final.update(self.last[1])
        if self.best:
            self.final["best_step"] = self.best["step"]
        if first():
            for name, words in self.final.get("verdicts", {}).items():
                log.info("watch: %s: %s", name, words)

    def _weights(self, run: Run) -> list[float]:
        return [value for part in gathered(fingerprint(run.model)) for value in part]

    def state_dict(self) -> dict[str, Any]:
        if not self.every or self.pre is None:
            return {}
        pre = decided(lambda: self.pre.to_json())  # type: ignore[union-attr]
        kept = {"pre": pre, "trace": list(self.trace), "spent": self.spending.spent, "told": list(self.told)}
        best = {**self.best, "weights": tensors.all_whole(self.best["weights"])} if self.best else {}
        return {**kept, "best": best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pre, self.best, self.told = Scores.from_json(state["pre"]), state["best"], list(state["told"])
        self.spending.spent = float(state["spent"])
        self.trace[:] = state["trace"]
