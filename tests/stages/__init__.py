"""The runner behind `tests/run`: a table of stages (table.py), each a function that runs steps and returns counted results."""
