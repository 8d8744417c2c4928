"""Write the sections of docs/reproduction.md on the cross-validated study, from its CSV files alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Final

from benchmarks import harness
from benchmarks.reproduction import claims, paper, plan, report
from benchmarks.reproduction.data.faces import REAL
from benchmarks.reproduction.evidence import Evidence, Part, among, label, of_kind, predictions, told_power
from benchmarks.reproduction.ledger import Ledger
from benchmarks.reproduction.networks import VARIANTS
from benchmarks.reproduction.networks.recipes import RECIPES
from benchmarks.reproduction.scores import Interval, difference, interval, student, weighted_auc

Row = Mapping[str, str]
SUBSETS: Final = ("modern colour", "old prints")
RIVAL_NOTES: Final = {
    "MAT": "Zhao et al., CVPR 2021",
    "RFM": "Wang and Deng, CVPR 2021",
    "Add-Net": "Zi et al., ACM MM 2020",
}


def sections(results: Path, earlier: Path) -> dict[str, str]:
    """Return every section by its name; a section without runs says so.

    Args:
        results: folder of the cross-validated study.
        earlier: folder of the experiments on a hundred people, for the claims of Tables 3 and 5.
    """
    held = {name: _read(results, name) for name in (
        "study_runs", "study_scores", "people", "power", "fig1_runs", "localise_runs", "recipe_runs", "kinds_runs",
        "kinds_scores", "datasets_runs", "datasets_scores", "toys_runs")}  # fmt: skip
    evidence = Evidence(held["study_scores"], parts_of(held["people"], held["study_scores"]))
    old = {name: _read(earlier, name) for name in ("table3", "table3_differences", "table5")}
    made = {
        "progress": progress(results, held),
        "giveaways": _giveaways(_read(results.parent / "portraits", "giveaways")),
        "claims": _claims(evidence, held["fig1_runs"], old),
        "power": _power(held["power"]),
        "study": _study(evidence, held["study_runs"]),
        "subsets": _subsets(evidence),
        "recipe": _recipe(held["recipe_runs"], evidence, results),
        "robustness": _robustness(held["fig1_runs"]),
        "location": _location(held["localise_runs"]),
        "kinds": _kinds(held["kinds_scores"]),
        "datasets": _datasets(held["datasets_scores"]),
        "toys": _toys(held["toys_runs"]),
    }
    return {name: section or "Not run yet, or on fewer than two folds.\n" for name, section in made.items()}


def parts_of(people: Sequence[Row], scores: Sequence[Row]) -> dict[str, Part]:
    """Return the selections of pictures: all, the subsets of people, and each manipulation."""
    subsets = {name: {row["person"] for row in people if row["subset"] == name} for name in SUBSETS}
    kinds = [kind for kind in dict.fromkeys(row["kind"] for row in scores) if kind != REAL]
    return {
        "all": lambda found: found,
        **{name: among(held) for name, held in subsets.items() if held},
        **{kind: of_kind(kind) for kind in kinds},
    }


def progress(results: Path, held: Mapping[str, Sequence[Row]]) -> str:
    """Return how many planned runs have a row, and the command that makes the others."""
    search = Ledger(results / "recipe_runs.csv", plan.KEYS)
    kinds = [kind for kind in dict.fromkeys(row["kind"] for row in held["study_scores"]) if kind != REAL]
    planned = {
        "pilot": ("study_runs", plan.pilot_tasks(), "pilot: the bare network twice"),
        **{
            f"study --groups {name}": ("study_runs", plan.group_tasks(name), f"Table 1: {_names(group)}")
            for name, group in plan.GROUPS.items()
        },
        "recipe": ("recipe_runs", plan.recipe_tasks(search), "search for a recipe"),
        "chosen": ("study_runs", plan.chosen_tasks(search), "test of the recipe"),
        "kinds": ("kinds_runs", plan.kind_tasks(kinds), "a manipulation that was not trained on"),
        "datasets": ("datasets_runs", plan.study_tasks(plan.TRANSFERRED, range(plan.DATA_SET_FOLDS)),
                     "portraits to London"),
        "toys": ("toys_runs", plan.toy_tasks(), "Tables 3 and 4: the toy networks"),
    }  # fmt: skip
    rows, left = [], set[tuple[str, ...]]()
    for command, (file, tasks, about) in planned.items():
        keys = {tuple(row[name] for name in plan.KEYS) for row in held[file]}
        missing = [key for key in (tuple(map(str, task.key)) for task in tasks) if key not in keys]
        state = "finished" if not missing else "to do" if len(missing) == len(tasks) else "begun"
        rows.append([about, f"{len(tasks) - len(missing)} of {len(tasks)}", state, f"`{command}`"])
        left |= {(file, *key) for key in missing}
    return report.table(("what", "runs", "state", "command"), rows) + _time(
        [row for file in held for row in held[file]], len(left)
    )


def _time(rows: Sequence[Row], left: int) -> str:
    """Return the time and speed of training so far, and an estimate for the remaining runs."""
    runs = [row for row in rows if row.get("core seconds")]
    if not runs:
        return ""
    speeds = [float(row["pictures a second"]) for row in runs if row["network"] == "lite bare"]
    seconds = [float(row["core seconds"]) for row in runs]
    said = f"Training took {sum(seconds) / 3600:.1f} hours of processor time so far"
    if speeds:
        said += f"; the bare network takes {min(speeds):.0f} to {max(speeds):.0f} pictures a second on one core"
    hours = left * fmean(seconds) / 3600
    return f"\n{said}. {left} runs are left: about {hours:.0f} hours at the mean of those there are.\n"


def _giveaways(rows: Sequence[Row]) -> str:
    """Return how well files and colours alone reveal fakes."""
    shown = [
        [
            *(row[name] for name in ("people", "count", "kinds")),
            *(f"{100 * float(row[name]):.1f}" for name in ("file", "colour")),
            f"{100 * float(row['both']):.1f} ± {100 * float(row['margin']):.1f}",
        ]
        for row in rows
        if row["quality"] == "HQ" and int(row["size"]) == 96
    ]
    columns = ("people", "count", "manipulation", "AUC of the file", "of the colours", "of both")
    return report.table(columns, shown) if shown else ""


def _claims(evidence: Evidence, robust: Sequence[Row], old: Mapping[str, list[Row]]) -> str:
    made = []
    for claim in (*claims.table1_claims(), *claims.section5_claims()):
        known = all(any(row.get(name) for row in evidence.rows) for name in claim.ours)
        found = evidence.difference(*claim.ours, claim.score) if known else None
        made.append(claims.row(claim, found, len(evidence.folds(*claim.ours)) if found else 0))
    differences, folds = _robust_differences(robust)
    made += claims.robustness({name: mean for name, (mean, _) in differences.items()}, folds)
    made += claims.from_tables(old)
    counts = {
        name: sum(row["verdict"].startswith(name) for row in made)
        for name in (claims.SEEN, claims.NOT_SEEN, claims.UNTOLD, claims.ABSENT)
    }
    said = ", ".join(f"{count} {name}" for name, count in counts.items())
    columns = ("where", "claim", "printed", "seen", "interval", "on", "verdict")
    shown = [[row[name] for name in columns] for row in made if row["verdict"] != claims.ABSENT]
    return report.table(columns, shown) + f"\nOf {len(made)}: {said}; those are left out of the table.\n"


def _power(rows: Sequence[Row]) -> str:
    """Return what the design can detect, compared with the differences in the paper's Table 1."""
    said = []
    printed = dict(
        zip(("ACC", "AUC"), zip(paper.TABLE1["EfficientNet-b4"], paper.TABLE1["Ours"], strict=True), strict=True)
    )
    for row in rows:
        bare, ours = printed[row["score"]]
        enough = 100 * float(row["smallest difference"]) <= ours - bare
        means = "which is no less" if enough else "which is less: not to see it here does not mean that it is not there"
        said.append(f"{told_power(row)} The paper's Table 1 has {ours - bare:+.2f}, {means}.")
    return report.listed(said)


