"""How S3 is asked, by a worker or a triggerer, and which of its refusals pass by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.providers.common.compat.sdk import AirflowException
from asgiref.sync import sync_to_async
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from airflow_provider_healthex.delivery.arrival import Waiting
from airflow_provider_healthex.exceptions import HealthExConfigurationError, HealthExConnectionError
from airflow_provider_healthex.hooks.connection import ConnectionNotFound, find_connection

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

    from airflow_provider_healthex.delivery.listing import Look

T = TypeVar("T")

LISTING, WRITING = "listing", "writing to"
_RIGHTS = {LISTING: "s3:ListBucket", WRITING: "s3:PutObject"}

WORKER = "worker"
TRIGGERER = "triggerer"

_PASSING_ERRORS = (
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    boto.CredentialRetrievalError,
    boto.MetadataRetrievalError,
    boto.TokenRetrievalError,
    ResponseParserError,
    asyncio.TimeoutError,
    OSError,
)
_PASSING_CODES = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InternalError",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
#: Refusals that a role just attached or a credential endpoint that is away for a moment cause as well: they are
#: final only where these credentials have never worked.
_DENIALS = frozenset({"AccessDenied", "AccessDeniedException", "AllAccessDisabled", "NoCredentialsError"})

_KEYS = "correct the access key and secret of the connection"
_REGION = "set the bucket's region as region_name, or in the connection's Extra"
_CERTIFICATE = "check the endpoint's certificate, verify, and the CA bundle"
_ADVICE = {
    "NoSuchBucket": "create the bucket, or correct bucket_name",
    "AccessDenied": "grant {right} on the bucket to these credentials",
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "NoCredentialsError": "give it an AWS connection, or credentials in its environment",
    "ParamValidationError": "correct bucket_name",
    "SSLError": _CERTIFICATE,
    "OSError": _CERTIFICATE,
    "FileNotFoundError": _CERTIFICATE,
}


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
    A bucket and how one component looks at it, over the polls of one wait.

    :param name: the bucket's name.
    :param access: the AWS connection.
    :param component: ``worker`` or ``triggerer``: each may have other rights, so errors name it.
    :param listed: whether a listing succeeded before.
    """

    name: str
    access: AwsAccess
    component: str = WORKER
    listed: bool = False

    @property
    def bucket(self) -> str:
        """The name, as results have it."""
        return self.name

    def uri(self, key: str) -> str:
        """Return an object's URI."""
        return f"s3://{self.name}/{key}"

    def trigger_arguments(self) -> dict[str, Any]:
        """Return what a trigger needs to look here."""
        return {"bucket_name": self.name, "aws": asdict(self.access)}

    @contextmanager
    def _opening(self) -> Iterator[None]:
        """Say whose fault it is where botocore can't even make a client of the settings."""
        try:
            yield
        except HealthExConfigurationError:
            raise
        except ValueError as error:
            raise HealthExConfigurationError(
                f"The {self.component} can make no S3 client of aws_conn_id={self.access.aws_conn_id!r}: correct its "
                "settings, such as endpoint_url, which must begin with https:// or http://."
            ) from error

    def _judge(self, error: Exception, doing: str = LISTING) -> Waiting:
        """Return what passes as a reason to wait, and raise what doesn't."""
        if isinstance(error, HealthExConnectionError):  # Airflow's trouble, not S3's
            return Waiting(str(error))
        code = _code(error)
        if _passes(error, code) or (code in _DENIALS and self.listed and doing == LISTING):
            return Waiting(f"S3 did not answer the {self.component} ({code}), asking again")
        if code not in _ADVICE and not isinstance(error, (boto.BotoCoreError, boto.ClientError, AirflowException)):
            raise error
        advice = _ADVICE.get(code, "see the code in the S3 documentation").format(right=_RIGHTS[doing])
        raise HealthExConfigurationError(
            f"S3 refused the {self.component} {doing} bucket {self.name!r} with aws_conn_id="
            f"{self.access.aws_conn_id!r}: {code}; {advice}."
        ) from error


class Bucket(_Bucket):
    """A bucket as a worker's boto3 sees it."""

    _client: Any = None

    def look(self, steps: Look[T]) -> T | Waiting:
        """
        Make a look's requests and return its verdict.

        :returns: the verdict, or a :class:`Waiting` where S3's trouble passes; the next look has a new session.
        :raises HealthExConfigurationError: where S3 refuses for good.
        """
        try:
            client = self._client = self._client or self._open()
            request = next(steps)
            while True:
                request = steps.send(client.list_objects_v2(Bucket=self.name, **request))
                self.listed = True
        except StopIteration as end:
            self.listed = True
            return cast("T", end.value)
        except Exception as error:
            self._client = None
            return self._judge(error)

    def put(self, key: str, body: bytes | IO[bytes]) -> None:
        """
        Write an object; of a seekable file, only a piece at a time is in memory.

        :raises HealthExConfigurationError: where S3 refuses for good.
        """
        try:
            self._open().put_object(Bucket=self.name, Key=key, Body=body)
        except Exception as error:
            self._judge(error, WRITING)
            raise

    def _open(self) -> Any:
        with self._opening():
            return self.access.open_hook().get_conn()


class AsyncBucket(_Bucket):
    """A bucket as a triggerer's aiobotocore sees it. Use it as an asynchronous context manager."""

    _client: Any = None

    async def __aenter__(self) -> AsyncBucket:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.__aexit__(None, None, None)

    async def look(self, steps: Look[T]) -> T | Waiting:
        """Do what :meth:`Bucket.look` does."""
        try:
            client = self._client = self._client or await self._open()
            request = next(steps)
            while True:
                request = steps.send(await client.list_objects_v2(Bucket=self.name, **request))
                self.listed = True
        except StopIteration as end:
            self.listed = True
            return cast("T", end.value)
        except Exception as error:
            await self.__aexit__()
            return self._judge(error)

    async def _open(self) -> Any:
        # Reading a connection blocks, and must not happen on the triggerer's event loop.
        with self._opening():
            hook = await sync_to_async(self.access.open_hook)()
            return await (await hook.get_async_conn()).__aenter__()


def _code(error: Exception) -> str:
    if isinstance(error, boto.ClientError):
        return str(error.response.get("Error", {}).get("Code", "")) or "no code"
    return type(error).__name__


def _passes(error: Exception, code: str) -> bool:
    if isinstance(error, boto.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return code in _PASSING_CODES or status == 429 or status >= 500
    return isinstance(error, _PASSING_ERRORS) and not _is_about_certificates(error)


def _is_about_certificates(error: Exception) -> bool:
    """Whether no later look can trust the server either: its certificate, or our bundle, is not what it should be."""
    return isinstance(error, FileNotFoundError) or "certificate" in str(error).lower()
