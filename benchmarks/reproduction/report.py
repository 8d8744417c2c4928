"""Write the tables of docs/reproduction.md and the statements that they support, from the CSV files alone.

The page has a pair of marks for each section, and prose between and around them. The sentences that say whether
something helps are generated here from the interval of a paired difference, with the same words in either direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks import harness
from benchmarks.reproduction import paper

CsvRow = Mapping[str, str]
COMPARED: Final = ("bare", "SE", "CBAM", "SIA")


def filled(page: str, folder: Path) -> str:
    """Insert every section that has results between its marks on the page.

    Raises:
        ValueError: a mark is missing, or they are in the wrong order.
    """
    return put(page, {name: section(folder) if (folder / f"{file}.csv").exists() else None
                      for name, (file, section) in SECTIONS.items()})  # fmt: skip


def put(page: str, sections: Mapping[str, str | None]) -> str:
    """Insert sections between their marks on the page; a section that is None leaves the page unchanged.

    Raises:
        ValueError: a mark is missing, or they are in the wrong order.
    """
    for name, section in sections.items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        if page.count(start) != 1 or page.count(end) != 1 or page.index(start) > page.index(end):
            raise ValueError(f"the page must hold {start.strip()!r} and {end!r} once, in this order")
        if section is not None:
            before, _, rest = page.partition(start)
            page = before + start + section + end + rest.partition(end)[2]
    return page


def verdict(what: str, mean: float, low: float, high: float, unit: str = "points of AUC") -> str:
    """Return the statement that a paired difference with its 95 % interval supports; all three have one unit."""
    figures = f"{what}: {mean:+.1f} {unit} [{low:+.1f}, {high:+.1f}]"
    if low > 0:
        return f"{figures}: higher here; the interval excludes zero."
    if high < 0:
        return f"{figures}: lower here; the interval excludes zero."
    return f"{figures}: no difference was detected."


def cell(row: CsvRow, name: str) -> str:
    """Format an interval of a row in percent, such as ``74.9 [68.2, 80.9]``; differences have a sign."""
    if not row.get(name):
        return ""
    sign = "+" if " - " in name else ""
    mean, low, high = percent(row, name)
    return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def percent(row: CsvRow, name: str) -> tuple[float, float, float]:
    """Return the mean and the ends of an interval of a row, in percent."""
    mean, low, high = (100 * float(row[f"{name}{end}"]) for end in ("", " low", " high"))
    return mean, low, high


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _data(folder: Path) -> str:
    rows = harness.read(folder / "data.csv")
    shown = ("size", "quality", "seed", *(f"{part} {what}" for part in ("train", "validation", "test")
                                          for what in ("people", "pictures")), "skipped")  # fmt: skip
    return f"{_budget(rows)}\n\n" + table(shown, [[row[name] for name in shown] for row in rows])


def _table1(folder: Path) -> str:
    rows = harness.read(folder / "table1.csv")
    kinds = list(dict.fromkeys(row["kinds"] for row in rows if row["kinds"] != "all"))
    of = {(row["network"], row["kinds"]): row for row in rows}
    scores = table(
        ("network", "parameters", "ACC", "AUC", "ACC − bare", "AUC − bare"),
        [
            [name, millions(of[name, "all"]["parameters"]),
             *(cell(of[name, "all"], score) for score in ("ACC", "AUC", "ACC - bare", "AUC - bare"))]
            for name in COMPARED
        ],
    )  # fmt: skip
    by_kind = table(
        ("AUC by manipulation", *kinds),
        [[name, *(cell(of[name, kind], "AUC") for kind in kinds)] for name in COMPARED],
    )
    verdicts = [verdict(f"{name} − bare", *percent(of[name, "all"], "AUC - bare")) for name in COMPARED[1:]]
    (bare_acc, bare_auc), (acc, auc) = paper.TABLE1["EfficientNet-b4"], paper.TABLE1["Ours"]
    printed = (
        f"The paper's Table 1 (DFDC, EfficientNet-B4): ACC {bare_acc} to {acc} ({acc - bare_acc:+.2f}), "
        f"AUC {bare_auc} to {auc} ({auc - bare_auc:+.2f}); single figures, without intervals."
    )
    gains = _gains(folder / "table1_runs.csv", ["lite SIA"])
    return _setting(rows, folder, "table1") + f"{scores}\n{by_kind}\n{listed([*verdicts, *gains])}\n{printed}\n"


def _gains(path: Path, networks: Sequence[str]) -> list[str]:
    """Return sentences on how far SIA's gains moved, and how far they could move."""
    sentences = []
    for network in networks:
        runs = [row for row in harness.read(path) if row["network"] == network]
        sites = zip(*(map(float, row["run's gains"].split()) for row in runs), strict=True)
        ranges = ", ".join(f"{min(site):+.2f} to {max(site):+.2f}" for site in sites)
        name = network.partition(" ")[2]
        sentences.append(f"Gains of {name} after training, as the range over the seeds at each site: {ranges}.")
    limit = max(float(row["gains at most about"]) for row in runs)
    damped = " A gain below 1 damps the effect of SIA." if limit < 1 else ""
    return [
        *sentences,
        f"A gain of 0 means no SIA, and 1 the published formula. In these runs a gain can reach at most about "
        f"{limit:.1f}, since Adam moves a parameter by about its learning rate per step.{damped}",
    ]


