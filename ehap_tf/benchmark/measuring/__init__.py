"""What all benchmarks share: a process for each measurement, records, tables, the subject."""
