"""Run by test_photographs: `dmt-ds pretrain` whose engine, when it has saved, answers to validation photographs.

python -m tests.integration.live_tokens RECIPE OUT

OUT gets `images`, normalised batches of 1 and 7, and `tokens`, what left the engine's last LayerNorm for each.
"""

import sys

import torch
from torch import Tensor, nn

from dmt_ds.commands.training import pretrain
from dmt_ds.config.load import load_config
from dmt_ds.data.augment import normalize
from dmt_ds.data.sources import open_source
from dmt_ds.data.views import center_crop
from dmt_ds.engine.learner import Learner

SIZES = (1, 7)


def main() -> None:
    recipe, out = sys.argv[1:]
    config = load_config(recipe)
    source = open_source(config.data, "val")
    pictures = torch.stack([center_crop(source.read(row), config.data.image_size) for row in range(sum(SIZES))])
    batches = normalize(pictures, config.augment.mean, config.augment.std).split(SIZES)
    save = Learner.save

    def save_and_answer(learner: Learner, step: int) -> None:
        save(learner, step)
        tokens: list[Tensor] = []

        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            tokens.append(output)

        learner.engine.module.eval()
        with torch.no_grad(), learner.engine.module.vit.norm.register_forward_hook(keep):
            for images in batches:
                learner.engine(images, torch.zeros(len(images), dtype=torch.int64))
        torch.save({"images": list(batches), "tokens": tokens}, out)

    Learner.save = save_and_answer  # type: ignore[method-assign]
    sys.exit(pretrain.run(config))


if __name__ == "__main__":
    main()
