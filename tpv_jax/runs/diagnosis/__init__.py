"""Why a prompt does not learn: checks on what a run has written."""
