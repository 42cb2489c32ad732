"""The steps of a check, one after the other, on one account."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from airflow_provider_healthex.check import advice
from airflow_provider_healthex.check.account import Account, check_account, compare_clocks
from airflow_provider_healthex.check.behaviour import Behaviour, find_behaviour, whole_deliveries
from airflow_provider_healthex.check.layout import Layout, Template, explain, find_layout
from airflow_provider_healthex.check.path import PathCheck, check_path
from airflow_provider_healthex.check.patterns import KnownIds, Reader
from airflow_provider_healthex.check.refresh import Wanted, Watch, learn_from, refresh
from airflow_provider_healthex.check.report import Report, Shortener
from airflow_provider_healthex.check.store import S3Store, SftpStore, Store, StoreError, Survey
from airflow_provider_healthex.check.words import duration, plural
from airflow_provider_healthex.delivery import ArrivalRule
from airflow_provider_healthex.delivery.template import literal_prefix, names_patient
from airflow_provider_healthex.exceptions import HealthExConfigurationError

MAX_REQUESTS = 200
#: Seconds of a watch: the sensors' own timeout.
TIMEOUT = 6 * 60 * 60.0


@dataclass(frozen=True)
class Settings:
    """
    What to check.

    :param healthex_conn_id: the connection to HealthEx.
    :param bucket: the bucket, or None for an SFTP server.
    :param aws_conn_id: the connection to the bucket.
    :param sftp_conn_id: the connection to the SFTP server, or None for a bucket.
    :param path: a path to compare with the store; ``s3://bucket/…`` is taken as well.
    :param project: the project; by default the connection's.
    :param external_ids: the study's own ids of its patients, which HealthEx doesn't answer.
    :param max_requests: how many requests the listing may take.
    :param show_ids: don't shorten ids.
    """

    healthex_conn_id: str = "healthex_default"
    bucket: str | None = None
    aws_conn_id: str | None = "aws_default"
    sftp_conn_id: str | None = None
    path: str | None = None
    project: str | None = None
    external_ids: frozenset[str] = frozenset()
    max_requests: int = MAX_REQUESTS
    show_ids: bool = False


@dataclass
class Check:
    """One check, step by step; :meth:`run` takes 1 to 7, :meth:`refresh` the one that is billed."""

    settings: Settings
    report: Report = field(init=False)
    _account: Account = field(init=False)
    _store: Store | None = field(init=False, default=None)
    _listing: Survey | None = field(init=False, default=None)
    _ids: KnownIds = field(init=False, default_factory=KnownIds)
    _layout: Layout = field(init=False, default_factory=lambda: Layout((), 0))
    _template: Template | None = field(init=False, default=None)
    _path: PathCheck | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.report = Report(Shortener(self.settings.show_ids))
        self.report.shortener.learn(self.settings.external_ids)

    def run(self) -> Report:
        """Take steps 1 to 7. Nothing is billed and nothing is written."""
        settings = self.settings
        self._account = account = check_account(self.report, settings.healthex_conn_id, settings.project)
        self._ids = KnownIds(
            frozenset(account.patients or ()),
            settings.external_ids,
            frozenset(filter(None, [account.project_id])),
            frozenset(filter(None, [account.organization_id])),
        )
        self._list()
        if self._listing is None:
            self.report.skip(5, "not searched: the store can't be listed")
            self.report.skip(6, "not searched: the store can't be listed")
        else:
            self._find_layout(self._listing)
            self._find_behaviour(self._listing)
        self._advise()
        return self.report

    # --- 4

    def _list(self) -> None:
        settings, report = self.settings, self.report
        store: Store
        try:
            if settings.sftp_conn_id is not None:
                store = SftpStore(settings.sftp_conn_id)
            elif settings.bucket is not None:
                store = S3Store(settings.bucket, settings.aws_conn_id)
            else:
                report.skip(4, "not checked: give --bucket or --sftp-conn-id")
                return
            self._store = store
            listing = store.survey(settings.max_requests, self._first())
        except StoreError as error:
            report.fail(4, str(error), error.advice)
            return
        except ModuleNotFoundError as error:  # without the extra sftp
            report.fail(4, str(error))
            return
        self._listing = listing
        report.ok(
            4,
            f"The {store.name} can be listed from this machine: {plural(len(listing.rows), 'object')}, "
            f"{plural(listing.requests, 'request')}. Run this on a triggerer, too, if sensors defer",
        )
        if not listing.complete:
            report.warn(
                4,
                f"The listing stopped at --max-requests={settings.max_requests}: there is more",
                "raise it, or take what follows as a sample",
            )
        for text, to_do in store.facts():
            (report.warn if to_do else report.ok)(4, text, to_do)
        if listing.ahead is not None:
            compare_clocks(report, 4, "The store's clock", listing.ahead)

    def _first(self) -> str:
        """Return what the keys of the given path begin with, where it can be read."""
        path = self._given_path()
        try:
            return literal_prefix(path, wildcard=True) if path else ""
        except HealthExConfigurationError:
            return ""

    def _given_path(self) -> str | None:
        path = self.settings.path
        if path and path.startswith("s3://"):
            return path.removeprefix("s3://").partition("/")[2]
        return path

    # --- 5

    def _find_layout(self, listing: Survey) -> None:
        report, ids = self.report, self._ids
        if not ids.patients and not ids.externals:
            report.skip(5, "not searched: no patient id is known")
        self._layout = layout = find_layout(listing.rows, ids)
        report.templates = layout.templates
        total = len(ids.patients)
        path = self._given_path()
        if path:
            self._path = checked = check_path(path, listing.rows, ids, layout, total)
            self._report_path(checked, total)
        best = layout.best
        self._template = self._path.template if self._path and not self._path.problem else best
        if not layout.objects:
            report.warn(5, "There are no objects yet, so nothing shows where deliveries will lie",
                        "refresh one patient with --refresh, or run the check after the first delivery")  # fmt: skip
        elif best is None and (ids.patients or ids.externals):
            self._report_nothing(layout)
        for template in layout.templates:
            self._report_template(template, total)
        if layout.several_patients:
            report.warn(
                5, f"{plural(layout.several_patients, 'key')} hold more than one patient's id, and were left out"
            )

    def _report_path(self, checked: PathCheck, total: int) -> None:
        if checked.problem and (self._layout.objects or checked.template is None):
            self.report.fail(5, checked.problem, checked.advice)
        elif checked.problem:
            self.report.warn(5, checked.problem, "the store is empty: check again after the first delivery")
        elif checked.template is not None:
            template, best = checked.template, self._layout.best
            of = f" of {total:,}" if "healthexPatientId" in template.variables else ""
            objects = plural(template.objects, "object")
            text = f"{template.path!r} matches {template.patients:,}{of} patients, {objects}"
            if best is not None and best.patients > template.patients:
                self.report.warn(5, text, f"{best.shown()!r} matches {best.patients:,}")
            else:
                self.report.ok(5, text)

    def _report_nothing(self, layout: Layout) -> None:
        if layout.other_case:
            self.report.fail(5, "Keys hold the ids in another case, and path variables keep the case",
                             "set up the delivery path with the ids as HealthEx writes them")  # fmt: skip
            return
        hint = "" if self._ids.externals else "; if the path has the study's own ids, give --external-ids FILE"
        self.report.warn(5, f"None of {plural(layout.objects, 'key')} holds a known id in a place that a path can name",
                         f"check --bucket and --project{hint}")  # fmt: skip

    def _report_template(self, template: Template, total: int) -> None:
        report, shown = self.report, template.shown(show_ids=self.settings.show_ids)
        of = f" of {total:,}" if "healthexPatientId" in template.variables else f" of {len(self._ids.externals):,}"
        text = f"{shown!r} explains {template.patients:,}{of} patients, {plural(template.objects, 'object')}"
        if template.is_thin:
            hidden = "; --show-ids shows it whole" if shown != template.path else ""
            report.warn(5, f"{text}: thin evidence", f"check again when more patients have deliveries{hidden}")
        else:
            report.ok(5, text)
        if template.strangers:
            report.ok(5, f"{plural(template.strangers, 'other value')} in the patient's place: perhaps former patients")
        if template.wildcard and not names_patient(template.path.partition("*")[0]):
            report.warn(5, "It needs wildcard_match=True: something before the patient varies, so each poke lists all",
                        "a path without dates before the patient costs fewer requests")  # fmt: skip
        elif template.wildcard:
            report.ok(5, "It needs wildcard_match=True, as names vary behind the patient's id")

    # --- 6

    def _find_behaviour(self, listing: Survey) -> None:
        report, template = self.report, self._template
        if template is None:
            report.skip(6, "not searched: no path is known")
            return
        rows = explain(template.path, template.wildcard, listing.rows, self._ids).rows
        reader = Reader(self._ids)
        cut = [value for key in listing.cut for segment in reader.segments(key) for _, value in segment.patients]
        report.behaviour = behaviour = find_behaviour(whole_deliveries(rows, cut), self._ids, listing.now)
        if behaviour is None:
            report.skip(6, "not searched: nothing lies under the path")
            return
        self._report_behaviour(behaviour)

    def _report_behaviour(self, behaviour: Behaviour) -> None:
        report = self.report
        counts = list(behaviour.objects)
        each = plural(counts[0], "object") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} objects"
        deliveries = plural(behaviour.deliveries, "whole delivery", "whole deliveries")
        report.ok(6, f"{deliveries} of {plural(behaviour.patients, 'patient')}: {each} each")
        if behaviour.shows_pauses:
            report.ok(6, f"From the first to the last object {behaviour.seconds:,.0f} s at most, longest pause "
                         f"{behaviour.longest_pause:,.0f} s, in {behaviour.several:,} deliveries")  # fmt: skip
        else:
            report.warn(6, f"No number for pauses: {advice.thin_pauses(behaviour)}", "keep the default quiet_period")
        report.ok(6, f"Naming is {behaviour.naming}: {behaviour.naming_reason}")
        for name, number in behaviour.names:
            report.ok(6, f"Name {name} in {number:,} of {behaviour.deliveries:,} deliveries")
        if behaviour.other_names:
            others = plural(behaviour.other_names, "other name")
            report.ok(6, f"{others} not shown: one patient alone has each, or they are too many")
        if behaviour.marker:
            kind = "a marker, it seems" if behaviour.marker.is_likely else "perhaps a marker"
            report.ok(
                6, f"{behaviour.marker.name} always comes last, in {behaviour.marker.deliveries:,} deliveries: {kind}"
            )
        newest, middle, oldest = map(duration, behaviour.ages)
        ages = newest if newest == oldest else f"{newest} to {oldest}, median {middle}"
        report.ok(6, f"Age of each patient's newest object: {ages}")
        missing = len(self._ids.patients) - behaviour.patients
        if missing > 0 and self._template is not None and "healthexPatientId" in self._template.variables:
            report.ok(6, f"{plural(missing, 'consented patient')} without a delivery in what was listed")

    # --- 7

    def _advise(self) -> None:
        report, settings, template = self.report, self.settings, self._template
        skew = self._skew()
        known = self._listing is not None and self._listing.ahead is not None and self._account.ahead is not None
        if self._listing is not None:
            report.assumptions = advice.assumptions(
                self._layout, template, report.behaviour,
                skew=skew, clocks_known=known, patients=len(self._ids.patients),
                in_order=settings.sftp_conn_id is None,
            )  # fmt: skip
        report.advice = ""
        if template is None:
            report.skip(7, "no sensor to copy: no path is known")
            return
        given = self._path is not None and not self._path.problem
        if not given and template.shown(show_ids=settings.show_ids) != template.path:
            report.skip(
                7, "no sensor to copy: the path rests on one patient and may hold something of theirs; --show-ids"
            )
            return
        place = advice.Place(settings.bucket, settings.aws_conn_id, settings.sftp_conn_id)
        report.advice = advice.sensor_call(template, report.behaviour, place, skew=skew)

    def _skew(self) -> int | None:
        return advice.clock_skew(self._listing.ahead if self._listing else None, self._account.ahead)

    # --- 8

    def refresh(
        self,
        patient: str,
        *,
        confirm: Callable[[str], bool],
        show: Callable[[str], None],
        quiet_period: float | None = None,
        timeout: float = TIMEOUT,
        out: Path | None = None,
    ) -> Watch | None:
        """
        Take step 8, which is billed, where nothing has failed.

        :param patient: HealthEx's id.
        :param confirm: gets what it costs; anything but True sends nothing.
        :param show: gets each event.
        :param quiet_period: seconds without a change that end the watch; by default the advice's, else the sensors'.
        :param timeout: seconds until the watch ends anyway.
        :param out: a folder for the picture.
        """
        report, behaviour, listing = self.report, self.report.behaviour, self._listing
        if self._store is None or listing is None:
            report.skip(8, "nothing was requested: no store is known to watch")
            return None
        if self._template is None and not listing.complete:
            report.fail(8, "nothing was requested: no path is known, and the store is too large to watch all of it",
                        "give --path")  # fmt: skip
            return None
        if quiet_period is None:
            quiet_period = (advice.quiet_period(behaviour) if behaviour else None) or advice.QUIET_PERIOD
        marker = behaviour.marker.name if behaviour and behaviour.marker and behaviour.marker.is_likely else None
        skew = 60 if self.settings.sftp_conn_id is not None else self._skew() or advice.CLOCK_SKEW
        wanted = Wanted(
            patient,
            ArrivalRule(quiet_period=quiet_period, marker=marker, clock_skew=skew),
            poll=min(5.0, max(quiet_period / 4, 0.2)),
            timeout=timeout,
            ahead=listing.ahead or 0.0,
            out=out,
        )
        watch = refresh(
            report, self._account, self._store, self._template, self._ids, wanted, confirm=confirm, show=show
        )
        if watch is not None:
            report.behaviour = learn_from(behaviour, watch)
            self._advise()
        return watch


def read_ids(file: Path) -> frozenset[str]:
    """Return the ids of a file, one a line."""
    return frozenset(line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip())
