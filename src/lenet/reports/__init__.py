"""HTML pages: the report of a run or a sweep, and the tour of convolution."""
