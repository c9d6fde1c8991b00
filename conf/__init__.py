"""Hydra config groups: the only home of numbers. `tahoe train --cfg job` prints them composed."""
