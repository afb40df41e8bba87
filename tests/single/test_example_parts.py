"""What the training scripts share: SAM, time, rates, checkpoints; and the images."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import sam_steps
import torch
from launch import launch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import images
import optimizers
import training


class Ranks:
    """Two ranks, of which this is one: the other has `other` of everything."""

    rank, size = 0, 2

    def __init__(self, other: float) -> None:
        self.other = other

    def mean(self, values: list[float]) -> list[float]:
        return [(value + self.other) / 2 for value in values]

    def minimum(self, value: int) -> int:
        return min(value, int(self.other))


def sam_reference() -> torch.Tensor:
    """Each rank climbs by its own gradient, and all descend by the mean of the gradients up there."""
    weight = torch.ones(1, 4, dtype=torch.float64)
    parts = [tuple(tensor.double() for tensor in sam_steps.data(rank)) for rank in range(sam_steps.RANKS)]

    def gradient(at: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return 2 * (x @ at.T - y).T @ x / len(x)

    for step in range(sam_steps.STEPS):
        above = []
        for inputs, targets in parts:
            own = gradient(weight, inputs[step], targets[step])
            above.append(gradient(weight + sam_steps.RHO * own / own.norm(), inputs[step], targets[step]))
        weight = weight - sam_steps.LR * torch.stack(above).mean(dim=0)
    return weight


@pytest.mark.parametrize("launcher", ["horovodrun", "torchrun"])
@pytest.mark.parametrize("sharing", ["gradients", "models"])
def test_sam_climbs_by_a_ranks_own_gradient_and_descends_by_the_mean(
    launcher: str, sharing: str, tmp_path: Path
) -> None:
    # Models that become their mean after every step of plain SGD have followed the mean of the gradients.
    how = ["--averaging", "uniform", "--period", "1", "--pull", "1", "--proximity", "0"]
    if sharing == "gradients":
        how = ["--optimizer", "hvd" if launcher == "horovodrun" else "ddp"]
    file = tmp_path / "weight.json"
    finished = launch(launcher, sam_steps.__file__, file, "--sam", str(sam_steps.RHO), *how)
    assert finished.returncode == 0, finished.stderr
    weight = torch.tensor(json.loads(file.read_text()), dtype=torch.float64)
    # Three steps of some 20 float32 operations each on numbers below 10.
    torch.testing.assert_close(weight, sam_reference(), rtol=0, atol=3 * 20 * 10 * 2**-24)


def test_a_run_by_steps_ends_after_them() -> None:
    budget = training.Budget(3, None, Ranks(0))
    assert [budget.take_step() for _ in range(3)] == [False, False, True]
    assert budget.is_over and budget.fraction == 1


def test_a_run_by_time_ends_when_the_mean_of_the_clocks_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(training.time, "perf_counter", lambda: now)
    budget = training.Budget(1, 2.0, Ranks(90))  # the other rank has trained for 90 of 120 seconds
    ended = []
    with budget.running():
        for _ in range(3 * training.STEPS_BETWEEN_CLOCKS):
            now += 3
            ended.append(budget.take_step())
    # After 20 steps of 3 s the mean is 75 s, after 40 it is 105, after 60 it is 135.
    assert ended == [False] * 59 + [True]
    now += 1000  # of evaluation
    resumed = training.Budget(1, 2.0, Ranks(45))
    resumed.load(budget.state())
    assert (resumed.steps, resumed.seconds) == (60, 180) and resumed.fraction == pytest.approx(112.5 / 120)


def test_learning_rates() -> None:
    drops = (0.5, 0.75)
    assert [training.stepped(done, drops, 0.1) for done in (0, 0.49, 0.5, 0.74, 0.75, 1)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    assert [training.cosine(done, 0.2, 0.1) for done in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx([0, 0.5, 1, 0.55, 0.1])


def test_seeds_differ_by_rank_and_by_epoch() -> None:
    assert len({training.seed_of(*numbers) for numbers in torch.cartesian_prod(*[torch.arange(4)] * 3).tolist()}) == 64


def test_a_rank_goes_on_from_the_newest_step_that_all_have(tmp_path: Path) -> None:
    checkpoints = training.Checkpoints(tmp_path, Ranks(20))  # the other rank's newest
    with pytest.raises(ValueError, match="--resume needs --checkpoints"):
        training.Checkpoints(tmp_path, Ranks(-1)).load()
    for step in (10, 20, 30):
        checkpoints.save(step, {"number": torch.tensor(step)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank0-step20.pt", "rank0-step30.pt"]
    assert checkpoints.load()["number"] == 20


def test_another_number_of_ranks_is_refused(tmp_path: Path) -> None:
    ranks = Ranks(10)
    training.Checkpoints(tmp_path, ranks).save(10, {})
    ranks.size = 3
    with pytest.raises(ValueError, match="--resume needs 2 ranks, as in the run so far, but there are 3"):
        training.Checkpoints(tmp_path, ranks).load()


def options_of(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    optimizers.add_options(parser)
    return parser.parse_args(arguments)


def test_a_policy_takes_its_arguments_from_the_command_line() -> None:
    policy: Any = optimizers.policy_of(options_of("--averaging", "mgrawa", "--policy", "floor=0.5"))
    assert policy == optimizers.POLICIES["mgrawa"](floor=0.5)
    with pytest.raises(ValueError, match=r"--averaging mgrawa --policy roof=1: .*roof"):
        optimizers.policy_of(options_of("--averaging", "mgrawa", "--policy", "roof=1"))


def test_crops_are_windows_of_the_padded_image_mirrored_by_chance() -> None:
    count, side, padding, size = 200, 5, 2, 6
    batch = torch.arange(1, count * 3 * side * side + 1).view(count, 3, side, side)
    crops = images.augmented(batch, size, padding, torch.Generator().manual_seed(0))
    assert crops.shape == (count, 3, size, size)
    padded = torch.nn.functional.pad(batch, (padding,) * 4)
    seen = set()
    for image, crop in zip(padded, crops, strict=True):
        places = [
            (row, column, mirrored)
            for row in range(side + 2 * padding - size + 1)
            for column in range(side + 2 * padding - size + 1)
            for mirrored in (False, True)
            if torch.equal(crop.flip(2) if mirrored else crop, image[:, row : row + size, column : column + size])
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) == 4 * 4 * 2  # 200 draws leave one of 32 out with probability .06; this seed does not


def test_parts_of_photographs_lie_inside_and_keep_to_their_area() -> None:
    torch.manual_seed(0)
    for _ in range(200):
        left, top, right, bottom = images.random_part(500, 375)
        assert 0 <= left < right <= 500.001 and 0 <= top < bottom <= 375.001
        assert 0.05 < (right - left) * (bottom - top) / (500 * 375) <= 1.001
    assert images.middle(512, 256) == (144, 16, 368, 240)


def test_cifar_100_has_the_fine_label_second(tmp_path: Path) -> None:
    record = [7, 93, *([10] * 1024), *([20] * 1024), *([30] * 1024)]
    other = [0, 1, *([1] * 3072)]
    for name, records in (("train.bin", record + other), ("test.bin", record)):
        (tmp_path / name).write_bytes(bytes(records))
    source = images.Cifar(tmp_path, images.Share(0, 2, 1, 0), (32, 0), torch.device("cpu"))
    assert (source.classes, source.steps) == (100, 1)
    [(batch, labels)] = source.test()
    assert labels.tolist() == [93] and batch.shape == (1, 3, 32, 32)
    # Of each channel the training images have two values, of which this is the larger: one deviation above the mean.
    assert batch.unique().tolist() == pytest.approx([1.0])
    [(_, labels)] = source.training(0)
    assert labels.tolist() == [93]


def test_folders_without_images_are_refused_by_name(tmp_path: Path) -> None:
    share = images.Share(0, 2, 4, 0)
    with pytest.raises(ValueError, match="--data must be a folder with data_batch"):
        images.Cifar(tmp_path, share, (32, 4), torch.device("cpu"))
    with pytest.raises(ValueError, match="--data must be a folder with train/ and val/"):
        images.Folders(tmp_path, share, 32, torch.device("cpu"), 0)
    with pytest.raises(ValueError, match="--batch-size must be at most a rank's share of the images, 3, but is 4"):
        share.steps(7)
