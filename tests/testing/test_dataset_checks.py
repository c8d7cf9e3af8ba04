"""Every rule of datasets is broken once on purpose, and the check says which."""

import pytest

from rlhf_peft.testing import (
    ConformanceError,
    check_dataset,
)

from .support import Nothing


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no rows"),
        ([1], "row 0 is a int"),
        ([{"question": "x"}], "TRL's formats"),
        ([{"prompt": "x"}, {"prompt": "x", "label": 1}], "other columns than row 0"),
    ],
)
def test_a_bad_dataset_is_told(rows, message):
    class Rows:
        Options = Nothing

        def __init__(self, options):
            pass

        def rows(self):
            return rows

    with pytest.raises(ConformanceError, match=message):
        check_dataset(Rows)


def test_a_dataset_that_changes_is_told():
    class Rows:
        Options = Nothing

        def __init__(self, options):
            self.count = 0

        def rows(self):
            self.count += 1
            return [{"prompt": str(self.count)}]

    with pytest.raises(ConformanceError, match="other rows the second time"):
        check_dataset(Rows)