def _ablations(folder: Path) -> str:
    rows = [row for row in harness.read(folder / "table1.csv") if row["kinds"] == "all" and row.get("AUC - SIA")]
    shown = table(
        ("ablation", "description", "ACC", "AUC", "AUC − SIA", "AUC − bare"),
        [[row["network"], row["about"], *(cell(row, name) for name in ("ACC", "AUC", "AUC - SIA", "AUC - bare"))]
         for row in rows],
    )  # fmt: skip
    apart = [row["network"] for row in rows if _differs(row, "AUC - SIA")]
    names = f": {', '.join(apart)}" if apart else ""
    statement = (
        f"Of the {len(rows)} intervals of AUC − SIA, {len(apart)} exclude zero{names}. They all use the same SIA runs, "
        "so they are not independent, and they are not corrected for multiple comparisons."
    )
    return _setting(rows, folder, "table1") + f"{shown}\n{statement}\n"


def _table3(folder: Path) -> str:
    rows = harness.read(folder / "table3.csv")
    shown = table(
        ("network", "manipulation", "quality", "ACC", "SD over seeds", "AUC", "SD over seeds",
         "closest in the paper", "the paper's ACC"),
        [
            [row["network"], row["kinds"], row["quality"], cell(row, "ACC"), _deviation(row, "ACC"), cell(row, "AUC"),
             _deviation(row, "AUC"), *_printed(row)]
            for row in rows
        ],
    )  # fmt: skip
    first = {row["network"]: row for row in rows}
    weights = table(
        ("network", "convolution weights", "printed"),
        [[name, millions(row["convolution weights"]), paper.PARAMETERS[name]] for name, row in first.items()],
    )
    learned = sum(percent(row, "AUC")[1] > 50 for row in rows)
    statement = (
        f"The interval of the AUC lies above 50 in {learned} of {len(rows)} cases. In the others there is no evidence "
        "that the network learned anything, so their ranking means nothing."
    )
    differences = [
        verdict(f"{row['network']} − Norm, mean over manipulations, {row['quality'].replace(', ', ' and ')}, {score}",
                *percent(row, f"{score} - Norm"), f"points of {score}")
        for row in harness.read(folder / "table3_differences.csv") for score in ("ACC", "AUC")
    ]  # fmt: skip
    return _setting(rows, folder, "table3") + f"{shown}\n{weights}\n{listed([statement, *differences, _ranking(rows)])}"


def _ranking(rows: Sequence[CsvRow]) -> str:
    """Return a sentence on how often each network has the highest mean accuracy."""
    cells: dict[tuple[str, str], list[CsvRow]] = {}
    for row in rows:
        cells.setdefault((row["kinds"], row["quality"]), []).append(row)
    best: list[str] = []
    for members in cells.values():
        top = max(float(row["ACC"]) for row in members)
        first = [row["network"] for row in members if float(row["ACC"]) == top]
        best.append(first[0] if len(first) == 1 else "")
    counts = ", ".join(f"{name} in {best.count(name)}" for name in dict.fromkeys(row["network"] for row in rows))
    return (
        f"Highest mean ACC in the {len(best)} cases: {counts}, a tie in {best.count('')}. In the paper, Depthwise has "
        "the highest and Norm the lowest ACC in all 9 cases."
    )


