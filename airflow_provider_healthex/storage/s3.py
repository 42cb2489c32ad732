"""How a worker or a triggerer lists S3 and writes to it, and which of its errors are transient."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import botocore.session
from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.providers.common.compat.sdk import AirflowException
from asgiref.sync import sync_to_async
from botocore import exceptions as boto

from airflow_provider_healthex.delivery.hints import s3_hint
from airflow_provider_healthex.delivery.plan import Plan, Steps, Waiting, advance
from airflow_provider_healthex.delivery.s3_listing import IncompleteListing, S3Listing, UnusableListing
from airflow_provider_healthex.exceptions import HealthExConfigurationError, HealthExConnectionError, HealthExError
from airflow_provider_healthex.hooks.connection import ConnectionNotFound, find_connection
from airflow_provider_healthex.metrics import count_lists
from airflow_provider_healthex.storage.aws_errors import (
    ADVICE,
    DENIALS,
    Doing,
    advice_for,
    code_of,
    is_transient,
    operation_of,
    service_of,
)
from airflow_provider_healthex.storage.s3_rows import read_rows_fast, read_rows_in_thread

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

    from airflow_provider_healthex.delivery.template import Target

T = TypeVar("T")

WORKER = "worker"
TRIGGERER = "triggerer"

#: Seconds for opening a client, and for one listing with botocore's own retries. botocore's timeouts bound a single
#: read: an answer that drips, or whose end can't be found, holds it for ever.
REQUEST_LIMIT = 120.0
#: Threads of requests, those included that were given up: an answer that never ends holds its thread.
MAX_THREADS = 64
_THREAD = "healthex-s3"
#: Seconds for writing an object.
WRITE_LIMIT = 600.0
#: Seconds for a client to close.
CLOSE_LIMIT = 5.0


class _WithoutUrl(logging.Filter):
    """Takes the URL, whose query names patients, out of urllib3's warning about headers that can't be parsed."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Shorten the one text and keep every record."""
        if str(record.msg).startswith("Failed to parse headers"):
            record.msg, record.args, record.exc_info = "Failed to parse the headers of an HTTP response", (), None
        return True


logging.getLogger("urllib3.connection").addFilter(_WithoutUrl())


class _Unanswered(Exception):
    """A request took longer than its limit."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


@dataclass(frozen=True)
class AwsAccess:
    """How to reach AWS, with S3KeySensor's parameters; JSON, so that a trigger can carry it."""

    aws_conn_id: str | None
    region_name: str | None = None
    verify: bool | str | None = None
    botocore_config: dict[str, Any] | None = None

    def open_hook(self) -> S3Hook:
        """
        Return a new hook, with a session of its own.

        :raises ConnectionNotFound: where the connection doesn't exist. The amazon provider takes boto's own
            credentials then; so do we for ``aws_default``, which is the default rather than anybody's choice.
        :raises HealthExConnectionError: where Airflow could not look the connection up.
        """
        connection = self._connection()
        hook = S3Hook(
            aws_conn_id=self.aws_conn_id,
            region_name=self.region_name,
            verify=self.verify,
            config=self.botocore_config,
        )
        if connection is not None:  # not looked up twice: the second time, trouble would pass for "not found"
            hook.get_connection = lambda conn_id: connection  # type: ignore[method-assign]
        return hook

    def _connection(self) -> Connection | None:
        if not self.aws_conn_id:
            return None
        default = self.aws_conn_id == S3Hook.default_conn_name
        try:
            return find_connection(self.aws_conn_id, confirm=not default)
        except ConnectionNotFound:
            if default:
                return None
            raise


