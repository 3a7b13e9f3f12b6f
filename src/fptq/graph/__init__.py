"""The one graph: loading, canonical form, queries."""
