"""The delivery path as a template: what is refused, which objects it stands for, and whose a key is."""

from __future__ import annotations

import itertools
import random

import pytest

from airflow_provider_healthex.delivery import VARIABLES, Kind, Target, expand, parse_key
from airflow_provider_healthex.delivery.template import names_patient, parse_template
from airflow_provider_healthex.exceptions import HealthExConfigurationError

VALUES = {
    "orgId": "org-1",
    "projectId": "project-1",
    "healthexPatientId": "patient-1",
    "externalId": "MRN 4711",
}
PATIENT = "d/{healthexPatientId}/"


def target(path: str, *, wildcard: bool = False, patient: str = "patient-1") -> Target:
    return expand(path, {**VALUES, "healthexPatientId": patient}, wildcard=wildcard)


class TestVariables:
    @pytest.mark.parametrize("name", VARIABLES)
    def test_each_variable_stands_for_its_value(self, name):
        assert target(f"d/{{{name}}}/").prefix == f"d/{VALUES[name]}/"

    def test_all_of_them_in_one_path(self):
        path = "d/{orgId}/{projectId}/{healthexPatientId}/{externalId}.json"
        assert target(path).prefix == "d/org-1/project-1/patient-1/MRN 4711.json"

    def test_a_variable_may_stand_twice(self):
        assert target("{healthexPatientId}/{healthexPatientId}.json").prefix == "patient-1/patient-1.json"

    def test_a_path_needs_no_variable(self):
        assert expand("d/all/", {}).prefix == "d/all/"

    def test_the_value_of_a_variable_that_the_path_lacks_is_never_looked_at(self):
        assert expand("d/{projectId}/", {"projectId": "p", "externalId": "../*"}).prefix == "d/p/"

    @pytest.mark.parametrize("path", ["d/{patientId}/", "d/{PatientId}/", "d/{orgid}/", "d/{}/", "d/{ orgId }/"])
    def test_an_unknown_variable_is_refused_and_the_known_ones_are_named(self, path):
        with pytest.raises(HealthExConfigurationError, match="not one of its variables") as caught:
            target(path)
        assert all(f"{{{name}}}" in str(caught.value) for name in VARIABLES)

    @pytest.mark.parametrize("path", ["d/{orgId/", "d/orgId}/", "d/{org{Id}}/", "d/{{bucket}}/"])
    def test_a_stray_brace_is_refused(self, path):
        with pytest.raises(HealthExConfigurationError, match="not one of its variables"):
            target(path)

    @pytest.mark.parametrize("path", ["", None, 7, ["d/"], {"d/": 1}, b"d/"])
    def test_a_path_that_is_no_text_is_refused(self, path):
        with pytest.raises(HealthExConfigurationError, match="give the key, the prefix"):
            target(path)

    @pytest.mark.parametrize(
        "path",
        [
            "d/{{orgId}}/",
            "d/{{ projectId }}/",
            "d/{{- healthexPatientId -}}/",
            "d/{{{externalId}}}/",
            "d/${projectId}/",
            "d/$projectId/",
            "d/<orgId>/",
            "d/<{orgId}>/",
            "d/:orgId/",
            "d/:{orgId}/",
            "d/%orgId%/",
        ],
    )
    def test_healthexs_own_template_pasted_is_refused_with_our_spelling(self, path):
        with pytest.raises(HealthExConfigurationError, match=r"single braces.*: \{\w+\}"):
            target(path)

    @pytest.mark.parametrize("edge", ["$", "<", ">", ":"])
    @pytest.mark.parametrize("path", ["d/{{orgId}}{0}/", "d/{0}{{orgId}}/"])
    def test_a_sign_of_another_templates_syntax_beside_a_variable_is_refused(self, path, edge):
        with pytest.raises(HealthExConfigurationError, match=r"single braces|another system's template"):
            target(path.format(edge))

    @pytest.mark.parametrize("path", ["d/$/{orgId}/", "d/a:b/{orgId}/", "d/orgId/{orgId}/"])
    def test_the_same_signs_elsewhere_are_literals(self, path):
        assert target(path).prefix == path.replace("{orgId}", "org-1")

    @pytest.mark.parametrize("path", ["d/{projectId}{healthexPatientId}/", "{orgId}{orgId}"])
    def test_variables_that_touch_are_refused(self, path):
        with pytest.raises(HealthExConfigurationError, match="touches another variable"):
            target(path)

    @pytest.mark.parametrize("path", ["d/{healthexPatientId}{glob}", "d/{glob}{healthexPatientId}/"])
    @pytest.mark.parametrize("glob", ["*", "?", "[ab]"])
    @pytest.mark.parametrize("wildcard", [False, True])
    def test_a_variable_beside_a_glob_is_refused(self, path, glob, wildcard):
        with pytest.raises(HealthExConfigurationError, match="begins or ends alike"):
            target(path.replace("{glob}", glob), wildcard=wildcard)

    def test_a_variable_inside_a_globs_brackets_is_refused(self):
        with pytest.raises(HealthExConfigurationError, match="between '\\[' and '\\]'"):
            target("d/[x-{healthexPatientId}-y]/", wildcard=True)

    def test_brackets_without_a_glob_are_literals(self):
        assert target("d/[x/{healthexPatientId}/y]/").prefix == "d/[x/patient-1/y]/"

    @pytest.mark.parametrize(
        ("path", "named"),
        [
            ("d/{projectId}/", False),
            ("d/{orgId}/x", False),
            ("d/healthexPatientId/", False),
            (PATIENT, True),
            ("{externalId}.json", True),
        ],
    )
    def test_only_two_variables_name_a_patient(self, path, named):
        assert names_patient(path) is named

    def test_a_template_is_text_and_variables_in_turn(self):
        first, variable, last = parse_template("a/{orgId}/b")
        assert (first, variable.name, last) == ("a/", "orgId", "/b")


