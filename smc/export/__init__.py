"""Modules → checkpoints in the Hugging Face layout, which transformers and smc read."""

from smc.export.checkpoint import write_checkpoint

__all__ = ["write_checkpoint"]
