"""The demo as a Flask app: the page, a JSON API, and the API's OpenAPI description.

The schemas below check what comes in and describe the API: one place for both.
"""

import re
from typing import Annotated, Literal, TypeVar

import flask
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.json_schema import models_json_schema
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge

from ..errors import UserError, first_problem, one_line
from .comparison import WAITING, Comparison, RefusedError

LONGEST, LONGEST_QUESTION = 12_000, 1_000  # characters: of English, 20 windows
MOST_BYTES = 12 * 2 * LONGEST + 1000  # of a body: two texts, 12 bytes for an escaped character

# Nothing is loaded from elsewhere, no script or style stands in the page itself.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def _without_null(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a null character: remove it")
    return text


def _legible(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty: write something")
    return _without_null(text)


Text = Annotated[str, Field(max_length=LONGEST), AfterValidator(_legible)]
Precision = Literal["fp32", "int8"]


class _Input(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    precision: Precision = "fp32"


class Question(_Input):
    """A question and the text that holds its answer."""

    question: Annotated[str, Field(max_length=LONGEST_QUESTION), AfterValidator(_legible)]
    context: Text


class Classification(_Input):
    """A text, or with `second` a pair of texts; a blank second is none."""

    text: Text
    second: Annotated[str, Field(max_length=LONGEST), AfterValidator(_without_null)] = ""


class Span(BaseModel):
    """An answer: characters `start` to `end` - 1 of the context, counted in code points."""

    text: str
    score: float = Field(description="sum of the start's and the end's logit")
    start: int
    end: int
    probability: float = Field(description="softmax over the best candidates' scores")


class _Row(BaseModel):
    model: str
    parameters: int
    megabytes: float = Field(description="of the weights' file, 1 MB = 1,000,000 bytes")
    milliseconds: float = Field(description="median of a few calls on this machine")
    truncated: bool = Field(description="text or question was cut to what the model reads")


class AnswerRow(_Row):
    """Answers of a model, best first."""

    answers: list[Span]


class LabelRow(_Row):
    """The label of a model with all probabilities; of a regression the score alone."""

    label: str | None = None
    labels: list[str] | None = Field(default=None, description="of a multi-label model, maybe none")
    probability: float | None = None
    probabilities: dict[str, float] | None = None
    score: float | None = None


class Problem(BaseModel):
    """What went wrong, in one line."""

    error: str


class LoadedModel(BaseModel):
    """A model and what is loaded of it: megabytes by precision."""

    name: str
    task: Literal["question-answering", "text-classification"]
    megabytes: dict[Precision, float]


class State(BaseModel):
    """What the server is doing, and the models it has."""

    doing: str = Field(description="empty when all is loaded")
    error: str = Field(description="empty when nothing went wrong")
    ready: dict[str, list[Precision]] = Field(description="precisions of each task")
    limits: dict[str, int] = Field(description="most characters of each field")
    models: list[LoadedModel]


REFUSALS = {
    400: "not JSON, or fields that are missing, empty or of another type",
    408: "the request did not arrive in time",
    413: "body or text too long, or a context of too many windows",
    415: "not application/json",
    421: "a Host header with the name of another machine",
    429: f"more than {WAITING} requests at a time",
    500: "a model of the task could not be loaded",
    503: "the models are loading, or there was no turn in time",
}


def describe() -> dict:
    """The OpenAPI 3.1 description of the API."""
    shown = (Question, Classification, AnswerRow, LabelRow, Problem, State)
    _, schemas = models_json_schema(
        [(model, "validation") for model in shown], ref_template="#/components/schemas/{model}"
    )

    def content(schema: dict) -> dict:
        return {"application/json": {"schema": schema}}

    def reference(model: type[BaseModel]) -> dict:
        return {"$ref": f"#/components/schemas/{model.__name__}"}

    def ask(name: str, summary: str, given: type[BaseModel], row: type[BaseModel]) -> dict:
        rows = {"type": "array", "items": reference(row)}
        refusals = {
            str(status): {"description": text, "content": content(reference(Problem))}
            for status, text in REFUSALS.items()
        }
        return {
            "post": {
                "operationId": name,
                "summary": summary,
                "requestBody": {"required": True, "content": content(reference(given))},
                "responses": {
                    "200": {"description": "a row for each model", "content": content(rows)}
                }
                | refusals,
            }
        }

    state = {"description": "the state", "content": content(reference(State))}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Teacher and student side by side",
            "version": "1.0.0",
            "description": f"A body has at most {MOST_BYTES:,} bytes. Errors are one line of JSON.",
        },
        "paths": {
            "/answer": ask("answer", "Answers to a question, cut from a text", Question, AnswerRow),
            "/classify": ask("classify", "Labels of a text", Classification, LabelRow),
            "/state": {
                "get": {
                    "operationId": "state",
                    "summary": "What is loaded, and what is still loading",
                    "responses": {"200": state},
                }
            },
        },
        "components": {"schemas": schemas["$defs"]},
    }


