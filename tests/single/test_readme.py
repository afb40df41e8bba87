"""The documents tell what the committed results say."""

import pytest

from benchmarks import readme


@pytest.mark.parametrize("document", readme.DOCUMENTS)
def test_tables_are_those_of_the_results(document: str) -> None:
    text = (readme.ROOT / document).read_text()
    assert readme.filled(document, text) == text


def test_a_figure_changed_by_hand_is_found_and_a_table_without_marks_refused() -> None:
    text = (readme.ROOT / "docs/performance.md").read_text()
    table = readme.steps("local_step")
    assert table in text
    assert (
        readme.filled("docs/performance.md", text.replace(table, table.replace("ResNet-20 | 0", "ResNet-20 | 9")))
        == text
    )
    with pytest.raises(ValueError, match="STEP"):
        readme.filled("docs/performance.md", text.replace("<!-- STEP -->", ""))
