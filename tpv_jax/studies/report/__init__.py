"""The reports of studies: one module a study, the tables and charts that all of them use."""