class TestValues:
    @pytest.mark.parametrize(
        ("name", "how"),
        [
            ("orgId", "org_id"),
            ("projectId", "project_id"),
            ("healthexPatientId", "patient_id"),
            ("externalId", "external_id"),
        ],
    )
    @pytest.mark.parametrize("nothing", [[], [None], [""]])
    def test_a_variable_without_a_value_is_refused_and_its_argument_named(self, name, how, nothing):
        values = dict(zip([name], nothing, strict=False))
        with pytest.raises(HealthExConfigurationError, match=rf"needs \{{{name}\}}.*{how}=") as caught:
            expand(f"d/{{{name}}}/", values)
        assert f"d/{{{name}}}/" in str(caught.value)

    @pytest.mark.parametrize(
        "bad", [*"/*?[]{}", "..", "\x00", "\n", "\r", "\t", "\x1f", "\x7f", "\x80", "\x85", "\x9f"]
    )
    @pytest.mark.parametrize("value", ["{0}", "{0}4711", "4711{0}", "47{0}11"])
    def test_a_value_that_could_leave_its_place_is_refused_and_not_repeated(self, bad, value):
        with pytest.raises(HealthExConfigurationError, match="could leave its place") as caught:
            target(PATIENT, patient=value.format(bad))
        assert repr(bad) in str(caught.value)
        assert not any(part in str(caught.value) for part in ("47", "11"))

    @pytest.mark.parametrize("value", [4711, 47.11, True, b"4711", ["4711"], {"id": "4711"}])
    def test_a_value_that_is_no_text_is_refused_by_its_type(self, value):
        with pytest.raises(HealthExConfigurationError, match=f"is a {type(value).__name__}, no string") as caught:
            target(PATIENT, patient=value)
        assert "4711" not in str(caught.value)

    def test_a_single_dot_is_refused_which_is_the_folder_above_on_a_server_of_files(self):
        with pytest.raises(HealthExConfigurationError, match="could leave its place"):
            target(PATIENT, patient=".")

    @pytest.mark.parametrize("value", ["a.b", ".a", "a-b_c:d", "MRN 4711", "Zoë", "a^b~|", "$1", "%2F"])
    def test_any_other_text_is_taken_as_it_is(self, value):
        assert target(PATIENT, patient=value).prefix == f"d/{value}/"


