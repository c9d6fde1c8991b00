"""`tahoe drill`: inject faults into a run, compare it with one left alone."""
