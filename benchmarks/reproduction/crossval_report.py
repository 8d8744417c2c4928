"""Write the sections of docs/reproduction.md on the cross-validated study, from its CSV files alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Final

from benchmarks import harness
from benchmarks.reproduction import claims, paper, plan, report
from benchmarks.reproduction.data import MANIPULATIONS
from benchmarks.reproduction.data.faces import REAL
from benchmarks.reproduction.evidence import Evidence, Part, among, label, of_kind, power_sentence, predictions
from benchmarks.reproduction.ledger import Ledger
from benchmarks.reproduction.networks import VARIANTS
from benchmarks.reproduction.networks.recipes import RECIPES
from benchmarks.reproduction.scores import Interval, difference, interval, student, weighted_auc

Row = Mapping[str, str]
ABSENT: Final = "Not run yet, or on fewer than two folds so far.\n"
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
        earlier: folder of the earlier round with 102 people, for the claims of Tables 3 and 5.
    """
    tables = {name: _read(results, name) for name in (
        "study_runs", "study_scores", "people", "power", "fig1_runs", "localise_runs", "recipe_runs", "kinds_runs",
        "kinds_scores", "datasets_runs", "datasets_scores", "toys_runs")}  # fmt: skip
    evidence = Evidence(tables["study_scores"], parts_of(tables["people"], tables["study_scores"]))
    old = {name: _read(earlier, name) for name in ("table3", "table3_differences", "table5")}
    texts = {
        "progress": progress(results, tables),
        "giveaways": _giveaways(_read(results.parent / "portraits", "giveaways")),
        "claims": _claims(evidence, tables["fig1_runs"], old),
        "power": _power(tables["power"]),
        "study": _study(evidence, tables["study_runs"]),
        "subsets": _subsets(evidence),
        "recipe": _recipe(tables["recipe_runs"], evidence, results),
        "robustness": _robustness(tables["fig1_runs"]),
        "location": _location(tables["localise_runs"]),
        "kinds": _kinds(tables["kinds_scores"]),
        "datasets": _datasets(tables["datasets_scores"]),
        "toys": _toys(tables["toys_runs"]),
    }
    return {name: text or ABSENT for name, text in texts.items()}


def parts_of(people: Sequence[Row], scores: Sequence[Row]) -> dict[str, Part]:
    """Return the selections of pictures: all, the subsets of people, and each manipulation."""
    subsets = {name: {row["person"] for row in people if row["subset"] == name} for name in SUBSETS}
    kinds = [kind for kind in dict.fromkeys(row["kind"] for row in scores) if kind != REAL]
    return {
        "all": lambda scored: scored,
        **{name: among(members) for name, members in subsets.items() if members},
        **{kind: of_kind(kind) for kind in kinds},
    }


def progress(results: Path, tables: Mapping[str, Sequence[Row]]) -> str:
    """Return how many planned runs have a row, and the command that does the others."""
    search = Ledger(results / "recipe_runs.csv", plan.KEYS)
    planned = {
        "pilot": ("study_runs", plan.pilot_tasks(), "pilot: the bare network twice"),
        **{
            f"study --groups {name}": ("study_runs", plan.group_tasks(name), f"Table 1: {_names(group)}")
            for name, group in plan.GROUPS.items()
        },
        "recipe": ("recipe_runs", plan.recipe_tasks(search), "search for a recipe"),
        "chosen": ("study_runs", plan.chosen_tasks(search), "test of the selected recipe"),
        "kinds": ("kinds_runs", plan.kind_tasks(MANIPULATIONS), "tests on a manipulation left out of training"),
        "datasets": ("datasets_runs", plan.study_tasks(plan.TRANSFERRED, range(plan.DATA_SET_FOLDS)),
                     "training on portraits, tests on London faces"),
        "toys": ("toys_runs", plan.toy_tasks(), "Tables 3 and 4: the toy networks"),
    }  # fmt: skip
    rows, left = [], set[tuple[str, ...]]()
    for command, (file, tasks, about) in planned.items():
        keys = {tuple(row[name] for name in plan.KEYS) for row in tables[file]}
        missing = [key for key in (tuple(map(str, task.key)) for task in tasks) if key not in keys]
        state = "finished" if not missing else "not started" if len(missing) == len(tasks) else "in progress"
        rows.append([about, f"{len(tasks) - len(missing)} of {len(tasks)}", state, f"`{command}`"])
        left |= {(file, *key) for key in missing}
    return report.table(("what", "runs", "state", "command"), rows) + _time(
        [row for rows in tables.values() for row in rows], len(left)
    )


