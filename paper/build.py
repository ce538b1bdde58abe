"""The paper from the records: numbers, tables and figures, the text held against them, and the PDF.

    python paper/build.py [--out paper/build]      # what `make paper` runs; without pdflatex all but the PDF

In paper.tex every number is \\val{name} (or \\est{name}, with its interval), and every statement of a result is
\\claim{check}{verdict}{sentence}. The build fails when a name does not exist, a verdict is not what the runs say, a check has
no claim, or a digit stands in the text itself.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
from checks import ABSENT, Check, numbers
from matplotlib.figure import Figure
from rules import RATES, SEEDS, STEPS, checks
from runs import EXPERIMENTS, Missing, Runs

from cltk.report import figures
from cltk.report.aggregate import summarize
from cltk.report.latex import escape, main_table, small_table
from cltk.report.matched import against, table
from cltk.report.pairs import Study

LABELS = re.compile(r"plain( lr | constant max_steps=|$)")
OTHER_TASK = "old text only"  # does not train on the new task
HERE = Path(__file__).parent
CLAIM = re.compile(r"\\claim\{(\w+)\}\{([\w ]+)\}")
NAME = re.compile(r"\\(?:val|est|pvalue)\{([^}]+)\}")
SILENT = re.compile(  # where digits are no results: names of checks, commands with arguments that are no text
    r"%.*|\\(?:claim\{\w+\}|val|est|pvalue|cite|label|ref|input|includegraphics(?:\[[^]]*\])?|usepackage(?:\[[^]]*\])?"
    r"|documentclass(?:\[[^]]*\])?|vspace)\{[^}]*\}|\\\w+"
)


class TextError(Exception):
    """What the text says is not what the runs say."""


def setup(runs: Runs) -> Iterator[tuple[str, float | str]]:
    """What the runs have in common, as the text quotes it."""
    record = next(iter(runs.one("plain").values())).record
    data, train = record["config"]["data"], record["config"]["train"]
    yield from (
        ("setup.runs", len(runs.entries)),
        ("setup.settings", len(runs.names())),
        ("setup.steps", train["max_steps"]), ("setup.rows", train["per_device_train_batch_size"]),
        ("setup.warmup", int(train["warmup_steps"])), ("setup.heldout", data["heldout"]["limit"]),
        ("setup.old", record["config"]["evals"]["retain"][0]["limit"]), ("setup.length", data["max_length"]),
        ("setup.rate", train["learning_rate"]),
        ("setup.seeds", min(len(runs.one(name)) for name in runs.names() if len(runs.one(name)) > 1)),
        ("plain.gain", runs.gain({"plain": 1}).mean), ("plain.forgetting", runs.forgetting({"plain": 1}).mean),
    )  # fmt: skip
    for key, name, option in (
        ("share.few", "replay 0.01", "fraction"), ("share.some", "replay 0.05", "fraction"), ("rank.small", "lora r2 x4", "r"),
        ("rank.large", "lora x4", "r"),
    ):  # fmt: skip
        if name in runs.names():
            (mitigator,) = next(iter(runs.one(name).values())).record["config"]["mitigators"]
            value = next(iter(mitigator.values()))[option]
            yield key, round(100 * value) if option == "fraction" else value
    post = {"l2_sp 1e3": 1, "plain lr 1e-4": -1}  # looked at because it stood out: the text says so
    if set(post) <= set(runs.names()):
        for what, found in (("gain", runs.gain(post)), ("forgetting", runs.forgetting(post))):
            yield from ((f"post.{what}{end}", x) for end, x in (("", found.mean), (".low", found.low), (".high", found.high)))
    for name in runs.names():  # ewc_1e1.gain, plain_lr_1e-4.forgetting.low
        key = name.replace(" ", "_").replace("max_steps=", "")
        for what, estimate in (("gain", runs.gain({name: 1})), ("forgetting", runs.forgetting({name: 1}))):
            yield from (
                (f"{key}.{what}{end}", value)
                for end, value in (("", estimate.mean), (".low", estimate.low), (".high", estimate.high))
            )


def shown(value: float | str) -> str:
    """A number as the paper prints it: three decimals, or three digits where that says more."""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value)}"
    if abs(value) < 0.001:
        mantissa, exponent = f"{value:.1e}".split("e")
        return rf"{mantissa}\cdot 10^{{{int(exponent)}}}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def numbers_tex(values: Mapping[str, float | str]) -> str:
    """A command's worth of each number."""
    return "".join(rf"\expandafter\def\csname val:{name}\endcsname{{{shown(value)}}}" "\n" for name, value in values.items())


