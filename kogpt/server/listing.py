"""OpenAI's list of models: GET /v1/models and /v1/models/{name}."""

from __future__ import annotations

from typing import Any

from kogpt.server.service import Served, Service


def models(service: Service) -> dict[str, Any]:
    """Every model, the one without adapters first."""
    return {"object": "list", "data": [_entry(service, service.find(name)) for name in service.models]}


def model(service: Service, name: str) -> dict[str, Any]:
    """One of them; Refused (404) if it is not served."""
    return _entry(service, service.find(name))


def _entry(service: Service, served: Served) -> dict[str, Any]:
    base = service.base.name
    return {
        "id": served.name,
        "object": "model",
        "created": 0,
        "owned_by": "kogpt",
        "root": base,
        "parent": None if served.name == base else base,
        "max_model_len": served.model.config.n_ctx,
        "logprobs": served.model.session.allows_logprobs,
    }