def _study(evidence: Evidence, runs: Sequence[Row]) -> str:
    networks = list(dict.fromkeys(label(row["network"], int(row["repeat"])) for row in runs))
    of = {label(row["network"], int(row["repeat"])): row for row in runs}
    rows, said = [], []
    for name in sorted(networks, key=lambda each: _order(each)):
        found = {score: evidence.score(name, score) for score in ("ACC", "AUC")}
        if found["AUC"] is None:
            continue
        less = {score: None if name == "bare" else evidence.difference(name, "bare", score) for score in ("ACC", "AUC")}
        rows.append([
            name, _about(name), str(len(evidence.folds(name))), report.millions(of[name]["parameters"]),
            *(_percent(found[score]) for score in ("ACC", "AUC")), *(_points(less[score]) for score in ("ACC", "AUC")),
        ])  # fmt: skip
        if less["AUC"] is not None:
            said.append(report.verdict(f"{name} − bare", *(100 * value for value in less["AUC"])))
    if not rows:
        return ""
    columns = ("network", "what it is", "folds", "parameters", "ACC", "AUC", "ACC − bare", "AUC − bare")
    kinds = [kind for kind in evidence.parts if kind not in ("all", *SUBSETS)]
    names = [row[0] for row in rows]
    by_kind = report.table(
        ("AUC by manipulation", *kinds),
        [[name, *(_percent(evidence.score(name, "AUC", kind)) for kind in kinds)] for name in names],
    )
    gains = {name: row["gains"] for name, row in of.items() if row["gains"]}
    told = [f"Gains of {name} after training, of the last fold that was run: {value}." for name, value in gains.items()]
    return _trained(runs) + report.table(columns, rows) + "\n" + by_kind + "\n" + report.listed([*said, *told])