def faults(text: str, found: list[Check], values: Mapping[str, float | str]) -> Iterator[str]:
    """Everything in the text that the runs do not bear out, with its line."""
    verdicts = {one.key: one.verdict for one in found}
    for i, line in enumerate(text.split("\n"), 1):
        for key, said in CLAIM.findall(line):
            if said != verdicts.get(key):
                yield f"line {i}: the text says that {key} is {said!r}; the runs say {verdicts.get(key)!r}"
        for name in NAME.findall(line):
            ends = [""] if rf"\est{{{name}}}" not in line else ["", ".low", ".high"]
            yield from (f"line {i}: there is no number {name + end!r}" for end in ends if name + end not in values)
        if re.search(r"\d", SILENT.sub("", line)):
            yield f"line {i}: a number of its own: {line.strip()!r}"
    said = {key for key, _ in CLAIM.findall(text)}
    yield from (f"nothing is said of {key}" for key in verdicts if key not in said)


def checks_tex(found: list[Check]) -> str:
    """Every check: question, rule, each part's estimate, the verdict."""
    lines = [
        r"\begin{longtable}{@{}lp{0.62\linewidth}rl@{}}",
        r"\caption{All checks. Parts are estimates in nats (S2: an exponent; S6, S9: shares) with 95\,\% intervals and the sign"
        r" that the rule asks for; $p$ of confirmatory checks is adjusted by Holm.}\label{tab:checks}\\",
        r"\toprule & question and rule & estimate & verdict \\ \midrule \endhead \bottomrule \endfoot",
    ]
    for one in found:
        kind = "confirmatory" if one.confirmatory else "exploratory"
        seeds = f", {one.seeds} seeds" if one.seeds and one.seeds > 1 else ""
        p = "" if one.adjusted is None else rf"$p = {one.adjusted:.3f}$"
        lines.append(
            rf"\textbf{{{one.key}}} & {escape(one.question)} \emph{{{escape(one.rule)}}} ({kind}{seeds}) & {p} &"
            rf" \textbf{{{escape(one.verdict)}}} \\*"
        )
        for part in one.parts:
            sign = "$>0$" if part.sign > 0 else "$<0$"
            e = part.estimate
            value = "out of reach" if e is None else f"${shown(e.mean)}$ $[{shown(e.low)}, {shown(e.high)}]$"
            lines.append(rf" & \quad {escape(part.what)}, {sign} & {value} & {escape(part.verdict)} \\*")
        for name, value in one.numbers.items():
            lines.append(rf" & \quad {escape(name)} & ${shown(value)}$ & \\*")
        if one.verdict == ABSENT:
            lines.append(rf" & \quad missing: {escape(', '.join(one.missing))} & & \\*")
        lines[-1] = lines[-1].removesuffix("*") + r"\addlinespace"
    return "\n".join([*lines, r"\end{longtable}", ""])


def curves(runs: Runs) -> Figure:
    """Forgetting against rate and steps, and against KL on new-task rows: a point a run."""
    usual = f"{next(iter(runs.one('plain').values())).record['config']['train']['learning_rate']:g}"
    with mpl.rc_context(figures.STYLE):
        figure = Figure(figsize=(7.2, 2.6), layout="constrained")
        axes = figure.subplots(1, 3)
        for ax, names, title in ((axes[0], RATES, "rate"), (axes[1], STEPS, "steps, constant rate")):
            known = [name for name in names if name in runs.names()]
            for k, name in enumerate(known):
                sides = runs.sides([name])[name]
                ax.plot([k] * len(sides[1].d), sides[1].d.mean(axis=1), "o", ms=3, color="C0")
            ax.set_xticks(range(len(known)), [LABELS.sub("", name) or usual for name in known])
            ax.set_xlabel(title)
            ax.set_ylabel("old-text NLL, rise, nats")
        points = [
            (entry.record["divergence"]["heldout"]["kl"], entry.record["retain"]["rows"][0]["forgetting"])
            for name in runs.names()
            for entry in runs.one(name).values()
            if entry.record.get("divergence") and "distance" in entry.record
        ]
        if points:
            axes[2].plot(*np.array(points).T, "o", ms=3, color="C1")
        axes[2].set_xlabel("KL on new-task rows, nats")
        axes[2].set_ylabel("old-text NLL, rise, nats")
    return figure