class TestKinds:
    def test_a_path_that_ends_in_a_slash_is_everything_under_it(self):
        under = target(PATIENT)
        assert (under.kind, under.template) == (Kind.PREFIX, PATIENT)
        assert under.matches("d/patient-1/a/b.json")
        assert not under.matches("d/patient-10/a.json")
        assert not under.matches("d/patient-1")
        assert not under.matches("x/d/patient-1/a.json")

    def test_any_other_path_is_one_key(self):
        key = target("d/{healthexPatientId}.json")
        assert (key.kind, key.prefix) == (Kind.KEY, "d/patient-1.json")
        assert key.matches("d/patient-1.json")
        assert not key.matches("d/patient-1.json.part")
        assert not key.matches("d/patient-1.jso")

    def test_a_glob_lists_under_its_literal_beginning(self):
        glob = target("d/{healthexPatientId}/*.json", wildcard=True)
        assert (glob.kind, glob.prefix, glob.pattern) == (Kind.PATTERN, "d/patient-1/", "d/patient-1/*.json")

    @pytest.mark.parametrize(("path", "kind"), [(PATIENT, Kind.PREFIX), ("d/{healthexPatientId}", Kind.KEY)])
    def test_a_glob_without_a_wildcard_is_what_it_would_be_without(self, path, kind):
        assert target(path, wildcard=True) == target(path)
        assert target(path, wildcard=True).kind is kind

    def test_without_wildcard_match_a_star_is_a_star(self):
        key = target("d/*/{healthexPatientId}.json")
        assert key.kind is Kind.KEY
        assert key.matches("d/*/patient-1.json")
        assert not key.matches("d/x/patient-1.json")

    @pytest.mark.parametrize(
        ("glob", "key", "matches"),
        [
            ("d/*.json", "d/a.json", True),
            ("d/*.json", "d/a/b/c.json", True),
            ("d/*.json", "d/.json", True),
            ("d/*.json", "d/a.JSON", False),
            ("D/*.json", "d/a.json", False),
            ("d/*.json", "d/a.json.part", False),
            ("d/?.json", "d/a.json", True),
            ("d/?.json", "d/ab.json", False),
            ("d/?/a", "d///a", True),
            ("d/[ab].json", "d/a.json", True),
            ("d/[!ab].json", "d/a.json", False),
            ("d/*.json", "d/a\n.json", True),
            ("d/a.b*", "d/aXb", False),
            ("d/*/", "d/a/b.json", True),
            ("d/*/", "d/a/", True),
            ("d/*/", "d/a", False),
            ("d/*/x/", "d/a/b/x/y/z", True),
            ("*", "anything/at/all", True),
        ],
    )
    def test_a_glob_is_fnmatchs_over_the_whole_key(self, glob, key, matches):
        assert expand(glob, {}, wildcard=True).matches(key) is matches


