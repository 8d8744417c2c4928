"""The experiments: everything runs and is written, wrong arguments are errors, and figures are right."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from small_experiments import PAGE, parts, rows, run, use_tiny_networks

from benchmarks.reproduction import __main__ as command
from benchmarks.reproduction import data, figures, paper, report, study, training
from benchmarks.reproduction.data.faces import Parts
from benchmarks.reproduction.experiments import EXPERIMENTS, localise, table1


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_networks(monkeypatch)


@pytest.mark.slow
def test_everything_runs_and_is_written(
    tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "all") == 0
    results = tmp_path / "results"
    for name, (file, _) in report.SECTIONS.items():
        assert (results / f"{file}.csv").exists()
        filling = (tmp_path / "page.md").read_text().partition(f"<!-- {name} -->\n")[2].partition("<!--")[0]
        assert filling.count("\n|") >= 3 and "nan" not in filling
    for name in figures.FIGURES:
        assert (results / f"reproduction_{name}.png").stat().st_size > 1000
    assert (tmp_path / "work/localise.png").exists()

    trained = rows(results / "table1_runs.csv")
    assert len(trained) == 2 * len(table1.NAMES)
    assert {row["seed"] for row in trained} == {"0", "1"} and all(row["run's commit"] for row in trained)
    by_run = {row["run"]: float(row["AUC"]) for row in trained}
    (bare,) = [row for row in rows(results / "table1.csv") if (row["network"], row["kinds"]) == ("bare", "all")]
    of_bare = [value for key, value in by_run.items() if key.startswith("lite-bare")]
    assert float(bare["AUC"]) == pytest.approx(np.mean(of_bare)) and bare["AUC - bare"] == ""
    assert len(rows(results / "table3_runs.csv")) == 3 * 2 * 2 * 2
    assert {row["skipped"] for row in rows(results / "data.csv")} == {"1: not a picture"}
    clean = [row for row in rows(results / "fig1.csv") if row["severity"] == "0" and row["network"] == "bare"]
    assert {float(row["AUC"]) for row in clean} == {float(bare["AUC"])}

    # A second call trains and measures nothing, and leaves the same files.
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(study, "measure", lambda *_: pytest.fail("measured again"))
    before = {path.name: path.read_bytes() for path in results.glob("*.csv")}
    assert run(tmp_path, "all") == 0
    assert before == {path.name: path.read_bytes() for path in results.glob("*.csv")}
    assert "done in" in capsys.readouterr().out


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_experiment_runs_on_its_own(name: str, tmp_path: Path, tiny: None) -> None:
    assert run(tmp_path, name) == 0
    of_runs = rows(tmp_path / f"results/{name}_runs.csv")
    assert {row["seed"] for row in of_runs} == {"0", "1"} and all(row["run's commit"] for row in of_runs)


def test_a_data_set_without_masks_is_not_asked_where_they_are(
    tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(source: str, root: Path, *, size: int, seed: int, **rest: object) -> Parts:
        made = parts(size, seed)
        return Parts(*(dataclasses.replace(part, masks=torch.zeros_like(part.masks)) for part in made))

    monkeypatch.setattr(data, "load", load)
    right = training.train
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("trained for nothing"))
    assert run(tmp_path, "localise") == 1
    output = capsys.readouterr()
    assert "localise is left out: localise needs masks" in output.err and "not done: localise" in output.out
    monkeypatch.setattr(training, "train", right)
    monkeypatch.setattr(command, "EXPERIMENTS", {name: EXPERIMENTS[name] for name in ("table5", "localise")})
    assert run(tmp_path, "all") == 0
    assert "localise is left out" in capsys.readouterr().err
    assert (tmp_path / "results/table5.csv").exists() and not (tmp_path / "results/localise.csv").exists()


def test_only_the_usual_full_run_writes_the_page(tmp_path: Path) -> None:
    def study_of(*arguments: str) -> study.Study:
        return command._study(command._parser().parse_args(["table1", "--data", str(tmp_path), *arguments]))

    usual = study_of()
    assert usual.results.name == "full" and usual.images.name == "images"
    folders = [usual.results]
    for other in (["--dataset", "celebdf"], ["--seeds", "5"], ["--quick"], ["--quick", "--dataset", "dfdc"]):
        made = study_of(*other)
        assert made.images == made.results
        folders.append(made.results)
    assert len(set(folders)) == len(folders)


def test_missing_packages_are_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "NEEDED", ("timm", "no_such_package"))
    with pytest.raises(SystemExit) as stop:
        run(tmp_path, "table1")
    output = capsys.readouterr().err
    assert stop.value.code == 2 and "missing packages: no_such_package; pip install 'sia-layers[reprod" in output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["table1", "--data", "/no/such/folder"], "/no/such/folder is not a folder"),
        (["table2", "--data", "."], "invalid choice: 'table2'"),
        (["table1"], "--data"),
        (["table1", "--data", ".", "--jobs", "0"], "must be 1 or more, got 0"),
        (["table1", "--data", ".", "--page", "no/page.md"], "no/page.md is not a file"),
    ],
)
def test_wrong_arguments(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    assert stop.value.code == 2 and expected in capsys.readouterr().err


def test_a_folder_without_the_data_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "table1") == 1
    assert "has no landmarks.csv" in capsys.readouterr().err


def test_localisation_by_hand() -> None:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:4] = True
    assert localise.pixel_auc(mask, mask.float()) == 1.0
    assert localise.pixel_auc(mask, -mask.float()) == 0.0
    assert localise.pixel_auc(mask, torch.zeros(8, 8)) == 0.5
    fakes, reals = localise.pairs(parts().test)
    assert fakes.people == reals.people and set(reals.kinds) == {"real"} and len(fakes) == 8
    x = training.as_input(fakes.images)
    for name, make in localise.of_the_picture(32).items():
        found = make(x)
        assert found.shape == (8, 32, 32), name
        torch.testing.assert_close(make(x[3:4])[0], found[3])  # depends on this picture alone
    nothing = dataclasses.replace(parts().test, masks=torch.zeros(12, 32, 32, dtype=torch.bool))
    with pytest.raises(ValueError, match="this data set has no masks"):
        localise.pairs(nothing)


def test_a_tie_has_no_winner() -> None:
    cells = {"a": {"Norm": "0.5", "CDC": "0.5"}, "b": {"Norm": "0.5", "CDC": "0.6"}}
    made = [
        {"network": name, "kinds": kind, "quality": "HQ", "ACC": score}
        for kind, cell in cells.items()
        for name, score in cell.items()
    ]
    assert "in the 2 cases: Norm in 0, CDC in 1, a tie in 1." in report._ranking(made)


def test_statements_follow_the_interval() -> None:
    assert report.verdict("A − B", 1.2, -1.0, 3.4).endswith(
        "+1.2 points of AUC [-1.0, +3.4]: no difference was detected."
    )
    assert "higher here" in report.verdict("A − B", 2.0, 0.1, 4.0)
    assert "lower here" in report.verdict("A − B", -2.0, -4.0, -0.1)


def test_the_page_has_a_place_for_every_section() -> None:
    page = PAGE.read_text()
    assert report.filled(page, Path("/no/results")) == page
    with pytest.raises(ValueError, match="must hold '<!-- table1 -->'"):
        report.filled(page.replace("<!-- table1 -->", ""), Path("/no/results"))
    assert set(EXPERIMENTS) <= set(report.SECTIONS)
    assert "doi:10.6084/m9.figshare.5047666" in page and "CC BY 4.0" in page


def test_the_paper_improves_in_every_case_of_table_5() -> None:
    """The supplement's text says so about the figures that were copied from it."""
    for name in ("SPSL", "F3-Net", "DCL"):
        assert all(more > less for more, less in zip(paper.TABLE5[f"{name}+SIA"], paper.TABLE5[name], strict=True))
    for layers in zip(*paper.TABLE4.values(), strict=True):
        assert list(layers) == sorted(layers)
    for name, values in paper.TABLE4.items():
        assert values[-1] == pytest.approx(np.mean(values[:4]), abs=0.01), name
