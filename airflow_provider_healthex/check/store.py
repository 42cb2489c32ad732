"""Lists a bucket or an SFTP server within a bound, with the storages that the sensors use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from airflow_provider_healthex.delivery import ArrivalWait, Expectation, Plan, StoredObject, Waiting
from airflow_provider_healthex.delivery.s3_listing import Page, Request, is_truncated, scan_all, server_time
from airflow_provider_healthex.exceptions import HealthExConfigurationError, HealthExError
from airflow_provider_healthex.moments import utc_now

T = TypeVar("T")

#: Requests for the folders of one level, and levels that are searched for more than one folder.
_REQUESTS_A_LEVEL, _LEVELS = 3, 4
#: Folders of an SFTP server that are listed at once.
_WIDTH = 8


class StoreError(HealthExError):
    """
    A store can't be listed.

    :param advice: what to do, where the text doesn't say it.
    """

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


@dataclass
class Survey:
    """
    What a bounded listing showed.

    :param rows: the objects.
    :param requests: listing requests made.
    :param complete: whether everything was listed.
    :param cut: the last keys of what wasn't listed to its end.
    :param now: the store's clock at the first answer; this machine's where the store doesn't report its own.
    :param ahead: seconds by which the store's clock is ahead of this machine's; None where it isn't reported.
    """

    rows: list[StoredObject] = field(default_factory=list)
    requests: int = 0
    complete: bool = True
    cut: tuple[str, ...] = ()
    now: datetime = field(default_factory=utc_now)
    ahead: float | None = None


class Store(ABC):
    """
    Where deliveries land, as a worker lists it.

    :param name: for people.
    :param storage: the sensors' own.
    """

    def __init__(self, name: str, storage: Any) -> None:
        self.name = name
        self._storage = storage

    def survey(self, max_requests: int, first: str = "") -> Survey:
        """
        List as much as the bound allows, spread over the folders.

        :param first: the literal start of a path; it is listed before anything else.
        :raises StoreError: it can't be listed.
        """
        survey = self.run(self._plan(max_requests, first))
        if isinstance(survey, Waiting):
            raise StoreError(survey.error, "check address, network and credentials; if it passes, check again")
        return survey

    def wait(self, expectation: Expectation) -> ArrivalWait:
        """Return a wait in this store."""
        return ArrivalWait(expectation, self._storage.listing)

    def run(self, plan: Plan[T]) -> T | Waiting:
        """
        Make a plan's requests.

        :raises StoreError: a permanent error.
        """
        try:
            answer: T | Waiting = self._storage.run(plan)
        except HealthExConfigurationError as error:
            raise StoreError(str(error)) from None
        return answer

    @abstractmethod
    def facts(self) -> list[tuple[str, str]]:
        """Return what else is worth knowing after a listing, each with what to change, or an empty text."""

    @abstractmethod
    def _plan(self, max_requests: int, first: str) -> Plan[Survey]: ...


class S3Store(Store):
    """A bucket."""

    def __init__(self, bucket: str, aws_conn_id: str | None) -> None:
        from airflow_provider_healthex.storage.s3 import AwsAccess, Bucket

        self._access = AwsAccess(aws_conn_id)
        super().__init__(f"bucket {bucket!r}", Bucket(bucket, self._access))

    def _plan(self, max_requests: int, first: str) -> Plan[Survey]:
        return _Walk(max_requests).survey(first)

    def facts(self) -> list[tuple[str, str]]:
        """Return the kind and region of the bucket, and the rights that a sensor needs."""
        bucket = self._storage.name
        region = self._region()
        manifest = f"a manifest needs s3:PutObject on arn:aws:s3:::{bucket}/<its prefix>*"
        return [
            _kind_of(bucket),
            *([(f"It is in {region}", "")] if region else []),
            (f"s3:ListBucket is all that a sensor needs; {manifest}", ""),
        ]

    def _region(self) -> str | None:
        try:
            answer = self._access.open_hook().get_conn().head_bucket(Bucket=self._storage.name)
        except Exception:  # it needs no more rights than the listing; without an answer the region stays unknown
            return None
        region = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
        return str(region) if region else None


def _kind_of(bucket: str) -> tuple[str, str]:
    if bucket.endswith("--x-s3"):
        return "It is a directory bucket, which lists in no order", "deliver to a general purpose bucket"
    if bucket.startswith("arn:") or bucket.endswith("-s3alias"):
        return "It is an access point, which this package was not tried on", "name the bucket"
    return "It is a general purpose bucket, by its name", ""


class _Part:
    """Everything under a prefix, listed page by page."""

    def __init__(self, prefix: str) -> None:
        self.last = ""  # key
        self.rows: list[StoredObject] = []
        self._steps = scan_all(prefix, self._take)
        self.request: Request | None = next(self._steps)

    def _take(self, rows: Sequence[StoredObject]) -> None:
        self.rows += rows
        self.last = rows[-1].key if rows else self.last

    def read(self, page: Page) -> None:
        """Take a page, and have the next request ready."""
        try:
            self.request = self._steps.send(page)
        except StopIteration:
            self.request = None


class _Walk:
    """The listing of a bucket within a bound."""

    def __init__(self, max_requests: int) -> None:
        self._left = max_requests
        self._survey = Survey()

    def survey(self, first: str) -> Plan[Survey]:
        """Plan it: all in one go where that is one page, else a page of each folder in turn."""
        whole = _Part("")
        yield from self._page(whole)
        parts = [whole]
        if whole.request is not None:
            given, bound = _Part(first), self._left // 3
            while first and given.request is not None and self._left > bound:
                yield from self._page(given)
            folders = yield from self._folders()
            parts = [*([given] if first else []), *(map(_Part, folders) if folders else [whole])]
            while (waiting := [part for part in parts if part.request is not None]) and self._left:
                for part in waiting[: self._left]:
                    yield from self._page(part)
        found = self._survey
        # The first page may be of no folder that is listed, and a part of another.
        found.rows = list({row.key: row for part in (whole, *parts) for row in part.rows}.values())
        unfinished = [part for part in parts if part.request is not None]
        found.complete = not unfinished
        found.cut = tuple(part.last for part in unfinished if part.last)
        return found

    def _page(self, part: _Part) -> Plan[None]:
        page: Page = yield from self._answer(part.request)
        part.read(page)

    def _answer(self, request: Request | None) -> Plan[Page]:
        began = utc_now()
        page: Page
        (page,) = yield [request]
        self._left -= 1
        found = self._survey
        found.requests += 1
        if found.requests == 1:
            date = server_time(page)
            found.now = date or began
            found.ahead = (date - began).total_seconds() if date else None
        return page

    def _folders(self) -> Plan[list[str]]:
        """Return the folders of the first level with more than one; none where they are too many."""
        prefix = ""
        for _ in range(_LEVELS):
            names = yield from self._level(prefix)
            if names is None or len(names) > self._left // 2:
                return []
            if len(names) != 1:
                return names
            prefix = names[0]
        return []

    def _level(self, prefix: str) -> Plan[list[str] | None]:
        names: list[str] = []
        request = {"Prefix": prefix, "Delimiter": "/"}
        for _ in range(min(_REQUESTS_A_LEVEL, self._left)):
            page: Page = yield from self._answer(request)
            names += [each["Prefix"] for each in page.get("CommonPrefixes", ())]
            if not is_truncated(page):
                return names
            request = {**request, "ContinuationToken": page["NextContinuationToken"]}
        return None


class SftpStore(Store):
    """An SFTP server. Needs the extra ``sftp``."""

    def __init__(self, sftp_conn_id: str) -> None:
        from airflow_provider_healthex.storage.sftp import SftpServer

        super().__init__(f"SFTP server of {sftp_conn_id!r}", SftpServer(sftp_conn_id, confirmation=1.0))
        self._undated = 0

    def facts(self) -> list[tuple[str, str]]:
        """Return what differs from a bucket."""
        undated = f"{self._undated:,} files have no time"
        return [
            ("SFTP doesn't report the server's clock: keep it right, or set clock_skew", ""),
            ("The sensor needs the right to list; manifest_path needs the right to write", ""),
            *([(undated, "ask the server's operator to report modification times")] if self._undated else []),
        ]

    def _plan(self, max_requests: int, first: str) -> Plan[Survey]:
        """List folders until the bound is reached: the account's own and those below, or those of an absolute path."""
        from airflow_provider_healthex.delivery.sftp_clock import moment
        from airflow_provider_healthex.delivery.sftp_listing import whole_name
        from airflow_provider_healthex.delivery.sftp_requests import EntryType, ListFolder, NoSuchRoot

        start = "".join(first.rpartition("/")[:2]) if first.startswith("/") else ""
        survey, folders = Survey(), [start]
        while folders and survey.requests < max_requests:
            width = min(_WIDTH, max_requests - survey.requests)
            some, folders = folders[:width], folders[width:]
            answers = yield [ListFolder(folder) for folder in some]
            survey.requests += len(some)
            for folder, entries in zip(some, answers, strict=True):
                if entries is None and folder == start and start:
                    raise NoSuchRoot(start)
                for entry in entries or ():
                    path = f"{folder}{entry.name}"
                    if entry.type is EntryType.FOLDER:
                        folders.append(f"{path}/")
                    elif entry.type is EntryType.FILE and entry.modified is None:
                        self._undated += 1
                    elif entry.type is EntryType.FILE and whole_name(path) == path:
                        survey.rows.append(StoredObject(path, moment(entry.modified), entry.size))
        survey.complete, survey.cut = not folders, tuple(folders)
        return survey
