"""Names of the weights in a checkpoint: which may be missing or left over, and prefixes that wrappers add.

`transformers` fills up whatever is missing with random numbers, anew in every process, and drops what is left over.
Both are refused, unless the image features cannot depend on it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

SHOWN = 3  # names in a message
Shape = tuple[int, ...]

# Buffers that are constant or used in training only, and the token that stands for masked patches in pretraining.
_NEUTRAL = re.compile(
    r"(^|\.)(num_batches_tracked|position_ids|relative_position_index|relative_coords_table|attn_mask|inv_freq|mask_token)$"
)
_INTEGERS = re.compile(r"(ids|idxs|index|indices|mask|tracked)$")
# Top-level modules that follow the features.
_HEAD = re.compile(
    r"(\w+_)?(classifier|head|heads|decoder|predictor|predictions|cls|fc|logits|logit_scale|logit_bias)(\.|$)"
)
# The part of a model of images and texts that image features do not depend on.
_TEXT_HALF = re.compile(r"(text_model|text_projection|logit_scale|logit_bias)(\.|$)")
_OTHER_HALF = re.compile(r"(text_model|text_projection|visual_projection)\.")  # of a model of images and texts
# DPT adds this layer to a feature map that its first stage does not have; it is never called.
_NEVER_CALLED = re.compile(r"(^|\.)fusion_stage\.layers\.0\.residual_layer1\.")


@dataclass(frozen=True)
class WeightNames:
    """How the names and shapes of the weights in a checkpoint differ from those of the model."""

    missing: Collection[str] = ()
    unexpected: Collection[str] = ()
    mismatched: Mapping[str, tuple[Shape, Shape]] = field(default_factory=dict)  # found and expected shape
    optional: Collection[str] = ()  # the model's weights that may be missing, but only all of them: pooler or text half
    head: Collection[str] = ()  # weights that the class which was saved has beyond the model
    saved_as: str = ""  # the class which was saved, if it is another than the model's
    held: Collection[str] = ()  # the model's weights that the class which was saved has

    @property
    def unused(self) -> list[str]:
        """Missing weights that the model never uses."""
        return [name for name in self.missing if _NEVER_CALLED.search(name)]

    @property
    def lacks_pooler(self) -> bool:
        """True if the layer after the class token is missing, as in most checkpoints of classifiers."""
        return self._lacks(is_pooler)

    @property
    def lacks_text(self) -> bool:
        """True if the text model is missing, as in a checkpoint of a vision model or a classifier."""
        return self._lacks(is_text)

    def _lacks(self, belongs: Callable[[str], bool]) -> bool:
        whole = {name for name in self.optional if belongs(name)}
        return bool(whole) and whole <= set(self.missing)

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
        # without its pooler, the model may lack the last normalisation, which is then among the weights left over
        head = () if self.lacks_pooler else self.head
        left_over = [
            name
            for name in self.unexpected
            if not _NEUTRAL.search(name) and not _is_head(name, own) and name not in head
        ]
        lacks_pooler, lacks_text = self.lacks_pooler, self.lacks_text
        missing = [
            name
            for name in self.missing
            if not _NEUTRAL.search(name)
            and not _NEVER_CALLED.search(name)
            and not (lacks_pooler and is_pooler(name))
            and not (lacks_text and is_text(name))
        ]
        shapes = [f"{name} {found} instead of {wanted}" for name, (found, wanted) in sorted(self.mismatched.items())]
        parts = [
            _listed("missing", missing),
            _listed("in the checkpoint but not in the model", left_over),
            _listed("of another shape", shapes),
        ]
        problem = "; ".join(part for part in parts if part)
        by_design = bool(set(left_over) & set(self.head)) or not set(missing) <= set(self.held)
        if self.saved_as and by_design:
            return (
                f"{problem}; config.json says that it was saved from {self.saved_as}, whose checkpoints need not have "
                f"the weights of image features: name a checkpoint of the model that {self.saved_as} was made from, or "
                f"download this one again if it should have them"
            )
        return problem and f"{problem}; download it again, or correct config.json"

    def _prefix(self, base: str) -> str:
        """Return what precedes the model's names in the checkpoint, with a dot at its end, or ""."""
        prefix = common_prefix(self.unexpected)
        stripped = {name.removeprefix(prefix).removeprefix(f"{base}.") for name in self.unexpected if prefix}
        return prefix if stripped & set(self.missing) else ""


def is_pooler(name: str) -> bool:
    """Return whether a weight belongs to the layer after the class token."""
    return name.startswith("pooler.")


def is_text(name: str) -> bool:
    """Return whether a weight belongs to the half of a model of images and texts that encodes texts.

    >>> is_text("text_model.final_layer_norm.bias"), is_text("logit_scale"), is_text("visual_projection.weight")
    (True, True, False)
    """
    return bool(_TEXT_HALF.match(name))


def holds_integers(name: str) -> bool:
    """Return whether a weight holds integers or truth values by its nature, as positions, indices and masks do.

    >>> holds_integers("embeddings.position_ids"), holds_integers("layers.0.weight")
    (True, False)
    """
    return bool(_INTEGERS.search(name))


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
