"""Training runs: resumed runs end like uninterrupted ones, epochs are balanced, and corruptions match their names."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch
from small_experiments import SETTINGS, Tiny, parts, tiny_lite, use_tiny_networks
from torch import Tensor

from benchmarks.reproduction import corruptions, training
from benchmarks.reproduction.training import Settings


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_networks(monkeypatch)


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
