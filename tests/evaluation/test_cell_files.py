"""Finished cells on disk, as they were written and as they should not be."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.errors import InputError
from jaxalign.evaluation.grid import OtherOrigin, finished, save
from tests.any_input import VALUES, quick, spoilt_bytes, spoilt_document, value_or_one_line, written

MADE_FROM, RECORDS = {"model": "tiny", "rows": [0, 1]}, [{"row": 0}, {"row": 1}]
CELL = {"made_from": MADE_FROM, "records": RECORDS}


def test_a_cell_is_read_as_it_was_saved(tmp_path):
    save(tmp_path / "cell.json", MADE_FROM, RECORDS)
    assert finished(tmp_path / "cell.json", MADE_FROM) == RECORDS
    with pytest.raises(OtherOrigin, match='made with model="tiny", now "large"'):
        finished(tmp_path / "cell.json", {**MADE_FROM, "model": "large"})


@pytest.mark.parametrize("content", [[], {}, {"made_from": 3, "records": []}, {"made_from": {}, "records": 3}])
def test_what_is_no_cell_is_refused(tmp_path, content):
    with pytest.raises(InputError, match="not a finished cell as it was written"):
        finished(written(tmp_path / "cell.json", json.dumps(content)), MADE_FROM)


@quick
@given((spoilt_document(CELL) | VALUES).map(json.dumps) | st.just(json.dumps(CELL).encode()).flatmap(spoilt_bytes))
def test_cells_of_any_shape(tmp_path, content):
    records = value_or_one_line(finished, written(tmp_path / "cell.json", content), MADE_FROM)
    assert records is None or isinstance(records, list)