def _time(rows: Sequence[Row], left: int) -> str:
    """Return the time and speed of training so far, and an estimate for the remaining runs."""
    runs = [row for row in rows if row.get("core seconds")]
    if not runs:
        return ""
    speeds = [float(row["pictures a second"]) for row in runs if row["network"] == "lite bare"]
    seconds = [float(row["core seconds"]) for row in runs]
    spent = f"Training has taken {sum(seconds) / 3600:.1f} hours of processor time"
    if speeds:
        spent += f"; one core trains the bare network on {min(speeds):.0f} to {max(speeds):.0f} pictures per second"
    hours = left * fmean(seconds) / 3600
    rest = f"{left} runs are left, about {hours:.1f} hours at the mean duration" if left else "No run is left"
    return f"\n{spent}. {rest}.\n"


def _giveaways(rows: Sequence[Row]) -> str:
    """Return a table of how well files and colours alone reveal fakes."""
    shown = [
        [
            *(row[name] for name in ("people", "count", "kinds")),
            *(f"{100 * float(row[name]):.1f}" for name in ("file", "colour")),
            f"{100 * float(row['both']):.1f} ± {100 * float(row['margin']):.1f}",
        ]
        for row in rows
        if row["quality"] == "HQ" and int(row["size"]) == 96
    ]
    columns = ("people", "number", "manipulation", "AUC from the file", "from the colours", "from both")
    return report.table(columns, shown) if shown else ""


def _claims(evidence: Evidence, robust: Sequence[Row], old: Mapping[str, list[Row]]) -> str:
    table = []
    for claim in (*claims.table1_claims(), *claims.section5_claims()):
        known = all(any(row.get(name) for row in evidence.rows) for name in claim.ours)
        measured = evidence.difference(*claim.ours, claim.score) if known else None
        table.append(claims.row(claim, measured, f"{len(evidence.folds(*claim.ours))} folds" if measured else ""))
    differences, folds = _robust_differences(robust)
    table += claims.robustness({name: mean for name, (mean, _) in differences.items()}, folds)
    table += claims.from_tables(old)
    supported, ruled_out, inconclusive, missing = (
        sum(row["verdict"].startswith(name) for row in table)
        for name in (claims.SUPPORTED, claims.RULED_OUT, claims.INCONCLUSIVE, claims.NOT_RUN)
    )
    shown = [list(row.values()) for row in table if row["verdict"] != claims.NOT_RUN]
    return report.table(list(table[0]), shown) + (
        f"\nOf {len(table)} claims, {supported} are supported, {ruled_out} ruled out and {inconclusive} inconclusive"
        + (f"; {missing} have not been run yet and are omitted from the table" if missing else "")
        + ".\n"
    )


def _power(rows: Sequence[Row]) -> str:
    """Return what the design can detect, compared with the differences in the paper's Table 1."""
    sentences = []
    printed = dict(
        zip(("ACC", "AUC"), zip(paper.TABLE1["EfficientNet-b4"], paper.TABLE1["Ours"], strict=True), strict=True)
    )
    for row in rows:
        bare, ours = printed[row["score"]]
        enough = 100 * float(row["smallest difference"]) <= ours - bare
        means = (
            "which this design can detect"
            if enough
            else "which is smaller: this design may miss a difference of that size, so missing it is no counterevidence"
        )
        sentences.append(f"{power_sentence(row)} The paper's Table 1 reports {ours - bare:+.2f}, {means}.")
    return report.listed(sentences)


