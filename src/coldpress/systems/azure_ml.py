"""Azure Machine Learning: jobs on a compute cluster of a workspace.

Requests are read and checked; they run there later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from coldpress.jobs.system import System
from coldpress.parts import option


@dataclass(frozen=True)
class AzureMl(System):
    """A workspace, a compute cluster in it, and the environment that jobs get there."""

    title: ClassVar[str] = "Azure ML"
    is_ready: ClassVar[bool] = False

    compute: str | None = option("name of the compute cluster", None)
    subscription_id: str | None = option("subscription of the workspace", None)
    resource_group: str | None = option("resource group of the workspace", None)
    workspace: str | None = option("name of the workspace", None)
    workspace_file: str | None = option("the workspace's config.json, instead of the three above", None)
    base_image: str | None = option("image that jobs run in", None)
    dockerfile: str | None = option("Dockerfile of an image that is built for them", None)
    build_context: str | None = option("folder with the Dockerfile", None)
    conda_file: str | None = option("conda environment that is added to the image", None)
    environment: str | None = option("registered environment, as NAME, NAME:VERSION or NAME@LABEL", None)
    requirements_file: str | None = option("file with further packages to install", None)
    instance_count: int = option("machines of a job", 1)
    resources: dict[str, Any] = option("what a job asks of the cluster", dict)
    tags: dict[str, str] = option("tags of the jobs", dict)
    datastore: str = option("datastore that models and results go through", "workspaceblobstore")
    key_vault: str | None = option("key vault that holds secrets, such as the hub's token", None)
    hf_token: bool = option("give jobs the hub's token, from the key vault", False)
    credential: dict[str, Any] = option("arguments of azure.identity.DefaultAzureCredential", dict)
    read_timeout_s: int = option("patience with one request", 60)
    retries: int = option("how often a request is repeated", 3)
    retry_interval_s: int = option("pause before the first repetition; it doubles", 5)