@dataclass
class _Bucket:
    """
    A bucket as one component lists it, over the pokes of one wait.

    :param name: the bucket's name.
    :param access: the AWS connection.
    :param component: ``worker`` or ``triggerer``: each may have other rights, so errors name it.
    :param listed: whether a listing succeeded before.
    """

    name: str
    access: AwsAccess
    component: str = WORKER
    listed: bool = False

    listing: ClassVar[type[S3Listing]] = S3Listing

    @property
    def bucket(self) -> str:
        """The name, as results have it."""
        return self.name

    def uri(self, key: str) -> str:
        """Return an object's URI."""
        return f"s3://{self.name}/{key}"

    def address(self, path: str) -> str:
        """Return a path as messages show it."""
        return repr(self.uri(path))

    def hint(self, target: Target) -> Steps[str | None]:
        """Plan how to find out why nothing matches a path."""
        return s3_hint(target, self.name)

    def trigger_arguments(self) -> dict[str, Any]:
        """Return what a trigger needs to list this bucket."""
        return {"bucket_name": self.name, "aws": asdict(self.access)}

    def _judge(self, error: Exception, doing: Doing) -> Waiting:
        """
        Return a transient error as a reason to wait, and raise any other.

        Not to be called where an exception is handled: botocore's texts quote URLs, which name patients, so that none
        may become a cause or context of what is raised here.
        """
        if isinstance(error, HealthExConnectionError):  # Airflow's trouble, not S3's
            return Waiting(str(error))
        if isinstance(error, _Unanswered):
            return Waiting(f"S3 did not answer the {self.component} within {error.seconds:g} s; {_RETRYING}")
        if isinstance(error, IncompleteListing):
            return Waiting(f"S3 returned an incomplete listing to the {self.component} ({error}); {_RETRYING}")
        code, operation = code_of(error), operation_of(error, doing)
        tried = code in DENIALS and self.listed and doing is not Doing.WRITING
        if doing is Doing.DECIDING or not (tried or is_transient(error)):
            raise self._permanent(error, doing)
        service = service_of(operation)
        if isinstance(error, boto.ClientError):
            named = "" if operation == doing.operation else f" ({operation})"
            return Waiting(f"{service} returned {code} to the {self.component}{named}; {_RETRYING}")
        return Waiting(f"{service} did not answer the {self.component} ({code}); {_RETRYING}")

    def _permanent(self, error: Exception, doing: Doing) -> Exception:
        """Return what to raise for a permanent error; an error that is none of S3's is itself."""
        if isinstance(error, HealthExConfigurationError) and not isinstance(error, UnusableListing):
            return error
        code, operation = code_of(error), operation_of(error, doing)
        service = service_of(operation)
        where = f"bucket {self.name!r}, aws_conn_id {self.access.aws_conn_id!r}"
        advice = advice_for(code, operation, doing)
        if isinstance(error, UnusableListing):
            text = f"S3 returned an unusable listing to the {self.component} ({where}): {error}."
        elif isinstance(error, boto.ClientError):
            text = f"{service} returned {code} to the {self.component} ({operation}, {where}): {advice}."
        elif doing is Doing.OPENING and isinstance(error, (ValueError, TypeError)):
            text = (
                f"The {self.component} can make no S3 client of aws_conn_id {self.access.aws_conn_id!r}: correct its "
                "settings, such as endpoint_url, which must begin with https:// or http://."
            )
        elif isinstance(error, (boto.BotoCoreError, AirflowException)) or code in ADVICE:
            text = f"{code} on the {self.component} ({operation}, {where}): {advice}."
        elif doing in (Doing.OPENING, Doing.DECIDING):
            return error
        else:
            text = (
                f"S3 returned to the {self.component} what can't be read ({operation}, {where}): {code}. Is the "
                "endpoint an S3 server?"
            )
        return HealthExConfigurationError(text)


_RETRYING = "retrying at the next poke"


class Bucket(_Bucket):
    """A bucket as a worker's boto3 sees it."""

    _client: Any = None

    def run(self, plan: Plan[T]) -> T | Waiting:
        """
        Make a plan's requests and return what they show.

        :returns: that, or a `Waiting` after a transient error; the next poke then has a new session.
        :raises HealthExConfigurationError: for a permanent error.
        """
        doing = Doing.OPENING
        try:
            client = self._client = self._client or self._open()
            answers: Any = None
            while True:
                doing = Doing.DECIDING
                batch = plan.send(answers)
                doing, answers = Doing.LISTING, []
                count_lists(len(batch))
                for some in _parts(batch, client):
                    calls = [partial(client.list_objects_v2, Bucket=self.name, **request) for request in some]
                    answers += _within(REQUEST_LIMIT, *calls)
                self.listed = True
        except StopIteration as end:
            self.listed = True
            return cast("T", end.value)
        except Exception as error:
            trouble = error
        self._client = None
        return self._judge(trouble, doing)

    def put(self, key: str, body: bytes | IO[bytes]) -> None:
        """
        Write an object; of a seekable file, only a piece at a time is in memory.

        :raises HealthExConfigurationError: for a permanent error.
        :raises HealthExError: for a transient one.
        """
        doing = Doing.OPENING
        try:
            client = self._open()
            doing = Doing.WRITING
            _within(WRITE_LIMIT, partial(client.put_object, Bucket=self.name, Key=key, Body=body))
            return
        except Exception as error:
            trouble = error
        what = self._judge(trouble, doing).reason.removesuffix(f"; {_RETRYING}")
        raise HealthExError(
            f"{what}: the manifest is not written. The delivery is there; a retry of the task writes it."
        )

    def _open(self) -> Any:
        return read_rows_fast(self.access.open_hook().get_conn())