def _study(evidence: Evidence, runs: Sequence[Row]) -> str:
    networks = list(dict.fromkeys(label(row["network"], int(row["repeat"])) for row in runs))
    of = {label(row["network"], int(row["repeat"])): row for row in runs}
    rows, sentences = [], []
    for name in sorted(networks, key=_order):
        scores = {score: evidence.score(name, score) for score in ("ACC", "AUC")}
        if scores["AUC"] is None:
            continue
        less = {score: None if name == "bare" else evidence.difference(name, "bare", score) for score in ("ACC", "AUC")}
        rows.append([
            name, _about(name), str(len(evidence.folds(name))), report.millions(of[name]["parameters"]),
            *(_percent(scores[score]) for score in ("ACC", "AUC")), *(_points(less[score]) for score in ("ACC", "AUC")),
        ])  # fmt: skip
        if less["AUC"] is not None:
            sentences.append(report.verdict(f"{name} − bare", *(100 * value for value in less["AUC"])))
        without = name.removesuffix("+SIA")
        if without != name and without in networks and (added := evidence.difference(name, without)) is not None:
            sentences.append(report.verdict(f"{name} − {without}", *(100 * value for value in added)))
    if not rows:
        return ""
    columns = ("network", "description", "folds", "parameters", "ACC", "AUC", "ACC − bare", "AUC − bare")
    kinds = [kind for kind in evidence.parts if kind not in ("all", *SUBSETS)]
    names = [row[0] for row in rows]
    by_kind = report.table(
        ("AUC by manipulation", *kinds),
        [[name, *(_percent(evidence.score(name, "AUC", kind)) for kind in kinds)] for name in names],
    )
    gains = {name: row["gains"] for name, row in of.items() if row["gains"]}
    sentences += [
        f"Gains of {name} after training, site by site, on the most recent fold: {value}."
        for name, value in gains.items()
    ]
    return _trained(runs) + report.table(columns, rows) + "\n" + by_kind + "\n" + report.listed(sentences)


def _subsets(evidence: Evidence) -> str:
    names = [name for name in ("bare", "SIA", "not identity at first", "SE", "CBAM")
             if any(row.get(name) for row in evidence.rows) and evidence.score(name)]  # fmt: skip
    parts = [name for name in ("all", *SUBSETS) if name in evidence.parts]
    if not names or len(parts) < 2:
        return ""
    columns = ("AUC", *(f"{part}{what}" for part in parts for what in ("", " − bare")))
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
    for name, group in sorted(by.items(), key=lambda item: -fmean(float(row["AUC"]) for row in item[1])):
        scores = [100 * float(row["AUC"]) for row in group]
        spread = f"{min(scores):.1f} to {max(scores):.1f}" if len(scores) > 1 else ""
        recipe = name.removeprefix("recipe ")
        about, gains = RECIPES[recipe].about, group[-1]["gains"]
        rows.append([recipe, about, str(len(group)), f"{fmean(scores):.1f}", spread, gains])
    columns = ("recipe", "description", "runs", "validation AUC", "range", "gains after training")
    chosen = plan.chosen_recipe(Ledger(results / "recipe_runs.csv", plan.KEYS))
    return _trained(runs) + report.table(columns, rows) + "\n" + report.listed(_tested(chosen, evidence))


def _tested(chosen: str | None, evidence: Evidence) -> list[str]:
    """Return what the test of the selected recipe supports."""
    if chosen is None:
        return ["The search is not finished, so no recipe has been selected yet."]
    sentences = [f"Selected on validation people: {chosen.removeprefix('recipe ')}."]
    for other in ("bare", "SIA"):
        known = all(any(row.get(name) for row in evidence.rows) for name in (chosen, other))
        measured = evidence.difference(chosen, other) if known else None
        if measured is not None:
            sentences.append(report.verdict(f"{chosen} − {other}, test people", *(100 * value for value in measured)))
    return sentences


