"""The gate: what every request to the MLflow server passes, and the app that has it around.

Reads   the environment (see `Gate.from_environment`), and requests
Gives   `create_app`, for `mlflow server --app-name dpoflow-gate`
Not     the rules (rules.py), what a request would do (actions.py), our own endpoints (api.py)

A guarded action is judged and written to the log in one turn that nobody else's falls into; then
it happens. Where it does not happen after all, a row says so. Ordinary writes cost a look at the
path, and a look-up by primary key where they touch a run, a logged model or a file.
"""

import json
import logging
import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dpoflow.contracts.errors import ConfigError, DataRejected, DpoflowError
from dpoflow.registry.gate import actions as act
from dpoflow.registry.gate import audit, rules
from dpoflow.registry.gate.api import Api, Reply
from dpoflow.registry.gate.audit import Log
from dpoflow.registry.gate.book import UNDONE, Book
from dpoflow.registry.gate.case import Case, read_case, trusted_signers
from dpoflow.registry.gate.facts import Seal, StoreFacts, seal, unseal
from dpoflow.registry.gate.identity import BasicAuth, Identity
from dpoflow.registry.gate.roles import Roles
from dpoflow.registry.gate.rules import Allowed, Denied, Who, World
from dpoflow.tracking.settings import quiet_mlflow

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

DAYS = "DPOFLOW_APPROVAL_DAYS"
RECORDED = "version-recorded"
_LOG = logging.getLogger("dpoflow.gate")


def create_app() -> Any:
    """MLflow's app with basic-auth, and the gate around it."""
    quiet_mlflow()
    os.environ.setdefault("_MLFLOW_SGI_NAME", "uvicorn")
    from mlflow.server import app as flask_app
    from mlflow.server import auth

    app = auth.create_app(flask_app)
    if not hasattr(app, "router"):
        raise ConfigError(
            "the gate stands around MLflow under uvicorn, and this server is another; start it "
            "with dpoflow server"
        )
    return guarded(app, flask_app, BasicAuth(), os.environ)


def guarded(
    app: Any, flask_app: Any, identity: Identity, environment: Mapping[str, str]
) -> "ASGIApp":
    """The app behind the gate, and the gate behind MLflow's own checks of Host and Origin."""
    from mlflow.server import fastapi_security as security

    if environment.get("MLFLOW_ENABLE_WORKSPACES", "").lower() in ("true", "1"):
        raise ConfigError(
            "the gate knows models without workspaces; unset MLFLOW_ENABLE_WORKSPACES"
        )
    outer: ASGIApp = Gate(app, flask_app, Office.from_environment(identity, environment))
    outer = security.CORSBlockingMiddleware(outer, security.get_allowed_origins())
    hosts = security.get_allowed_hosts()
    if "*" not in hosts:
        outer = security.HostValidationMiddleware(outer, hosts)
    return outer


