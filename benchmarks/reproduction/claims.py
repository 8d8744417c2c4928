"""The paper's claims, the figures that it prints for them, the results here, and the conclusions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from benchmarks.reproduction import paper
from benchmarks.reproduction.scores import Interval

SEEN: Final = "seen"
NOT_SEEN: Final = "not seen, would have been"
UNTOLD: Final = "cannot be told"
ABSENT: Final = "not run yet"
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


def verdict(found: Interval | None, printed: float | None) -> str:
    """Judge a claim that a difference is greater than 0.

    Args:
        found: observed difference with its 95 % interval, in points; None if there is none.
        printed: the paper's difference in points.

    Returns:
        :data:`SEEN` if the interval lies above 0; :data:`NOT_SEEN` if it contains neither the printed difference nor
        any larger one or, for claims without a figure, none above 0; otherwise :data:`UNTOLD`.

    Example:
        >>> verdict(Interval(0.2, -0.5, 0.9), 1.05)
        'not seen, would have been'
        >>> verdict(Interval(0.2, -1.5, 1.9), 1.05)
        'cannot be told'
    """
    if found is None:
        return ABSENT
    if found.low > 0:
        return SEEN
    return NOT_SEEN if found.high < (0.0 if printed is None else printed) else UNTOLD


FORMS: Final = {"SIA": "SIA, by default", "not identity at first": "SIA as published"}
RIVALS: Final = {"EfficientNet-b4": "bare", "Add-Net": "Add-Net", "RFM": "RFM", "MAT": "MAT"}
SECTION5: Final = ("SE", "CBAM", "non-local", "DANet", "ADL", "SK")


def table1_claims() -> list[Claim]:
    """Return the claims that SIA beats its backbone and the rivals of Table 1, separately for each form of SIA."""
    made = []
    ours = dict(zip(("ACC", "AUC"), paper.TABLE1["Ours"], strict=True))
    for form in FORMS:
        for name, column in RIVALS.items():
            theirs = dict(zip(("ACC", "AUC"), paper.TABLE1[name], strict=True))
            made += [
                Claim("Table 1", FORMS[form], name, score, round(ours[score] - theirs[score], 2), (form, column))
                for score in ("ACC", "AUC")
            ]
    return made


def section5_claims() -> list[Claim]:
    """Return the claims that SIA beats the attentions named in section 5, which gives no figures."""
    return [Claim("Section 5", FORMS[form], name, "AUC", None, (form, name)) for form in FORMS for name in SECTION5]


def row(claim: Claim, found: Interval | None, folds: int) -> dict[str, str]:
    """Format a claim as a row of a table, with figures in points."""
    points = None if found is None else Interval(*(100 * value for value in found))
    return {
        "where": claim.where,
        "claim": f"{claim.network} above {claim.other}, {claim.score}",
        "printed": "in words" if claim.printed is None else f"{claim.printed:+.2f}",
        "seen": "" if points is None else f"{points.mean:+.1f}",
        "interval": "" if points is None else f"[{points.low:+.1f}, {points.high:+.1f}]",
        "on": f"{folds} folds" if folds else "",
        "verdict": verdict(points, claim.printed),
    }


def from_tables(rows: Mapping[str, list[Row]]) -> list[dict[str, str]]:
    """Return the claims of Tables 3 and 5, from the runs on a hundred people.

    Args:
        rows: rows of ``table3``, ``table3_differences`` and ``table5``; missing tables give no claims.
    """
    made = []
    if rows.get("table3"):
        learned = sum(float(each["AUC low"]) > 0.5 for each in rows["table3"])
        for each in rows.get("table3_differences", []):
            if each["quality"] == "HQ":
                printed = _printed_difference(each["network"])
                found = Interval(*(float(each[f"ACC - Norm{end}"]) for end in ("", " low", " high")))
                claim = Claim("Table 3", each["network"], "Norm", "ACC", printed, (each["network"], "Norm"))
                made.append({**row(claim, found, 0), "on": "3 seeds"})
                if 2 * learned < len(rows["table3"]):
                    told = f"{UNTOLD}: {learned} of {len(rows['table3'])} cases learned anything"
                    made[-1]["verdict"] = told
    for each in rows.get("table5", []):
        if each.get("AUC - bare"):
            name = each["network"].removesuffix("+SIA")
            printed = round(paper.TABLE5[each["network"]][1] - paper.TABLE5[name][1], 2)
            found = Interval(*(float(each[f"AUC - bare{end}"]) for end in ("", " low", " high")))
            claim = Claim("Table 5", each["network"], name, "AUC", printed, (each["network"], name))
            made.append({**row(claim, found, 0), "on": "3 seeds"})
    return made


def robustness(differences: Mapping[str, Interval], folds: int) -> list[dict[str, str]]:
    """Return the claims of Figure 1: SIA beats the backbone under corruptions, by about 6 points under both noises.

    Args:
        differences: differences in the mean AUC over severities, by form of SIA and corruption: ``"SIA, JPEG"``.
        folds: number of folds that they cover.
    """
    made = []
    for name, found in differences.items():
        form, _, corruption = name.partition(", ")
        printed = 6.0 if corruption in ("Gaussian noise", "salt and pepper") else None
        claim = Claim("Figure 1", FORMS[form], f"backbone, {corruption}", "AUC", printed, (form, "bare"))
        made.append(row(claim, found, folds))
    return made


def _printed_difference(network: str) -> float:
    """Return the mean over the four manipulations of the paper's differences from Norm in HQ."""
    pairs = zip(paper.TABLE3[network].values(), paper.TABLE3["Norm"].values(), strict=True)
    differences = [mine[0] - norm[0] for mine, norm in pairs]
    return round(sum(differences) / len(differences), 2)