def _robust_differences(rows: Sequence[Row]) -> tuple[dict[str, tuple[Interval, int]], int]:
    """Return the difference from bare in mean AUC over severities, by form of SIA and corruption, over the folds."""
    by: dict[tuple[str, str], dict[int, list[float]]] = {}
    for row in rows:
        if row["severity"] != "0":
            by.setdefault((label(row["network"]), row["corruption"]), {}).setdefault(int(row["fold"]), []).append(
                float(row["AUC"]))  # fmt: skip
    differences, most = {}, 0
    for (name, corruption), folds in by.items():
        bare = by.get(("bare", corruption), {})
        shared = [fold for fold in folds if fold in bare]
        if name != "bare" and len(shared) > 1:
            values = [fmean(folds[fold]) - fmean(bare[fold]) for fold in shared]
            differences[f"{name}, {corruption}"] = student(values), len(shared)
            most = max(most, len(shared))
    return differences, most


def _robustness(rows: Sequence[Row]) -> str:
    if len({row["fold"] for row in rows}) < 2:
        return ""
    corruptions = list(dict.fromkeys(row["corruption"] for row in rows))
    names = list(dict.fromkeys(label(row["network"]) for row in rows))
    scores = {
        (name, corruption, severity): [float(row["AUC"]) for row in rows
            if (label(row["network"]), row["corruption"], int(row["severity"])) == (name, corruption, severity)]
        for name in names for corruption in corruptions for severity in range(6)
    }  # fmt: skip
    shown = report.table(
        ("mean AUC over folds", "network", "clean", *(f"severity {severity}" for severity in range(1, 6))),
        [[corruption, name, *(f"{100 * fmean(scores[name, corruption, severity]):.1f}" for severity in range(6))]
         for corruption in corruptions for name in names],
    )  # fmt: skip
    differences, _ = _robust_differences(rows)
    sentences = [
        report.verdict(f"{name.replace(', ', ' − bare, ')}, mean of five severities", *(100 * value for value in mean))
        for name, (mean, _) in differences.items()
    ]
    folds = len({row["fold"] for row in rows})
    about = f"{folds} folds of about {rows[0]['people']} people, with one fake of each person."
    return f"{about}\n\n{shown}\n{report.listed(sentences)}"


def _location(rows: Sequence[Row]) -> str:
    overall = [row for row in rows if row["kinds"] == "all"]
    cases = list(dict.fromkeys((row["network"], row["map"]) for row in overall))
    seen, table = set(), []
    for network, name in cases:
        inside = name.startswith(("trained", "before training"))
        if not inside and name in seen:
            continue
        seen.add(name)
        values = [[float(row[column]) for row in overall if (row["network"], row["map"]) == (network, name)]
                  for column in ("AUC", "real", "fake - real")]  # fmt: skip
        if len(values[0]) > 1:
            spread = student(values[2])
            table.append([f"{label(network)}, {name}" if inside else name, f"{100 * fmean(values[0]):.1f}",
                          f"{100 * fmean(values[1]):.1f}", _points(spread)])  # fmt: skip
    if not table:
        return ""
    folds = len({row["fold"] for row in overall})
    shown = report.table(("map", "AUC on fakes", "AUC on real pictures, same mask", "fake − real"), table)
    return f"{folds} folds, {rows[0]['size']} pixels, one fake of each person.\n\n{shown}"