def _table4(folder: Path) -> str:
    rows = harness.read(folder / "table4.csv")
    layers = ("Layer2", "Layer3", "Layer4", "Layer5", "AVG")
    shown = table(
        ("network", "state", "after", *layers, "SD over seeds", "AVG, summed over channels", "AVG in the paper"),
        [
            [row["network"], row["state"], row["behind"], *(f"{float(row[name]):.3f}" for name in layers),
             f"{float(row['AVG deviation']):.3f}" if row["AVG deviation"] else "", f"{float(row['AVG sum']):.0f}",
             f"{paper.TABLE4[row['network']][-1]}" if row["behind"] == "layer" else ""]
            for row in rows
        ],
    )  # fmt: skip
    cases = {f"{row['state']}, after the {row['behind']}": (row["state"], row["behind"]) for row in rows}
    orders = [
        f"Networks by decreasing self-information, {name}: "
        + _order({row["network"]: float(row["AVG"]) for row in rows if (row["state"], row["behind"]) == case})
        for name, case in cases.items()
    ]
    printed = f"In the paper: {_order({name: values[-1] for name, values in paper.TABLE4.items()})}"
    correlations = [_correlation(row) for row in harness.read(folder / "table4_correlation.csv")]
    return _setting(rows, folder, "table4") + f"{shown}\n{listed([*orders, printed, *correlations])}"


def _order(figures: Mapping[str, float]) -> str:
    return " > ".join(sorted(figures, key=lambda name: -figures[name])) + "."


def _correlation(row: CsvRow) -> str:
    """Return a sentence on a rank correlation; only one with an interval gets a conclusion."""
    what = f"Rank correlation of self-information after the {row['behind']} with {row['score']}, over {row['over']}"
    if not row.get("rho") or row["rho"] == "nan":
        return f"{what}: undefined."
    rho, points = float(row["rho"]), int(row["points"])
    if not row.get("rho low"):
        return (
            f"{what}: ρ = {rho:+.2f} in {points} runs. They share networks, people and seeds, so this figure describes "
            "only these runs."
        )
    low, high = float(row["rho low"]), float(row["rho high"])
    conclusion = _direction(rho) if low > 0 or high < 0 else "no correlation was detected"
    return (
        f"{what}: ρ = {rho:+.2f} [{low:+.2f}, {high:+.2f}], the mean of {points} rankings of three networks, with an "
        f"interval over the seeds: {conclusion}."
    )


def _direction(rho: float) -> str:
    if rho > 0:
        return "networks with more self-information score higher, as the paper claims"
    return "networks with more self-information score lower, contrary to the paper"


def _fig1(folder: Path) -> str:
    rows = [row for row in harness.read(folder / "fig1.csv") if row["severity"] == "all five"]
    corruptions = list(dict.fromkeys(row["corruption"] for row in rows))
    of = {(row["network"], row["corruption"]): row for row in rows}
    names = [name for name in COMPARED if (name, corruptions[0]) in of]
    shown = table(
        ("mean AUC over five severities", *corruptions),
        [[name, *(cell(of[name, corruption], "AUC") for corruption in corruptions)] for name in names],
    )
    statements = [
        verdict(f"SIA − bare, {corruption}", *percent(of["SIA", corruption], "AUC - bare"))
        for corruption in corruptions
    ]
    return _setting(rows, folder, "fig1") + f"{shown}\n{listed(statements)}"


def _table5(folder: Path) -> str:
    rows = harness.read(folder / "table5.csv")
    shown = table(
        ("method", "parameters", "ACC", "AUC", "AUC − bare", "paper: DFDC ACC, AUC", "paper: WildDeepfake ACC, AUC"),
        [
            [row["network"], millions(row["parameters"]), *(cell(row, name) for name in ("ACC", "AUC", "AUC - bare")),
             *("{:.2f}, {:.2f}".format(*paper.TABLE5[row["network"]][part : part + 2]) for part in (0, 2))]
            for row in rows
        ],
    )  # fmt: skip
    statements = [
        verdict(f"{row['network']} − {row['network'].removesuffix('+SIA')}", *percent(row, "AUC - bare"))
        for row in rows
        if row.get("AUC - bare")
    ]
    injected = [f"method {row['network']}" for row in rows if row["network"].endswith("+SIA")]
    gains = _gains(folder / "table5_runs.csv", injected)
    return _setting(rows, folder, "table5") + f"{shown}\n{listed([*statements, *gains])}"


