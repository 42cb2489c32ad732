from __future__ import annotations

import pytest

from airflow_provider_healthex.sandbox import patients


@pytest.fixture
def control(call):
    def request(method: str, path: str, **arguments):
        return call(method, f"/_sandbox/{path}", headers={"Authorization": None}, **arguments)

    return request


def test_faults_are_set_and_taken_back(control, call):
    fault = {"endpoint": "update", "kind": "429", "times": 2, "retry_after": 3}
    assert control("POST", "faults", json=fault).status_code == 201
    answer = call.update(patients.IN_PROGRESS)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "3")
    [pending] = control("GET", "state").json()["faults"]
    assert pending["times"] == 1
    assert control("DELETE", "faults").json() == []
    assert call.update(patients.IN_PROGRESS).status_code == 201


@pytest.mark.parametrize(
    "fault", [{}, {"endpoint": "update"}, {"endpoint": "update", "kind": "x"}, {"endpoint": "x", "kind": 500}, [1]]
)
def test_a_fault_that_cannot_be_is_refused_with_the_reason(control, fault):
    answer = control("POST", "faults", json=fault)
    assert answer.status_code == 400
    assert answer.json()["message"]


def test_a_patients_requests_are_listed(control, call, sandbox):
    sandbox.faults.add("update", 500)
    call.update(patients.IN_PROGRESS)
    call.update(patients.IN_PROGRESS)
    body = control("GET", f"patients/{patients.IN_PROGRESS}").json()
    assert (body["asked"], body["accepted"]) == (2, 1)
    assert [(row["status"], row["accepted"]) for row in body["requests"]] == [(500, False), (201, True)]
    assert body["requests"][0]["at"] == sandbox.requests(patients.IN_PROGRESS)[0].at.isoformat()


def test_an_unknown_patient_has_no_requests(control):
    assert control("GET", "patients/nobody").json() == {"asked": 0, "accepted": 0, "requests": []}


def test_it_delivers_without_a_request(control, objects, second):
    answer = control("POST", f"patients/{patients.PARTIAL}/deliver")
    assert answer.json() == {"keys": ["d/project-demo/patient-partial/bundle.json"]}
    assert objects(patients.PARTIAL)["bundle.json"] >= second


def test_it_lets_a_patient_act(control, call, sandbox, objects, second):
    assert control("POST", f"patients/{patients.CONSENT_EXPIRED}/act").status_code == 202
    sandbox.wait_until_delivered()
    assert objects(patients.CONSENT_EXPIRED)["bundle.json"] >= second
    assert call.update(patients.CONSENT_EXPIRED).json()["message"] == "IN_PROGRESS_NO_ACTION_NEEDED"


@pytest.mark.parametrize("what", ["deliver", "act"])
def test_an_unknown_patient_is_not_found(control, what):
    assert control("POST", f"patients/nobody/{what}").status_code == 404


def test_the_state_lists_the_patients(control, call):
    call.update(patients.CONSENT_EXPIRED)
    state = control("GET", "state").json()
    assert set(state["patients"]) == set(patients.SCENARIOS)
    assert state["calls"] == {"update": 1}
    assert state["patients"][patients.CONSENT_EXPIRED] == {
        "external_id": "ext-consent-expired",
        "what_happens": patients.SCENARIOS[patients.CONSENT_EXPIRED].summary,
        "joined": True,
        "acted": False,
        "version": 1,
        "asked": 1,
        "accepted": 0,
    }


def test_a_reset_starts_over(control, call, sandbox):
    sandbox.faults.add("update", 500, times=9)
    call.update(patients.IN_PROGRESS)
    assert control("POST", "reset").status_code == 200
    assert sandbox.asked(patients.IN_PROGRESS) == 0
    assert call.update(patients.IN_PROGRESS).status_code == 201
