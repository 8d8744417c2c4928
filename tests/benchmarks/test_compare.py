"""The comparison on your own pictures: variants, runs that resume where they stopped, and its conclusions."""

import csv
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

EXTRA = "pip install 'sia-layers[reproduction]'"
np = pytest.importorskip("numpy", reason=EXTRA)
for module in ("cv2", "PIL", "scipy", "sklearn", "timm", "tqdm", "matplotlib"):
    pytest.importorskip(module, reason=EXTRA)
import timm  # noqa: E402
from drawn_faces import write_pictures  # noqa: E402
from timm.utils import ModelEmaV3  # noqa: E402

from benchmarks.compare import models, runs, table  # noqa: E402
from benchmarks.compare.__main__ import main  # noqa: E402
from benchmarks.compare.variants import VARIANTS, chosen  # noqa: E402
from benchmarks.reproduction.scores import Interval, Predictions  # noqa: E402

SIZE = 48
SMALL = ["--model", "test_resnet", "--size", str(SIZE), "--seeds", "2", "--epochs", "2", "--batch", "8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("own") / "pictures", {"real": 10, "fake": 10}, SIZE)


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory):
    """Run a comparison without interruption."""
    out = tmp_path_factory.mktemp("done")
    assert compared(folder, out) == 0
    return out


def compared(folder, out, *more):
    return main(["--data", str(folder), "--out", str(out), *SMALL, "--variants", "sia,se", *more])


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def figures(out):
    """Return the output that does not depend on the clock."""
    return {path.name: path.read_bytes() for path in (out / "predictions").iterdir()} | {
        "curves": (out / "curves.csv").read_bytes()
    }


# Variants


@pytest.fixture(scope="module", params=["test_resnet", "test_vit", "test_convnext"])
def architecture(request):
    return request.param


@pytest.mark.sampled(12)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains_from_the_same_weights(architecture, variant):
    bare, made = (models.make(architecture, name, SIZE, 3, None, False) for name in ("bare", variant))
    own = dict(made.named_parameters())
    assert all(torch.equal(own[name], value) for name, value in bare.named_parameters())
    assert (len(own) > len(dict(bare.named_parameters()))) == (variant != "bare")
    x = torch.rand(2, 3, SIZE, SIZE)
    bare.eval(), made.eval()
    as_bare = torch.allclose(bare(x), made(x), atol=1e-6)
    assert as_bare == (variant not in ("se", "cbam", "eca", "sia-from-start"))
    made.train()(x).sum().backward()
    learned = [
        name
        for name, value in made.named_parameters()
        if value.grad is not None and name not in dict(bare.named_parameters())
    ]
    assert bool(learned) == (variant != "bare")
    assert bool(made.gains()) == (variant.startswith("sia") and variant != "sia-from-start")


@pytest.mark.parametrize("variant", ["cbam", "sia"])
def test_averaged_weights_use_the_averages_own_attention(variant):
    """A hook that captured the attention of its original model would run it in every copy."""
    model = models.make("test_resnet", variant, SIZE, 0, None, False)
    copy = ModelEmaV3(model).module.eval()
    x = torch.rand(1, 3, SIZE, SIZE)
    before = copy(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5).add_(0.1)
    assert torch.equal(copy(x), before)


def test_unknown_variants_list_the_known_ones(folder, tmp_path, capsys):
    assert chosen("sia, cbam,sia") == ["bare", "sia", "cbam"]
    with pytest.raises(SystemExit):
        main(["--data", str(folder), "--out", str(tmp_path), *SMALL, "--variants", "sia,sai"])
    assert "unknown variants sai; there are bare, se, cbam, eca, sia, sia-from-start," in capsys.readouterr().err


# Initial weights


def test_a_checkpoint_with_other_classes_is_loaded_without_its_classifier(tmp_path):
    saved = timm.create_model("test_resnet", num_classes=7)
    torch.save({"state_dict": saved.state_dict()}, tmp_path / "weights.pt")
    made = models.make("test_resnet", "sia", SIZE, 0, tmp_path / "weights.pt", False).model
    new = models.make("test_resnet", "sia", SIZE, 0, None, False).model
    own = dict(made.named_parameters())
    assert all(torch.equal(own[name], value) for name, value in saved.named_parameters() if not name.startswith("fc."))
    assert made.fc.weight.shape == (1, saved.fc.in_features) and torch.equal(made.fc.weight, new.fc.weight)


