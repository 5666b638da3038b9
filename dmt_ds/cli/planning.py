"""The commands that say beforehand what a run needs: plan, bench."""

import json
from pathlib import Path

import click

from dmt_ds.cli.parts import examples, launch_rank, load_recipe, overrides_argument, recipe_option


@click.command(
    short_help="Estimate a recipe's memory, traffic, time and GPU-hours.",
    epilog=examples(
        "dmt-ds plan -c vit_tiny --gpus-per-node 8 --gpu h200",
        "dmt-ds plan -c vit_base --nodes 4 --gpus-per-node 8 --gpu a100 --images 14197122",
        "dmt-ds plan -c vit_tiny --gpus-per-node 8 --gpu h100 --calibration calibration.json --json",
    ),
)
@recipe_option
@overrides_argument
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Nodes of the cluster.")
@click.option(
    "--gpus-per-node", type=click.IntRange(min=1), default=1, show_default=True, help="GPUs per node, one process each."
)
@click.option(
    "--gpu", default="h100", show_default=True, help="GPU: b200, h200, h100, a100, a100_40, l40s, rtx4090, rtx3090."
)
@click.option(
    "--images", type=click.IntRange(min=1), default=1_281_167, help="Training images; default: ImageNet-1k's."
)
@click.option(
    "--network-gbit",
    type=click.FloatRange(min=0, min_open=True),
    default=400,
    show_default=True,
    help="Network rate of each node, in Gbit/s.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File written by `dmt-ds bench`, with measured rates.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs: bytes, seconds, hours.")
def plan(
    recipe: str | None,
    overrides: tuple[str, ...],
    nodes: int,
    gpus_per_node: int,
    gpu: str,
    images: int,
    network_gbit: float,
    calibration: Path | None,
    as_json: bool,
) -> None:
    """Estimate what a distillation needs on a cluster, from formulas and data sheets, not by measurement.

    Loads no weights, opens no images, and needs no GPU.
    """
    from dmt_ds.commands import plan as command
    from dmt_ds.planning.layout import Cluster

    machines = command.Machines(Cluster(nodes, gpus_per_node), gpu, network_gbit, images, calibration)
    made = command.make_plan(load_recipe(recipe, overrides), machines)
    click.echo(json.dumps(made, indent=1) if as_json else command.render(made))


@click.command(
    short_help="Measure this machine's rates for `plan`, in a minute.",
    epilog=examples(
        "dmt-ds bench -c vit_tiny data.path=/data/imagenet -o calibration.json",
        "torchrun --nproc-per-node 8 -m dmt_ds bench -c vit_tiny     also the links between GPUs",
    ),
)
@recipe_option
@overrides_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("calibration.json"),
    show_default=True,
    help="Output file, for `dmt-ds plan --calibration`.",
)
def bench(recipe: str | None, overrides: tuple[str, ...], output: Path) -> None:
    """Measure the recipe's teachers, student and loader on this machine, with random weights."""
    from dmt_ds.commands import bench as command

    config = load_recipe(recipe, overrides)
    if launch_rank() == 0:
        command.check_output(output)
    found = command.run(config)
    if launch_rank() == 0:
        click.echo(command.render(found))
        found.write(output)
        click.echo(f"written: {output}; use it with dmt-ds plan --calibration {output}")
