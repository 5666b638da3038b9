"""Distils several self-supervised ViT teachers into one ViT student; the method is DMT (arXiv 2312.11938)."""

__version__ = "0.1.0"
