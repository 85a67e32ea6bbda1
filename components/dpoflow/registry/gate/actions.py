"""From a request to what it would do: one or more actions, or none that the gate cares about.

Reads   the routers of the app itself, so that no path means one thing here and another there;
        bodies as MLflow's handlers read them
Gives   `Routes.find`, `TABLE` (every write route of MLflow 3.17), `actions_of`, `Unreadable`
Not     whether an action may happen (rules.py), who asks (identity.py)

A write route that `TABLE` does not know is refused: a newer MLflow fails closed.
"""

import json
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from starlette.types import Scope

READS = frozenset({"GET", "HEAD", "OPTIONS"})
MAX_BODY_BYTES = 16_000_000
"""Of what is read before it is let through; files go through in a stream."""
_LONGEST_PATH = 1024
"""Of a file: what is sealed has names no longer."""
_MOST_MODELS = 1000
"""That one batch of metrics is of; MLflow takes as many metrics."""
CHAMPIONS = "champions"
"""The folder of the artifact root that only the promoter writes."""

PROTECTED_ALIASES = ("champion", "previous_champion")
APPROVAL = "approval"
RESERVED_PREFIXES = ("approval.", "gate.", "dpoflow.")


class Unreadable(Exception):
    """A body on a guarded route that is not what MLflow's handlers read."""


# ---------------------------------------------------------------- what a request would do


@dataclass(frozen=True)
class TagVersion:
    """Set a tag of a model version, or delete it where `value` is None."""

    name: str
    version: str
    key: str
    value: str | None

    @property
    def subject(self) -> str:
        """As `book` and readers of the log name it."""
        return f"{self.name}/{self.version}"


@dataclass(frozen=True)
class TagOther:
    """Give a registered model or a logged model tags, or take one."""

    what: str
    name: str
    keys: tuple[str, ...]

    @property
    def subject(self) -> str:
        """As readers of the log name it."""
        return f"{self.what} {self.name}"


@dataclass(frozen=True)
class CreateVersion:
    """Record a model version."""

    name: str
    source: str
    run_id: str
    model_id: str
    tags: tuple[tuple[str, str], ...]

    @property
    def subject(self) -> str:
        """The version has no number yet."""
        return self.name

    @property
    def is_copy(self) -> bool:
        """Of a version, by the page's *Promote model* or by hand."""
        return self.source.strip().lower().startswith("models:") and not re.fullmatch(
            r"models:/m-[0-9a-f]{32}", self.source
        )


@dataclass(frozen=True)
class SetAlias:
    """Let an alias name a version."""

    name: str
    alias: str
    version: str

    @property
    def subject(self) -> str:
        """The version."""
        return f"{self.name}/{self.version}"


@dataclass(frozen=True)
class DeleteAlias:
    """Take an alias away."""

    name: str
    alias: str

    @property
    def subject(self) -> str:
        """The alias."""
        return f"{self.name}@{self.alias}"


@dataclass(frozen=True)
class ChangeVersion:
    """`update` a version's description, `delete` it, or move it to a `stage`."""

    name: str
    version: str
    how: str

    @property
    def subject(self) -> str:
        """The version."""
        return f"{self.name}/{self.version}"


@dataclass(frozen=True)
class ChangeModel:
    """`delete` or `rename` a registered model."""

    name: str
    how: str

    @property
    def subject(self) -> str:
        """The model."""
        return self.name


@dataclass(frozen=True)
class WriteArtifact:
    """`put` a file of the artifact root, one by parts, or `delete` what is there and below."""

    path: str
    how: str

    @property
    def subject(self) -> str:
        """The path."""
        return self.path


@dataclass(frozen=True)
class WriteRun:
    """Log to a run, tag it, end it, delete it, restore it."""

    run_ids: tuple[str, ...]
    how: str

    @property
    def subject(self) -> str:
        """The run, or the runs that the request names."""
        return " ".join(self.run_ids)


