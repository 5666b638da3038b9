"""Boxes and masks of objects: detectors on a ViT, their training, their results; knows no file of a run."""
