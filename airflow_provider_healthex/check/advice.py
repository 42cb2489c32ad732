"""The sensor to copy into a DAG, and which of this package's assumptions the account confirms or contradicts."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from airflow_provider_healthex.check.behaviour import (
    ENOUGH_DELIVERIES,
    ENOUGH_PATIENTS,
    NEW_NAMES,
    OVERWRITTEN,
    Behaviour,
)
from airflow_provider_healthex.check.layout import Layout, Template
from airflow_provider_healthex.check.report import Assumption
from airflow_provider_healthex.check.words import plural

#: The sensors' own defaults.
QUIET_PERIOD, CLOCK_SKEW = 300, 2
#: However short the pauses that were seen: a few deliveries don't show the longest.
LEAST_QUIET = 60

CONFIRMED, CONTRADICTED, OPEN = "confirmed", "contradicted", "open"


@dataclass(frozen=True)
class Place:
    """
    Where deliveries lie, as a sensor takes it; one of the two.

    :param bucket: with its AWS connection.
    :param sftp_conn_id: of a server.
    """

    bucket: str | None = None
    aws_conn_id: str | None = "aws_default"
    sftp_conn_id: str | None = None


def quiet_period(behaviour: Behaviour) -> int | None:
    """Return twice the longest pause that was seen, in whole half minutes; None where too little was seen."""
    if not behaviour.shows_pauses or behaviour.longest_pause is None:
        return None
    return max(LEAST_QUIET, math.ceil(2 * behaviour.longest_pause / 30) * 30)


def clock_skew(store_ahead: float | None, healthex_ahead: float | None) -> int | None:
    """Return the seconds to allow for, where the store's clock is further behind HealthEx's than the sensor allows."""
    if store_ahead is None or healthex_ahead is None:
        return None
    behind = healthex_ahead - store_ahead
    return math.ceil(behind) + 1 if behind > CLOCK_SKEW else None


def sensor_call(template: Template, behaviour: Behaviour | None, place: Place, *, skew: int | None = None) -> str:
    """
    Return the sensor's call, to copy.

    A number stands in it only where enough deliveries show it; the defaults hold otherwise, and a comment says so.
    """
    if place.bucket is not None:
        module, name = "airflow_provider_healthex.sensors.healthex", "HealthExDataArrivalSensor"
        where = [f"bucket_name={_text(place.bucket)}", f"bucket_key={_text(template.path)}"]
        conn = [] if place.aws_conn_id == "aws_default" else [f"aws_conn_id={_text(place.aws_conn_id)}"]
    else:
        module, name = "airflow_provider_healthex.sensors.sftp", "HealthExSftpDataArrivalSensor"
        where = [f"path={_text(template.path)}"]
        conn = [] if place.sftp_conn_id == "sftp_default" else [f"sftp_conn_id={_text(place.sftp_conn_id)}"]
    arguments = ['task_id="arrival"', "update=refresh.output", *where]
    if template.wildcard:
        arguments.append("wildcard_match=True")
    if "externalId" in template.variables:
        arguments.append('external_id="{{ params.external_id }}"')
    lines = [f"{each}," for each in arguments]
    if template.is_thin:
        lines.append(f"# the path rests on {plural(template.patients, 'patient')} alone")
    lines += _numbers(behaviour)
    if skew is not None:
        lines.append(f"clock_skew={skew},")
    lines += [f"{each}," for each in conn]
    lines.append("deferrable=True,")
    body = "\n".join(f"    {line}" for line in lines)
    return f"from {module} import {name}\n\narrival = {name}(\n{body}\n)\n"


def _text(value: str | None) -> str:
    """Return a value as Python writes it, in double quotes."""
    return "None" if value is None else json.dumps(value, ensure_ascii=False)


def _numbers(behaviour: Behaviour | None) -> list[str]:
    if behaviour is None:
        return ["# quiet_period: the default, 300 s, as no delivery was seen"]
    lines = []
    marker = behaviour.marker if behaviour.marker and behaviour.marker.is_likely else None
    seconds = quiet_period(behaviour)
    if marker:
        lines.append(f"marker={_text(marker.name)},  # last in all of {_deliveries(behaviour)}")
    elif seconds is not None:
        lines.append(
            f"quiet_period={seconds},  # longest pause {behaviour.longest_pause:.0f} s in {behaviour.several} "
            f"deliveries, doubled, at least {LEAST_QUIET} s"
        )
    else:
        lines.append(f"# quiet_period: the default, {QUIET_PERIOD} s: {thin_pauses(behaviour)}")
    count = behaviour.fixed_count
    count = count - 1 if count and marker else count
    if count and count > 1:
        lines.append(f"min_objects={count},  # in each of {_deliveries(behaviour)}")
    return lines


def thin_pauses(behaviour: Behaviour) -> str:
    """Return why there is no number of seconds."""
    if behaviour.unclear:
        return f"{behaviour.unclear} pauses are too long for one delivery and too short for two"
    if not behaviour.several:
        return f"all of {_deliveries(behaviour)} have one object, and show no pause"
    return (
        f"{behaviour.several} deliveries of several objects, of {behaviour.several_patients} patients, are too few "
        f"({ENOUGH_DELIVERIES} of {ENOUGH_PATIENTS} are needed)"
    )


def _deliveries(behaviour: Behaviour) -> str:
    return plural(behaviour.deliveries, "delivery", "deliveries")


def assumptions(
    layout: Layout,
    template: Template | None,
    behaviour: Behaviour | None,
    *,
    skew: int | None,
    clocks_known: bool,
    patients: int,
    in_order: bool,
) -> list[Assumption]:
    """Return what this package assumes, each with what the account says."""
    return [
        _path(layout, template),
        _lies_there(behaviour, patients),
        _again(behaviour),
        _settles(behaviour),
        _ends(behaviour),
        _clocks(skew, clocks_known),
        *(
            [Assumption("The store lists keys in their order, as cohorts need", CONFIRMED, "it did")]
            if in_order
            else []
        ),
    ]


def _path(layout: Layout, template: Template | None) -> Assumption:
    text = "The path holds the patient's id and is otherwise fixed"
    if template is None:
        return Assumption(text, OPEN, f"no known id was found in {layout.objects:,} keys")
    if template.wildcard:
        return Assumption(text, CONTRADICTED, "something in it varies, so the path needs a '*'")
    if template.is_thin:
        return Assumption(text, OPEN, f"it rests on {plural(template.patients, 'patient')}")
    return Assumption(text, CONFIRMED, f"{template.patients:,} patients have objects under it")


def _lies_there(behaviour: Behaviour | None, patients: int) -> Assumption:
    text = "The last delivery's objects are there at the request, so existence proves nothing"
    if behaviour is None:
        return Assumption(text, OPEN, "no delivery was found")
    of = f" of {patients:,}" if patients else ""
    return Assumption(text, CONFIRMED, f"for {behaviour.patients:,}{of} patients")


def _again(behaviour: Behaviour | None) -> Assumption:
    text = "A delivery is written over the last one, or has new names: both are recognised"
    if behaviour is None:
        return Assumption(text, OPEN, "no delivery was found")
    status = CONFIRMED if behaviour.naming in (NEW_NAMES, OVERWRITTEN) else OPEN
    return Assumption(text, status, f"{behaviour.naming}: {behaviour.naming_reason}" if status == CONFIRMED else
                      behaviour.naming_reason)  # fmt: skip


def _settles(behaviour: Behaviour | None) -> Assumption:
    text = f"No pause inside a delivery is longer than {QUIET_PERIOD} s"
    if behaviour is None:
        return Assumption(text, OPEN, "no delivery was found")
    longest = behaviour.longest_pause
    if longest is not None and longest > QUIET_PERIOD and not behaviour.unclear:
        return Assumption(text, CONTRADICTED, f"{longest:,.0f} s was seen: set quiet_period")
    if not behaviour.shows_pauses:
        return Assumption(text, OPEN, thin_pauses(behaviour))
    return Assumption(text, CONFIRMED, f"{longest:,.0f} s is the longest in {behaviour.several} deliveries")


def _ends(behaviour: Behaviour | None) -> Assumption:
    text = "No file ends a delivery"
    if behaviour is None or (behaviour.marker is None and behaviour.several < ENOUGH_DELIVERIES):
        return Assumption(text, OPEN, "too few deliveries of several objects were seen")
    marker = behaviour.marker
    if marker is None:
        return Assumption(text, CONFIRMED, f"no name always comes last in {behaviour.several} deliveries")
    if marker.is_likely:
        return Assumption(text, CONTRADICTED, f"{marker.name!r} is last in all of {marker.deliveries} deliveries")
    return Assumption(
        text, OPEN, f"{marker.name!r} is last in all of {marker.deliveries} deliveries, and isn't called a marker"
    )


def _clocks(skew: int | None, known: bool) -> Assumption:
    text = f"The store's clock is at most {CLOCK_SKEW} s behind HealthEx's"
    if not known:
        return Assumption(text, OPEN, "one of the two doesn't report its clock")
    if skew is not None:
        return Assumption(text, CONTRADICTED, f"set clock_skew={skew}")
    return Assumption(text, CONFIRMED, "both report the same time")