@dataclass(frozen=True)
class WriteLoggedModel:
    """Tag a logged model, finalize it, delete it, log to it."""

    model_ids: tuple[str, ...]
    how: str

    @property
    def subject(self) -> str:
        """The logged model, or those that the request names."""
        return " ".join(self.model_ids)


@dataclass(frozen=True)
class DeleteExperiment:
    """And all its runs with it."""

    experiment_id: str

    @property
    def subject(self) -> str:
        """The experiment."""
        return self.experiment_id


@dataclass(frozen=True)
class CreateExperiment:
    """With a place of its own for artifacts, where one is named."""

    name: str
    artifact_location: str

    @property
    def subject(self) -> str:
        """The experiment's name."""
        return self.name


@dataclass(frozen=True)
class ManageAccount:
    """Make, change or delete an account: MLflow says who may, and the log says who did."""

    username: str
    how: str

    @property
    def subject(self) -> str:
        """Whose account."""
        return self.username


@dataclass(frozen=True)
class Closed:
    """Something this server does not do."""

    what: str
    sentence: str

    @property
    def subject(self) -> str:
        """The route."""
        return self.what


Action = (
    TagVersion
    | TagOther
    | CreateVersion
    | SetAlias
    | DeleteAlias
    | ChangeVersion
    | ChangeModel
    | WriteArtifact
    | WriteRun
    | WriteLoggedModel
    | DeleteExperiment
    | CreateExperiment
    | ManageAccount
    | Closed
)

# ---------------------------------------------------------------- names that look alike

# fmt: off
_ALIKE = {
    ord(other): latin
    for latin, others in {
        "a": "аαɑ", "c": "сϲ", "d": "ԁ", "e": "еε", "f": "ϝ", "g": "ɡց", "h": "һհ",  # noqa: RUF001
        "i": "іιı", "l": "ӏǀ", "m": "м", "n": "ոηп", "o": "оοօ", "p": "рρ", "r": "г",  # noqa: RUF001
        "s": "ѕ", "t": "тτ", "u": "υս", "v": "νѵ", "w": "ԝω", ".": "。·",  # noqa: RUF001
    }.items()
    for other in others
}
# fmt: on
"""Letters of other alphabets that are drawn like Latin ones, after folding."""


def skeleton(text: str) -> str:
    """What `text` looks like: compatibility forms, case, marks, spaces and hyphens folded."""
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text)).casefold()
    kept = "".join(each for each in plain if unicodedata.category(each)[0] not in "MCZ")
    return kept.translate(_ALIKE).replace("-", "").replace("_", "")


_LIKE_ALIAS = {skeleton(alias): alias for alias in PROTECTED_ALIASES}
_LIKE_TAG = tuple(skeleton(prefix) for prefix in RESERVED_PREFIXES)


def protected_alias(alias: str) -> str | None:
    """The protected alias that `alias` is or looks like."""
    return _LIKE_ALIAS.get(skeleton(alias))


def is_reserved(key: str) -> bool:
    """Whether a tag's key is reserved, or looks like one that is."""
    alike = skeleton(key)
    return alike == APPROVAL or alike.startswith(_LIKE_TAG)


def is_exact(key: str) -> bool:
    """Whether a reserved key is spelled as it must be."""
    return key == APPROVAL or (key.startswith(RESERVED_PREFIXES) and key.isascii())


# ---------------------------------------------------------------- where a request would go


class Route(NamedTuple):
    """The function that will answer, by name, and the parts of the path that it gets."""

    name: str
    native: bool
    """Of FastAPI; else of Flask below it."""
    values: Mapping[str, Any]


