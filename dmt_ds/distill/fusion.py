"""Several teachers' tokens become the student's target; knows no teacher and no loss."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from dmt_ds.distill.centring import RunningMeans, subtract_means
from dmt_ds.distill.choices import FusionMode, check_choice, no_branch
from dmt_ds.distill.losses import at_least_float32

FUSED = "fused"
"""Name of the one target of all modes but `concat`."""
_SMALLEST_STD = 1e-6
_WIDTH_OF_VIT_B = 768


def target_widths(mode: FusionMode, widths: Mapping[str, int]) -> dict[str, int]:
    """Name -> width of each target, from teacher -> width: one adapter of the student is needed for each.

    Args:
        mode: of the `TokenFusion`.
        widths: the same for all teachers, except with `concat`; where none is known, a ViT-B's is taken.
    """
    return dict(widths) if mode == "concat" else {FUSED: next(iter(widths.values()), _WIDTH_OF_VIT_B)}


class TokenFusion:
    """Z^T = sum over teachers of weight * Z^(m), and the variants beside it.

    | mode | target |
    | --- | --- |
    | `sum` | weighted sum, as in the paper |
    | `mean` | the sum over the sum of weights |
    | `unit_std` | sum of tokens that were each divided by their own standard deviation over channels |
    | `centred` | sum of tokens without their teacher's running mean (class and patch tokens apart) |
    | `concat` | no fusion: one target a teacher, under its name; weights weigh the teachers' losses |

    A teacher whose class token is left out adds nothing to row 0. The sum is float32, in the order of the names.
    """

    def __init__(
        self,
        mode: FusionMode,
        weights: Mapping[str, float],
        class_token: Mapping[str, bool],
        centring_momentum: float = 0.99,
    ) -> None:
        """Settings of the fusion.

        Args:
            mode: see the class.
            weights: teacher -> factor of its tokens; their order is the order of the sum.
            class_token: teacher -> whether its class token is part of the target; missing means yes.
            centring_momentum: per step, of the means that `centred` subtracts.

        Raises:
            ValueError: there is no such mode, no teacher has a weight above 0 (`concat`: some teacher has none), or the
                class token is that of a teacher without weight.
        """
        check_choice("fusion", mode)
        without_weight = [name for name, weight in weights.items() if weight <= 0]
        if len(without_weight) == len(weights) or (mode == "concat" and without_weight):
            raise ValueError(f"fusion '{mode}': weight of {without_weight} must be above 0")
        if strangers := [name for name in class_token if name not in weights]:
            raise ValueError(f"class_token of {strangers}: weights has {list(weights)} only")
        self._mode = mode
        self._weights = dict(weights)
        self._class_token = {name: class_token.get(name, True) for name in weights}
        self._means = RunningMeans(centring_momentum)

    @property
    def target_weights(self) -> dict[str, float]:
        """Target -> weight of its losses."""
        return dict(self._weights) if self._mode == "concat" else {FUSED: 1.0}

    @property
    def without_class_token(self) -> frozenset[str]:
        """Targets whose class token nobody teaches: TFD must leave it out."""
        if self._mode == "concat":
            return frozenset(name for name, taught in self._class_token.items() if not taught)
        return frozenset() if self._class_weight() > 0 else frozenset({FUSED})

    def __call__(self, named_tokens: Iterable[tuple[str, Tensor]], *, observe: bool = True) -> dict[str, Tensor]:
        """Fuse one micro-batch.

        Args:
            named_tokens: (teacher, [B, 1+N, D]) in the order of the weights; taken one at a time, so that only one
                teacher's tokens are alive when the iterable makes them on demand (`concat` keeps them all).
            observe: False keeps these tokens out of the running means (a look aside, not training).

        Returns:
            Target -> tokens [B, 1+N, D]: float32 under `"fused"`, or with `concat` the teachers' own.
        """
        assert not isinstance(named_tokens, Mapping), "tokens come as pairs (teacher, tokens): give the dict's .items()"
        if self._mode == "concat":
            targets = dict(named_tokens)
            self._check_names(list(targets))
            return targets
        fused: Tensor | None = None
        names = []
        for name, tokens in named_tokens:
            names.append(name)
            if self._mode == "centred" and observe:
                self._means.observe(name, tokens)
            if fused is None:
                fused = self._first(name, tokens)  # [B, 1+N, D]
            else:
                self._add(fused, name, tokens)
            del tokens  # or it would live on while the next teacher runs
        self._check_names(names)
        assert fused is not None
        return {FUSED: self._scaled(fused)}

    def after_step(self) -> None:
        """Move the running means of `centred`; all ranks call, after each update."""
        self._means.after_step()

    def state_dict(self) -> dict[str, Tensor]:
        """Running means of `centred`; empty otherwise."""
        return self._means.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`."""
        self._means.load_state_dict(state)

    def _first(self, name: str, tokens: Tensor) -> Tensor:
        """The sum of one teacher."""
        assert tokens.ndim == 3, f"teacher '{name}': tokens {list(tokens.shape)} must be [B, 1+N, D]"
        fused = torch.empty(tokens.shape, dtype=torch.promote_types(tokens.dtype, torch.float32), device=tokens.device)
        fused.copy_(self._prepared(name, tokens))
        if self._weights[name] != 1:
            fused.mul_(self._weights[name])
        if not self._class_token[name]:
            fused[:, 0] = 0
        return fused

    def _add(self, fused: Tensor, name: str, tokens: Tensor) -> None:
        """Add one teacher to the sum, in place; its own tokens stay as they are."""
        assert tokens.shape == fused.shape, (
            f"teacher '{name}': tokens {list(tokens.shape)}, those before it have {list(fused.shape)}: can't be added"
        )
        first = 0 if self._class_token[name] else 1
        fused[:, first:].add_(self._prepared(name, tokens)[:, first:], alpha=self._weights[name])

    def _prepared(self, name: str, tokens: Tensor) -> Tensor:
        """What is weighed and added."""
        assert self._mode != "concat", "it adds nothing"
        if self._mode == "sum" or self._mode == "mean":
            return tokens
        if self._mode == "unit_std":
            return unit_std(tokens)
        if self._mode == "centred":
            means = self._means.of(name, tokens.device)
            return tokens if means is None else subtract_means(tokens, means)
        no_branch(self._mode)

    def _scaled(self, fused: Tensor) -> Tensor:
        if self._mode == "mean":
            fused[:, 1:] /= sum(self._weights.values())
            fused[:, :1] /= self._class_weight() or 1.0
        return fused

    def _check_names(self, names: list[str]) -> None:
        assert names == list(self._weights), f"tokens of {names}, expected {list(self._weights)}"

    def _class_weight(self) -> float:
        return sum(weight for name, weight in self._weights.items() if self._class_token[name])


def unit_std(tokens: Tensor) -> Tensor:
    """Each token divided by its standard deviation over channels; its mean stays: [B, 1+N, D] -> the same, float32."""
    tokens = at_least_float32(tokens)
    return tokens / (tokens.std(dim=-1, keepdim=True, correction=0) + _SMALLEST_STD)
