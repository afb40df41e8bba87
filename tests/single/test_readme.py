"""README.md tells what the committed results say."""

import pytest

from benchmarks import readme


def test_its_tables_are_those_of_the_results() -> None:
    text = (readme.ROOT / "README.md").read_text()
    assert readme.filled(text) == text


def test_a_figure_changed_by_hand_is_found_and_a_table_without_marks_refused() -> None:
    text = (readme.ROOT / "README.md").read_text()
    table = readme.steps()
    assert table in text
    assert readme.filled(text.replace(table, table.replace("ResNet-20 | 0", "ResNet-20 | 9"))) == text
    with pytest.raises(ValueError, match="STEP"):
        readme.filled(text.replace("<!-- STEP -->", ""))
