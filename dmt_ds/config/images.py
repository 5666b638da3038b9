"""Where a run's images are, and which tasks with annotations take them, or their size, from their encoder's run."""

from dmt_ds.config.schema import TaskName

WHERE_IMAGES_ARE = ("source", "path", "train_split", "val_split", "image_column", "label_column")
"""Settings of `data`; runs that differ in others read the same files."""
LEARN_IMAGES_OF_ORIGIN: tuple[TaskName, ...] = ("classify",)
"""Tasks that learn the images that their encoder's own run saw, where no recipe names others."""
RESIZE_POSITIONS: tuple[TaskName, ...] = ("segment",)
"""Tasks that interpolate an encoder's positions to `data.image_size`; in the others that is the encoder's own."""
