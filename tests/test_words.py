"""Numbers in words."""

import pytest

from jaxmeta.words import counted


@pytest.mark.parametrize(
    ("count", "told"),
    [(0, "0 support views"), (1, "1 support view"), (2, "2 support views"), (1000, "1,000 support views")],
)
def test_one_is_no_plural(count, told):
    assert counted(count, "support view") == told