def test_a_checkpoint_of_another_model_is_refused(tmp_path, folder, capsys):
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "weights.pt")
    with pytest.raises(SystemExit):
        compared(folder, tmp_path / "out", "--checkpoint", str(tmp_path / "weights.pt"))
    assert "weights.pt does not fit the model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model", "resnet81"], "timm has no model 'resnet81'; did you mean"),
        (["--epochs", "0"], "--epochs must be 1 or more, got 0"),
        (["--ema", "1"], "--ema from 0 to below 1"),
        (["--checkpoint", "nowhere.pt"], "nowhere.pt"),
        (["--data", "nowhere"], "nowhere is not a folder"),
        (["--device", "abacus"], "--device abacus"),
        (["--device", "mps" if torch.cuda.is_available() else "cuda"], "--device "),
        (["--size", "0"], "--size must be 16 or more, got 0"),
        (["--groups", "3"], "--groups must be 6 or more, got 3"),
    ],
)
def test_invalid_requests_are_refused_before_training(folder, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit) as stopped:
        compared(folder, tmp_path / "out", *more)
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# Runs


def test_a_comparison_writes_its_rows_table_and_picture_and_ends_with_a_sentence(folder, done, capsys):
    rows = rows_of(done / "runs.csv")
    assert [(row["seed"], row["variant"]) for row in rows] == [
        (seed, name) for seed in "01" for name in ("bare", "sia", "se")
    ]
    assert all(float(row["AUC"]) >= 0 and row["commit"] and row["epochs"] == "2" for row in rows)
    assert len(rows_of(done / "curves.csv")) == 6 * 2
    assert [row["variant"] for row in rows_of(done / "compare.csv")] == ["bare", "sia", "se"]
    assert (done / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert not (done / "checkpoint.pt").exists()
    compared(folder, done)
    printed = capsys.readouterr().out.splitlines()
    assert any(line.split()[:1] == ["se"] and line.count("[") == 4 for line in printed)
    assert printed[-1].startswith("sia - bare: ") and "95% interval [" in printed[-1]


def test_the_variants_are_trained_on_the_same_pictures_in_the_same_order(folder, tmp_path, monkeypatch):
    seen, augmented = [], runs.augmented

    def recorded(x, masks, generator):
        made = augmented(x, masks, generator)
        seen.append(made[0].clone())
        return made

    monkeypatch.setattr(runs, "augmented", recorded)
    compared(folder, tmp_path, "--seeds", "1", "--epochs", "1")
    third = len(seen) // 3
    assert all(
        torch.equal(a, b) and torch.equal(a, c)
        for a, b, c in zip(*(seen[i * third : (i + 1) * third] for i in range(3)), strict=True)
    )


def test_completed_runs_are_not_repeated_and_more_can_be_added(folder, done, tmp_path, monkeypatch):
    before, trained, train = figures(done), [], runs.train

    def recorded(store, variant, seed, *rest):
        trained.append((variant, seed))
        train(store, variant, seed, *rest)

    monkeypatch.setattr(runs, "train", recorded)
    compared(folder, done)
    assert not trained
    for path in done.rglob("*.*"):
        (tmp_path / path.relative_to(done)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path.relative_to(done)).write_bytes(path.read_bytes())
    compared(folder, tmp_path, "--variants", "eca")
    assert trained == [("eca", 0), ("eca", 1)]
    (tmp_path / "predictions" / "sia-1.csv").unlink()
    compared(folder, tmp_path)
    assert trained[2:] == [("sia", 1)] and before.items() <= {**figures(tmp_path), "curves": before["curves"]}.items()


def test_an_interrupted_comparison_ends_like_an_uninterrupted_one(folder, done, tmp_path, monkeypatch, capsys):
    keep, left = runs._Training.keep, 7

    def stopped(self, *arguments):
        nonlocal left
        keep(self, *arguments)
        left -= 1
        if not left:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(runs._Training, "keep", stopped)
        assert compared(folder, tmp_path) == 130
    assert "the same command resumes from here" in capsys.readouterr().err
    assert len(rows_of(tmp_path / "runs.csv")) == 3 and (tmp_path / "checkpoint.pt").exists()
    assert compared(folder, tmp_path) == 0
    assert figures(tmp_path) == figures(done)


def test_rows_of_another_configuration_are_refused_until_discarded(folder, done, tmp_path, capsys):
    (tmp_path / "runs.csv").write_bytes((done / "runs.csv").read_bytes())
    with pytest.raises(SystemExit):
        compared(folder, tmp_path, "--epochs", "1", "--lr", "0.01")
    message = capsys.readouterr().err
    assert "another configuration: epochs 2, not 1; learning_rate 0.001, not 0.01. Choose another --out" in message
    assert compared(folder, tmp_path, "--epochs", "1", "--seeds", "1", "--fresh") == 0
    assert {row["epochs"] for row in rows_of(tmp_path / "runs.csv")} == {"1"}


def test_a_refused_request_discards_nothing(folder, done, capsys):
    before = figures(done)
    with pytest.raises(SystemExit):
        compared(folder, done, "--fresh", "--size", "-5")
    with pytest.raises(SystemExit):
        compared(folder, done / "runs.csv")
    assert "runs.csv is a file; name a folder" in capsys.readouterr().err
    assert figures(done) == before and len(rows_of(done / "runs.csv")) == 6


def test_changed_pictures_change_the_configuration(done, tmp_path, capsys):
    changed = write_pictures(tmp_path / "pictures", {"real": 10, "fake": 10}, SIZE)
    with pytest.raises(SystemExit):
        compared(changed, done)
    assert "another configuration: data " in capsys.readouterr().err


def test_gains_have_a_rate_of_their_own_and_nothing_is_learned_twice():
    model = models.make("test_resnet", "sia", SIZE, 0, None, False)
    config = runs.Config("", "", "", "", "", None, SIZE, 1, 8, 1e-3, 10.0, 0.01, 0.0, "float32")
    groups = runs._groups(model, config)
    learned = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(learned) == sorted(map(id, model.parameters()))
    rates = {id(parameter): group.get("lr") for group in groups for parameter in group["params"]}
    assert [rates[id(gain)] for gain in model.gains()] == [pytest.approx(1e-2)] * 3
    assert sum(rate is not None for rate in rates.values()) == 3


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_trains(folder, tmp_path, precision):
    assert (
        compared(folder, tmp_path, "--precision", precision, "--seeds", "1", "--epochs", "1", "--variants", "sia") == 0
    )
    assert {row["precision"] for row in rows_of(tmp_path / "runs.csv")} == {precision}
    assert all(math.isfinite(float(row["loss"])) for row in rows_of(tmp_path / "curves.csv"))


# Conclusions


def line(low, high):
    more = Interval((low + high) / 2, low, high)
    return table.Line("sia", 1, Interval(0.8, 0.7, 0.9), Interval(0.8, 0.7, 0.9), more, more)


@settings(max_examples=200, deadline=None)
@given(st.floats(-0.5, 0.5), st.floats(0.001, 0.5), st.integers(1, 9))
def test_a_sentence_claims_a_difference_only_if_the_interval_excludes_zero(low, width, seeds):
    statement = table.sentence(line(low, low + width), seeds)
    assert ("higher here" in statement) == (low > 0) and ("lower here" in statement) == (low + width < 0)
    assert ("no difference was detected" in statement) == (low <= 0 <= low + width)
    assert ("one seed" in statement) == (seeds == 1)


def test_a_sentence_in_full():
    assert table.sentence(line(-0.011, 0.017), 5) == (
        "sia - bare: +0.3 points of AUC, 95% interval [-1.1, +1.7]: no difference was detected; this design could "
        "detect one of 2.0 points with 80 % power."
    )
    assert "nothing was detected" in table.sentence(line(0.0, 0.0), 5)


def test_the_detectable_difference_is_detected_four_times_in_five():
    error = 0.02
    least = table.detectable(Interval(0.0, -1.959964 * error, 1.959964 * error))
    seen = np.random.default_rng(0).normal(least, error, 200_000) - 1.959964 * error > 0
    assert math.isclose(seen.mean(), 0.8, abs_tol=0.005)


@pytest.mark.parametrize(
    ("auc", "groups", "expected"),
    [(0.8, 10, []), (0.8, 9, ["only 9 groups"]), (0.55, 12, ["learned almost nothing"]), (0.995, 12, ["nearly all"])],
)
def test_misleading_figures_come_with_a_warning(auc, groups, expected):
    class Stub:
        def load_predictions(self, variant, seed):
            names = [f"g{index}" for index in range(groups)]
            return Predictions.from_lists([0] * groups, [0.0] * groups, names, ["real"] * groups)

    bare = table.Line("bare", 1, Interval(auc, auc, auc), Interval(auc, auc, auc), None, None)
    warnings = table.warnings(Stub(), bare, [0])
    assert len(warnings) == len(expected) and all(text in one for text, one in zip(expected, warnings, strict=True))


def test_the_last_sentence_is_about_sia_where_it_is_there():
    assert table.headline(["bare", "se", "sia-pooled", "sia"]) == "sia-pooled"
    assert table.headline(["bare", "se"]) == "se"
    assert table.headline(["bare"]) is None


# The example


def test_the_example_is_a_folder_with_groups_whose_fakes_differ_in_a_part(tmp_path, capsys, monkeypatch):
    pytest.importorskip("skimage", reason=EXTRA)
    from benchmarks.compare import example
    from benchmarks.reproduction.data.pipeline import read_picture

    monkeypatch.setattr(example, "MOST", 3)
    assert example.main([str(tmp_path / "tiles")]) == 0
    rows = rows_of(tmp_path / "tiles" / "groups.csv")
    assert f"{len(rows) // 2} real tiles" in capsys.readouterr().out
    assert len({row["group"] for row in rows}) == len(example.PICTURES)
    for path in sorted((tmp_path / "tiles" / "real").iterdir())[::4]:
        changed = (read_picture(path) != read_picture(tmp_path / "tiles" / "fake" / path.name)).any(2)
        assert 0.1 < changed.mean() < 0.7
    with pytest.raises(SystemExit):
        example.main([str(tmp_path / "tiles")])
    assert "already exists" in capsys.readouterr().err