class NotFound(Exception):
    """No route: the app would say so, too."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


_LONGEST_REMEMBERED = 400


class Routes:
    """The routers of an app that MLflow made."""

    def __init__(self, app: Any, flask_app: Any) -> None:
        self._native = list(_leaves(app.routes))
        self._flask = flask_app.url_map.bind("localhost")
        self._found = lru_cache(maxsize=4096)(self._look_up)

    def find(self, scope: "Scope", path: str, method: str) -> Route:
        """Where the request goes. Raises NotFound where it goes nowhere, or elsewhere by a detour.

        MLflow would redirect a doubled slash, and its permissions refuse that to all but admins.
        """
        # What is remembered is asked for before anybody is known, so it is kept small.
        look_up = self._found if len(path) <= _LONGEST_REMEMBERED else self._look_up
        found = look_up(str(scope["path"]), str(scope.get("root_path", "")), path, method)
        if isinstance(found, int):
            raise NotFound(found)
        return found

    def _look_up(self, whole: str, root: str, path: str, method: str) -> Route | int:
        from starlette.routing import Match
        from werkzeug.exceptions import HTTPException
        from werkzeug.routing import RequestRedirect

        as_routed = {"type": "http", "path": whole, "root_path": root, "method": method}
        for route in self._native:
            match, child = route.matches(as_routed)
            if match is Match.FULL:
                return Route(str(route.name), native=True, values=child.get("path_params", {}))
        try:
            rule, values = self._flask.match(path, method, return_rule=True)
        except RequestRedirect:
            return 404
        except HTTPException as error:
            return error.code or 404
        return Route(str(rule.endpoint), native=False, values=values)


def _leaves(routes: Sequence[Any]) -> Any:
    """Native routes, those of included routers among them; the mounted Flask app is no route."""
    for route in routes:
        if hasattr(route, "effective_candidates"):
            yield from _leaves(route.effective_candidates())
        elif getattr(route, "methods", None):
            yield route


# ---------------------------------------------------------------- bodies


def json_of(body: bytes | None) -> dict[str, Any]:
    """The body as MLflow's handlers read it, whatever type it says it has. Raises Unreadable."""
    if body is None:
        raise Unreadable(f"the body has more than {MAX_BODY_BYTES:,} bytes")
    try:
        value = json.loads(body) if body.strip() else {}
        if isinstance(value, str):  # older clients send JSON in JSON
            value = json.loads(value)
    except (ValueError, RecursionError):
        raise Unreadable("the body is not JSON") from None
    if not isinstance(value, dict):
        raise Unreadable("the body is no JSON object")
    return value


def _message_of(body: bytes | None, kind: str) -> Any:
    """The body as the protobuf message that the handler makes of it."""
    from google.protobuf.json_format import ParseDict, ParseError
    from mlflow.protos import model_registry_pb2, service_pb2

    home = model_registry_pb2 if hasattr(model_registry_pb2, kind) else service_pb2
    message: Message = getattr(home, kind)()
    told = json_of(body)
    for each in message.DESCRIPTOR.fields:
        if each.name != each.json_name and each.name in told and each.json_name in told:
            raise Unreadable(f"the body names {each.name} twice")
    try:
        ParseDict(told, message, ignore_unknown_fields=True)
    except (ParseError, RecursionError):
        raise Unreadable(f"the body is no {kind}") from None
    return message


