"""Seeds of several crops of the same images."""

import torch

from dmt_ds.methods.crops import crop_seeds


def test_each_crop_of_an_image_has_a_seed_of_its_own_and_the_first_has_the_images() -> None:
    seeds = torch.tensor([5, 7919, -3])
    of_crops = crop_seeds(seeds, 4).view(4, 3)  # crop after crop
    assert torch.equal(of_crops[0], seeds)
    assert len(of_crops.unique()) == 12
