"""Names below an experiment's folder; nothing is imported here, as a tuner has ten seconds to connect."""

CHECKPOINT = "checkpoint"
"""The folder that NNI keeps for an experiment's tuner. The others are in it."""

STUDENTS, PLANNED, PROGRESS = "students.json", "max_trials.json", "progress.json"
"""The students that a search selected, how many trials were to be started, and how far the search is."""

ERROR, SECRET = "error.txt", "secret"
"""Why a search failed, in one sentence; what parameters are signed with."""

SEARCH = "search"
"""Folder of the search: its scores, rankings and curves."""