def safe_path(path: str) -> str:
    """A path of the artifact root as the store will see it. Raises Unreadable."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.uri import validate_path_is_safe

    if len(path) > _LONGEST_PATH:  # nobody is known yet, and every folder above it is looked up
        raise Unreadable(f"the path has more than {_LONGEST_PATH:,} characters")
    try:
        safe = str(validate_path_is_safe(path))  # type: ignore[no-untyped-call]
    except (MlflowException, ValueError):
        raise Unreadable("the path is not one below the artifact root") from None
    if "\\" in path or "\\" in safe:  # SeaweedFS takes one for a slash
        raise Unreadable("the path has a backslash, which some stores take for a slash")
    plain = posixpath.normpath(safe).strip("/")
    return "" if plain == "." else plain


def refuse_nulls(asked: Sequence[Action]) -> None:
    """PostgreSQL takes no null letter, so it could not be asked. Raises Unreadable."""
    if any("\0" in word for action in asked for word in _words(tuple(vars(action).values()))):
        raise Unreadable("it holds a null letter, which no name does")


def _words(told: Any) -> Iterator[str]:
    if isinstance(told, str):
        yield told
    elif isinstance(told, tuple):
        for each in told:
            yield from _words(each)


# ---------------------------------------------------------------- what each route would do


@dataclass(frozen=True)
class Request:
    """What readers of routes look at."""

    values: Mapping[str, Any]
    query: str
    body: bytes | None = field(repr=False)
    """Empty where the path is enough; None where there is too much of it."""


Reader = Callable[[Request], Sequence[Action]]


@dataclass(frozen=True)
class Guard:
    """How a route is read."""

    read: Reader
    needs_body: bool = True
    streams: bool = False
    """A file is on its way: looked at again before its last bytes go through."""


def _number(version: str) -> str:
    """One spelling for a version: MLflow's handlers take 01 and +1 for 1."""
    try:
        return str(int(version))
    except ValueError:
        return version


def _tag_version(request: Request) -> Sequence[Action]:
    told = _message_of(request.body, "SetModelVersionTag")
    return [TagVersion(told.name, _number(told.version), told.key, told.value)]


def _untag_version(request: Request) -> Sequence[Action]:
    told = _message_of(request.body, "DeleteModelVersionTag")
    return [TagVersion(told.name, _number(told.version), told.key, None)]


def _create_version(request: Request) -> Sequence[Action]:
    told = _message_of(request.body, "CreateModelVersion")
    tags = tuple((tag.key, tag.value) for tag in told.tags)
    return [CreateVersion(told.name, told.source, told.run_id, told.model_id, tags)]


def _create_model(request: Request) -> Sequence[Action]:
    told = _message_of(request.body, "CreateRegisteredModel")
    return [TagOther("model", told.name, tuple(tag.key for tag in told.tags))]


def _tag_model(kind: str) -> Reader:
    def read(request: Request) -> Sequence[Action]:
        told = _message_of(request.body, kind)
        return [TagOther("model", told.name, (told.key,))]

    return read


def _create_logged_model(request: Request) -> Sequence[Action]:
    told = _message_of(request.body, "CreateLoggedModel")
    return [TagOther("logged model", told.name, tuple(tag.key for tag in told.tags))]


def _tag_logged_model(request: Request) -> Sequence[Action]:
    told, model_id = (
        _message_of(request.body, "SetLoggedModelTags"),
        str(request.values["model_id"]),
    )
    keys = tuple(tag.key for tag in told.tags)
    return [WriteLoggedModel((model_id,), "tag"), TagOther("logged model", model_id, keys)]


def _untag_logged_model(request: Request) -> Sequence[Action]:
    model_id = str(request.values["model_id"])
    keys = (str(request.values["tag_key"]),)
    return [WriteLoggedModel((model_id,), "tag"), TagOther("logged model", model_id, keys)]


def _logged_model(how: str) -> Guard:
    def read(request: Request) -> Sequence[Action]:
        # MLflow asks permission for the path's model, and some handlers write to the body's.
        named = _named(json_of(request.body), "model_id", "modelId")
        return [WriteLoggedModel((str(request.values["model_id"]), *named), how)]

    return Guard(read)


def _set_alias(request: Request) -> Sequence[Action]:
    told = _message_of(request.body, "SetRegisteredModelAlias")
    return [SetAlias(told.name, told.alias, _number(told.version))]


def _delete_alias(request: Request) -> Sequence[Action]:
    told = _message_of(request.body, "DeleteRegisteredModelAlias")
    return [DeleteAlias(told.name, told.alias)]


