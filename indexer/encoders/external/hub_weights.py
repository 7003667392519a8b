"""A weight file in a repository of the hub, of which another library knows the name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ....errors import EncoderError


@dataclass(frozen=True)
class HubWeights:
    """A repository, and names that its weight file may have, the preferred one first."""

    repository: str
    names: tuple[str, ...]

    @classmethod
    def preferring_safetensors(cls, repository: str, name: str) -> HubWeights:
        """Look for the safetensors file next to a pickled one first.

        >>> HubWeights.preferring_safetensors("timm/resnet50", "pytorch_model.bin").names
        ('model.safetensors', 'pytorch_model.safetensors', 'pytorch_model.bin')
        """
        path = Path(name)
        if path.suffix not in (".bin", ".pt", ".pth"):
            return cls(repository, (name,))
        # beside open_clip_pytorch_model.bin stands open_clip_model.safetensors
        renamed = path.with_name(path.stem.replace("pytorch_model", "model")).name
        names = (f"{renamed}.safetensors", f"{path.stem}.safetensors", name)
        return cls(repository, tuple(dict.fromkeys(names)))

    def cached(self) -> Path | None:
        """The weight file in the Hugging Face cache, None if it is not there. Asks no server."""
        from huggingface_hub import try_to_load_from_cache

        for name in self.names:
            file = try_to_load_from_cache(self.repository, name)
            if isinstance(file, str):
                return Path(file)
        return None

    def download(self) -> Path:
        """Download the weight file into the Hugging Face cache; raises EncoderError if the repository has none."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        for name in self.names:
            try:
                return Path(hf_hub_download(self.repository, name))
            except LocalEntryNotFoundError:  # the hub cannot be reached
                raise
            except EntryNotFoundError:
                continue
        raise EncoderError(f"the repository {self.repository} has none of {', '.join(self.names)}")
