"""Which patient of a cohort a key belongs to, where a path starts alike for all of them (a glob before the id)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from os.path import commonprefix

from airflow_provider_healthex.delivery.plan import Take
from airflow_provider_healthex.delivery.rule import StoredObject
from airflow_provider_healthex.delivery.template import Target, names_patient, surroundings
from airflow_provider_healthex.exceptions import HealthExConfigurationError

log = logging.getLogger(__name__)


class PatientKeys:
    """
    The patients that a key can belong to.

    A key is compared with the cohort's own ids, and not parsed: a glob's stars could stand for an id as well.

    :param path: the path template, with the values that all patients share filled in.
    :param ids: of each patient the values of the path's other variables.
    :param targets: of each patient the filled path.
    :param marker: of the rule.
    :param name: returns what an object that is still being written will be called.
    :raises HealthExConfigurationError: a marker would lie in a folder of several patients.
    """

    def __init__(
        self,
        path: str,
        ids: Sequence[Mapping[str, str | None]],
        targets: Sequence[Target],
        marker: str | None,
        name: Callable[[str], str] = str,
    ) -> None:
        # A marker need not match the glob, but lies where matching keys do.
        if marker and not names_patient("".join(path.rpartition("/")[:2]) + "*"):
            raise HealthExConfigurationError(
                f"marker={marker!r} is not supported with the path {path!r}: its folder belongs to several patients. "
                "Put the patient's variable before the last '/', or give no marker."
            )
        self._path, self._marker, self._targets, self._whole_name = path, marker, targets, name
        self._name, self._before, self._after = surroundings(path, wildcard=True)
        self._by_id: dict[str, list[int]] = {}
        for index, values in enumerate(ids):
            self._by_id.setdefault(values[self._name] or "", []).append(index)
        self._lengths = sorted({len(one) for one in self._by_id})
        self._has_warned = False
        #: The common start of all keys of all patients.
        self.prefix = commonprefix([target.prefix for target in targets])  # noqa: RUF071 - of keys, not of folders

    def hand_out(self, wanted: Collection[int], take: Take) -> Callable[[Sequence[StoredObject]], None]:
        """Return a function that gives rows to their patients; a row that fits several is skipped, with one warning."""

        def attribute(rows: Sequence[StoredObject]) -> None:
            groups: dict[int, list[StoredObject]] = {}
            skipped = 0
            for row in rows:
                found = self.of(self._whole_name(row.key))
                if len(found) == 1 and found[0] in wanted:
                    groups.setdefault(found[0], []).append(row)
                skipped += len(found) > 1
            for index, own in groups.items():
                take(index, own)
            if skipped and not self._has_warned:
                self._has_warned = True
                log.warning(
                    "%s skipped: the path %s fits several patients of the cohort there. Separate its variables by '/', "
                    "and put no '*' where an id could stand as well.",
                    f"{skipped:,} object{'' if skipped == 1 else 's'}",
                    self._path,
                )

        return attribute

    def of(self, key: str) -> list[int]:
        """Return the positions of the patients whose path a key matches."""
        return [index for index in self._candidates(key) if self._holds(self._targets[index], key)]

    def _holds(self, target: Target, key: str) -> bool:
        return target.matches(key) or bool(self._marker and target.holds_marker(key, self._marker))

    def _candidates(self, key: str) -> set[int]:
        """Return the patients whose id stands in the key, between what the path has beside it."""
        found: set[int] = set()
        start = key.find(self._before)
        while start >= 0:
            begin = start + len(self._before)
            for length in self._lengths:
                if key.startswith(self._after, begin + length):
                    found.update(self._by_id.get(key[begin : begin + length], ()))
            start = key.find(self._before, start + 1) if self._before else -1
        return found
