"""Standard errors of f1 and mcc: lm-eval's bootstrap against the exact multinomial form.

    python benchmarks/stderr.py

lm-eval draws 100,000 bootstrap samples by default; here it draws --iterations (fewer), and its time is that of those. Writes a
Markdown table and results/stderr.json.
"""

from __future__ import annotations

import random
import time

from driver import arguments_of, write
from lm_eval.api import metrics
from lm_eval.api.metrics import stderr_for_metric

from cltk.measure.stderr import standard_error


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--iterations", type=int, default=5000)
    parser.add_argument("--documents", type=int, default=1000)
    arguments = parser.parse_args()
    rng = random.Random(0)
    gold = [rng.random() < 0.4 for _ in range(arguments.documents)]
    pairs = [(int(g), int(g if rng.random() < 0.8 else not g)) for g in gold]
    rows = []
    for metric in ("f1", "mcc"):
        aggregate = {"f1": metrics.f1_score, "mcc": metrics.matthews_corrcoef}[metric]
        estimate = stderr_for_metric(aggregate, bootstrap_iters=arguments.iterations)
        times: dict[str, list[float]] = {"stock": [], "ours": []}
        for _ in range(arguments.rounds):
            begin = time.perf_counter()
            stock = estimate(pairs)
            times["stock"].append(time.perf_counter() - begin)
            begin = time.perf_counter()
            ours = standard_error(metric, pairs, float(aggregate(pairs)))
            times["ours"].append(time.perf_counter() - begin)
        ratio = sorted(a / b for a, b in zip(times["stock"], times["ours"], strict=True))[arguments.rounds // 2]
        rows.append({
            "metric": metric, "documents": arguments.documents, "iterations": arguments.iterations, "speed": ratio,
            "stock_seconds": min(times["stock"]), "ours_seconds": min(times["ours"]), "stock": stock, "ours": ours,
        })  # fmt: skip
    write("stderr", arguments, rows)
    print("| metric | lm-eval s | ours s | times faster | lm-eval | ours |\n|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['metric']} | {row['stock_seconds']:.2f} | {row['ours_seconds']:.4f} | **{row['speed']:.0f}** |"
            f" {row['stock']:.5f} | {row['ours']:.5f} |"
        )


if __name__ == "__main__":
    main()
