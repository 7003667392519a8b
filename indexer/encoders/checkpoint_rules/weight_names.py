"""Names of the weights in a checkpoint: which may be missing or left over, and prefixes that wrappers add.

`transformers` fills up whatever is missing with random numbers, anew in every process, and drops what is left over.
Both are refused, unless the image features cannot depend on it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

SHOWN = 3  # names in a message
Shape = tuple[int, ...]

# Buffers that are constant or used in training only, and the token that stands for masked patches in pretraining.
_NEUTRAL = re.compile(
    r"(^|\.)(num_batches_tracked|position_ids|relative_position_index|relative_coords_table|attn_mask|inv_freq|mask_token)$"
)
# Top-level modules that follow the features.
_HEAD = re.compile(
    r"(\w+_)?(classifier|head|heads|decoder|predictor|predictions|cls|fc|logits|logit_scale|logit_bias)(\.|$)"
)
_OTHER_HALF = re.compile(r"(text_model|text_projection|visual_projection)\.")  # of a model of images and texts
# DPT adds this layer to a feature map that its first stage does not have; it is never called.
_NEVER_CALLED = re.compile(r"(^|\.)fusion_stage\.layers\.0\.residual_layer1\.")


@dataclass(frozen=True)
class WeightNames:
    """How the names and shapes of the weights in a checkpoint differ from those of the model."""

    missing: Collection[str] = ()
    unexpected: Collection[str] = ()
    mismatched: Mapping[str, tuple[Shape, Shape]] = field(default_factory=dict)  # found and expected shape

    @property
    def unused(self) -> list[str]:
        """Missing weights that the model never uses."""
        return [name for name in self.missing if _NEVER_CALLED.search(name)]

    @property
    def lacks_pooler(self) -> bool:
        """True if the layer after the class token is missing, as in most checkpoints of classifiers."""
        return any(name.startswith("pooler.") for name in self.missing)

    def problem(self, modules: Iterable[str], base: str = "") -> str:
        """Say which weights are missing, left over or of another shape; "" if the features depend on none of them.

        Parameters
        ----------
        modules : names of the model's top-level modules and weights, within which nothing may be left over
        base : prefix that checkpoints of the model with a head have before these names
        """
        own = {*modules, base}
        if prefix := self._prefix(base):
            return (
                f"the name of every weight begins with {prefix!r}, as if it was saved from within another module, such "
                f"as DataParallel or torch.compile; save it again without {prefix!r}"
            )
        left_over = [name for name in self.unexpected if not _NEUTRAL.search(name) and not _is_head(name, own)]
        missing = [
            name
            for name in self.missing
            if not (_NEUTRAL.search(name) or _NEVER_CALLED.search(name) or name.startswith("pooler."))
        ]
        shapes = [f"{name} {found} instead of {wanted}" for name, (found, wanted) in sorted(self.mismatched.items())]
        parts = [
            _listed("missing", missing),
            _listed("in the checkpoint but not in the model", left_over),
            _listed("of another shape", shapes),
        ]
        problem = "; ".join(part for part in parts if part)
        return problem and f"{problem}; download it again, or correct config.json"

    def _prefix(self, base: str) -> str:
        """Return what precedes the model's names in the checkpoint, with a dot at its end, or ""."""
        prefix = common_prefix(self.unexpected)
        stripped = {name.removeprefix(prefix).removeprefix(f"{base}.") for name in self.unexpected if prefix}
        return prefix if stripped & set(self.missing) else ""


def common_prefix(names: Iterable[str]) -> str:
    """Return the first part that all names share, with its dot, or "". Names of heads may lack it.

    >>> common_prefix(["module.vit.bias", "module.vit.weight"]), common_prefix(["vit.bias", "text.bias"])
    ('module.', '')
    """
    parts = [name.partition(".") for name in names if not _HEAD.match(name)]
    firsts = {first for first, _, _ in parts}
    return f"{firsts.pop()}." if len(firsts) == 1 and all(rest for _, _, rest in parts) else ""


def _is_head(name: str, own: set[str]) -> bool:
    return name.partition(".")[0] not in own and bool(_HEAD.match(name) or _OTHER_HALF.match(name))


def _listed(what: str, names: Collection[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(sorted(names)[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"{len(names)} {'weight is' if len(names) == 1 else 'weights are'} {what} ({shown})"