@dataclass(frozen=True)
class Office:
    """What the gate decides with."""

    identity: Identity
    roles: Roles
    log: Log
    facts: StoreFacts
    trusted: frozenset[str]
    approval_days: float

    @classmethod
    def from_environment(cls, identity: Identity, environment: Mapping[str, str]) -> "Office":
        """Raises what keeps the server from starting."""
        from mlflow.server.constants import BACKEND_STORE_URI_ENV_VAR, REGISTRY_STORE_URI_ENV_VAR

        backend = environment.get(BACKEND_STORE_URI_ENV_VAR, "")
        registry = environment.get(REGISTRY_STORE_URI_ENV_VAR) or backend
        if not backend or registry != backend:
            raise ConfigError(
                "the gate keeps its log beside runs and models: give one --backend-store-uri, and "
                "no other --registry-store-uri"
            )
        engine = audit.engine_of(backend)
        log = Log(engine, audit.key_of(environment))
        log.prepare()
        return cls(
            identity=identity,
            roles=Roles(environment),
            log=log,
            facts=StoreFacts(engine),
            trusted=trusted_signers(environment),
            approval_days=_days(environment),
        )

    def who(self, user: str) -> Who:
        """A user with the roles they hold now."""
        return Who(user, self.roles.of(user))

    def is_reviewer(self, user: str) -> bool:
        """Whether the account is there and has the role."""
        return "reviewer" in self.roles.of(user) and self.identity.has_account(user)

    def may_edit(self, user: str, experiment_id: str) -> bool:
        """Whether MLflow lets the user write to the experiment."""
        return self.identity.may_edit(user, experiment_id)

    def world(self, rows: Any, case: Case | DataRejected | None = None) -> World:
        """What a judgement rests on, over the log as `rows` reads it."""
        return World(
            facts=self.facts,
            book=Book(rows),
            people=self,
            now=datetime.fromisoformat(audit.now()),
            approval_days=self.approval_days,
            trusted=self.trusted,
            case=case,
        )

    def case(self, name: str, version: str) -> Case | DataRejected:
        """What speaks for a version, or what does not fit."""
        found = self.facts.version(name, version)
        model = self.facts.logged_model(found.model_id) if found and found.model_id else None
        if found is None or model is None:
            return DataRejected("it names no logged model, so it has no evidence")
        try:
            return read_case(found, model)
        except DataRejected as error:
            return error

    def settle(self, passed: "Passed", status: int, body: bytes) -> None:
        """Say of what was allowed and did not happen that it did not; seal what did."""
        if 200 <= status < 400:
            recorded = _version_of(body) if passed.allowed.seals else None
            if recorded:
                actor, detail = passed.rows[0].actor, passed.rows[0].detail
                seals = [Seal("version", recorded, actor, ""), *passed.allowed.seals]
                with self.log.exclusively() as turn:
                    turn.append(actor, RECORDED, recorded, "allowed", detail)
                    seal(turn.connection, seals)  # another, that failed, may have taken some away
            return
        if not passed.rows:
            return
        with self.log.exclusively() as turn:
            for entry in passed.rows:
                model = entry.detail.get("model")
                detail = {"row": entry.seq, "status": status, "model": model}
                turn.append(entry.actor, UNDONE, entry.subject, "allowed", detail)
            # Of what this request sealed, a version that was recorded meanwhile may need some.
            if passed.fresh and not turn.rows([RECORDED], after=passed.rows[0].seq):
                unseal(turn.connection, passed.fresh)


@dataclass(frozen=True)
class Passed:
    """What was decided of a request."""

    allowed: Allowed
    rows: tuple[audit.Entry, ...] = ()
    """What the log says of it."""
    fresh: tuple[Seal, ...] = ()
    """What this request sealed; unsealed where nothing comes of it."""

    @property
    def is_ordinary(self) -> bool:
        """Whether the gate has nothing to do but to step aside."""
        return not (self.rows or self.allowed.by_gate or self.allowed.seals)


