"""Step 8: one real, billed update, watched until its delivery has arrived."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path

from airflow_provider_healthex.check.account import Account
from airflow_provider_healthex.check.behaviour import NEW_NAMES, OVERWRITTEN, Behaviour
from airflow_provider_healthex.check.layout import Template, values_for
from airflow_provider_healthex.check.patterns import KnownIds, Reader, Segment, kinds, readable, restore
from airflow_provider_healthex.check.report import Report
from airflow_provider_healthex.check.store import Store, StoreError
from airflow_provider_healthex.check.timeline import Mark, Timeline, svg
from airflow_provider_healthex.check.words import duration, plural
from airflow_provider_healthex.delivery import ArrivalRule, ArrivalWait, Expectation, Patient, StoredObject, Waiting
from airflow_provider_healthex.delivery.template import fill, literal_prefix
from airflow_provider_healthex.exceptions import HealthExError, HealthExUpdateAmbiguousError
from airflow_provider_healthex.moments import utc_now

_EPOCH = datetime(1970, 1, 2, tzinfo=timezone.utc)

PICTURE = "timeline.svg"


@dataclass(frozen=True)
class Wanted:
    """
    What to request and how long to watch.

    :param patient: HealthEx's id.
    :param rule: when the delivery has arrived.
    :param poll: seconds between two listings.
    :param timeout: seconds until the watch ends by itself.
    :param ahead: seconds by which the store's clock is ahead of this machine's.
    :param out: a folder for the picture.
    """

    patient: str
    rule: ArrivalRule
    poll: float
    timeout: float
    ahead: float
    out: Path | None


@dataclass
class Watch:
    """
    What was seen of one delivery; moments are the store's.

    :param names: reads keys.
    :param requested_at: what fresh is measured from.
    :param rule: when it has arrived.
    :param stale: what lay there at the request.
    :param fresh: what came since; an object that is written again counts again.
    :param seen_until: the last poke.
    """

    names: Reader
    requested_at: datetime
    rule: ArrivalRule
    stale: list[StoredObject]
    fresh: list[StoredObject] = field(default_factory=list)
    arrived_at: datetime | None = None
    seen_until: datetime | None = None

    def see(self, rows: Iterable[StoredObject]) -> list[StoredObject]:
        """Take the fresh objects of a poke, and return those that are new."""
        known = {(row.key, row.last_modified, row.size) for row in self.fresh}
        new = [row for row in sorted(rows, key=_by_time) if (row.key, row.last_modified, row.size) not in known]
        self.fresh += new
        return new

    def arrive(self) -> None:
        """Note that the delivery has arrived."""
        # Clocks are compared to a second alone: not before it can have settled.
        quiet = timedelta(seconds=0 if self.rule.marker else self.rule.quiet_period)
        settled = [row.last_modified + quiet for row in self.fresh]
        self.arrived_at = self.seen_until = max(filter(None, [self.seen_until, *settled]))

    def after(self, moment: datetime) -> float:
        """Return seconds since the request."""
        return (moment - self.requested_at).total_seconds()

    def name(self, key: str) -> str:
        """Return a key's pattern behind the part that all share."""
        shapes = [_numbered(segment) for segment in self.names.segments(key)]
        own = next((at for at, shape in enumerate(shapes) if "{healthexPatientId}" in shape), -1)
        return readable("/".join(shapes[own + 1 :] or shapes[-1:]))

    @property
    def longest_pause(self) -> float | None:
        """Seconds between two objects that came one after the other."""
        times = sorted(row.last_modified for row in self.fresh)
        return max(((b - a).total_seconds() for a, b in pairwise(times)), default=None)

    @property
    def naming(self) -> str | None:
        """Whether the delivery was written over the last one; None where there was none."""
        if not self.stale or not self.fresh:
            return None
        return OVERWRITTEN if {row.key for row in self.fresh} & {row.key for row in self.stale} else NEW_NAMES

    def timeline(self) -> Timeline:
        """Return it as a picture's content."""
        stale, fresh = (
            [Mark(self.name(row.key), self.after(row.last_modified), row.size) for row in rows]
            for rows in (self.stale, self.fresh)
        )
        fresh = [replace(mark, at=max(mark.at, 0)) for mark in fresh]
        return Timeline(
            title="One refresh, by the store's clock",
            stale=stale,
            fresh=fresh,
            quiet_from=max((mark.at for mark in fresh), default=None),
            key_sensor_at=0.0 if stale else min((mark.at for mark in fresh), default=None),
            arrived_at=self.after(self.arrived_at) if self.arrived_at else None,
            end=max(self.after(self.seen_until) if self.seen_until else 1, 1),
        )


