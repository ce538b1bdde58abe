"""A study for a paper: booktabs tables to \\input, figures as PDF, and a document that shows them all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cltk.report import figures, panels, tables
from cltk.report.aggregate import Summary
from cltk.report.curves import curves
from cltk.report.effects import Effect
from cltk.report.pairs import Mark, Study, endpoints
from cltk.report.plane import area_table

ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"\symbol{34}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}", "-": r"{-}", "[": "{[}", "]": "{]}",
    "²": r"$^2$",
    "±": r"$\pm$", "×": r"$\times$", "−": "$-$", "≤": r"$\leq$", "≥": r"$\geq$", "→": r"$\rightarrow$", "…": r"\dots{}",
    "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "δ": r"$\delta$", "ε": r"$\varepsilon$", "λ": r"$\lambda$",
    "μ": r"$\mu$", "ρ": r"$\rho$", "σ": r"$\sigma$", "τ": r"$\tau$",
}  # fmt: skip
PREAMBLE = r"""\documentclass{article}
\usepackage[margin=2cm]{geometry}
\usepackage{textcomp,booktabs,longtable,graphicx}
\begin{document}
"""


def escape(text: str) -> str:
    """Text that LaTeX prints as it stands, on one line; hyphens make no dashes, brackets no options."""
    return "".join(ESCAPES.get(c, c) for c in " ".join(text.split()) if c.isprintable())


def write(study: Study, folder: Path) -> None:
    """main.tex, area.tex, tasks.tex, NAME.pdf for every figure, and report.tex, which shows all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    area = area_table(study)
    parts = {"main": main_table(study), **({"area": small_table(area, "area")} if area else {})}
    parts["tasks"] = tasks_table(study.summaries)
    drawn = {
        "plane": figures.plane(study.summaries), "forgetting": panels.forgetting(study.summaries),
        "bars": panels.tasks(study.summaries), "curves": curves(study.summaries),
    }  # fmt: skip
    for name, text in parts.items():
        (folder / f"{name}.tex").write_text(text, encoding="utf-8")
    shown = [rf"\input{{{name}}}" for name in parts]
    for name, figure in drawn.items():
        if figure is not None:
            figures.pdf(figure, folder / f"{name}.pdf")
            shown.append(rf"\par\noindent\includegraphics[width=\linewidth]{{{name}.pdf}}")
    (folder / "report.tex").write_text(PREAMBLE + "\n".join(shown) + "\n\\end{document}\n", encoding="utf-8")


def small_table(table: tables.Table, label: str) -> str:
    """A table of text and numbers as it stands, its note in the caption."""
    lines = [
        r"\begin{table}[htbp]", r"\centering", rf"\caption{{{escape(table.title)}. {escape(table.note)}}}",
        rf"\label{{tab:{label}}}", r"\begin{tabular}{l" + "r" * (len(table.heads) - 1) + "}", r"\toprule",
        " & ".join(map(escape, table.heads)) + r" \\", r"\midrule",
        *[" & ".join(map(_number_or_text, row)) + r" \\" for row in table.rows],
        r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _number_or_text(cell: str) -> str:
    """Numbers in mathematics, so that a hyphen is a minus."""
    return f"${cell.replace(' ', '~').replace('-', '{-}')}$" if re.fullmatch(r"[-+\d.,\[\] ]+", cell) else escape(cell)


def main_table(study: Study) -> str:
    """Methods x endpoints, with intervals; bold and daggers as the paired tests say."""
    columns = endpoints(study.summaries)
    marks = [study.marks(column) for column in columns]
    heads = [escape(column.name) for column in columns]
    lines = [
        r"\begin{table}[htbp]", r"\centering", rf"\caption{{{caption(study, marks)}}}", r"\label{tab:forgetting}",
        r"\begin{tabular}{l" + "r" * len(columns) + "}", r"\toprule",
        " & ".join(["method", *[rf"\multicolumn{{1}}{{c}}{{{head}}}" for head in heads]]) + r" \\", r"\midrule",
    ]  # fmt: skip
    for i, summary in enumerate(study.summaries):
        cells = [value(column.effect(summary), column.sign, found[i]) for column, found in zip(columns, marks, strict=True)]
        lines.append(" & ".join([escape(summary.label), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def value(effect: Effect | None, sign: int = 1, mark: Mark | None = None) -> str:
    """An estimate with its interval: bold when best, with a dagger when it differs from plain."""
    if effect is None:
        return "--"
    number = tables.number(sign * effect.estimate.mean, effect.metric, "+")
    ends = sorted(sign * end for end in effect.estimate.ci)
    low, high = (tables.number(end, effect.metric, "+") for end in ends)
    text = rf"$\mathbf{{{number}}}$" if mark and mark.best else f"${number}$"
    dagger = r"$^{\dagger}$" if mark and mark.differs else ""
    interval = "" if "inf" in (low + high) else rf" {{\scriptsize $[{low}, {high}]$}}"
    return f"{text}{dagger}{interval}"


def caption(study: Study, marks: Sequence[Sequence[Mark]]) -> str:
    """Model, seeds, documents, and what the marks mean where there are any."""
    records = [entry.record for summary in study.summaries for entry in summary.entries]
    models = dict.fromkeys(str(record.get("config", {}).get("model", {}).get("pretrained")) for record in records)
    counts = [len(summary.entries) for summary in study.summaries]
    seeds = "one seed" if max(counts) == 1 else f"{tables.span(counts).replace('-', '--')} seeds"
    sizes = {effect.task: effect.n for summary in study.summaries for effect in [*summary.learn, *summary.retain]}
    documents = ", ".join(f"{escape(task)} {n}" for task, n in sizes.items())
    kind = "documents" if max(counts) == 1 else "seeds and documents"
    said = [
        f"Learning and forgetting of {escape(', '.join(models))}, {seeds}.",
        rf"Brackets: 95\,\% intervals over {kind}, paired document by document; $n$: {documents}.",
    ]
    every = [mark for column in marks for mark in column]
    if any(mark.differs for mark in every):
        said.append(r"$\dagger$: differs from plain training (paired, $p < 0.05$, Holm over the methods of a column).")
    if any(mark.best for mark in every):
        said.append("Bold: the best, and what a paired test (Holm) does not tell from it.")
    return " ".join(said)


def tasks_table(summaries: Sequence[Summary]) -> str:
    """One line a (method, task), over as many pages as it takes."""
    heads = r"\toprule method & task & $n$ & before & after & forgetting & $p$ \\ \midrule"
    lines = [
        r"\begin{longtable}{llrrrrr}", r"\caption{Forgetting task by task; $p$ adjusted (Holm on the primary endpoint,"
        r" Benjamini--Hochberg elsewhere).}\label{tab:tasks}\\", heads, r"\endfirsthead", heads, r"\endhead",
        r"\bottomrule", r"\endfoot",
    ]  # fmt: skip
    for k, summary in enumerate(summaries):
        lines += [r"\addlinespace"] if k else []
        for effect in [*summary.retain, *summary.learn]:
            p = effect.estimate.p if effect.adjusted is None else effect.rests_on[1]
            name = escape(f"{effect.task} {tables.named(effect.metric)}")
            scores = [f"${tables.number(score, effect.metric)}$" for score in (effect.pre, effect.post)]
            shown = [escape(summary.label), name, str(effect.n), *scores, value(effect), f"${tables.p_value(p)}$"]
            lines.append(" & ".join(shown) + r" \\")
    return "\n".join([*lines, r"\end{longtable}", ""])
