"""The runs below a folder, compared: a row for each setting, over its seeds, best first.

The folder is a sweep's, or any other with runs in it, such as outputs/DATE. Settings come from Hydra's record of a
run's overrides, results from its metrics.json. So a sweep that still runs, or was killed, can be compared as well.
"""

from pathlib import Path

import pandas as pd
from omegaconf import OmegaConf

from lenet.errors import UserError
from lenet.folders import RESULT
from lenet.training.checkpoint import read_result

LOSS = "train/loss"
METRICS = ["val/acc", "test/acc", LOSS, "seconds"]
"""What is compared. The first decides on the order, or the loss without validation images; the test images never do."""


def runs_in(folder: Path) -> list[Path]:
    """The folders of all runs that were started below a folder, as in their names: 2 before 10."""
    found = {path.parents[1] for path in folder.rglob(".hydra/overrides.yaml")}
    return sorted(found, key=lambda path: (len(str(path)), str(path)))


def read_runs(folder: Path) -> pd.DataFrame:
    """A row for each run below a folder that is done: folder, run, setting, and METRICS.

    `run` has the overrides that not all runs have in common, `setting` the same without the seed. Raises a UserError
    if no run is done, or a metrics.json is damaged.
    """
    overrides = {run: list(map(str, OmegaConf.load(run / ".hydra/overrides.yaml"))) for run in runs_in(folder)}
    common = set.intersection(*map(set, overrides.values())) if overrides else set()
    rows = []
    for run, words in overrides.items():
        if (run / RESULT).is_file():
            own = [word for word in words if word not in common]
            setting = [word for word in own if not word.startswith("seed=")]
            names = {"run": " ".join(own) or "(all)", "setting": " ".join(setting) or "(all)"}
            rows.append({"folder": run, **names, **read_result(run)})
    if not rows:
        raise UserError(f"{folder}: none of its {len(overrides)} runs is done; there is nothing to compare")
    runs = pd.DataFrame(rows).reindex(columns=["folder", "run", "setting", *METRICS])
    return runs.astype(dict.fromkeys(METRICS, float))


def deciding_metric(runs: pd.DataFrame) -> str:
    return METRICS[0] if runs[METRICS[0]].notna().any() else LOSS


def leaderboard(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each setting, best first: the number of runs, and mean and standard deviation of each metric."""
    metric, groups = deciding_metric(runs), runs.groupby("setting", sort=False)
    table = groups[METRICS].agg(["mean", "std"])
    table["n", ""] = groups.size()
    return table.sort_values((metric, "mean"), ascending=metric == LOSS)


def cells(table: pd.DataFrame) -> list[list[str]]:
    """The head and the rows of a leaderboard as text, mean ± deviation in a cell."""
    rows = [["setting", "n", *METRICS]]
    for setting, values in table.iterrows():
        row = [str(setting), f"{int(values['n', ''])}"]
        for metric in METRICS:
            form = ".1f" if metric == "seconds" else ".3f"
            row.append(" ± ".join(f"{value:{form}}" for value in values[metric] if value == value) or "–")
        rows.append(row)
    return rows


def show(folder: Path, runs: pd.DataFrame) -> str:
    """The leaderboard as text; also writes leaderboard.csv and leaderboard.png into the folder."""
    from matplotlib.figure import Figure  # takes a second to load

    table, metric = leaderboard(runs), deciding_metric(runs)
    table.to_csv(folder / "leaderboard.csv")
    figure = Figure(figsize=(9, 1.2 + 0.4 * len(table)), layout="constrained")
    axes = figure.subplots()
    axes.plot(table[metric, "mean"][::-1], table.index[::-1], "|", markersize=20, color="C1")
    axes.plot(runs[metric], runs["setting"], "o", alpha=0.6, color="C0")
    axes.set_xlabel(f"{metric}: each run, and the mean")
    figure.savefig(folder / "leaderboard.png", dpi=120)
    head, *rows = cells(table)
    text = pd.DataFrame(rows, columns=head).set_index("setting").rename_axis(columns="setting", index=None)
    return f"{text.to_string()}\nLeaderboard: {folder / 'leaderboard.csv'}, {folder / 'leaderboard.png'}"
