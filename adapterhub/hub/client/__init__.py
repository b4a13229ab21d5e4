"""push and pull, through huggingface_hub; no HTTP of our own."""

from __future__ import annotations

from adapterhub.hub.client.findings import Finding
from adapterhub.hub.client.planning import PushPlan, Request
from adapterhub.hub.client.pushing import Pushed, PushResult, plan, push, push_all

__all__ = ["Finding", "PushPlan", "PushResult", "Pushed", "Request", "plan", "push", "push_all"]