def _subsets(evidence: Evidence) -> str:
    names = [name for name in ("bare", "SIA", "not identity at first", "SE", "CBAM")
             if any(row.get(name) for row in evidence.rows) and evidence.score(name)]  # fmt: skip
    parts = [name for name in ("all", *SUBSETS) if name in evidence.parts]
    if not names or len(parts) < 2:
        return ""
    columns = ("AUC", *(f"{part}{what}" for part in parts for what in ("", ", less bare")))
    rows = [
        [name, *(cell for part in parts for cell in (
            _percent(evidence.score(name, "AUC", part)),
            "" if name == "bare" else _points(evidence.difference(name, "bare", "AUC", part))))]
        for name in names
    ]  # fmt: skip
    return report.table(columns, rows)


def _recipe(runs: Sequence[Row], evidence: Evidence, results: Path) -> str:
    if not runs:
        return ""
    by: dict[str, list[Row]] = {}
    for row in runs:
        by.setdefault(row["network"], []).append(row)
    rows = []
    for name, held in sorted(by.items(), key=lambda item: -fmean(float(row["AUC"]) for row in item[1])):
        scores = [100 * float(row["AUC"]) for row in held]
        spread = f"{min(scores):.1f} to {max(scores):.1f}" if len(scores) > 1 else ""
        recipe = name.removeprefix("recipe ")
        rows.append([recipe, RECIPES[recipe].about, str(len(held)), f"{fmean(scores):.1f}", spread, held[-1]["gains"]])
    columns = ("recipe", "what it is", "runs", "validation AUC", "from, to", "gains after training")
    chosen = plan.chosen_recipe(Ledger(results / "recipe_runs.csv", plan.KEYS))
    return _trained(runs) + report.table(columns, rows) + "\n" + report.listed(_tested(chosen, evidence))


