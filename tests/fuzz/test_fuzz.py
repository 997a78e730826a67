"""Changed and hostile files on every reader: no crash, no traceback, no figure that changes without a word, little time and memory."""

import os

import pytest

from tests.fuzz.bombs import BOMBS
from tests.fuzz.harness import READER_NAMES, fuzz, table


def _assert_clean(found):
    assert not [(counts.reader, fault) for counts in found for fault in counts.faults], table(found)


def test_a_few_changed_files_of_every_reader():
    found = fuzz(READER_NAMES, 8)
    _assert_clean(found)
    assert [counts.cases for counts in found] == [8] * len(READER_NAMES)
    assert sum(counts.accepted for counts in found) > 20 and sum(counts.refused for counts in found) > 80


def test_files_made_to_hurt():
    (found,) = fuzz(["bombs"], len(BOMBS))
    _assert_clean([found])
    assert found.cases == len(BOMBS)


@pytest.mark.slow
@pytest.mark.skipif("RDC_FUZZ" not in os.environ, reason="several minutes; RDC_FUZZ=1 runs it (make fuzz)")
def test_thousands_of_changed_files():
    found = fuzz(READER_NAMES, 250)
    _assert_clean(found)
    assert sum(counts.cases for counts in found) >= 5000
