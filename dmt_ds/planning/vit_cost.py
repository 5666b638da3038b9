"""What a ViT costs: parameters, arithmetic, memory; plain formulas, no torch.

Operations are counted as 2 a multiply-add. Norms, GELU, softmax and losses are left out: they are below 1 % of a ViT's
arithmetic, though not of its time.
"""

from dataclasses import dataclass

PATCH_CHANNELS = 3
MLP_RATIO = 4

SAVED_CHANNELS = 1 + 1 + 3 + 1 + 1 + 1 + MLP_RATIO + MLP_RATIO
"""Widths that a block keeps of each token for the backward: input of norm 1; of qkv; q, k, v; of the projection; of
norm 2; of fc1; of GELU; of fc2. Fused attention keeps no matrix of scores (Korthikanti et al., 2022, section 4.1,
without dropout's masks: 32 bytes in bf16)."""
ALIVE_CHANNELS = 1 + 1 + MLP_RATIO + MLP_RATIO
"""Widths of each token that live at once in a forward without gradient: the residual stream, what fc1 reads, what GELU
reads and writes."""


@dataclass(frozen=True)
class VitSize:
    """A plain ViT.

    Attributes:
        embed_dim: width D.
        depth: blocks.
        patch_size: side of a patch, in pixels.
        image_size: side of the image, in pixels.
    """

    embed_dim: int
    depth: int
    patch_size: int
    image_size: int

    @property
    def num_patches(self) -> int:
        """Number of patches, N."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_tokens(self) -> int:
        """Number of tokens, 1 + N."""
        return 1 + self.num_patches

    @property
    def block_parameters(self) -> int:
        """Parameters of one block: attention 4 D^2, MLP 8 D^2, biases 9 D, two norms 4 D."""
        return (4 + 2 * MLP_RATIO) * self.embed_dim**2 + (5 + MLP_RATIO + 4) * self.embed_dim

    def parameters(self, *, trained_positions: bool = True) -> int:
        """All parameters, without a head."""
        patch_embedding = PATCH_CHANNELS * self.patch_size**2 * self.embed_dim + self.embed_dim
        positions = self.num_tokens * self.embed_dim if trained_positions else 0
        class_token, last_norm = self.embed_dim, 2 * self.embed_dim
        return patch_embedding + positions + class_token + self.depth * self.block_parameters + last_norm

    def forward_flops(self) -> int:
        """Operations of one image's forward."""
        matrices = self.num_tokens * (4 + 2 * MLP_RATIO) * self.embed_dim**2
        attention = 2 * self.num_tokens**2 * self.embed_dim  # scores, and their product with the values
        return 2 * (self._patch_embedding_macs() + self.depth * (matrices + attention))

    def training_flops(self) -> int:
        """Operations of one image's forward and backward: three forwards, but pixels need no gradient."""
        return 3 * self.forward_flops() - 2 * self._patch_embedding_macs()

    def saved_bytes(self, bytes_per_number: int) -> int:
        """Bytes that one image keeps between forward and backward: blocks only."""
        return self.num_tokens * self.embed_dim * self.depth * SAVED_CHANNELS * bytes_per_number

    def alive_bytes(self, bytes_per_number: int) -> int:
        """Bytes of one image at the peak of a forward without gradient."""
        return self.num_tokens * self.embed_dim * ALIVE_CHANNELS * bytes_per_number

    def _patch_embedding_macs(self) -> int:
        return self.num_patches * PATCH_CHANNELS * self.patch_size**2 * self.embed_dim


@dataclass(frozen=True)
class AdapterSize:
    """What maps a student's tokens to a target's width.

    Attributes:
        width_in: of the student.
        width_out: of the target.
        has_norm: whether a LayerNorm comes before the linear map.
        has_second: whether GELU and a second linear map follow.
    """

    width_in: int
    width_out: int
    has_norm: bool = False
    has_second: bool = False

    def parameters(self) -> int:
        """Weights and biases."""
        first = self.width_in * self.width_out + self.width_out
        second = self.width_out**2 + self.width_out
        return first + self.has_second * second + self.has_norm * 2 * self.width_in

    def training_flops(self, num_tokens: int) -> int:
        """Operations of one image's forward and backward."""
        return 3 * 2 * num_tokens * self.width_out * (self.width_in + self.has_second * self.width_out)


def ring_bytes(payload: float, num_ranks: int, *, reduces: bool = False) -> float:
    """Bytes that each rank sends, and receives, for a collective over a whole of `payload` bytes.

    A gather or a scatter brings every rank the (n-1)/n that it lacks; an all-reduce is both, one after the other.
    """
    return (2 if reduces else 1) * payload * (num_ranks - 1) / num_ranks
