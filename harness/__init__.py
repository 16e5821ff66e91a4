"""Command line, recipes, studies, the plan of jobs and the run store."""
