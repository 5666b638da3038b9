"""The command `dmt-ds`: arguments in, exit code out; knows no library but click, so that `--help` is there at once."""

import logging

import click

from dmt_ds import __version__
from dmt_ds.cli import elsewhere, images, judging, planning, records, studies, teachers, training
from dmt_ds.cli.parts import CarefulGroup, examples, launch_rank
from dmt_ds.redact import MaskingFormatter, mask_all_that_is_said


@click.group(
    cls=CarefulGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog=examples(
        "dmt-ds quickstart                        everything once on digits, in minutes, without a GPU",
        "dmt-ds config -c vit_tiny                what a run would do, every setting written out",
        "dmt-ds doctor -c vit_tiny --ranks 8      check everything that can fail, before you queue for GPUs",
        "torchrun --nproc-per-node 8 -m dmt_ds pretrain -c vit_tiny data.path=/data/imagenet",
        title="First steps",
    ),
)
@click.version_option(__version__, prog_name="dmt-ds")
@click.option("--debug", is_flag=True, help="Show the traceback of an error, and debug messages.")
def main(debug: bool) -> None:
    """Distil several self-supervised ViT teachers into one ViT student.

    RECIPE is the name of a shipped recipe or the path of a YAML file. Settings follow as KEY=VALUE with a dotted key;
    KEY=VALUE overrides the recipe, which overrides the defaults.
    """
    _set_up_logging(debug)


for command in (
    training.pretrain,
    training.finetune,
    training.detect,
    training.segment,
    training.quickstart,
    training.doctor,
    training.config,
    planning.plan,
    planning.bench,
    judging.knn,
    judging.evaluate,
    judging.judge,
    studies.suite,
    studies.compare,
    teachers.teachers,
    images.shards,
    elsewhere.export,
    elsewhere.predict,
    records.mlflow,
):
    main.add_command(command)


def _set_up_logging(debug: bool) -> None:
    """Lines with the time on stderr; of the ranks only the first one tells more than warnings."""
    mask_all_that_is_said()
    rank = launch_rank()
    where = f"rank {rank}: " if rank else ""
    handler = logging.StreamHandler()
    handler.setFormatter(MaskingFormatter(f"%(asctime)s %(levelname).1s {where}%(message)s", "%H:%M:%S"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    own_level = logging.DEBUG if debug else logging.WARNING if rank else logging.INFO
    logging.getLogger("dmt_ds").setLevel(own_level)
