"""The local dashboard: a small HTTP server over a Source, and one page drawn with uPlot."""
