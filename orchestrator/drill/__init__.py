"""`tahoe drill`: inject faults into a run, compare it with an undisturbed one."""