class TestMarkers:
    @pytest.mark.parametrize(
        ("key", "holds"),
        [
            ("d/patient-1/_SUCCESS", True),
            ("d/patient-1/deep/er/_SUCCESS", True),
            ("d/patient-1/_SUCCESS.json", False),
            ("d/patient-1/x_SUCCESS", False),
            ("d/patient-1/_success", False),
            ("d/patient-1/_SUCCESS/x", False),
            ("d/patient-10/_SUCCESS", False),
            ("d/_SUCCESS", False),
        ],
    )
    def test_a_marker_is_a_file_of_that_name_under_the_path(self, key, holds):
        assert target(PATIENT).holds_marker(key, "_SUCCESS") is holds

    @pytest.mark.parametrize(
        ("key", "holds"),
        [
            ("d/patient-1/bundle.done", True),
            ("d/patient-1/.done", True),
            ("d/patient-1/bundle.done.json", False),
            ("d/patient-1/done", False),
            ("d/patient-2/bundle.done", False),
        ],
    )
    def test_a_marker_that_starts_with_a_dot_is_an_ending(self, key, holds):
        assert target(PATIENT).holds_marker(key, ".done") is holds

    @pytest.mark.parametrize(
        ("glob", "key", "holds"),
        [
            ("d/{healthexPatientId}/*.json", "d/patient-1/_SUCCESS", True),
            ("d/{healthexPatientId}/*.json", "d/patient-1/deep/_SUCCESS", True),
            ("d/{healthexPatientId}/*.json", "d/patient-2/_SUCCESS", False),
            ("d/{healthexPatientId}/*.json", "d/_SUCCESS", False),
            ("d/{healthexPatientId}/*/x.json", "d/patient-1/a/_SUCCESS", True),
            ("d/{healthexPatientId}/*/x.json", "d/patient-1/_SUCCESS", False),
            ("d/{healthexPatientId}/*/", "d/patient-1/a/_SUCCESS", True),
            ("d/{healthexPatientId}/*/", "d/patient-1/_SUCCESS", False),
            ("*/{healthexPatientId}/*.json", "x/patient-1/_SUCCESS", True),
            ("*/{healthexPatientId}/*.json", "x/patient-2/_SUCCESS", False),
            ("*.json", "_SUCCESS", True),
            ("*.json", "a/b/_SUCCESS", True),
        ],
    )
    def test_a_globs_marker_lies_where_its_keys_do_and_need_not_match(self, glob, key, holds):
        assert target(glob, wildcard=True).holds_marker(key, "_SUCCESS") is holds

    @pytest.mark.parametrize(
        ("glob", "key"),
        [
            ("d/{healthexPatientId}-*.json", "d/patient-2-a/_SUCCESS"),
            ("d/{healthexPatientId}-*.json", "d/_SUCCESS"),
            ("{healthexPatientId}-*.json", "patient-2-a/_SUCCESS"),
        ],
    )
    def test_a_marker_is_looked_for_under_the_globs_literal_beginning_alone(self, glob, key):
        assert not target(glob, wildcard=True).holds_marker(key, "_SUCCESS")

    def test_another_patients_dotted_marker_is_not_this_ones(self):
        glob = target("d/{healthexPatientId}.*", wildcard=True)
        assert glob.holds_marker("d/patient-1.done", ".done")
        assert not glob.holds_marker("d/patient-2.done", ".done")