def _tested(chosen: str | None, evidence: Evidence) -> list[str]:
    """Return what the test of the selected recipe supports."""
    if chosen is None:
        return ["The search is not finished, and no recipe is chosen."]
    said = [f"Chosen by validation people: {chosen.removeprefix('recipe ')}."]
    for other in ("bare", "SIA"):
        known = all(any(row.get(name) for row in evidence.rows) for name in (chosen, other))
        found = evidence.difference(chosen, other) if known else None
        if found is not None:
            said.append(report.verdict(f"{chosen} − {other}, test people", *(100 * value for value in found)))
    return said


def _robust_differences(rows: Sequence[Row]) -> tuple[dict[str, tuple[Interval, int]], int]:
    """Return the difference from bare in mean AUC over severities, by form of SIA and corruption, over the folds."""
    by: dict[tuple[str, str], dict[int, list[float]]] = {}
    for row in rows:
        if row["severity"] != "0":
            by.setdefault((label(row["network"]), row["corruption"]), {}).setdefault(int(row["fold"]), []).append(
                float(row["AUC"]))  # fmt: skip
    made, most = {}, 0
    for (name, corruption), folds in by.items():
        bare = by.get(("bare", corruption), {})
        shared = [fold for fold in folds if fold in bare]
        if name != "bare" and len(shared) > 1:
            values = [fmean(folds[fold]) - fmean(bare[fold]) for fold in shared]
            made[f"{name}, {corruption}"], most = (student(values), len(shared)), max(most, len(shared))
    return made, most


def _robustness(rows: Sequence[Row]) -> str:
    if len({row["fold"] for row in rows}) < 2:
        return ""
    corruptions = list(dict.fromkeys(row["corruption"] for row in rows))
    names = list(dict.fromkeys(label(row["network"]) for row in rows))
    found = {
        (name, corruption, severity): [float(row["AUC"]) for row in rows
            if (label(row["network"]), row["corruption"], int(row["severity"])) == (name, corruption, severity)]
        for name in names for corruption in corruptions for severity in range(6)
    }  # fmt: skip
    shown = report.table(
        ("AUC, mean over the folds", "network", "clean", *(f"severity {severity}" for severity in range(1, 6))),
        [[corruption, name, *(f"{100 * fmean(found[name, corruption, severity]):.1f}" for severity in range(6))]
         for corruption in corruptions for name in names],
    )  # fmt: skip
    differences, _ = _robust_differences(rows)
    said = [
        report.verdict(f"{name.replace(', ', ' − bare, ')}, mean of five severities", *(100 * value for value in each))
        for name, (each, _) in differences.items()
    ]
    folds = len({row["fold"] for row in rows})
    about = f"{folds} folds, {rows[0]['people']} people a fold or so, and one fake of each."
    return f"{about}\n\n{shown}\n{report.listed(said)}"


def _location(rows: Sequence[Row]) -> str:
    held = [row for row in rows if row["kinds"] == "all"]
    cases = list(dict.fromkeys((row["network"], row["map"]) for row in held))
    seen, made = set(), []
    for network, name in cases:
        inside = name.startswith(("trained", "before training"))
        if not inside and name in seen:
            continue
        seen.add(name)
        values = [[float(row[column]) for row in held if (row["network"], row["map"]) == (network, name)]
                  for column in ("AUC", "real", "fake - real")]  # fmt: skip
        if len(values[0]) > 1:
            spread = student(values[2])
            made.append([f"{label(network)}, {name}" if inside else name, f"{100 * fmean(values[0]):.1f}",
                         f"{100 * fmean(values[1]):.1f}", _points(spread)])  # fmt: skip
    if not made:
        return ""
    folds = len({row["fold"] for row in held})
    shown = report.table(("map", "AUC on fakes", "on real, same mask", "fake − real"), made)
    return f"{folds} folds, {rows[0]['size']} pixels, one fake of each person.\n\n{shown}"