def _by_time(row: StoredObject) -> tuple[datetime, str]:
    return row.last_modified, row.key


def _numbered(segment: Segment) -> str:
    """Return a segment's shape with small numbers as they are: those of files of one delivery."""
    pairs = zip(kinds(segment.shape), segment.values, strict=True)
    return restore(segment.shape, [value if kind == "n" and len(value) < 3 else None for kind, value in pairs])


def refresh(
    report: Report,
    account: Account,
    store: Store,
    template: Template | None,
    ids: KnownIds,
    wanted: Wanted,
    *,
    confirm: Callable[[str], bool],
    show: Callable[[str], None],
) -> Watch | None:
    """
    Request one update and watch it, after an explicit yes.

    :param confirm: gets what it costs; anything but True sends nothing.
    :param show: gets each event.
    """
    report.shortener.learn([wanted.patient])
    if not _may_request(report, account, wanted):
        return None
    path, values, wildcard, broad = _place(template, wanted.patient, ids)

    def wait(requested_at: datetime, rule: ArrivalRule) -> ArrivalWait:
        return store.wait(Expectation((path,), values, (Patient(wanted.patient, requested_at),), rule, wildcard))

    try:
        reason, stale = _poke(store, wait(_EPOCH, ArrivalRule(quiet_period=0)))
        if reason is not None and reason.error != reason.reason:
            raise StoreError(reason.error, "check again")
    except StoreError as error:
        report.fail(8, f"nothing was requested: {error}", error.advice)
        return None
    if not confirm(
        report.shortener(
            f"HealthEx bills this: one update of patient {wanted.patient} in project {account.project_id}. "
        )
    ):
        report.skip(8, "nothing was requested: the answer was not yes")
        return None
    requested_at = _request(report, account, wanted.patient, show)
    if requested_at is None:
        return None
    if broad:
        report.warn(8, broad, "look at the names that came")
    watch = Watch(Reader(ids), requested_at, wanted.rule, stale, seen_until=requested_at)
    try:
        _watch(store, wait(requested_at, wanted.rule), watch, wanted, show)
    except KeyboardInterrupt:
        report.interrupted = True
        report.warn(8, "the watch was ended by hand", "the delivery may still come: HealthEx has the request")
    _conclude(report, watch, wanted)
    return watch


def _poke(store: Store, wait: ArrivalWait) -> tuple[Waiting | None, list[StoredObject]]:
    """Poke once, and return why the wait goes on, and the fresh objects."""
    fresh: list[StoredObject] = []
    reason = store.run(wait.poke(lambda _, rows: fresh.extend(rows)))
    return reason, fresh


def _place(template: Template | None, patient: str, ids: KnownIds) -> tuple[str, dict[str, str | None], bool, str]:
    """Return path, values and whether it is a glob, and why it may show more than this patient's delivery."""
    if template is None:
        return "*", {}, True, "no path is known, so everything in the store is watched"
    values = values_for(template.path, patient, ids)
    if "externalId" not in template.variables:
        return template.path, values, template.wildcard, ""
    path = fill(template.path, {**values, "externalId": None})
    prefix = literal_prefix(path, wildcard=template.wildcard)
    why = "the path needs the patient's external id, so all patients are watched"
    return f"{prefix}*", {}, True, why


def _may_request(report: Report, account: Account, wanted: Wanted) -> bool:
    if report.has_failed():
        report.skip(8, "nothing was requested: correct the failures first")
    elif account.project_id is None or account.patients is None:
        report.skip(8, "nothing was requested: the project can't be read")
    elif wanted.patient not in account.patients:
        of = plural(len(account.patients), "consented patient")
        report.fail(8, f"nothing was requested: {wanted.patient!r} is not one of the {of}", "correct the patient id")
    else:
        return True
    return False


