"""push and pull, through huggingface_hub; no HTTP of our own."""

from __future__ import annotations

from adapterhub.hub.client.findings import Finding
from adapterhub.hub.client.planning import PushPlan
from adapterhub.hub.client.pushing import Pushed, PushResult
from adapterhub.hub.client.verbs import plan_push, push, push_all

__all__ = ["Finding", "PushPlan", "PushResult", "Pushed", "plan_push", "push", "push_all"]
