"""Pages: a run, a sweep, the tour."""