def _version(kind: str, how: str) -> Guard:
    def read(request: Request) -> Sequence[Action]:
        told = _message_of(request.body, kind)
        return [ChangeVersion(told.name, _number(told.version), how)]

    return Guard(read)


def _model(kind: str, how: str) -> Guard:
    def read(request: Request) -> Sequence[Action]:
        return [ChangeModel(_message_of(request.body, kind).name, how)]

    return Guard(read)


def _run(how: str) -> Guard:
    def read(request: Request) -> Sequence[Action]:
        # Every spelling that a handler takes: which of them it takes is its business.
        told = json_of(request.body)
        metrics = told.get("metrics")
        measured = [told, *(metrics if isinstance(metrics, list) else [])]
        models = {name for each in measured for name in _named(each, "model_id", "modelId")}
        if len(models) > _MOST_MODELS:
            raise Unreadable(f"the body names more than {_MOST_MODELS:,} logged models")
        runs = _named(told, "run_id", "runId", "run_uuid", "runUuid")
        # A run's metrics may be a logged model's, too.
        of_models = [WriteLoggedModel(tuple(sorted(models)), how)] if models else []
        return [WriteRun(runs, how), *of_models]

    return Guard(read)


def _named(told: Any, *keys: str) -> tuple[str, ...]:
    """What stands under these keys."""
    given = [told.get(key) for key in keys] if isinstance(told, dict) else []
    return tuple(sorted({str(each) for each in given if each}))


def _artifact(how: str, *, streams: bool = False) -> Guard:
    def read(request: Request) -> Sequence[Action]:
        return [WriteArtifact(safe_path(str(request.values["artifact_path"])), how)]

    return Guard(read, needs_body=False, streams=streams)


def _multipart(how: str) -> Guard:
    """Its folder stands in the path, its file in the body: the store takes the body's last part."""

    def read(request: Request) -> Sequence[Action]:
        folder = safe_path(str(request.values["artifact_path"]))
        name = json_of(request.body).get("path")
        if not isinstance(name, str) or not name:
            raise Unreadable("the body names no file")
        return [WriteArtifact(safe_path(posixpath.join(folder, posixpath.basename(name))), how)]

    return Guard(read)


def _upload_to_run(request: Request) -> Sequence[Action]:
    if request.body is None:
        raise Unreadable(f"the file has more than {MAX_BODY_BYTES:,} bytes")
    told = parse_qs(request.query, keep_blank_values=True)
    for path in told.get("path", []):
        safe_path(path)
    return [WriteRun(tuple(told.get("run_uuid", [])), "artifact")]


def _delete_experiment(request: Request) -> Sequence[Action]:
    return [DeleteExperiment(_message_of(request.body, "DeleteExperiment").experiment_id)]


def _create_experiment(request: Request) -> Sequence[Action]:
    told = _message_of(request.body, "CreateExperiment")
    return [CreateExperiment(told.name, told.artifact_location)]


def _account(how: str) -> Guard:
    def read(request: Request) -> Sequence[Action]:
        return [ManageAccount(str(json_of(request.body).get("username", ""))[:256], how)]

    return Guard(read)


def _closed(what: str, sentence: str) -> Guard:
    return Guard(lambda request: [Closed(what, sentence)], needs_body=False)


_NO_ASSISTANT = "This server runs no assistant: it would run commands on the server's machine."
_NO_WORKSPACES = "This server has no workspaces: the gate names models without them."
_NO_DEMO = "This server takes no demo data: MLflow would delete what it takes for its own."
_NO_SIGN_UP = "Accounts are made by an admin, through /api/2.0/mlflow/users/create."
_NO_PRESIGNED = (
    "Files go through the server here, not to the bucket by a presigned URL: such a URL could "
    "still be written to after the files were evaluated."
)