class AsyncBucket(_Bucket):
    """A bucket as a triggerer's aiobotocore sees it. Use it as an asynchronous context manager."""

    _client: Any = None

    async def __aenter__(self) -> AsyncBucket:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        client, self._client = self._client, None
        if client is not None:
            with suppress(Exception):  # it is thrown away, whatever it says
                await _within_async(CLOSE_LIMIT, client.__aexit__(None, None, None))

    async def run(self, plan: Plan[T]) -> T | Waiting:
        """Do what `Bucket.run` does."""
        doing = Doing.OPENING
        try:
            client = self._client = self._client or await _within_async(REQUEST_LIMIT, self._open())
            answers: Any = None
            while True:
                doing = Doing.DECIDING
                # Thousands of rows take a moment, which the event loop must not spend.
                batch, end = await asyncio.to_thread(advance, plan, answers)
                if end is not None:
                    self.listed = True
                    return cast("T", end.value)
                doing, answers = Doing.LISTING, []
                count_lists(len(batch))
                for some in _parts(batch, client):
                    calls = [client.list_objects_v2(Bucket=self.name, **request) for request in some]
                    answers += await _within_async(REQUEST_LIMIT, _together(calls))
                self.listed = True
        except Exception as error:
            trouble = error
        await self.__aexit__()
        return self._judge(trouble, doing)

    async def _open(self) -> Any:
        # Reading a connection blocks, and must not happen on the triggerer's event loop.
        hook = await sync_to_async(self.access.open_hook)()
        own_session = hook.get_session
        hook.get_session = lambda *args, **kwargs: _with_data(own_session(*args, **kwargs))  # type: ignore[method-assign]
        return read_rows_in_thread(await (await hook.get_async_conn()).__aenter__())


def _with_data(session: Any) -> Any:
    """Load a session's data files here, in a thread: aiobotocore would in 0.2 s on the event loop."""
    other = botocore.session.Session()
    other.register_component("data_loader", session.get_component("data_loader"))
    with suppress(Exception):  # its own client meets the same, and says so
        other.create_client("s3", "us-east-1", aws_access_key_id="-", aws_secret_access_key="-")
    return session


def _parts(batch: Sequence[Any], client: Any) -> list[Sequence[Any]]:
    """Split a batch into what a client has connections for."""
    size: int = client.meta.config.max_pool_connections
    return [batch[first : first + size] for first in range(0, len(batch), size)]


def _within(seconds: float, *calls: Callable[[], T]) -> list[T]:
    """Return what calls return, or give them up after some seconds; their threads end when the server lets them."""
    if sum(thread.name == _THREAD for thread in threading.enumerate()) > MAX_THREADS - len(calls):
        raise _Unanswered(seconds)  # as those before it
    outcomes: list[Future[T]] = [Future() for _ in calls]

    def run(call: Callable[[], T], outcome: Future[T]) -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    for call, outcome in zip(calls, outcomes, strict=True):
        threading.Thread(target=run, args=(call, outcome), name=_THREAD, daemon=True).start()
    done, running = wait(outcomes, seconds, return_when=FIRST_EXCEPTION)
    for outcome in done:
        outcome.result()  # raises what failed
    if running:
        raise _Unanswered(seconds)
    return [outcome.result() for outcome in outcomes]


async def _within_async(seconds: float, call: Awaitable[T]) -> T:
    """Do what `_within` does, on an event loop."""
    try:
        async with asyncio.timeout(seconds) as limit:
            return await call
    except TimeoutError:
        if not limit.expired():  # the call's own
            raise
    raise _Unanswered(seconds)


async def _together(calls: Sequence[Awaitable[T]]) -> list[T]:
    """Return what calls return; after an error no request of them goes on, as the client is about to be closed."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
