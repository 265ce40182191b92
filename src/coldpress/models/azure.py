"""Resources of Azure Machine Learning by their URIs.

They are read and written in files; nothing is fetched from there yet.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from coldpress.errors import ColdpressError

_WORKSPACE = (
    r"azureml://subscriptions/(?P<subscription_id>[^/]+)/resourcegroups/(?P<resource_group>[^/]+)"
    r"/workspaces/(?P<workspace>[^/]+)"
)


@dataclass(frozen=True)
class Workspace:
    """A workspace; its parts are empty where the system or the environment names it."""

    subscription_id: str = ""
    resource_group: str = ""
    workspace: str = ""

    @property
    def uri(self) -> str:
        """The beginning of the URIs of its resources, in their short form when the workspace is not named."""
        if not self.workspace:
            return "azureml:/"
        return (
            f"azureml://subscriptions/{self.subscription_id}/resourcegroups/{self.resource_group}"
            f"/workspaces/{self.workspace}"
        )


@dataclass(frozen=True)
class RegistryModel:
    """A model in a registry, which many workspaces share."""

    registry: str
    name: str
    version: str
    form: ClassVar[str] = r"azureml://registries/(?P<registry>[^/]+)/models/(?P<name>.+)/versions/(?P<version>[^/]+)"

    @property
    def uri(self) -> str:
        return f"azureml://registries/{self.registry}/models/{self.name}/versions/{self.version}"


@dataclass(frozen=True)
class WorkspaceModel:
    """A model that is registered in a workspace."""

    name: str
    version: str
    workspace: Workspace = Workspace()
    form: ClassVar[str] = rf"(?:{_WORKSPACE}|azureml:/)/models/(?P<name>.+)/versions/(?P<version>[^/]+)"

    @property
    def uri(self) -> str:
        return f"{self.workspace.uri}/models/{self.name}/versions/{self.version}"


@dataclass(frozen=True)
class DatastorePath:
    """A file or folder in a datastore of a workspace."""

    datastore: str
    path: str
    workspace: Workspace = Workspace()
    form: ClassVar[str] = rf"(?:{_WORKSPACE}|azureml:/)/datastores/(?P<datastore>[^/]+)/paths/(?P<path>.+)"

    @property
    def uri(self) -> str:
        return f"{self.workspace.uri}/datastores/{self.datastore}/paths/{self.path}"


@dataclass(frozen=True)
class JobOutput:
    """A file or folder among the outputs of a finished job."""

    job: str
    output: str
    path: str
    form: ClassVar[str] = r"azureml://jobs/(?P<job>[^/]+)/outputs/(?P<output>[^/]+)/paths/(?P<path>.+)"

    @property
    def uri(self) -> str:
        return f"azureml://jobs/{self.job}/outputs/{self.output}/paths/{self.path}"


Resource = RegistryModel | WorkspaceModel | DatastorePath | JobOutput
_KINDS: tuple[type[Resource], ...] = (RegistryModel, WorkspaceModel, DatastorePath, JobOutput)


def is_resource(name: str) -> bool:
    """Whether a model or file is named by a URI of Azure ML."""
    return name.startswith("azureml:")


def parse_resource(uri: str) -> Resource:
    """The resource of a URI; raises ColdpressError for one that Azure ML would not take."""
    for kind in _KINDS:
        if found := re.fullmatch(kind.form, uri, re.IGNORECASE):
            facts = {name: value or "" for name, value in found.groupdict().items()}
            names = ("subscription_id", "resource_group", "workspace")
            workspace = {name: facts.pop(name) for name in names if name in facts}
            return kind(**facts, **({"workspace": Workspace(**workspace)} if workspace else {}))  # type: ignore[arg-type]
    raise ColdpressError(
        f"'{uri}' is no resource of Azure ML", hint="such as azureml://registries/NAME/models/NAME/versions/1"
    )


def refuse_to_fetch(uri: str) -> None:
    """Say that fetching it is a later capability, and how to do without."""
    resource = parse_resource(uri)
    what, command = ("model", "az ml model download")
    if isinstance(resource, DatastorePath):
        what, command = "file", "az storage blob download"
    if isinstance(resource, JobOutput):
        what, command = "file", "az ml job download"
    raise ColdpressError(
        f"{uri}: fetching a {what} from Azure ML is a later capability of coldpress",
        hint=f"download it with '{command}' and name the local copy",
    )


def refuse_remote(values: Any) -> None:
    """Raise ColdpressError for the first string in plain data that names a resource, which would have to be fetched."""
    if isinstance(values, str) and is_resource(values):
        refuse_to_fetch(values)
    for value in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        refuse_remote(value)