GUARDED: dict[str, Guard] = {
    "_set_model_version_tag": Guard(_tag_version),
    "_delete_model_version_tag": Guard(_untag_version),
    "_create_model_version": Guard(_create_version),
    "_create_registered_model": Guard(_create_model),
    "_set_registered_model_tag": Guard(_tag_model("SetRegisteredModelTag")),
    "_delete_registered_model_tag": Guard(_tag_model("DeleteRegisteredModelTag")),
    "_create_logged_model": Guard(_create_logged_model),
    "_set_logged_model_tags": Guard(_tag_logged_model),
    "_delete_logged_model_tag": Guard(_untag_logged_model, needs_body=False),
    "_finalize_logged_model": _logged_model("finalize"),
    "_delete_logged_model": _logged_model("delete"),
    "_log_logged_model_params": _logged_model("log params"),
    "_set_registered_model_alias": Guard(_set_alias),
    "_delete_registered_model_alias": Guard(_delete_alias),
    "_update_model_version": _version("UpdateModelVersion", "update"),
    "_delete_model_version": _version("DeleteModelVersion", "delete"),
    "_transition_stage": _version("TransitionModelVersionStage", "stage"),
    "_delete_registered_model": _model("DeleteRegisteredModel", "delete"),
    "_rename_registered_model": _model("RenameRegisteredModel", "rename"),
    "upload_artifact": _artifact("put", streams=True),
    "_upload_artifact": _artifact("put", streams=True),
    "_delete_artifact_mlflow_artifacts": _artifact("delete"),
    "_create_multipart_upload_artifact": _multipart("begin by parts"),
    "_complete_multipart_upload_artifact": _multipart("end by parts"),
    "_abort_multipart_upload_artifact": _multipart("drop parts"),
    "serve_upload_artifact": Guard(_upload_to_run),
    "_create_presigned_upload_url": _closed("presigned upload", _NO_PRESIGNED),
    "_log_metric": _run("metric"),
    "_log_param": _run("param"),
    "_log_batch": _run("batch"),
    "_log_model": _run("model"),
    "_log_inputs": _run("inputs"),
    "_log_outputs": _run("outputs"),
    "_set_tag": _run("tag"),
    "_delete_tag": _run("delete tag"),
    "_update_run": _run("update"),
    "_delete_run": _run("delete"),
    "_restore_run": _run("restore"),
    "_link_traces_to_run": _run("traces"),
    "_delete_experiment": Guard(_delete_experiment),
    "_create_experiment": Guard(_create_experiment),
    "create_user": _account("create"),
    "delete_user": _account("delete"),
    "update_user_password": _account("password"),
    "update_user_admin": _account("admin"),
    "<lambda>": _closed("sign-up", _NO_SIGN_UP),
    "_create_workspace_handler": _closed("workspace", _NO_WORKSPACES),
    "_update_workspace_handler": _closed("workspace", _NO_WORKSPACES),
    "_delete_workspace_handler": _closed("workspace", _NO_WORKSPACES),
    "_generate_demo": _closed("demo", _NO_DEMO),
    "_delete_demo": _closed("demo", _NO_DEMO),
    "send_message": _closed("assistant", _NO_ASSISTANT),
    "patch_session": _closed("assistant", _NO_ASSISTANT),
    "resolve_permission": _closed("assistant", _NO_ASSISTANT),
    "resolve_client_tool_result": _closed("assistant", _NO_ASSISTANT),
    "update_config": _closed("assistant", _NO_ASSISTANT),
    "install_skills_endpoint": _closed("assistant", _NO_ASSISTANT),
}

