"""Run by test_family: `dmt-ds pretrain` that counts what the teachers do, and may die before a member's save.

python family_process.py RECIPE [MEMBER STEP]
"""

import os
import signal
import sys

from torch import nn

from dmt_ds.commands.training import pretrain
from dmt_ds.config.load import load_config
from dmt_ds.engine.learner import Learner
from dmt_ds.models.encoders import FrozenEncoder


def main() -> None:
    recipe, *death = sys.argv[1:]
    save = Learner.save

    def save_or_die(learner: Learner, step: int) -> None:
        if [learner.name, str(step)] == death:
            os.kill(os.getpid(), signal.SIGKILL)
        save(learner, step)

    Learner.save = save_or_die  # type: ignore[method-assign]
    images: list[int] = []

    def count(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        if isinstance(module, FrozenEncoder):
            images.append(len(inputs[0]))  # type: ignore[arg-type]

    nn.modules.module.register_module_forward_hook(count)
    code = pretrain.run(load_config(recipe))
    sys.stdout.write(f"TEACHERS {len(images)} {sum(images)}\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
