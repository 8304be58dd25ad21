"""Models of the Hugging Face hub, downloaded into huggingface_hub's own cache."""

from __future__ import annotations

from pathlib import Path

from smc.errors import InputError

WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]
SUBFOLDERS_AND_DUPLICATES = ["*/*", "consolidated*"]


def download(model: str) -> Path:
    """The folder of a snapshot of `model` ("org/name"); only what is missing in the cache is fetched.

    Pickled weights are not fetched. InputError if the hub can't be reached or has no such model.
    """
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=WANTED, ignore_patterns=SUBFOLDERS_AND_DUPLICATES))
    except errors.GatedRepoError:
        raise InputError(f"{model} is gated: accept its licence on the hub, then log in with `hf auth login`") from None
    except errors.RepositoryNotFoundError:
        raise InputError(f"{model} is neither a local folder nor a model on the hub (or it is private)") from None
    except errors.HFValidationError as error:
        raise InputError(f"{model} is neither a local folder nor a valid hub id: {error}") from None
    except (OSError, errors.HTTPError):  # type: ignore[attr-defined]  # HTTPError: the HTTP library's, broken off
        raise InputError(
            f"{model} is not a local folder, and it can't be downloaded from the hub now: give a folder or a .gguf file"
        ) from None
