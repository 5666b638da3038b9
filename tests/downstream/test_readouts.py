"""The fixed readouts: each judges what its name says, and choosing settings never looks at test images."""

import pytest
import torch
from torch import Tensor

from dmt_ds.config.evaluation import KnnConfig, LinearConfig
from dmt_ds.downstream import readouts as module
from dmt_ds.downstream.accuracy import Accuracy
from dmt_ds.downstream.features import Features
from dmt_ds.downstream.readouts import FrozenReadouts, Scores
from dmt_ds.errors import DataError

CPU = torch.device("cpu")
NUM_CLASSES = 7
CENTRES = 2 * torch.randn(NUM_CLASSES, 12, generator=torch.Generator().manual_seed(99))


def clusters(seed: int, num_images: int) -> tuple[Tensor, Tensor]:
    """Clouds around one point a class: features [n, 12], labels [n]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(NUM_CLASSES, (num_images,), generator=generator)
    return CENTRES[labels] + torch.randn(num_images, 12, generator=generator), labels


def noise(seed: int, num_images: int) -> Tensor:
    return torch.randn(num_images, 12, generator=torch.Generator().manual_seed(seed))


def readouts(train: Features, test: Features, **knn: int) -> Scores:
    return FrozenReadouts(NUM_CLASSES, KnnConfig(**knn), LinearConfig()).scores(train, test, CPU)


def test_each_kind_of_feature_has_scores_of_its_own() -> None:
    (train, train_labels), (test, test_labels) = clusters(0, 200), clusters(1, 100)
    by_class = readouts(Features(train, noise(2, 200), train_labels), Features(test, noise(3, 100), test_labels))
    by_patches = readouts(Features(noise(2, 200), train, train_labels), Features(noise(3, 100), test, test_labels))
    for readout in ("knn", "linear"):
        for top, chance in (("top1", 0.3), ("top5", 0.85)):
            name, patch_name = f"eval/{readout}_{top}", f"eval/{readout}_patch_{top}"
            assert by_class[name] > 0.9 > chance > by_class[patch_name]
            assert by_patches[patch_name] == by_class[name] and by_patches[name] == by_class[patch_name]


def test_the_probes_settings_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def scores(*arguments: object) -> Accuracy:
        asked.append(arguments[4:])
        return Accuracy(0.0, 0.0)

    monkeypatch.setattr(module, "linear_scores", scores)
    features, labels = clusters(0, 60)
    images = Features(features, features.clone(), labels)
    probe = LinearConfig(weight_decay=0.5, max_iterations=7)
    FrozenReadouts(NUM_CLASSES, KnnConfig(), probe).scores(images, images, CPU)
    assert asked == [(0.5, 7, NUM_CLASSES)] * 2


def test_there_are_nine_scores() -> None:
    features, labels = clusters(0, 60)
    scores = readouts(Features(features, features, labels), Features(features, features, labels))
    assert sorted(scores) == [
        "eval/knn_patch_top1", "eval/knn_patch_top5", "eval/knn_top1", "eval/knn_top5",
        "eval/linear_patch_top1", "eval/linear_patch_top5", "eval/linear_top1", "eval/linear_top5",
        "eval/select_knn_top1",
    ]  # fmt: skip


def test_settings_are_chosen_by_odd_training_images_that_even_ones_vote_on() -> None:
    train, labels = clusters(0, 120)
    train = train + 2 * noise(5, 120)  # so that some neighbours are wrong
    directions = torch.nn.functional.normalize(train, dim=1)
    right = 0
    for image in range(1, 120, 2):
        nearest = max(range(0, 120, 2), key=lambda voter: float(directions[voter] @ directions[image]))
        right += int(labels[nearest] == labels[image])
    scores = readouts(Features(train, train, labels), Features(noise(3, 10), noise(3, 10), labels[:10]), k=1)
    assert scores["eval/select_knn_top1"] == pytest.approx(right / 60)
    assert 0.5 < right / 60 < 1


def test_one_feature_under_both_names_has_the_same_scores_as_two_equal_ones() -> None:
    (train, train_labels), (test, test_labels) = clusters(0, 200), clusters(1, 100)
    pixels = readouts(Features(train, train, train_labels), Features(test, test, test_labels))
    tokens = readouts(Features(train, train.clone(), train_labels), Features(test, test.clone(), test_labels))
    assert pixels == tokens


def test_one_training_image_alone_is_told_to_be_too_few() -> None:
    one, test = clusters(0, 1), clusters(1, 20)
    with pytest.raises(DataError, match=r"there is 1 training image, .*: use 2 or more \(data.max_train_images"):
        readouts(Features(one[0], one[0], one[1]), Features(test[0], test[0], test[1]))