def _kinds(rows: Sequence[Row]) -> str:
    names = [label(name) for name in plan.TRANSFERRED]
    table = []
    for kind in dict.fromkeys(row["held out"] for row in rows):
        tested = [row for row in rows if row["held out"] == kind]
        evidence = Evidence(tested, {"all": lambda scored: scored}, fewest=1)
        for name in names:
            if any(row.get(name) for row in tested) and (score := evidence.score(name)) is not None:
                less = None if name == "bare" else evidence.difference(name, "bare")
                table.append([kind, name, str(len(evidence.folds(name))), _percent(score), _points(less)])
    columns = ("manipulation left out of training", "network", "folds", "AUC", "AUC − bare")
    return report.table(columns, table) if table else ""


def _datasets(rows: Sequence[Row]) -> str:
    table = []
    bare = predictions(rows, "bare") if rows and "bare" in rows[0] else {}
    for name in (label(each) for each in plan.TRANSFERRED):
        scored = predictions(rows, name) if any(row.get(name) for row in rows) else {}
        shared = [fold for fold in scored if fold in bare]
        if len(shared) > 1:
            runs, others = ([by_fold[fold] for fold in shared] for by_fold in (scored, bare))
            less = None if name == "bare" else difference(runs, others, weighted_auc)
            table.append([name, str(len(shared)), _percent(interval(runs, weighted_auc)), _points(less)])
    columns = ("trained on portraits, tested on London faces", "training runs", "AUC", "AUC − bare")
    return report.table(columns, table) if table else ""


def _toys(runs: Sequence[Row]) -> str:
    if not runs:
        return ""
    cases: dict[tuple[str, str], list[Row]] = {}
    for row in runs:
        cases.setdefault((row["trained on"], row["network"]), []).append(row)
    places = [name for name in runs[0] if ", behind the " in name]
    table = [
        [kind, label(network), str(len(group)),
         *(f"{fmean(100 * float(row[score]) for row in group):.1f}" for score in ("ACC", "AUC")),
         *(f"{fmean(float(row[place]) for row in group):.3f}" for place in places)]
        for (kind, network), group in cases.items()
    ]  # fmt: skip
    learned = sum(fmean(float(row["AUC"]) for row in group) > 0.6 for group in cases.values())
    information = (f"self-information, {place.replace('behind', 'after')}" for place in places)
    columns = ("manipulation", "network", "folds", "ACC", "AUC", *information)
    return (
        _trained(runs) + report.table(columns, table)
        + f"\nThe mean AUC exceeds 60 in {learned} of {len(cases)} cases. In the others the networks learned little, "
        "so their ranking means nothing.\n"
    )  # fmt: skip


def _trained(runs: Sequence[Row]) -> str:
    """Return a line on the settings of the runs."""
    values = {
        name: ", ".join(sorted({row[name] for row in runs})) for name in ("size", "epochs", "machine", "commit", "date")
    }
    return (
        f"{values['size']} pixels, {values['epochs']} epochs; {values['machine']}; "
        f"trained at commit {values['commit']}, {values['date']}\n\n"
    )


def _names(networks: Sequence[str]) -> str:
    return ", ".join(label(name) for name in networks)


def _order(name: str) -> tuple[int, str]:
    first = ("bare", "bare again 1", "SIA", "not identity at first", "SE", "CBAM")
    return (first.index(name), "") if name in first else (len(first), name)


def _about(name: str) -> str:
    if name in VARIANTS:
        return VARIANTS[name].about
    if name.startswith("recipe "):
        return f"the selected recipe: {RECIPES[name.removeprefix('recipe ')].about}"
    if name.startswith("bare again"):
        return "trained with other random numbers; no difference is expected"
    method, plus, _ = name.partition("+")
    return RIVAL_NOTES[method] + (", with SIA injected" if plus else "")


def _percent(score: Interval | None) -> str:
    return "" if score is None else "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * value for value in score))


def _points(change: Interval | None) -> str:
    return "" if change is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in change))


def _read(folder: Path, name: str) -> list[dict[str, str]]:
    path = folder / f"{name}.csv"
    return harness.read(path) if path.exists() else []