def _request(report: Report, account: Account, patient: str, show: Callable[[str], None]) -> datetime | None:
    """Send the request, and return what fresh is measured from; None where nothing will come."""
    say = report.shortener
    try:
        update = account.hook.update_patient_data(patient, project_id=account.project_id)
    except HealthExUpdateAmbiguousError as error:
        report.warn(8, f"nobody knows whether HealthEx accepted: {error}", "it may be billed; watch whether data comes")
        return error.requested_at
    except HealthExError as error:
        report.fail(8, str(error))
        return None
    except KeyboardInterrupt:
        report.interrupted = True
        report.warn(8, "interrupted while the request was sent", "HealthEx may have accepted it, and bill it")
        return None
    report.shortener.learn([update.retrieval_id])
    fields = [
        f"message {update.message}",
        *([f"patientActionNeededReason {update.patient_action_needed_reason}"] if update.needs_patient else []),
        *([f"retrievalId {update.retrieval_id}"] if update.retrieval_id else []),
        f"skippedFacilitiesCount {update.skipped_facilities_count}",
        *(
            [f"counts {', '.join(f'{name} {count:g}' for name, count in update.counts.items())}"]
            if update.counts
            else []
        ),
    ]
    show(say(f"HealthEx answered {update.message}"))
    if update.needs_patient:
        report.warn(8, f"the patient needs to act first: {'; '.join(fields)}", "see docs/reconsent.md")
        return None
    report.ok(8, f"HealthEx accepted: {'; '.join(fields)}")
    if update.unknown_fields:
        report.warn(8, f"fields this package doesn't know: {', '.join(update.unknown_fields)}", "report them, by name")
    if update.skipped_facilities_count:
        report.warn(8, f"a partial update: {plural(update.skipped_facilities_count, 'facility')} skipped")
    return update.requested_at


def _watch(store: Store, wait: ArrivalWait, watch: Watch, wanted: Wanted, show: Callable[[str], None]) -> None:
    deadline = time.monotonic() + wanted.timeout
    show(f"{plural(len(watch.stale), 'stale object')} there; waiting for fresh ones")
    while time.monotonic() < deadline:
        try:
            reason, fresh = _poke(store, wait)
        except StoreError as error:  # it could be listed a moment ago
            show(str(error))
        else:
            watch.seen_until = utc_now() + timedelta(seconds=wanted.ahead)
            for row in watch.see(fresh):
                at = watch.after(row.last_modified)
                show(f"{watch.name(row.key)}, {row.size:,} bytes, {at:+.0f} s")
            if reason is None:
                watch.arrive()
                return
        time.sleep(wanted.poll)


def _conclude(report: Report, watch: Watch, wanted: Wanted) -> None:
    if watch.fresh:
        times = [watch.after(row.last_modified) for row in watch.fresh]
        pause = f", longest pause {watch.longest_pause:.0f} s" if watch.longest_pause is not None else ""
        report.ok(
            8,
            f"{plural(len(watch.fresh), 'fresh object')}: the first {min(times):.0f} s after the request, the last "
            f"{max(times):.0f} s after it{pause}",
        )
    naming = {OVERWRITTEN: "They were written over the last delivery", NEW_NAMES: "They have new names"}
    if watch.naming:
        report.ok(8, naming[watch.naming])
    _compare(report, watch)
    if wanted.out is not None:
        wanted.out.mkdir(parents=True, exist_ok=True)
        picture = wanted.out / PICTURE
        picture.write_text(svg(watch.timeline()), encoding="utf-8")
        report.pictures.append(str(picture))
        report.ok(8, f"The picture is in {picture}")


def _compare(report: Report, watch: Watch) -> None:
    if watch.stale:
        newest = max(row.last_modified for row in watch.stale)
        age = duration(-watch.after(newest))
        report.ok(8, f"S3KeySensor would have passed at once, on an object that is {age} old")
    if watch.arrived_at is not None:
        quiet = f"{watch.rule.quiet_period:g} s without a change" if not watch.rule.marker else "the marker"
        report.ok(8, f"This package's sensor passes {watch.after(watch.arrived_at):.0f} s after the request: {quiet}")
    elif not report.interrupted:
        what = "but never settled" if watch.fresh else "or nothing has changed for this patient"
        report.warn(8, f"no arrival until the watch ended: {plural(len(watch.fresh), 'fresh object')}, {what}",
                    "look again later: the next check shows what came")  # fmt: skip


def learn_from(behaviour: Behaviour | None, watch: Watch) -> Behaviour | None:
    """Return the behaviour with what one refresh has shown that no listing can."""
    if behaviour is None or watch.naming is None:
        return behaviour
    return replace(behaviour, naming=watch.naming, naming_reason="seen in one refresh")
