"""The paper's claims, the figures that it prints for them, the results here, and the conclusions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from benchmarks.reproduction import paper
from benchmarks.reproduction.scores import Interval

SUPPORTED: Final = "supported"
RULED_OUT: Final = "ruled out"
INCONCLUSIVE: Final = "inconclusive"
NOT_RUN: Final = "not run yet"
Row = Mapping[str, str]


class Claim(NamedTuple):
    """The claim that one network scores higher than another.

    Attributes:
        where: place in the paper's supplement.
        network: network that is claimed to be better, as the paper calls it.
        other: network that it is claimed to beat.
        score: ``"ACC"`` or ``"AUC"``.
        printed: printed difference in points; None if the paper gives only words.
        ours: network and other that are compared here, as columns of the scores.
    """

    where: str
    network: str
    other: str
    score: str
    printed: float | None
    ours: tuple[str, str]


def verdict(measured: Interval | None, printed: float | None) -> str:
    """Judge a claim that a difference is greater than 0.

    Args:
        measured: measured difference with its 95 % interval, in points; None if there is none.
        printed: the paper's difference in points; None if the paper gives only words.

    Returns:
        :data:`SUPPORTED` if the interval lies above 0; :data:`RULED_OUT` if it lies below the printed difference or,
        for claims without a figure, below 0; :data:`NOT_RUN` without a measurement; otherwise :data:`INCONCLUSIVE`.

    Example:
        >>> verdict(Interval(0.2, -0.5, 0.9), 1.05)
        'ruled out'
        >>> verdict(Interval(0.2, -1.5, 1.9), 1.05)
        'inconclusive'
    """
    if measured is None:
        return NOT_RUN
    if measured.low > 0:
        return SUPPORTED
    return RULED_OUT if measured.high < (0.0 if printed is None else printed) else INCONCLUSIVE


FORMS: Final = {"SIA": "default SIA", "not identity at first": "published SIA"}
RIVALS: Final = {"EfficientNet-b4": "bare", "Add-Net": "Add-Net", "RFM": "RFM", "MAT": "MAT"}
SECTION5: Final = ("SE", "CBAM", "non-local", "DANet", "ADL", "SK")


def table1_claims() -> list[Claim]:
    """Return the claims that SIA beats its backbone and the rivals of Table 1, separately for each form of SIA."""
    table = []
    ours = dict(zip(("ACC", "AUC"), paper.TABLE1["Ours"], strict=True))
    for form in FORMS:
        for name, column in RIVALS.items():
            theirs = dict(zip(("ACC", "AUC"), paper.TABLE1[name], strict=True))
            table += [
                Claim("Table 1", FORMS[form], name, score, round(ours[score] - theirs[score], 2), (form, column))
                for score in ("ACC", "AUC")
            ]
    return table


def section5_claims() -> list[Claim]:
    """Return the claims that SIA beats the attentions named in section 5, which gives no figures."""
    return [Claim("Section 5", FORMS[form], name, "AUC", None, (form, name)) for form in FORMS for name in SECTION5]


def row(claim: Claim, measured: Interval | None, runs: str) -> dict[str, str]:
    """Format a claim as a row of the page's table, with differences in points.

    Args:
        claim: claim to format.
        measured: measured difference with its interval, as a fraction; None if there is none.
        runs: description of the runs behind it, such as ``"8 folds"``.
    """
    points = None if measured is None else Interval(*(100 * value for value in measured))
    return {
        "in the paper": claim.where,
        "claim": f"{claim.score}: {claim.network} > {claim.other}",
        "printed difference": "none" if claim.printed is None else f"{claim.printed:+.2f}",
        "measured here": "" if points is None else f"{points.mean:+.1f}",
        "95 % interval": "" if points is None else f"[{points.low:+.1f}, {points.high:+.1f}]",
        "from": runs,
        "verdict": verdict(points, claim.printed),
    }


def from_tables(rows: Mapping[str, list[Row]]) -> list[dict[str, str]]:
    """Return the claims of Tables 3 and 5 as rows, from the earlier round with 102 people.

    Args:
        rows: rows of ``table3``, ``table3_differences`` and ``table5``; missing tables give no claims.
    """
    table = []
    if rows.get("table3"):
        learned = sum(float(case["AUC low"]) > 0.5 for case in rows["table3"])
        for case in rows.get("table3_differences", []):
            if case["quality"] == "HQ":
                printed = _printed_difference(case["network"])
                measured = Interval(*(float(case[f"ACC - Norm{end}"]) for end in ("", " low", " high")))
                claim = Claim("Table 3", case["network"], "Norm", "ACC", printed, (case["network"], "Norm"))
                table.append(row(claim, measured, "3 seeds"))
                if 2 * learned < len(rows["table3"]):
                    count = len(rows["table3"])
                    table[-1]["verdict"] = f"{INCONCLUSIVE}: learning in only {learned} of {count} cases"
    for case in rows.get("table5", []):
        if case.get("AUC - bare"):
            name = case["network"].removesuffix("+SIA")
            printed = round(paper.TABLE5[case["network"]][1] - paper.TABLE5[name][1], 2)
            measured = Interval(*(float(case[f"AUC - bare{end}"]) for end in ("", " low", " high")))
            claim = Claim("Table 5", case["network"], name, "AUC", printed, (case["network"], name))
            table.append(row(claim, measured, "3 seeds"))
    return table


def robustness(differences: Mapping[str, Interval], folds: int) -> list[dict[str, str]]:
    """Return the claims of Figure 1 as rows: SIA beats the backbone under corruptions, by about 6 points under noise.

    Args:
        differences: differences in the mean AUC over severities, by form of SIA and corruption: ``"SIA, JPEG"``.
        folds: number of folds behind them.
    """
    table = []
    for name, measured in differences.items():
        form, _, corruption = name.partition(", ")
        printed = 6.0 if corruption in ("Gaussian noise", "salt and pepper") else None
        claim = Claim("Figure 1", FORMS[form], f"backbone under {corruption}", "AUC", printed, (form, "bare"))
        table.append(row(claim, measured, f"{folds} folds"))
    return table


def _printed_difference(network: str) -> float:
    """Return the mean over the four manipulations of the paper's differences from Norm in HQ."""
    pairs = zip(paper.TABLE3[network].values(), paper.TABLE3["Norm"].values(), strict=True)
    differences = [theirs[0] - norm[0] for theirs, norm in pairs]
    return round(sum(differences) / len(differences), 2)
