"""Prints the tables of README.md from report.json."""

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


def cell(value):
    if value is None:
        return "-"
    if isinstance(value, dict):
        return f"{value['mean']:.3f} ± {value['sd']:.3f}" + (f" ({value['splits']})" if value["splits"] < 5 else "")
    return f"{value:.3f}"


def main(path):
    report = json.loads(Path(path).read_text())
    for title, results in (("Split test", report["test"]), ("5 grouped splits, mean ± sd (splits that reach it)", report["splits"])):
        for name, heads in results.items():
            print(f"{title}, {name}:\n\n| head | " + " | ".join(COLUMNS.values()) + " |\n|---" * 1 + "|---" * len(COLUMNS) + "|")
            for head, values in heads.items():
                print(f"| {'**ours**' if head == 'head' else head} | " + " | ".join(cell(values[key]) for key in COLUMNS) + " |")
            print()
    for name, table in report["policies"].items():
        print(f"{name}:\n\n| policy | quality | USD per 1,000 requests | " + " | ".join(report["models"]) + " |\n|---" + "|---" * (2 + len(report["models"])) + "|")
        for row in table:
            print(f"| {row['policy']} | {row['quality']:.3f} | {row['usd_per_1000']:.4f} | " + " | ".join(f"{s:.2f}" for s in row["share"]) + " |")
        print()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "report.json")
