"""The deliberate mistakes of tests/mutants still fit the code and the tests."""

import pytest
from mutants import run

pytestmark = pytest.mark.once


def test_mutants_fit_the_code_and_name_a_test():
    assert run.check(run.load()) == []


def test_stale_mutant_is_reported():
    kept = run.load()[0]
    stale = kept | {"name": "stale", "search": "text that kgen does not hold"}
    assert "stale: its text occurs 0 times" in run.check([kept, stale])[0]
