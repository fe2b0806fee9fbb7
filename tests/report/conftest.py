import pytest
from report_fixture import write_run


@pytest.fixture
def run(tmp_path):
    """The folder of an invented run with every file that a report reads."""
    return write_run(tmp_path / "runs")
