"""The models of a server, by name."""

from __future__ import annotations

from smc.serve.errors import ApiError
from smc.serve.served import ServedModel


class Models:
    """The served models; filled when the server starts."""

    def __init__(self) -> None:
        self._models: dict[str, ServedModel] = {}

    def add(self, served: ServedModel) -> None:
        """Add a model under its name."""
        self._models[served.name] = served

    def all(self) -> list[ServedModel]:
        """All models, in the order of the command line."""
        return list(self._models.values())

    def find(self, name: str) -> ServedModel:
        """The model of this name, ignoring Ollama's ":latest". ApiError 404 if there is none."""
        served = self._models.get(name) or self._models.get(name.removesuffix(":latest"))
        if served is None:
            known = ", ".join(self._models)
            raise ApiError(404, f"there is no model {name!r:.80}: this server has {known}", "model", "model_not_found")
        return served
