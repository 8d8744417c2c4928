"""The networks and folds that :mod:`benchmarks.reproduction.crossval` trains, and their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from benchmarks.reproduction.data.faces import FOLDS
from benchmarks.reproduction.ledger import Ledger
from benchmarks.reproduction.networks import TOYS
from benchmarks.reproduction.networks.recipes import RECIPES

KEYS: Final = ("network", "fold", "repeat", "test kinds")
PILOT_FOLDS: Final = 2
KIND_FOLDS: Final = 1
DATA_SET_FOLDS: Final = 3
SEARCH_FOLD: Final = 6  # its validation part, fold 7, selects the recipe
REPEATS: Final = 3  # runs of each finalist
LEADING: Final = 4  # recipes that become finalists after one run of each

CORE: Final = ("lite bare", "lite SIA", "lite not identity at first", "lite SE", "lite CBAM")
FORMS: Final = ("lite pooled aggregation", "lite no aggregation", "lite frequency domain")
SECTION5: Final = ("lite ECA", "lite SK", "lite non-local", "lite DANet", "lite ADL")
RIVALS: Final = tuple(f"method {name}{plus}" for name in ("MAT", "RFM", "Add-Net") for plus in ("", "+SIA"))
GROUPS: Final = {"core": CORE, "forms": FORMS, "attentions": SECTION5, "rivals": RIVALS}
GROUP_FOLDS: Final = {"core": FOLDS, "forms": 4, "attentions": 4, "rivals": 3}
TOY_KINDS: Final = ("self-blending", "face swap")  # kinds that small networks without pretraining can learn
TOY_FOLDS: Final = 2
TRANSFERRED: Final = ("lite bare", "lite SIA", "lite not identity at first")


class Task(NamedTuple):
    """A planned run.

    Attributes:
        network: family and name, as :class:`Settings` takes it.
        fold: fold to test on.
        repeat: number of the repetition, as in :class:`Settings`.
        test_kinds: manipulations to test on; empty for all.
        kinds: manipulations to train on; empty for all that are not tested, or for all if all are tested.
    """

    network: str
    fold: int
    repeat: int = 0
    test_kinds: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[Any, ...]:
        """Return the columns that identify its row."""
        return self.network, self.fold, self.repeat, ", ".join(self.test_kinds)


def study_tasks(networks: Sequence[str], folds: Sequence[int] = range(FOLDS)) -> list[Task]:
    """Return every network on every fold, fold by fold, so that existing results are paired at any time."""
    return [Task(network, fold) for fold in folds for network in networks]


def group_tasks(group: str) -> list[Task]:
    """Return the networks of one of :data:`GROUPS` on their folds."""
    return study_tasks(GROUPS[group], range(GROUP_FOLDS[group]))


def pilot_tasks() -> list[Task]:
    """Return the bare network twice, with different random numbers, on the first folds."""
    return [Task("lite bare", fold, repeat) for fold in range(PILOT_FOLDS) for repeat in range(2)]


def recipe_tasks(ledger: Ledger) -> list[Task]:
    """Return one run of every recipe and then, once these are done, the repeats of the finalists."""
    first = [Task(f"recipe {name}", SEARCH_FOLD) for name in RECIPES]
    if any(task.key not in ledger for task in first):
        return first
    score = {row["network"]: float(row["AUC"]) for row in ledger.rows if row["repeat"] == "0"}
    leading = sorted((task.network for task in first), key=lambda name: -score[name])[:LEADING]
    finalists = list(dict.fromkeys(["recipe bare", "recipe default", *leading]))
    return first + [Task(name, SEARCH_FOLD, repeat) for repeat in range(1, REPEATS) for name in finalists]


def chosen_recipe(ledger: Ledger) -> str | None:
    """Return the finalist with the highest mean validation AUC; None until all runs of the search are done.

    It is tested on folds 0 to 6, since the people of fold 7 selected it.
    """
    tasks = recipe_tasks(ledger)
    if any(task.key not in ledger for task in tasks):
        return None
    finalists = {task.network for task in tasks if task.repeat == REPEATS - 1} - {"recipe bare"}
    scores = {
        name: sum(float(row["AUC"]) for row in ledger.rows if row["network"] == name) for name in sorted(finalists)
    }
    return max(scores, key=lambda name: scores[name])


def chosen_tasks(ledger: Ledger) -> list[Task]:
    """Return the test of the selected recipe; the default recipe is already tested as SIA in the study."""
    name = chosen_recipe(ledger)
    return [] if name == "recipe default" else study_tasks([name or "recipe"], range(SEARCH_FOLD + 1))


def kind_tasks(kinds: Sequence[str]) -> list[Task]:
    """Return tasks that train on all manipulations but one and test on that one."""
    return [
        Task(network, fold, test_kinds=(kind,))
        for fold in range(KIND_FOLDS)
        for kind in kinds
        for network in TRANSFERRED
    ]


def toy_tasks() -> list[Task]:
    """Return each toy network on each of two manipulations separately."""
    return [
        Task(f"toy {name}", fold, test_kinds=(kind,), kinds=(kind,))
        for fold in range(TOY_FOLDS)
        for kind in TOY_KINDS
        for name in TOYS
    ]
