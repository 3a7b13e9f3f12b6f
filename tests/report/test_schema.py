from pathlib import Path

from fptq.report.records import Record
from fptq.report.schema import BEGIN, END, renewed, schema_tables

DOCUMENT = Path(__file__).parents[2] / "docs" / "report-schema.md"


def test_the_document_is_in_step_with_the_records():
    text = DOCUMENT.read_text(encoding="utf-8")
    renew = "from pathlib import Path; from fptq.report.schema import renew; renew(Path('docs/report-schema.md'))"
    assert renewed(text) == text, f'Renew it with: python -c "{renew}"'


def test_renewing_keeps_what_was_written_by_hand():
    assert renewed(f"before {BEGIN} old {END} after").startswith(f"before {BEGIN}")
    assert renewed(f"before {BEGIN} old {END} after").endswith(f"{END} after")


def test_every_record_and_every_kind_of_type_is_described():
    tables = schema_tables()
    assert "| `placements` | list of [`PlacementRecord`](#placementrecord) | no |" in tables
    assert "| `latency_ms` | [`Latency`](#latency) or null | no | Time of one run [ms]. |" in tables
    assert "| `per_case` | object: string to number or null | no |" in tables
    assert '| `kind` | `"weight"` or `"activation"` | yes |' in tables
    assert "| `range` | list of 2 (number or null) or null | no |" in tables
    assert tables.count("### ") == len(Record.__subclasses__())