class Gate:
    """The middleware."""

    def __init__(self, app: Any, flask_app: Any, office: Office) -> None:
        from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
        from starlette.middleware.exceptions import ExceptionMiddleware

        self._app, self._flask, self._office = app, flask_app, office
        self._routes = act.Routes(app, flask_app)
        self._api = Api(office)
        # As FastAPI wraps its router, without the middleware that asks for permissions.
        self._past_permissions = ExceptionMiddleware(AsyncExitStackMiddleware(app.router))

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Let a request through, or answer it."""
        from starlette._utils import get_route_path

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, path = str(scope["method"]).upper(), get_route_path(scope)
        try:
            if f"{path}/".startswith(f"{self._api.prefix}/"):
                await self._answer(scope, receive, send, method, path)
            elif method in act.READS:
                await self._app(scope, receive, send)
            else:
                await self._write(scope, receive, send, method, path)
        except Refused as refused:
            await _reply(send, refused.reply)

    async def _answer(
        self, scope: "Scope", receive: "Receive", send: "Send", method: str, path: str
    ) -> None:
        body = await _body(receive)
        query = scope["query_string"].decode("latin1")
        reply = await _in_thread(
            self._api.answer, method, path, query, body, scope.get("headers", [])
        )
        await _reply(send, reply)

    async def _write(
        self, scope: "Scope", receive: "Receive", send: "Send", method: str, path: str
    ) -> None:
        try:
            route = self._routes.find(scope, path, method)
        except act.NotFound as error:
            code = "ENDPOINT_NOT_FOUND"
            raise Refused(Reply.error(error.status, code, "There is no such route.")) from None
        guard = act.guard_of(route)
        if guard is None:
            await self._app(scope, receive, send)
            return
        body = await _body(receive) if guard.needs_body else b""
        first: Message = await receive() if guard.streams else {}
        if first:
            receive = _again(first, receive)
        request = act.Request(route.values, scope["query_string"].decode("latin1"), body)
        passed = await _in_thread(self._pass, scope, route, guard, request)
        if guard.needs_body and body is not None:
            scope, receive = _as_read(scope, body, receive)
        if first.get("more_body") and passed.is_ordinary:
            await self._stream(scope, receive, send, route, guard, request)
        elif passed.is_ordinary:
            await self._app(scope, receive, send)
        else:
            await self._do(scope, receive, send, route, body or b"", passed)

    # ------------------------------------------------------------ deciding, in a thread

    def _pass(
        self, scope: "Scope", route: act.Route, guard: act.Guard, request: act.Request
    ) -> Passed:
        """What was decided. Raises Refused."""
        try:
            asked = guard.read(request)
            act.refuse_nulls(asked)
        except act.Unreadable as error:
            asked = [act.Closed(route.name, f"This cannot be judged, so it is refused: {error}.")]
        cared_for = [each for each in asked if rules.is_guarded(each, self._office.facts)]
        return self._judge(scope, cared_for) if cared_for else Passed(Allowed())

    def _judge(self, scope: "Scope", asked: list[act.Action]) -> Passed:
        office = self._office
        user = office.identity.user_of(scope.get("headers", []))
        where = {"method": scope["method"], "path": scope["path"]}
        if user is None:
            for each in asked:
                detail = where | {"why": "nobody this server knows"}
                office.log.append("", _name(each), each.subject, "denied", detail)
            raise Refused(Reply.unknown())
        who, cases = office.who(user), [self._case(each, user) for each in asked]
        rows: list[audit.Entry] = []
        allowed, fresh = Allowed(), list[Seal]()
        with office.log.exclusively() as turn:
            world = office.world(turn.rows)
            verdicts = [
                rules.judge(each, who, replace(world, case=case))
                for each, case in zip(asked, cases, strict=True)
            ]
            for each, verdict in zip(asked, verdicts, strict=True):
                if isinstance(verdict, Denied):
                    detail = where | {"why": verdict.sentence}
                    turn.append(user, _name(each), each.subject, "denied", detail)
                    refused = Reply.denied(verdict.sentence)
                    break
                allowed = verdict
            else:
                refused = None
                for each, verdict in zip(asked, verdicts, strict=True):
                    if isinstance(verdict, Allowed) and verdict.row:
                        detail = verdict.detail
                        rows.append(turn.append(user, verdict.row, each.subject, "allowed", detail))
                fresh = seal(turn.connection, allowed.seals)
        if refused:
            raise Refused(refused)
        return Passed(allowed, tuple(rows), tuple(fresh))

    def _case(self, action: act.Action, user: str) -> Case | DataRejected | None:
        """Read before the turn begins, since it may take a while."""
        if not isinstance(action, act.TagVersion) or action.key != act.APPROVAL:
            return None
        is_reviewer = "reviewer" in self._office.roles.of(user)
        return self._office.case(action.name, action.version) if is_reviewer else None

    # ------------------------------------------------------------ doing

    async def _stream(
        self,
        scope: "Scope",
        receive: "Receive",
        send: "Send",
        route: act.Route,
        guard: act.Guard,
        request: act.Request,
    ) -> None:
        """A file that may be on its way for long: looked at again before its last bytes."""
        refusal: list[Reply] = []

        async def looked_at_twice() -> "Message":
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body"):
                try:
                    await _in_thread(self._pass, scope, route, guard, request)
                except Refused as refused:
                    refusal.append(refused.reply)
                    return {"type": "http.disconnect"}
            return message

        async def unless_refused(message: "MutableMapping[str, Any]") -> None:
            if not refusal:
                await send(message)

        try:
            await self._app(scope, looked_at_twice, unless_refused)
        except Exception:
            if not refusal:
                raise
        if refusal:
            raise Refused(refusal[0])

    async def _do(
        self,
        scope: "Scope",
        receive: "Receive",
        send: "Send",
        route: act.Route,
        body: bytes,
        passed: Passed,
    ) -> None:
        heard = _Heard(send)
        try:
            if passed.allowed.by_gate and route.native:
                await self._past_permissions(scope, receive, heard)
            elif passed.allowed.by_gate:
                await _reply(heard, await _in_thread(self._perform, scope, route, body))
            else:
                await self._app(scope, receive, heard)
        finally:
            await _in_thread(self._office.settle, passed, heard.status, heard.body)
        await heard.flush()

    def _perform(self, scope: "Scope", route: act.Route, body: bytes) -> "Reply":
        """MLflow's own handler, past MLflow's permissions on the model: the gate has decided."""
        query = scope["query_string"].decode("latin1")
        with self._flask.test_request_context(
            "/",
            method=scope["method"],
            data=body,
            query_string=query,
            content_type="application/json",
        ):
            view = self._flask.view_functions[route.name]
            response = self._flask.make_response(view(**route.values))
            return Reply(response.status_code, response.get_data(), response.mimetype)


class _Heard:
    """Listens to an answer; its end is held back until the log has the last word."""

    def __init__(self, send: "Send") -> None:
        self._send, self._held = send, list[Any]()
        self.status, self.body = 0, b""

    async def __call__(self, message: "MutableMapping[str, Any]") -> None:
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")
        self._held.append(message)

    async def flush(self) -> None:
        """Pass it on. Answers to guarded writes are small."""
        for message in self._held:
            await self._send(message)


class Refused(Exception):
    """The answer is this, and nothing was written."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


