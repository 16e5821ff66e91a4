"""Command line, recipes, studies, the plan of jobs and the run store."""

import gc

# Hundreds of thousands of objects are made by imports and stay: with Python's threshold of 700 new ones the search for
# garbage goes through them again and again, a sixth of the time until a command begins. Here, for workers of a study
# begin with a module of this room, too.
gc.set_threshold(50_000)