ORDINARY = frozenset(
    # Searches that are posts, and GraphQL, whose mutations search and echo.
    "_batch_get_trace_infos _calculate_trace_filter_correlation _get_latest_versions _graphql "
    "_query_trace_metrics _search_evaluation_datasets_handler _search_experiments _search_issues "
    "_search_logged_models _search_prompt_optimization_jobs _search_runs _search_traces_v3 "
    "serve_search_datasets _create_presigned_download_url search_jobs _not_implemented "
    # Experiments and new runs.
    "_create_run _delete_experiment_tag _restore_experiment _set_experiment_tag _update_experiment "
    "serve_create_promptlab_run _update_registered_model "
    # Traces, assessments, labels, datasets, issues.
    "_create_assessment _delete_assessment _update_assessment _delete_trace_tag "
    "_delete_trace_tag_v3 _delete_traces _deprecated_end_trace_v2 _deprecated_start_trace_v2 "
    "_set_trace_tag _set_trace_tag_v3 _start_trace_v3 _link_prompts_to_trace export_traces "
    "_create_label_schema _delete_label_schema _update_label_schema _create_review_queue "
    "_delete_review_queue _update_review_queue _get_or_create_user_queue "
    "_add_items_to_review_queue _remove_items_from_review_queue _set_review_queue_item_status "
    "_create_dataset_handler _delete_dataset_handler _delete_dataset_records_handler "
    "_delete_dataset_tag_handler _set_dataset_tags_handler _upsert_dataset_records_handler "
    "_add_dataset_to_experiments_handler _remove_dataset_from_experiments_handler _create_issue "
    "_update_issue _register_scorer _delete_scorer _upsert_online_scoring_config "
    # Jobs: this server runs none, and says so.
    "submit_job cancel_job _cancel_job _create_prompt_optimization_job "
    "_delete_prompt_optimization_job _cancel_prompt_optimization_job "
    "_invoke_genai_evaluate_handler _invoke_issue_detection_handler _invoke_scorer_handler "
    # Webhooks, telemetry, permissions: never looked at by the gate.
    "_create_webhook _delete_webhook _update_webhook _test_webhook serve_post_ui_telemetry "
    "add_role_permission assign_role create_role delete_role grant_user_permission "
    "remove_role_permission revoke_user_permission unassign_role update_role "
    "update_role_permission "
    # The gateway to models, and MCP servers.
    "_add_guardrail_to_endpoint _attach_model_to_gateway_endpoint _create_budget_policy "
    "_create_gateway_endpoint _create_gateway_endpoint_binding _create_gateway_guardrail "
    "_create_gateway_model_definition _create_gateway_secret _delete_budget_policy "
    "_delete_gateway_endpoint _delete_gateway_endpoint_binding _delete_gateway_endpoint_tag "
    "_delete_gateway_guardrail _delete_gateway_model_definition _delete_gateway_secret "
    "_detach_model_from_gateway_endpoint _remove_guardrail_from_endpoint "
    "_set_gateway_endpoint_tag _update_budget_policy _update_endpoint_guardrail_config "
    "_update_gateway_endpoint _update_gateway_model_definition _update_gateway_secret "
    "serve_gateway_proxy invocations chat_completions openai_passthrough_chat "
    "openai_passthrough_embeddings typesafe_passthrough_system_one "
    "openai_passthrough_responses openai_passthrough_responses_compact "
    "anthropic_passthrough_messages gemini_passthrough_generate_content "
    "gemini_passthrough_stream_generate_content raw_proxy create_mcp_server "
    "set_mcp_server_version_tag delete_mcp_server_version_tag update_mcp_server_version "
    "delete_mcp_server_version create_mcp_server_version create_mcp_access_endpoint "
    "update_mcp_access_endpoint delete_mcp_access_endpoint set_mcp_server_tag "
    "delete_mcp_server_tag set_mcp_server_alias delete_mcp_server_alias update_mcp_server "
    "delete_mcp_server".split()
)


def guard_of(route: Route) -> Guard | None:
    """How the route is read; None where it is ordinary."""
    if route.name in ORDINARY:
        return None
    return GUARDED.get(route.name) or _closed(
        route.name,
        f"This server does not know what {route.name} writes, and lets nothing through that it "
        "does not know; use MLflow 3.17.",
    )