def plane(runs: Runs, compared: list[str]) -> Figure:
    """Gain against forgetting: a mark a setting, a colour and shape a method, plain fine-tuning's rates joined. No intervals:
    they are in the table of settings."""
    families: dict[str, list[str]] = {}
    for name in compared:
        families.setdefault(name.split()[0], []).append(name)
    with mpl.rc_context(figures.STYLE):
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        ax = figure.subplots()
        for k, (family, names) in enumerate(families.items()):
            at = sorted((runs.forgetting({name: 1}).mean, runs.gain({name: 1}).mean, name) for name in names)
            x, y, _ = zip(*at, strict=True)
            if family == "plain":
                ax.plot(x, y, "s-", ms=9, mfc="none", lw=1, color="0.2", label="plain, by rate")
                usual = f"{next(iter(runs.one('plain').values())).record['config']['train']['learning_rate']:g}"
                for f, g, name in at:
                    ax.annotate(LABELS.sub("", name) or usual, (f, g), xytext=(5, 5), textcoords="offset points", fontsize=7)
            else:
                look = {"mfc": "none", "mew": 1.3} if k > 10 else {"mew": 0}  # the second ten are hollow
                ax.plot(x, y, "osD^v<>Xp*"[k % 10], ls="", ms=6, color=f"C{k % 10}", label=family, **look)
        ax.set_xscale("symlog", linthresh=0.3, linscale=3)
        ax.set_xticks([0, 0.1, 0.2, 0.3, 1, 3], minor=False)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_ylim(bottom=-0.2)
        ax.set_xlabel("old-text NLL, rise, nats (logarithmic beyond 0.3)")
        ax.set_ylabel("new-task NLL, fall, nats")
        figure.legend(loc="outside right upper", fontsize=8)
    return figure


def build(out: Path, experiments: Path = EXPERIMENTS, text: str | None = None) -> list[Check]:
    """All files of the paper into `out`. Raises TextError when the text and the runs do not agree."""
    runs = Runs.read(experiments)
    found = checks(runs, experiments)
    values = {**dict(setup(runs)), **dict(numbers(found))}
    text = (HERE / "paper.tex").read_text(encoding="utf-8") if text is None else text
    if wrong := list(faults(text.split(r"\begin{document}")[1], found, values)):
        raise TextError("\n".join(wrong))
    out.mkdir(parents=True, exist_ok=True)
    # at the common schedule and number of steps: `STEPS` are another family, and would widen plain's frontier
    compared = [name for name in runs.names() if len(runs.one(name)) >= SEEDS and name not in (*STEPS, OTHER_TASK)]
    main = [  # one study, whichever file its runs came from
        replace(entry, record=entry.record | {"experiment": "paper"}) for name in compared for entry in runs.one(name).values()
    ]
    study = Study(summarize(main))
    beaten = against(runs.sides(compared))
    parts = {
        "numbers.tex": numbers_tex(values), "checks.tex": checks_tex(found), "settings.tex": main_table(study),
        "matched.tex": small_table(table(beaten, "plain fine-tuning"), "matched"), "paper.tex": text,
    }  # fmt: skip
    for name, content in parts.items():
        (out / name).write_text(content, encoding="utf-8")
    shutil.copy(HERE / "references.tex", out)
    figures.pdf(curves(runs), out / "curves.pdf")
    figures.pdf(plane(runs, compared), out / "plane.pdf")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "build")
    out = parser.parse_args().out
    try:
        found = build(out)
    except (TextError, Missing) as error:
        print(f"paper.tex:\n{error}", file=sys.stderr)
        return 1
    for one in found:
        print(f"{one.key:5} {one.verdict:12} {one.question}")
    if shutil.which("pdflatex") is None:
        print(f"{out}: written; there is no pdflatex, so no PDF (Debian: texlive-latex-recommended)")
        return 0
    for _ in range(2):  # the second for references
        run = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
        done = subprocess.run(run, cwd=out, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stdout[-3000:], file=sys.stderr)
            return 1
    print(out / "paper.pdf")
    return 0


if __name__ == "__main__":
    sys.exit(main())