Input = TypeVar("Input", bound=_Input)


def read_body(schema: type[Input]) -> Input:
    """The request's JSON body, checked; UserError names the first field that is wrong."""
    if flask.request.mimetype != "application/json":
        flask.abort(415, "send JSON, with the header Content-Type: application/json")
    try:
        return schema.model_validate_json(flask.request.get_data())
    except ValidationError as error:
        message, kind = first_problem(error, "the body"), error.errors()[0]["type"]
    if kind == "string_too_long":
        raise RequestEntityTooLarge(message)
    raise UserError(message)


def create_app(comparison: Comparison, host: str = "127.0.0.1") -> flask.Flask:
    """The page and the API over models that may still be loading.

    `host`, where they are served, and the names of this machine are the only ones that requests may
    be for, unless it is every address. The name of a foreign page may lead here too.
    """
    app = flask.Flask(__name__)  # the page is in static/, beside this file
    app.config["MAX_CONTENT_LENGTH"] = MOST_BYTES
    described = describe()
    tasks = list(dict.fromkeys(model.task for model in comparison.models))
    limits = {"question": LONGEST_QUESTION} | dict.fromkeys(("context", "text", "second"), LONGEST)

    @app.before_request
    def refuse_other_hosts():
        given = flask.request.headers.get("Host", host)  # HTTP/1.0 may have none
        asked = re.sub(r":\d+$", "", given).strip("[]").lower()
        known = ("localhost", "127.0.0.1", "::1", host.lower())
        if host not in ("0.0.0.0", "::") and asked not in known:
            flask.abort(421, f"no request for the host {asked!r} is answered; ask for {host}")

    @app.get("/")
    def page():
        return app.send_static_file("page.html")

    @app.get("/openapi.json")
    def openapi():
        return described

    @app.get("/state")
    def state():
        # Before what is ready, which may be more by then: the page stops asking at the end.
        now = {"doing": comparison.doing, "error": comparison.error, "limits": limits}
        models = [
            {"name": model.name, "task": model.task, "megabytes": dict(model.megabytes)}
            for model in comparison.models
        ]
        ready = {
            task: [name for name in ("fp32", "int8") if comparison.is_ready(task, name)]
            for task in tasks
        }
        return State.model_validate(now | {"ready": ready, "models": models}).model_dump()

    @app.post("/answer")
    def answer():
        asked = read_body(Question)
        texts = (asked.question, asked.context)
        return comparison.ask("question-answering", asked.precision, *texts)

    @app.post("/classify")
    def classify():
        asked = read_body(Classification)
        return comparison.ask("text-classification", asked.precision, asked.text, asked.second)

    _report_errors(app)
    return app


def _report_errors(app: flask.Flask) -> None:
    """Every error is one line of JSON with its status; every answer has the headers."""

    def line(message: str, status: int):
        response = flask.jsonify(error=one_line(message))
        response.status_code = status
        if status in (429, 503):
            response.headers["Retry-After"] = "1"
        return response

    def http_line(error: HTTPException):
        response = line(error.description or error.name, error.code or 500)
        if isinstance(error, MethodNotAllowed):
            response.allow.update(error.valid_methods or ())
        return response

    app.register_error_handler(UserError, lambda error: line(str(error), 400))
    app.register_error_handler(RefusedError, lambda error: line(str(error), error.status))
    app.register_error_handler(HTTPException, http_line)

    @app.after_request
    def protect(response):
        response.headers.update(HEADERS)
        return response
