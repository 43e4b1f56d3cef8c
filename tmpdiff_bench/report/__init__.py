"""How numbers, tables, figures and pages look: the one place that formats."""