class TestParseKey:
    @pytest.mark.parametrize(
        ("path", "key", "found"),
        [
            (PATIENT, "d/p/bundle.json", {"healthexPatientId": "p"}),
            (PATIENT, "d/p/deep/er/bundle.json", {"healthexPatientId": "p"}),
            (PATIENT, "d/p/", {"healthexPatientId": "p"}),
            ("d/{healthexPatientId}.json", "d/p.json", {"healthexPatientId": "p"}),
            ("d/{projectId}/{externalId}/x", "d/1/2/x", {"projectId": "1", "externalId": "2"}),
            ("d/{projectId}-{externalId}/", "d/1-2/x", {"projectId": "1", "externalId": "2"}),
            ("{externalId}/{externalId}.json", "a/a.json", {"externalId": "a"}),
            ("d/fixed/", "d/fixed/x", {}),
        ],
    )
    def test_a_key_tells_its_variables(self, path, key, found):
        assert parse_key(path, key) == found

    @pytest.mark.parametrize(
        ("path", "key"),
        [
            (PATIENT, "d/p"),
            (PATIENT, "d//x"),
            (PATIENT, "x/d/p/x"),
            (PATIENT, "D/p/x"),
            (PATIENT, ""),
            ("d/{healthexPatientId}.json", "d/pXjson"),
            ("d/{healthexPatientId}.json", "d/p.json.part"),
            ("d/{healthexPatientId}.json", "d/p.json\n"),
            ("d/{healthexPatientId}.json", "d/q/p.json"),
            ("{externalId}/{externalId}.json", "a/b.json"),
        ],
    )
    def test_a_strangers_key_tells_nothing(self, path, key):
        assert parse_key(path, key) is None

    @pytest.mark.parametrize("value", ["..", "a..b", "a*", "a?", "[a]", "{a}", "a\nb", "a\x00"])
    def test_a_key_with_an_id_that_no_path_could_take_tells_nothing(self, value):
        assert parse_key(PATIENT, f"d/{value}/x") is None

    @pytest.mark.parametrize(
        ("path", "key", "found"),
        [
            ("d/{externalId}/*.json", "d/p/a/b.json", {"externalId": "p"}),
            ("d/*/{externalId}/x", "d/a/b/p/x", {"externalId": "p"}),
            ("d/?/{externalId}/", "d/a/p/x", {"externalId": "p"}),
            ("d/[ab]/{externalId}/*", "d/b/p/x", {"externalId": "p"}),
            ("d/[*]/{externalId}/", "d/*/p/x", {"externalId": "p"}),
            ("d/*/", "d/a/b", {}),
            ("d/{externalId}/*.json", "d/p/a.xml", None),
            ("d/[!ab]/{externalId}/", "d/b/p/x", None),
            ("d/*a*b/{externalId}/", "d/xaxb/p/", {"externalId": "p"}),
        ],
    )
    def test_a_glob_is_read_as_expand_reads_it(self, path, key, found):
        assert parse_key(path, key, wildcard=True) == found

    @pytest.mark.parametrize(
        ("path", "key", "wildcard"),
        [
            ("d/{projectId}-{externalId}/", "d/1-2-3/x", False),
            ("{projectId}.{externalId}.json", "a.b.c.json", False),
            ("*/{externalId}/*", "d/p/sub/x.json", True),
            ("d/*/{externalId}/*.json", "d/a/p/sub/x.json", True),
            ("d/*/{externalId}/*", "d/x/p/y/p/b.json", True),
        ],
    )
    def test_a_key_that_reads_in_two_ways_is_refused(self, path, key, wildcard):
        with pytest.raises(HealthExConfigurationError, match="in more than one way") as caught:
            parse_key(path, key, wildcard=wildcard)
        assert key not in str(caught.value)

    def test_a_bad_template_is_refused_here_too(self):
        with pytest.raises(HealthExConfigurationError, match="not one of its variables"):
            parse_key("d/{patient}/", "d/p/x")

    def test_what_expand_writes_parse_key_reads(self):
        dice = random.Random(20261122)
        letters = "abcXYZ0189_: é%~"
        paths = [
            "d/{orgId}/{projectId}/{healthexPatientId}/{externalId}/",
            "{projectId}/{healthexPatientId}.json",
            "x-{healthexPatientId}-y/{externalId}",
            "a.b+c(d)/{healthexPatientId}/^$|/",
            "{externalId}/{projectId}/{externalId}/",
        ]
        for path in paths * 60:
            values = {name: "x." + "".join(dice.choices(letters, k=dice.randint(0, 6))) for name in VARIABLES}
            place = expand(path, values)
            key = place.prefix + ("deep/file.json" if place.kind is Kind.PREFIX else "")
            assert parse_key(path, key) == {n: v for n, v in values.items() if f"{{{n}}}" in path}

    @pytest.mark.parametrize(
        ("path", "wildcard"),
        [
            ("{orgId}/", False),
            ("a/{orgId}", False),
            ("{orgId}-{projectId}", False),
            ("{orgId}-b-{projectId}", False),
            ("{orgId}/{orgId}", False),
            ("{orgId}-{projectId}-{orgId}", False),
            ("*/{orgId}/*", True),
            ("*/{orgId}-b", True),
            ("*a*-{orgId}-*", True),
            ("{orgId}-*-{projectId}", True),
            ("?/{orgId}/*/", True),
            ("[!a]/{orgId}/*b", True),
        ],
    )
    def test_a_key_is_read_as_the_only_ids_whose_path_it_matches(self, path, wildcard):
        """Compare with trying out every part of a key for every variable."""
        names = sorted({name for name in VARIABLES if f"{{{name}}}" in path})
        for key in ("".join(letters) for n in range(1, 6) for letters in itertools.product("ab-/", repeat=n)):
            pieces = {key[i:j] for i in range(len(key)) for j in range(i + 1, len(key) + 1)}
            pieces = {piece for piece in pieces if "/" not in piece}
            readings = [
                dict(zip(names, values, strict=True))
                for values in itertools.product(pieces, repeat=len(names))
                if expand(path, dict(zip(names, values, strict=True)), wildcard=wildcard).matches(key)
            ]
            try:
                found = parse_key(path, key, wildcard=wildcard)
            except HealthExConfigurationError:
                # Where stars stand, the same id at two places of a key is refused as well.
                assert len(readings) > 1 or "*" in path, key
            else:
                assert ([found] if found else []) == readings, key