def _kinds(rows: Sequence[Row]) -> str:
    held_out = list(dict.fromkeys(row["held out"] for row in rows))
    names = [label(name) for name in plan.TRANSFERRED]
    made = []
    for kind in held_out:
        some = Evidence([row for row in rows if row["held out"] == kind], {"all": lambda found: found})
        for name in names:
            if any(row.get(name) for row in some.rows) and (score := some.score(name)) is not None:
                less = None if name == "bare" else some.difference(name, "bare")
                made.append([kind, name, str(len(some.folds(name))), _percent(score), _points(less)])
    return (
        report.table(("tested on, and not trained on", "network", "folds", "AUC", "AUC − bare"), made) if made else ""
    )


def _datasets(rows: Sequence[Row]) -> str:
    made = []
    bare = predictions(rows, "bare") if rows and "bare" in rows[0] else {}
    for name in (label(each) for each in plan.TRANSFERRED):
        found = predictions(rows, name) if any(row.get(name) for row in rows) else {}
        shared = [fold for fold in found if fold in bare]
        if len(shared) > 1:
            runs, others = ([each[fold] for fold in shared] for each in (found, bare))
            less = None if name == "bare" else difference(runs, others, weighted_auc)
            made.append([name, str(len(shared)), _percent(interval(runs, weighted_auc)), _points(less)])
    columns = ("trained on portraits, tested on London", "networks", "AUC", "AUC − bare")
    return report.table(columns, made) if made else ""


def _toys(runs: Sequence[Row]) -> str:
    if not runs:
        return ""
    cases: dict[tuple[str, str], list[Row]] = {}
    for row in runs:
        cases.setdefault((row["trained on"], row["network"]), []).append(row)
    places = [name for name in runs[0] if ", behind the " in name]
    made = [
        [kind, label(network), str(len(held)),
         *(f"{fmean(100 * float(row[score]) for row in held):.1f}" for score in ("ACC", "AUC")),
         *(f"{fmean(float(row[place]) for row in held):.3f}" for place in places)]
        for (kind, network), held in cases.items()
    ]  # fmt: skip
    learned = sum(fmean(float(row["AUC"]) for row in held) > 0.6 for held in cases.values())
    columns = ("manipulation", "network", "folds", "ACC", "AUC", *(f"self-information, {place}" for place in places))
    return (
        _trained(runs) + report.table(columns, made)
        + f"\nThe mean AUC is above 60 in {learned} of {len(cases)} cases; where it is not, little was learned and an "
        "order of the networks says nothing.\n"
    )  # fmt: skip


def _trained(runs: Sequence[Row]) -> str:
    """Return a line on the settings of the runs."""
    told = {
        name: ", ".join(sorted({row[name] for row in runs})) for name in ("size", "epochs", "machine", "commit", "date")
    }
    return f"{told['size']} pixels, {told['epochs']} epochs; {told['machine']}; at {told['commit']}, {told['date']}\n\n"


def _names(networks: Sequence[str]) -> str:
    return ", ".join(label(name) for name in networks)


def _order(name: str) -> tuple[int, str]:
    first = ("bare", "bare again 1", "SIA", "not identity at first", "SE", "CBAM")
    return (first.index(name), "") if name in first else (len(first), name)


def _about(name: str) -> str:
    if name in VARIANTS:
        return VARIANTS[name].about
    if name.startswith("recipe "):
        return f"the recipe that was chosen: {RECIPES[name.removeprefix('recipe ')].about}"
    if name.startswith("bare again"):
        return "other random numbers: no difference is expected"
    method, plus, _ = name.partition("+")
    return RIVAL_NOTES[method] + (", with SIA injected" if plus else "")


def _percent(found: Interval | None) -> str:
    return "" if found is None else "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * value for value in found))


def _points(found: Interval | None) -> str:
    return "" if found is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in found))


def _read(folder: Path, name: str) -> list[dict[str, str]]:
    path = folder / f"{name}.csv"
    return harness.read(path) if path.exists() else []
