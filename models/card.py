"""Prints a report's tables as the model card has them.

    python3 models/card.py [report.json ...]
"""

import json
import sys
from pathlib import Path

COLUMNS = {
    "auc": "auc",
    "auc_within": "within",
    "r2_quality": "r2 quality",
    "r2_ln_len": "r2 ln",
    "mae_ln_len": "mae ln",
    "gap_closed": "gap closed",
    "max_gain": "max gain",
    "cost_at_best": "cost at best",
}
TITLES = {"head": "**ours**", "minilm_knn10": "the paper's: MiniLM, k = 10"}
TASK_COLUMNS = {
    "familiarity": "familiarity",
    "bias": "bias",
    "bias_prior": "of the priors",
    "bias_if_believed": "bias if believed",
    "delta_vs_blind": "delta vs blind",
    "delta_if_believed": "delta if believed",
    "mae_ln_len": "mae ln",
    "mae_ln_len_prior": "of the priors",
}

LAB_COLUMNS = ("contender", "dearest setting: quality, USD per 1,000", "cheapest setting", "best setting", "gain over 72B", "best model", "gap closed")


def cell(value, of=5):
    if value is None:
        return "-"
    if isinstance(value, dict):
        return f"{value['mean']:.3f} ± {value['sd']:.3f}" + (f" ({value['splits']})" if value["splits"] < of else "")
    return f"{value:.3f}"


def table(head, rows):
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def show(report):
    sections = (("Split test", report["test"]), ("5 grouped splits, mean ± sd (splits that reach it)", report["splits"]))
    for title, results in sections:
        for name, heads in results.items():
            keys = [key for key in COLUMNS if any(values[key] is not None for values in heads.values())]
            print(f"{title}, {name}:\n")
            table(["head", *(COLUMNS[key] for key in keys)], ([TITLES.get(head, head), *(cell(values[key]) for key in keys)] for head, values in heads.items()))
    calibration = report["calibration"]
    print("Calibration, 5 grouped splits: mean predicted quality and mean score by tenths of the answers:\n")
    table(["", *map(str, range(1, 11))], ([name, *(f"{pair[i]:.2f}" for pair in calibration["quality_deciles"])] for i, name in enumerate(("predicted", "seen"))))
    if "within_p80" in calibration:
        print("Answers no longer than the predicted median, P80, P90: " + ", ".join(f"{calibration[f'within_{p}']:.3f}" for p in ("p50", "p80", "p90")) + "\n")
    if report["held_out_task"]:
        keys = [key for key in TASK_COLUMNS if key in report["held_out_task"][0]]
        print("Tasks left out of training:\n")
        table(["task", "rows", *(TASK_COLUMNS[key] for key in keys)], ([row["dataset"], str(row["rows"]), *(cell(row[key]) for key in keys)] for row in report["held_out_task"]))
    for name, rows in report["policies"].items():
        print(f"Policies on split test, {name}:\n")
        table(["policy", "quality", "USD per 1,000 requests", *report["models"]], ([row["policy"], f"{row['quality']:.3f}", f"{row['usd_per_1000']:.4f}", *(f"{s:.2f}" for s in row["share"])] for row in rows))
    print(f"{report['bytes']}, weight decay {report['weight_decay']:g}, graph against head: {report['graph_error']:.1e}")


def show_lab(report):
    """What lab.py measured."""
    print(f"{report['rows']} prompts, every estimate from a fit without the prompt's fold:\n")
    for name, values in report["estimates"].items():
        print(f"- {name}: " + ", ".join(f"{COLUMNS[key]} {cell(value)}" for key, value in values.items()))
    best, win = report["best_route"], report["routellm"]
    print(f"- best-route: names the best model of {cell(best['accuracy'])} (always the most frequent: {cell(best['accuracy_of_most_frequent'])}; published: {cell(best['published_accuracy'])})")
    print(f"- routellm: auc {cell(win['auc'])} of 'the largest beats the smallest', which {cell(win['wins'])} do")
    print(f"- semantic router: names the category of {cell(report['semantic_router']['category_accuracy'])}\n")
    table(LAB_COLUMNS, (lab_row(name, values) for name, values in report["contenders"].items()))


def lab_row(name, values):
    """The settings at both ends and the best one."""
    first, last = values["settings"][0], values["settings"][-1]
    best = max(values["settings"], key=lambda point: point["quality"])
    end = lambda point: f"{point['quality']:.3f} at {point['usd_per_1000']:.4f}" + (f" ({point['setting']})" if point["setting"] else "")
    gain = f"{best['gain']:+.3f} ± {best['gain_se']:.3f}"
    ends = [end(first), end(last)] if len(values["settings"]) > 1 else ["", ""]
    return [name, *ends, end(best), gain, f"{best['best_model']:.3f}", cell(values["gap_closed"])]


if __name__ == "__main__":
    for path in sys.argv[1:] or [Path(__file__).parent / "report.json"]:
        report = json.loads(Path(path).read_text())
        (show_lab if "contenders" in report else show)(report)
