"""Distil several self-supervised ViT teachers into one ViT student, with DeepSpeed, SLURM and MLflow (method: DMT, arXiv 2312.11938)."""

__version__ = "0.1.0"
