"""The evidence: one record, one HTML page."""