def _name(action: act.Action) -> str:
    """What the log calls an attempt: `tag-version`, `set-alias`."""
    if isinstance(action, act.ChangeVersion | act.ChangeModel):
        return f"{action.how}-{'version' if isinstance(action, act.ChangeVersion) else 'model'}"
    name = type(action).__name__
    return "".join(f"-{each.lower()}" if each.isupper() else each for each in name).strip("-")


def _version_of(body: bytes) -> str | None:
    """NAME/VERSION of the version in the answer to a create call."""
    try:
        told = json.loads(body)["model_version"]
        return f"{told['name']}/{told['version']}"
    except (ValueError, KeyError, TypeError):
        return None


def _days(environment: Mapping[str, str]) -> float:
    text = environment.get(DAYS, "14")
    try:
        days = float(text)
    except ValueError:
        days = 0.0
    if not 0 < days < 3651:
        raise ConfigError(f"{DAYS} must be a number of days up to 3650, got {text!r}")
    return days


async def _body(receive: "Receive") -> bytes | None:
    """The whole body; None where it is larger than any that is judged."""
    from starlette.requests import ClientDisconnect

    chunks, size = list[bytes](), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > act.MAX_BODY_BYTES:
            return None
        if not message.get("more_body"):
            return b"".join(chunks)


def _as_read(scope: "Scope", body: bytes, receive: "Receive") -> tuple["Scope", "Receive"]:
    """The request with the body that was judged, and no header that says another length."""
    length = (b"content-length", str(len(body)).encode())
    lengths = (b"content-length", b"transfer-encoding", b"trailer")
    kept = [each for each in scope.get("headers", []) if each[0].lower() not in lengths]
    read: Message = {"type": "http.request", "body": body, "more_body": False}
    return {**scope, "headers": [*kept, length]}, _again(read, receive)


def _again(message: "Message", receive: "Receive") -> "Receive":
    """`receive` as it was before it gave `message`."""
    rest = [message]

    async def replay() -> "Message":
        return rest.pop() if rest else await receive()

    return replay


async def _in_thread(call: Any, *arguments: Any) -> Any:
    """The answer of `call`; what is away or broken is an answer, too: nothing happens then."""
    from anyio.to_thread import run_sync
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return await run_sync(lambda: call(*arguments))
    except DpoflowError as error:
        _LOG.error("%s", error)
        raise Refused(Reply.away(str(error))) from None
    except (SQLAlchemyError, MlflowException) as error:
        _LOG.error("%s", error)
        raise Refused(
            Reply.away(f"the registry does not answer ({type(error).__name__}); try again")
        ) from None


async def _reply(send: Any, reply: Reply) -> None:
    headers = [
        (b"content-type", reply.content_type.encode()),
        (b"content-length", str(len(reply.body)).encode()),
        (b"x-content-type-options", b"nosniff"),
    ]
    if reply.status == 401:
        headers.append((b"www-authenticate", b'Basic realm="mlflow"'))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})
