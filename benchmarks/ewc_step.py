"""What EWC's penalty costs: autograd tensor by tensor (Avalanche), three foreach operations, and cltk's blocks; alone, and
within a training step (4 x 128 tokens, fused AdamW) against the step without a penalty.

    python benchmarks/ewc_step.py --model asset:smollm2-135m-instruct
    python benchmarks/ewc_step.py --quick                               # a random model of 20 M parameters, half a minute

Each side is a process of its own; they take turns. "Temporaries" is how far the process's peak memory rises over what
parameters, gradients, anchors and importance take. Writes a Markdown table and results/ewc_step.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

import torch
from driver import alternate, arguments_of, load, peak, serve, write

STRENGTH = 1e-3
FORMS = ("none", "autograd", "foreach", "cltk")


class Setting:
    """A model with gradients, its anchors, a random importance, and the four ways to add the penalty."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from cltk.mitigate.interface import Plan, Run
        from cltk.mitigate.quadratic import EWC

        self.model = load(arguments.model, arguments.dtype)
        self.params = list(self.model.parameters())
        weights = {name: torch.rand_like(p, dtype=torch.float32) for name, p in self.model.named_parameters()}
        self.ewc = EWC(STRENGTH, weights)
        self.ewc.setup(Plan(self.model, None, None))
        self.optimizer = torch.optim.AdamW(self.params, 1e-5, fused=True)
        self.run = Run(self.model, self.model, optimizer=self.optimizer)
        self.ewc.start(self.run)
        _, self.anchors, self.weights = self.ewc.columns
        self.ids = torch.randint(3, min(1000, self.model.config.vocab_size), (4, 128), device=self.params[0].device)
        for p in self.params:
            p.grad = torch.rand_like(p)

    def autograd(self) -> Any:
        """strength/2 sum F d² as a graph."""
        assert self.weights is not None
        parts = zip(self.params, self.anchors, self.weights, strict=True)
        return STRENGTH / 2 * sum((f * (p - a) ** 2).sum() for p, a, f in parts)

    @torch.no_grad()
    def foreach(self) -> None:
        assert self.weights is not None
        difference = torch._foreach_sub(self.params, self.anchors)
        torch._foreach_mul_(difference, self.weights)
        torch._foreach_add_([p.grad for p in self.params], difference, alpha=STRENGTH)

    @torch.no_grad()
    def cltk(self) -> None:
        self.ewc.grad(self.run)
        self.run.step += 1

    def penalty(self, form: str) -> float:
        """The penalty's gradient alone, added to the gradients ten times."""
        for _ in range(10):
            if form == "autograd":
                self.autograd().backward()
            elif form != "none":
                getattr(self, form)()
        return 0.0

    def step(self, form: str) -> float:
        """Three whole training steps."""
        for _ in range(3):
            loss = self.model(input_ids=self.ids, labels=self.ids, use_cache=False).loss
            (loss + self.autograd() if form == "autograd" else loss).backward()
            if form in ("foreach", "cltk"):
                getattr(self, form)()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return float(loss.detach())


def work(worker: str, arguments: argparse.Namespace) -> None:
    what, form = worker.split(":")
    setting = Setting(arguments)
    if what == "penalty":
        touched = peak()
        serve(lambda: (setting.penalty(form), peak() - touched)[1], lambda: None)
    else:
        serve(lambda: setting.step(form), lambda: setting.step(form))


def table(rows: list[dict[str, Any]]) -> str:
    """The results in Markdown."""
    lines = ["| form | penalty ms | times faster | temporaries MiB | step s | step / plain |", "|---" * 6 + "|"]
    for row in rows:
        lines.append(
            f"| {row['form']} | {row['penalty_ms']:.1f} | {row['faster']:.2f} | {row['temporaries_mib']:.0f} |"
            f" {row['step_s']:.3f} | **{row['over_plain']:.3f}** |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    arguments = parser.parse_args()
    forms = list(dict.fromkeys(["none", "autograd", *arguments.forms]))  # the yardsticks of the step and of the penalty
    if arguments.worker:
        return work(arguments.worker, arguments)
    if arguments.quick:
        arguments.model, arguments.rounds = "random", 2
    command = [sys.executable, __file__, "--model", arguments.model, "--dtype", arguments.dtype, "--worker"]
    answers = alternate({f"penalty:{form}": [*command, f"penalty:{form}"] for form in forms}, arguments.rounds)
    answers |= alternate({f"step:{form}": [*command, f"step:{form}"] for form in forms}, arguments.rounds)

    def seconds(side: str) -> list[float]:
        return [found["seconds"] for found in answers[side]]

    def ratio(above: str, below: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds(above), seconds(below), strict=True))

    rows = [
        {
            "form": form,
            "penalty_ms": 100 * statistics.median(seconds(f"penalty:{form}")),
            "faster": ratio("penalty:autograd", f"penalty:{form}") if form != "none" else 0.0,
            "temporaries_mib": max(found["answer"] for found in answers[f"penalty:{form}"]),
            "step_s": statistics.median(seconds(f"step:{form}")) / 3,
            "over_plain": ratio(f"step:{form}", "step:none"),
        }
        for form in forms
    ]
    write("ewc_step", arguments, rows)
    print(table(rows))
    return None


if __name__ == "__main__":
    main()