def _localise(folder: Path) -> str:
    rows = harness.read(folder / "localise.csv")
    kinds = [kind for kind in dict.fromkeys(row["kinds"] for row in rows) if kind != "all"]
    of = {(row["map"], row["size"], row["kinds"]): row for row in rows}
    cases = list(dict.fromkeys((row["map"], row["size"]) for row in rows))
    by_kind = (f"{kind}: AUC, fake − real" for kind in kinds)
    shown = table(
        ("map", "size", "AUC on fakes", "AUC on real pictures, same mask", "fake − real", *by_kind),
        [
            [name, size, *(cell(of[name, size, "all"], column) for column in ("AUC", "real", "fake - real")),
             *(f"{percent(of[name, size, kind], 'AUC')[0]:.1f}, {percent(of[name, size, kind], 'fake - real')[0]:+.1f}"
               for kind in kinds)]
            for name, size in cases
        ],
    )  # fmt: skip
    statements = [
        verdict(f"{name} at {size} pixels, fake − real", *percent(of[name, size, "all"], "fake - real"))
        for name, size in cases
        if "self-information" in name or "SIA network, trained" in name
    ]
    best, size = max(
        (case for case in cases if "centred" not in case[0]), key=lambda case: float(of[(*case, "all")]["AUC"])
    )
    statements.append(
        f"Of the {len(cases)} maps, apart from the centred Gaussian, the highest AUC on fakes is that of "
        f"{best} at {size} pixels: {cell(of[best, size, 'all'], 'AUC')}. It was selected on the test part, so this "
        "figure is optimistic. The centred Gaussian, which ignores the picture, has "
        f"{cell(of['centred Gaussian', size, 'all'], 'AUC')}."
    )
    return _setting(rows, folder, "localise") + f"{shown}\n{listed(statements)}"


SECTIONS: Final[dict[str, tuple[str, Callable[[Path], str]]]] = {
    "data": ("data", _data),
    "table1": ("table1", _table1),
    "ablations": ("table1", _ablations),
    "table3": ("table3", _table3),
    "table4": ("table4", _table4),
    "fig1": ("fig1", _fig1),
    "table5": ("table5", _table5),
    "localise": ("localise", _localise),
}


def _setting(rows: Sequence[CsvRow], folder: Path, name: str) -> str:
    """Return a line on the settings of the figures below it, from the records of the runs."""
    runs = harness.read(folder / f"{name}_runs.csv")
    details = ("; ".join(sorted({row[f"run's {key}"] for row in runs})) for key in ("machine", "versions"))
    commits, dates = (sorted({row[f"run's {key}"] for row in runs}) for key in ("commit", "date"))
    trained = f"trained at commit {', '.join(commits)}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}"
    return f"{_budget(rows)}; {'; '.join(details)}; {trained}\n\n"


def _budget(rows: Sequence[CsvRow]) -> str:
    first = rows[0]
    return f"Data set {first['data set']}; seeds {first['seeds']}; {first['budget']}"


def listed(sentences: Iterable[str]) -> str:
    """Format sentences as a list in Markdown."""
    return "".join(f"- {sentence}\n" for sentence in sentences)


def _differs(row: CsvRow, name: str) -> bool:
    _, low, high = percent(row, name)
    return low > 0 or high < 0


def _printed(row: CsvRow) -> tuple[str, str]:
    """Return the paper's manipulation that is most similar to a row's, and the accuracy that it prints for it."""
    nearest = paper.NEAREST.get(row["kinds"])
    if nearest is None:
        return "none", ""
    return nearest, f"{paper.TABLE3[row['network']][nearest][row['quality'] == 'LQ']:.2f}"


def _deviation(row: CsvRow, name: str) -> str:
    value = row.get(f"{name} deviation")
    return f"{100 * float(value):.1f}" if value else ""


def millions(count: str) -> str:
    """Format a count in millions, such as ``3.37M``."""
    return f"{int(count) / 1e6:.2f}M"
