"""Before a run: compose the config, make the run directory, start the processes. No torch here."""
